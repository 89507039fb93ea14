"""How near games come to their closed forms, and what an equilibrium costs beside the control problem.

    python -m tests.benchmarks.bench_meanfield

Particles: a scalar LQ game (``tests.problems.scalar_game``), 200 particles, each solver from zero controls; the
distance is the largest between its controls and those of ``mfoc.lq.equilibrium``. MSA, undamped, diverges there; that
is printed, too.

A gradient of the equilibrium beside one of the control problem: thread-CPU time, in turns, the median ratio. The law
is evaluated alike, and not differentiated.

Grid: the coupled HJB and Fokker-Planck equations of an LQ game and control problem with noise, by nodes and steps, and
how far J and the mean at the end are from the closed forms; the largest error of the mass.
"""

import statistics
import time
from functools import partial

import torch

import mfoc
from mfoc.lq import equilibrium
from tests.meanfield.test_density import START, exact, linear_quadratic
from tests.problems import D, distance, normal, scalar_game

ROUNDS = 60
LBFGS = mfoc.Gradient(
    partial(torch.optim.LBFGS, line_search_fn="strong_wolfe", max_iter=30, tolerance_grad=1e-14, tolerance_change=0)
)
SOLVERS = {
    "Gradient(SGD, lr=0.1)": (mfoc.Gradient(partial(torch.optim.SGD, lr=0.1)), 300),
    "EMSA(adaptive=False)": (mfoc.EMSA(adaptive=False), 100),
    "Picard(LBFGS, damping=0.5)": (mfoc.meanfield.Picard(LBFGS, steps=1), 40),
    "MSA()": (mfoc.MSA(), 40),
}


def particles():
    lq, x = scalar_game(), normal(200, 1) + 1
    game, closed = mfoc.Equilibrium(lq.problem()), equilibrium(lq, x.mean(0)).controls
    for name, (solver, steps) in SOLVERS.items():
        begin = time.thread_time()
        found = mfoc.solve(game, solver, x, steps=steps, tol=1e-13)
        seconds = time.thread_time() - begin
        off = distance(torch.stack(found.controls), closed)
        print(
            f"{name:28s} {found.last.step:4d} steps {seconds:6.2f} s CPU: residual {found.residual:.1e}, "
            f"distance {off:.1e} ({found.status.value})"
        )
    start = x.mean(0), torch.cov(x.mT, correction=0)[None, None]
    found = mfoc.price_of_anarchy(lq.problem(), SOLVERS["Gradient(SGD, lr=0.1)"][0], x, steps=300, tol=1e-13)
    exactly = equilibrium(lq, *start, shared=True).value / lq.value(*start, shared=True)
    print(f"price of anarchy {found.value:.12f}, in closed form {float(exactly):.12f}")


def cost_of_a_gradient():
    problem, x = scalar_game().problem(), normal(20_000, 1) + 1
    contenders = {"control": problem, "game": mfoc.Equilibrium(problem)}
    times = {name: [] for name in contenders}
    for _ in range(ROUNDS):
        for name, contender in contenders.items():
            begin = time.thread_time()
            mfoc.evaluate(contender, problem, x)
            times[name].append(time.thread_time() - begin)
    ratio = statistics.median(a / b for a, b in zip(times["game"], times["control"], strict=True))
    print(f"a gradient of the game / one of the control problem, 20,000 particles: {ratio:.2f} of the CPU time")


def grid():
    lq = exact()
    closed = equilibrium(lq, *START)
    expected = {"equilibrium": (closed.value, closed.states), "optimum": (lq.value(*START), lq.path(START[0]).states)}
    for n, steps in ((51, 25), (101, 50), (101, 100), (101, 200), (201, 200)):
        problem = linear_quadratic(n, steps)
        for name, (value, states) in expected.items():
            begin = time.thread_time()
            found = getattr(problem, name)(damping=0.8)
            seconds = time.thread_time() - begin
            end = float((problem.x * found.density[-1]).sum() * problem.h) - float(states[-1])
            mass = float((found.density.sum(1) * problem.h - 1).abs().max())
            print(
                f"{n:4d} nodes {steps:4d} steps, {name:11s}: J off by {found.value - float(value):.1e}, mean at T by "
                f"{end:.1e}, mass by {mass:.0e}; {found.iterations} iterations, {seconds:.1f} s CPU"
            )


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.set_default_dtype(D)
    print(f"{torch.get_num_threads()} thread, torch {torch.__version__}")
    particles()
    cost_of_a_gradient()
    grid()
