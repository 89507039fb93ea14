"""Every solver on one problem of each class of control, beside ipopt: what J it reaches and what that takes.

    python -m tests.benchmarks.bench_agreement                # some minutes
    python -m tests.benchmarks.bench_agreement LQ "swarm"     # these problems

Solvers are compared within a class only: one control for the cloud ("shared"), one for each particle, feedback, the
weights of a network. Thread-CPU seconds on one thread, the first call of each solver left out on the small problems;
"calls" are those of the dynamics (a solver that batches stages makes fewer, and Newton's products are none). Steps stop
at a residual of 1e-8, or at the budget in ``tests/agreement.py``.
"""

import logging
import sys

import torch

import mfoc
from tests.agreement import ENTRIES
from tests.robots import in_torch

LINE = "{:14s} {:18s} {:14s} {:>17s} {:>9s} {:>6s} {:>7s} {:>9s}  {}"


def table(names):
    print(LINE.format("class", "problem", "solver", "J", "residual", "steps", "calls", "CPU s", "ended"))
    for entry in (ENTRIES[name] for name in names):
        if entry.answer is not None:
            entry.answer(entry.make())
            told = entry.answer(entry.make())
            steps, seconds = "", ""
            if told.iterations is not None:
                steps, seconds = str(told.iterations), f"{told.seconds:.4f}"
            print(LINE.format(entry.kind, entry.name, told.name, f"{told.value:.12g}", "", steps, "", seconds, ""))
        for solver in entry.solvers:
            row = entry.row(solver)
            numbers = f"{row.value:.12g}", f"{row.residual:.1e}", str(row.solution.last.step), str(row.calls)
            ended = row.solution.status.value
            print(LINE.format(entry.kind, entry.name, solver, *numbers, f"{row.seconds:.2f}", ended), flush=True)


def main():
    torch.set_num_threads(1)
    logging.getLogger("mfoc").setLevel(logging.ERROR)  # what diverges is a line of the table
    print(f"torch {torch.__version__}, 1 thread")
    problem, cloud = in_torch("unicycle")
    for solver in (mfoc.DDP(), mfoc.NewtonCG()):  # what is imported at the first derivative takes seconds
        mfoc.solve(problem, solver, cloud, steps=1)
    table(sys.argv[1:] or ENTRIES)


if __name__ == "__main__":
    main()
