"""Every way out of a solve leaves a checkpoint of the last good iterate, and all hooks told and closed."""

from __future__ import annotations

import inspect
import random
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import mfoc
from tests.soak.children import Child
from tests.soak.known import known
from tests.soak.results import Outcome, Size
from tests.soak.solves import NAMES, STEPS, Witness, made, resumed_like


class Own(Exception):
    """An error of the user's own."""


def in_the_source(problem: Any, source: Any, at: int, error: type[BaseException]) -> tuple[Any, Any, list[Any]]:
    """The population fails."""

    def failing(step: int) -> mfoc.Particles:
        if step == at:
            raise error("on purpose")
        return source(step)

    return problem, failing, []


def in_the_problem(problem: Any, source: Any, at: int, error: type[BaseException]) -> tuple[Any, Any, list[Any]]:
    """The terminal cost fails, at any of its calls."""
    under_way: list[bool] = []

    def cost(x: Any, z: Any) -> Any:
        if under_way:
            raise error("on purpose")
        return problem.terminal_cost(x, z)

    def begin(iterate: mfoc.Iterate) -> None:
        if iterate.step == at:
            under_way.append(True)

    return replace(problem, terminal_cost=cost), source, [begin]


def in_a_hook(problem: Any, source: Any, at: int, error: type[BaseException]) -> tuple[Any, Any, list[Any]]:
    """A hook fails, before others had their turn."""

    def fails(iterate: mfoc.Iterate) -> None:
        if iterate.step == at:
            raise error("on purpose")

    return problem, source, [fails]


class Ending:
    """A hook of which one of the other methods fails."""

    def __init__(self, method: str, error: type[BaseException]) -> None:
        self._method, self._error = method, error

    def _maybe(self, method: str) -> None:
        if method == self._method:
            raise self._error("on purpose")

    def __call__(self, iterate: mfoc.Iterate) -> None:
        """Does nothing."""

    def start(self, steps: int) -> None:
        self._maybe("start")

    def finish(self, solution: mfoc.Solution) -> None:
        self._maybe("finish")

    def close(self) -> None:
        self._maybe("close")


def at_the_finish(problem: Any, source: Any, at: int, error: type[BaseException]) -> tuple[Any, Any, list[Any]]:
    """A hook's finish() fails."""
    return problem, source, [Ending("finish", error)]


def at_the_close(problem: Any, source: Any, at: int, error: type[BaseException]) -> tuple[Any, Any, list[Any]]:
    """A hook's close() fails."""
    return problem, source, [Ending("close", error)]


WAYS: dict[str, Callable[..., tuple[Any, Any, list[Any]]]] = {
    "source": in_the_source,
    "problem": in_the_problem,
    "hook": in_a_hook,
    "finish": at_the_finish,
    "close": at_the_close,
}
ERRORS: dict[str, type[BaseException]] = {"Own": Own, "MemoryError": MemoryError, "SystemExit": SystemExit}


def run(size: Size) -> Outcome:
    """Every way out with every kind of error, at random steps."""
    draw, outcome = random.Random(size.seed), Outcome("ways out")
    for turn in range(size.ends):
        name = NAMES[turn % len(NAMES)]
        for way in WAYS:
            for error in ERRORS:
                at = draw.randrange(2, STEPS[name] - 1)
                child = Child(ended, name, way, error, at, known(name).digests)
                code, what = child.end(), f"{name}, {error} by the {way} at step {at}"
                outcome.trials += 1
                outcome.expect(code == 0, f"{what}: exit code {code}")
                outcome.faults += [f"{what}: {fault}" for fault in child.result or []]
    return outcome


def ended(_send: Any, name: str, way: str, error: str, at: int, digests: dict[int, str]) -> list[str]:
    """What is wrong with how a solve ended, and with what it left."""
    problem, solver, source = made(name)
    problem, population, hooks = WAYS[way](problem, source, at, ERRORS[error])
    faults, witness = [], Witness()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        others = [mfoc.hooks.Checkpoint(path, every=1_000), witness]
        if not isinstance(population, mfoc.Population):
            population = mfoc.population(population)
        try:
            mfoc.solve(problem, solver, population, steps=STEPS[name], hooks=[*hooks, *others])
            faults.append("no error was raised")
        except BaseException as raised:
            if not isinstance(raised, ERRORS[error]):
                faults.append(f"{type(raised).__name__} was raised: {raised}")
        solved = way in ("finish", "close")  # then there is a solution
        if witness.called != ["finish" if solved else f"failed at {at}", "close"]:
            faults.append(f"of another hook these were called: {witness.called}")
        if not path.exists():
            return [*faults, "there is no checkpoint"]
        step = mfoc.hooks.load(path).step
        last = STEPS[name] if solved else at
        if step != last:
            faults.append(f"the checkpoint is of step {step}, the last good one is {last}")
        with torch.no_grad():
            # The failing parts make it another problem or population by name, and the same by its numbers.
            known = "allow_changes" in inspect.signature(mfoc.solve).parameters
            fault = resumed_like(name, path, digests, **({"allow_changes": True} if known else {}))
    return [*faults, fault] if fault else faults
