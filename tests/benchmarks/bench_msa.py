"""One E-MSA step on 20 equal residual layers against a loop over the layers with scipy's L-BFGS-B.

    python -m tests.benchmarks.bench_msa [--digits FILE]

Both sides minimise the same augmented Hamiltonians from the same sweep with at most 10 iterations, in float64 on one
thread, interleaved in one process. The loop is what the reference implementation of Li, Chen, Tai, E (2018) does: one
L-BFGS-B a layer, gradients by autograd. Reported: the ratio of the median times, and the mean value both reach.

Then E-MSA as it is by default against ten inner iterations: J after equal thread-CPU times, steps of both interleaved,
on that network and on a stiff linear-quadratic problem, with what a fixed rho = 1 does there.

Last, the thread-CPU seconds to a given J, medians over seeds, on that network and on digits (full batch, a tanh MLP):
E-MSA beside Adam and torch's L-BFGS, a step of each in turn. The digits are those of ``--digits FILE`` (an .npz with
``images`` and ``labels``), else scikit-learn's, else made of ten clusters. Run on two commits it compares them.
"""

import argparse
import statistics
import time
from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from scipy.optimize import minimize

import mfoc
from mfoc.blocks import Penalty
from mfoc.frozen import Sweep
from mfoc.minimisers import LBFGS
from tests.benchmarks.timing import interleaved, machine, report

STAGES, NODES, SAMPLES, STEP = 20, 5, 100, 0.25


def toy(seed=0):
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return 2 * torch.rand(*shape, generator=generator, dtype=torch.float64) - 1

    x = torch.pi * uniform(SAMPLES, 1)
    controls = [{"W": 0.3 * uniform(NODES, NODES), "b": 0.3 * uniform(NODES)} for _ in range(STAGES)]
    problem = mfoc.continuous(
        lambda t, x, u, z: torch.tanh(x @ u["W"].mT + u["b"]),
        lambda x, z: (x.sum(1) - z).square(),
        controls,
        running_cost=lambda t, x, u, z: ((5e-4 / STEP) * (u["W"].square().sum() + u["b"].square().sum())).expand(
            len(x)
        ),
        T=STAGES * STEP,
        autonomous=True,
    )
    return problem, mfoc.Particles(x.repeat(1, NODES), x[:, 0].sin())


def by_mfoc(inner_blocks):
    solver = LBFGS(steps=10)
    return np.concatenate([solver.minimise(block.evaluate, block.start).value.numpy() for block in inner_blocks])


def by_scipy(layers):
    values = []
    for block in layers:

        def value_and_slope(u, block=block):
            row = torch.from_numpy(u)[None].requires_grad_()
            value = block.per_particle(row).mean()
            (slope,) = torch.autograd.grad(value, row)
            return value.item(), slope[0].numpy()

        found = minimize(value_and_slope, block.start[0].numpy(), jac=True, method="L-BFGS-B", options={"maxiter": 10})
        values.append(found.fun)
    return np.array(values)


def stiff_lq(stages=20, number=50):
    """x' = x + B u with costs |x|^2 + .1 |u|^2, whose smallest rho that does not blow up is far above 1."""
    b = torch.randn(4, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    problem = mfoc.Problem(
        lambda t, x, u, z: x + u @ b.mT,
        lambda x, z: x.square().sum(1),
        [torch.zeros(2, dtype=torch.float64) for _ in range(stages)],
        running_cost=lambda t, x, u, z: x.square().sum(1) + 0.1 * u.square().sum(),
        kind=lambda t: "step",
    )
    start = torch.randn(number, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 2
    return problem, mfoc.Particles(start)


def raced(problem, cloud, solvers, seconds):
    """J of each solver after each of some thread-CPU times, a step of each in turn."""
    streams = [mfoc.iterate(problem, solver, cloud) for solver in solvers]
    spent, at, reached = [0.0] * len(solvers), [None] * len(solvers), [[] for _ in solvers]
    while any(len(found) < len(seconds) for found in reached):
        k = min(range(len(solvers)), key=spent.__getitem__)
        start = time.thread_time()
        at[k] = next(streams[k])
        spent[k] += time.thread_time() - start
        while len(reached[k]) < len(seconds) and spent[k] >= seconds[len(reached[k])]:
            reached[k].append(float(mfoc.evaluate(problem, at[k], cloud).value))
    return reached


def race():
    solvers = {"3 inner iterations": mfoc.EMSA(), "10": mfoc.EMSA(inner=LBFGS(10))}
    for label, (problem, cloud) in (("network", toy()), ("stiff LQ", stiff_lq())):
        seconds = (0.5, 1.0, 2.0, 4.0)
        for name, found in zip(solvers, raced(problem, cloud, solvers.values(), seconds), strict=True):
            line = "   ".join(f"{s:g} s {value:.5g}" for s, value in zip(seconds, found, strict=True))
            print(f"E-MSA on {label}, {name}: J after {line}")
    fixed = mfoc.solve(problem, mfoc.EMSA(1.0, adaptive=False), cloud, steps=300)
    print(f"E-MSA on stiff LQ, fixed rho = 1: {fixed.status.value}; {fixed.message}")


def images(path):
    """Inputs and labels: of the file, of scikit-learn, or of ten clusters."""
    if path:
        held = np.load(path)
        x = torch.from_numpy(held["images"][:1500]).float()[:, None] / 255
        return torch.nn.functional.avg_pool2d(x, 2).flatten(1), torch.from_numpy(held["labels"][:1500]).long()
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        generator = torch.Generator().manual_seed(0)
        y = torch.arange(1500) % 10
        return torch.randn(10, 64, generator=generator)[y] + torch.randn(1500, 64, generator=generator), y
    x, y = load_digits(return_X_y=True)
    return torch.from_numpy(x[:1500]).float() / 16, torch.from_numpy(y[:1500]).long()


def digits(path, seed, layers=3, width=32):
    x, y = images(path)
    x = (x - x.mean()) / x.std()
    torch.manual_seed(seed)
    sizes = [x.shape[1], *[width] * (layers - 1), 10]
    parts = [part for a, b in pairwise(sizes) for part in (torch.nn.Linear(a, b), torch.nn.Tanh())]
    loss = partial(torch.nn.functional.cross_entropy, reduction="none")
    return mfoc.from_module(torch.nn.Sequential(*parts[:-1]), loss), mfoc.Particles(x, y)


def seconds_to(problem, cloud, solvers, levels, budget):
    """Thread-CPU seconds of each solver until J is at most each of some levels, a step of each in turn."""
    streams = [mfoc.iterate(problem, solver, cloud) for solver in solvers]
    spent, found = [0.0] * len(solvers), [[float("inf")] * len(levels) for _ in solvers]
    while min(spent) < budget:
        k = min(range(len(solvers)), key=spent.__getitem__)
        before, start = spent[k], time.thread_time()
        value = float(next(streams[k]).info.value)  # J before the step
        spent[k] += time.thread_time() - start
        found[k] = [min(old, before) if value <= level else old for level, old in zip(levels, found[k], strict=True)]
    return found


def table(path, seeds=3, budget=2.0):
    lbfgs = partial(torch.optim.LBFGS, line_search_fn="strong_wolfe", max_iter=5)
    solvers = {
        "E-MSA": mfoc.EMSA(),
        "Adam(.01)": mfoc.Gradient(partial(torch.optim.Adam, lr=0.01)),
        "L-BFGS": mfoc.Gradient(lbfgs),
    }
    for name, make, levels in (
        ("sine", toy, (1.0, 0.5, 0.3, 0.2, 0.1, 0.05, 0.03)),
        ("digits", partial(digits, path), (1.5, 1.0, 0.5, 0.3, 0.2, 0.1, 0.05)),
        ("digits, 8 layers", partial(digits, path, layers=8), (2.0, 1.5, 1.0, 0.7, 0.5)),
    ):
        runs = [seconds_to(*make(seed=seed), solvers.values(), levels, budget) for seed in range(seeds)]
        print(f"{name}: thread-CPU s to J = " + "  ".join(f"{level:6g}" for level in levels))
        for k, label in enumerate(solvers):
            medians = [statistics.median(run[k][i] for run in runs) for i in range(len(levels))]
            print(f"    {label:18s}" + "  ".join(f"{seconds:6.3f}" for seconds in medians))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--digits", help="an .npz file with images [N, 28, 28] and labels [N]")
    path = parser.parse_args().digits
    torch.empty(8_000_000).fill_(0.0)  # the allocator then keeps what is freed
    torch.set_num_threads(1)
    print(machine())
    problem, cloud = toy()
    alone = replace(problem, kind=None)  # no two stages are known alike, so that none are stacked
    sweeps = [Sweep.at(each, problem.controls, cloud) for each in (problem, alone)]
    for label, penalty in (("MSA", None), ("E-MSA", Penalty(1.0, 1.0))):
        stacked, layers = (sweep.blocks(penalty) for sweep in sweeps)
        sides = {"scipy loop": partial(by_scipy, layers), "mfoc": partial(by_mfoc, stacked)}
        times = interleaved(sides, rounds=10)
        name = f"{label}, minimisation over 20 layers of 5 nodes"
        report(name, times.ratio("scipy loop", "mfoc"), of="scipy loop", to="mfoc", headline=label == "E-MSA")
        ours, theirs = by_mfoc(stacked).mean(), by_scipy(layers).mean()
        print(f"{label}: mean value {ours:.6g} against {theirs:.6g}")
    race()
    table(path)


if __name__ == "__main__":
    main()
