"""The main job on real data: one residual network on handwritten digits, one Problem, five solvers, a certificate.

The data are the 1,797 images of 8 x 8 pixels that ship with scikit-learn.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mfoc import plot, tree
from mfoc.certificate import Certificate, certify
from mfoc.demo import pictures, report
from mfoc.demo.data import DECAY, accuracy, control_problem, digits, network
from mfoc.demo.race import SECONDS, SEEDS, Clock, Contestant, Lap, contestants, laps, warm_up
from mfoc.errors import require
from mfoc.minimisers import LBFGS
from mfoc.particles import Particles
from mfoc.pontryagin import rollout
from mfoc.problem import Problem

__all__ = ["Clock", "Contestant", "Lap", "accuracy", "contestants", "digits", "network", "one_thread", "run"]

_CERTIFIED = "E-MSA"


def run(out: Path, *, seed: int = 0, scale: float = 1.0) -> list[Lap]:
    """Runs the demo: progress and a table on the terminal, three figures in ``out``.

    Args:
        out: folder for the figures, made if absent.
        seed: the first of three seeds, of the split, the network and the batches.
        scale: fraction of the seconds that each solver has.

    Returns:
        What each solver made of its seconds, from each seed.

    Raises:
        MissingExtra: rich, matplotlib or scikit-learn is not installed.
    """
    console = require("rich.console", "plot").Console()
    require("matplotlib.figure", "plot")
    out.mkdir(parents=True, exist_ok=True)  # before the work, not after it
    with one_thread():
        return _run(console, out, seed, scale)


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for PyTorch, for small layers: a second costs more than it brings."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _run(console: Any, out: Path, seed: int, scale: float) -> list[Lap]:
    budget = SECONDS * scale
    train, test = digits(seed)
    problem = control_problem(seed)
    size = sum(leaf.numel() for leaf in tree.leaves(problem.controls))
    _say(
        console,
        f"One control problem: {problem.stages} stages, {size:,} control parameters, {len(train):,} particles "
        f"(digits, 8x8); J = mean cross-entropy + weight decay {DECAY:g}. Each solver has {budget:.3g} s of processor "
        f"from each of {SEEDS} seeds.\n",
    )
    found = _raced(console, seed, budget)
    console.print(report.results(found), highlight=False, markup=False, soft_wrap=True)
    _say(console, f"\n{report.LEGEND}\n\n{report.winners(found)}\n")
    lap = next(lap for lap in found if lap.contestant.name == _CERTIFIED and lap.seed == seed)
    looked_at = problem.controls, lap.solution.controls
    before, after = (_certified(problem, controls, train, scale) for controls in looked_at)
    _say(console, report.reading(_CERTIFIED, seed, budget, before, after) + "\n")
    figures = {
        "demo_loss.png": pictures.race(found, budget),
        "demo_certificate.png": plot.certificate(before, after, names=["initial guess", _CERTIFIED]),
        "demo_cloud.png": plot.cloud(rollout(problem, lap.solution.controls, test), test.data),
    }
    for name, figure in figures.items():
        figure.savefig(out / name)
        console.print(f"figure: {out / name}", highlight=False, markup=False, soft_wrap=True)
    return found


def _raced(console: Any, seed: int, budget: float) -> list[Lap]:
    """The laps, with a bar where there is a terminal to draw it on."""
    warm_up(seed)
    rich = require("rich.progress", "plot")
    found = []
    with rich.Progress(console=console, transient=True, disable=not console.is_terminal) as display:
        task = display.add_task("solving", total=SEEDS * len(contestants()))
        for lap in laps(seed, budget):
            found.append(lap)
            display.update(task, advance=1, description=f"{lap.contestant.name}: J {lap.loss:.3g}")
    return found


def _certified(problem: Problem, controls: Any, train: Particles, scale: float) -> Certificate:
    """A certificate with a short search for lower controls, since a demo should not take a minute to certify."""
    steps = max(2, round(20 * min(1.0, scale)))
    return certify(problem, controls, train, inner=LBFGS(steps=steps), starts=1, lanczos=steps)


def _say(console: Any, text: str) -> None:
    console.print(text, highlight=False, markup=False)
