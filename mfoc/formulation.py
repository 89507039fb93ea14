"""A learning paradigm written as a control problem: the problem, its population, and how a solution is read back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic

from mfoc.certificate import Certificate, certify
from mfoc.checks import check_callable, check_instance
from mfoc.populations import Population
from mfoc.problem import Controls, HasControls, Problem
from mfoc.solving import Solution, Solver, solve

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    Reading = TypeVar("Reading", default=Any)
else:
    from typing import TypeVar

    Reading = TypeVar("Reading")


@dataclass(frozen=True, eq=False)
class Formulation(Generic[Controls, Reading]):
    """A paradigm written as a control problem.

    Attributes:
        problem: the control problem.
        population: what it is solved on.
        readout: ``readout(solution)`` is the solution (or an iterate, or controls) in the paradigm's own terms.
    """

    problem: Problem[Controls]
    population: Population
    readout: Callable[[HasControls[Controls] | Controls], Reading]

    def __post_init__(self) -> None:
        check_instance(Problem, "mfoc.Problem", problem=self.problem)
        check_instance(Population, "what mfoc.population(...) returns", population=self.population)
        check_callable("a function of the solution", readout=self.readout)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.problem} on {self.population})"

    def solve(self, solver: Solver, *, steps: int, **options: Any) -> Solution[Controls]:
        """``mfoc.solve`` on this problem and population, with its options (``tol``, ``hooks``, ``start``, ...)."""
        return solve(self.problem, solver, self.population, steps=steps, **options)

    def certify(self, controls: HasControls[Controls] | Controls, **settings: Any) -> Certificate:
        """``mfoc.certify`` on this problem and population, with its settings."""
        return certify(self.problem, controls, self.population, **settings)
