"""What every paradigm returns, and how installed paradigms are found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import mfoc
from mfoc import InvalidType, InvalidValue

_GROUP = "mfoc.paradigms"


@dataclass(frozen=True)
class Formulation:
    """A paradigm written as a control problem.

    Attributes:
        problem: the control problem.
        population: what it is solved on.
        readout: ``readout(solution)`` is the solution (or an iterate, or controls) in the paradigm's own terms.
    """

    problem: mfoc.Problem
    population: mfoc.Population
    readout: Callable[[Any], Any]

    def __post_init__(self) -> None:
        if not isinstance(self.problem, mfoc.Problem):
            raise InvalidType(f"problem is a {type(self.problem).__name__}; expected mfoc.Problem")
        if not isinstance(self.population, mfoc.Population):
            raise InvalidType(
                f"population is a {type(self.population).__name__}; expected what mfoc.population(...) returns"
            )
        if not callable(self.readout):
            raise InvalidType(f"readout is a {type(self.readout).__name__}; expected a function of the solution")

    def solve(self, solver: mfoc.Solver, *, steps: int, **options: Any) -> mfoc.Solution:
        """``mfoc.solve`` on this problem and population.

        Args:
            solver: the solver.
            steps: how many steps.
            **options: of ``mfoc.solve``: ``tol``, ``hooks``, ``start``.
        """
        return mfoc.solve(self.problem, solver, self.population, steps=steps, **options)


def controls_of(solution: Any) -> Any:
    """The controls of a solution or an iterate, the initial ones of a problem, or the controls themselves.

    Raises:
        InvalidType: it is none of these.
    """
    if isinstance(solution, mfoc.Solution | mfoc.Iterate | mfoc.Problem):
        return solution.controls
    if isinstance(solution, list | tuple | dict):
        return solution
    raise InvalidType(
        f"solution is a {type(solution).__name__}; expected what solve() returned, an iterate or controls"
    )


def available() -> list[str]:
    """The names of the installed paradigms: entry points of the group "mfoc.paradigms"."""
    return sorted({point.name for point in _points()})


def load(name: str) -> Any:
    """Imports an installed paradigm.

    Args:
        name: one of ``available()``.

    Returns:
        What its entry point names: a module of functions that return formulations.

    Raises:
        InvalidValue: no such paradigm is installed.
    """
    for point in _points():
        if point.name == name:
            return point.load()
    raise InvalidValue(f"no paradigm {name!r} is installed; available: {', '.join(available()) or 'none'}")


def _points() -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=_GROUP))
