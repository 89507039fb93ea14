"""Many steps, and many solves: memory grows by the history and by nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from sys import getsizeof
from typing import Any

import torch

import mfoc
from tests.soak.children import Child
from tests.soak.results import Outcome, Size
from tests.soak.solves import made

SLACK = 2.0  # MiB that an allocator may keep
ROUNDED = 0.15  # of the history: what an allocator adds to each of its small parts


def run(size: Size) -> Outcome:
    """Growth is counted from a tenth of the way on, when everything has been allocated once."""
    outcome = Outcome("memory")
    for name, function, count in (("steps", many_steps, size.steps), ("solves", many_solves, size.solves)):
        child = Child(function, count)
        outcome.expect(child.end() == 0, f"{count} {name}: the process died")
        if child.result is None:
            continue
        growth, history = child.result
        allowed = SLACK + ROUNDED * history
        outcome.trials += 1
        outcome.figures |= {name: count, f"MiB more in {name}": growth, f"of it history, {name}": history}
        fault = f"{count} {name}: {growth:.1f} MiB more, of which {history:.1f} are history"
        outcome.expect(growth - history <= allowed, fault)
    return outcome


def resident() -> float:
    """MiB that this process holds."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def many_steps(_send: Callable[[Any], None], steps: int) -> tuple[float, float]:
    """MiB from a tenth of the steps to the last, and how much the records of these steps take."""
    x = torch.randn(32, 3, generator=torch.Generator().manual_seed(0))
    problem = mfoc.from_module(torch.nn.Linear(3, 3), torch.nn.functional.mse_loss)
    solver = mfoc.Gradient(partial(torch.optim.Adam, lr=1e-3))
    seen = mfoc.hooks.Record(lambda iterate: resident(), every=max(1, steps // 10))
    source = mfoc.population((x, x.roll(1, 1)), batch_size=8)
    solution = mfoc.solve(problem, solver, source, steps=steps, hooks=[seen])
    parts = [part for record in solution.history[seen.steps[0] :] for part in (record, *record.values())]
    return seen.values[-1] - seen.values[0], (sum(map(getsizeof, parts)) + 8 * steps) / 2**20


def many_solves(_send: Callable[[Any], None], solves: int) -> tuple[float, float]:
    """MiB from a tenth of the solves to the last, which have no history in common."""
    held = []
    for turn in range(solves):
        problem, solver, source = made(("Adam", "EMSA")[turn % 2])
        mfoc.solve(problem, solver, source, steps=6)
        held.append(resident())
    return held[-1] - held[max(1, solves // 10)], 0.0
