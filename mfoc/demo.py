"""The main job on real data: one residual network on handwritten digits, one Problem, several solvers, a certificate.

The data are the 1,797 images of 8 x 8 pixels that ship with scikit-learn.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mfoc import hooks, plot, tree
from mfoc.certificate import certify
from mfoc.errors import require
from mfoc.minimisers import LBFGS, Descent
from mfoc.networks import Residual, from_module, to_module, weight_decay
from mfoc.particles import Particles
from mfoc.pontryagin import evaluate, rollout
from mfoc.populations import population
from mfoc.seeding import seeded
from mfoc.solvers import EMSA, MSA, Gradient
from mfoc.solving import Solution, Solver, solve

_WIDTH, _DEPTH, _STEP, _DECAY = 64, 4, 0.5, 1e-3


@dataclass(frozen=True)
class Contestant:
    """A solver and its budget."""

    name: str
    solver: Solver
    batch_size: int
    steps: int


@dataclass(frozen=True)
class Result:
    """What became of it."""

    contestant: Contestant
    solution: Solution
    record: hooks.Record
    loss: float
    residual: float
    accuracy: float


def contestants() -> list[Contestant]:
    """The solvers of the demo."""
    return [
        Contestant("SGD", Gradient(partial(torch.optim.SGD, lr=0.1, momentum=0.9)), 128, 480),
        Contestant("Adam", Gradient(partial(torch.optim.Adam, lr=3e-3)), 128, 480),
        Contestant("MSA (descent)", MSA(Descent(lr=0.1, steps=10)), 128, 240),
        Contestant("MSA (L-BFGS)", MSA(LBFGS(steps=10)), 512, 12),
        Contestant("E-MSA", EMSA(), 512, 60),
    ]


def digits(seed: int) -> tuple[Particles, Particles]:
    """Training and test digits (four fifths and one fifth of each class), pixels in [0, 1]."""
    data = require("sklearn.datasets", "data").load_digits()
    split = require("sklearn.model_selection", "data").train_test_split
    parts = split(data.data / 16, data.target, test_size=0.2, stratify=data.target, random_state=seed)
    x, x_test, y, y_test = (torch.as_tensor(part, device="cpu") for part in parts)
    return Particles(x.float(), y), Particles(x_test.float(), y_test)


class _Layer(nn.Sequential):
    """Layers that make one stage."""


def network(seed: int) -> nn.Sequential:
    """A residual network of one lifting layer, four Euler steps and a linear read-out."""
    with seeded(seed):
        blocks = [Residual(_Layer(nn.Linear(_WIDTH, _WIDTH), nn.Tanh()), _STEP) for _ in range(_DEPTH)]
        return nn.Sequential(_Layer(nn.Linear(64, _WIDTH), nn.Tanh()), *blocks, nn.Linear(_WIDTH, 10))


def run(out: Path, *, seed: int = 0, scale: float = 1.0) -> list[Result]:
    """Runs the demo: progress and a table on the terminal, three figures in ``out``.

    Args:
        out: folder for the figures, made if absent.
        seed: of the split, the network and the batches.
        scale: fraction of the steps to run.
    """
    console = require("rich.console", "plot").Console()
    out.mkdir(parents=True, exist_ok=True)  # before the work, not after it
    require("matplotlib.figure", "plot")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the layers are small: a second thread costs more than it brings
    try:
        return _run(console, out, seed, scale)
    finally:
        torch.set_num_threads(threads)


def _run(console: Any, out: Path, seed: int, scale: float) -> list[Result]:
    train, test = digits(seed)
    net = network(seed)
    problem = from_module(net, F.cross_entropy, running_cost=weight_decay(_DECAY))
    size = sum(leaf.numel() for leaf in tree.leaves(problem.controls))
    console.print(
        f"One control problem: {problem.stages} stages, {size:,} control parameters, {len(train):,} particles "
        f"(digits, 8x8); J = mean cross-entropy + weight decay {_DECAY:g}"
    )
    results = []
    with hooks.progress_display() as display:
        for contestant in contestants():
            steps = max(1, round(contestant.steps * scale))
            source = population(train, batch_size=contestant.batch_size, seed=seed)
            record = hooks.Record(
                lambda it: float(evaluate(problem, it.controls, train).value), every=max(1, steps // 60)
            )
            progress = hooks.Progress(contestant.name, display=display)
            solution = solve(problem, contestant.solver, source, steps=steps, hooks=[record, progress])
            value, gradient = evaluate(problem, solution.controls, train)
            seen = float(value), float(tree.norm(gradient)), accuracy(to_module(net, solution.controls), test)
            results.append(Result(contestant, solution, record, *seen))
    _table(console, results)
    best = max(results, key=lambda result: (result.accuracy, -result.loss))
    first = certify(problem, problem.controls, train)
    final = certify(problem, best.solution.controls, train)
    console.print(f"\nThe most accurate is {best.contestant.name}.\n{final}", highlight=False, soft_wrap=True)
    curves = {r.contestant.name: (r.record.seconds, r.record.values) for r in results}
    figures = {
        "demo_loss.png": plot.curves(curves, y_label="train objective J", title="Digits: one Problem, five solvers"),
        "demo_certificate.png": plot.certificate(first, final, names=["initial guess", best.contestant.name]),
        "demo_cloud.png": plot.cloud(rollout(problem, best.solution.controls, test), test.data),
    }
    for name, figure in figures.items():
        figure.savefig(out / name)
        console.print(f"figure: {out / name}")
    return results


def accuracy(net: nn.Module, particles: Particles) -> float:
    """The fraction of particles that a network puts in the right class."""
    with torch.no_grad():
        right: Tensor = net(particles.state).argmax(1) == particles.data
    return float(right.double().mean())


def _table(console: Any, results: list[Result]) -> None:
    rich = require("rich.table", "plot")
    table = rich.Table(title="One Problem, five solvers")
    for column in ("solver", "steps", "batch", "time [s]", "train J", "residual", "test acc."):
        table.add_column(column, justify="left" if column == "solver" else "right")
    for r in results:
        budget = str(r.solution.last.step), str(r.contestant.batch_size), f"{(r.record.seconds or [0.0])[-1]:.1f}"
        found = f"{r.loss:.4g}", f"{r.residual:.2g}", f"{100 * r.accuracy:.1f} %"
        table.add_row(r.contestant.name, *budget, *found)
    console.print(table)
    console.print(
        "J and the Pontryagin residual ||E dH/du|| are over all training particles; the time is the solver's alone. "
        "MSA (descent) takes 10 gradient steps on H a sweep. MSA (L-BFGS) minimises H with nothing to keep states and "
        "costates feasible, which Li et al. (2018) report to diverge; E-MSA penalises the infeasibility. A sweep of "
        "either costs as much as many gradient steps: compare the times, not the steps."
    )
