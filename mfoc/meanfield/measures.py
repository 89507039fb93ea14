"""What an equilibrium costs: the price of anarchy, and how much a player gains by leaving it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from mfoc.checks import check_instance
from mfoc.errors import InvalidType
from mfoc.meanfield.equilibrium import Equilibrium, best_response
from mfoc.meanfield.picard import Picard
from mfoc.pontryagin import evaluate
from mfoc.problem import Problem
from mfoc.solving import Solution, Solver, solve


@dataclass(frozen=True, eq=False)
class PriceOfAnarchy:
    """What selfishness costs; see ``price_of_anarchy``.

    Attributes:
        equilibrium: the mean-field game's solution; its ``value`` is what each player then pays.
        optimum: the control problem's.
    """

    equilibrium: Solution
    optimum: Solution

    @property
    def value(self) -> float:
        """J(equilibrium) / J(optimum); NaN where J(optimum) is not positive, so that a ratio says nothing."""
        return self.equilibrium.value / self.optimum.value if self.optimum.value > 0 else math.nan

    @property
    def difference(self) -> float:
        """J(equilibrium) - J(optimum), whatever their signs."""
        return self.equilibrium.value - self.optimum.value

    def plot(self) -> Any:
        """A figure of both solves: J and the residual, by step and by second.

        Raises:
            MissingExtra: matplotlib is not installed.
        """
        return self.optimum.plot(self.equilibrium, names=["optimum", "equilibrium"])

    def __repr__(self) -> str:
        ratio = "no ratio, since J(optimum) <= 0" if math.isnan(self.value) else f"{self.value:.6g}"
        lower = "; an equilibrium below the optimum: one of them is not solved" if self.difference < 0 else ""
        return (
            f"PriceOfAnarchy({ratio}: J = {self.equilibrium.value:.6g} at the equilibrium (residual "
            f"{self.equilibrium.residual:.3g}), {self.optimum.value:.6g} at the optimum (residual "
            f"{self.optimum.residual:.3g}), difference {self.difference:.3g}{lower})"
        )


def price_of_anarchy(
    problem: Problem, solver: Solver, population: Any, *, steps: int, tol: float | None = None
) -> PriceOfAnarchy:
    """Solves a problem as a game and as a control problem, and compares what the population pays.

    J(u_game) / J(u_control), after R. Carmona, C. V. Graves, Z. Tan (2019), "Price of anarchy for mean field games",
    ESAIM: Proceedings and Surveys 65. Both are local answers of one solver from one initial guess, in one class of
    controls; the residuals say how well each is solved.

    Args:
        problem: the control problem, or its ``Equilibrium``.
        solver: solves both. ``Picard`` knows games only: its inner solver then takes the control problem.
        population: what ``mfoc.population`` takes.
        steps: most steps of each solve.
        tol: of the residual, as in ``mfoc.solve``.

    Raises:
        InvalidType, InvalidValue: as ``mfoc.solve``; or the solver compares values of J.
    """
    game = problem if isinstance(problem, Equilibrium) else Equilibrium(problem)
    equilibrium = solve(game, solver, population, steps=steps, tol=tol)
    alone = solver.inner if isinstance(solver, Picard) else solver
    return PriceOfAnarchy(equilibrium, solve(game.problem, alone, population, steps=steps, tol=tol))


@dataclass(frozen=True, eq=False)
class Exploitability:
    """What a player gains by leaving the others; see ``exploitability``.

    Attributes:
        value: J(u; m_u) - J(v; m_u), at most that of the best v there is; 0 at an equilibrium.
        cost: J(u; m_u), what each pays who does as the others do.
        response: the solve that found v.
    """

    value: float
    cost: float
    response: Solution

    def plot(self) -> Any:
        """A figure of the solve that found the response: J falls below what each pays by the exploitability.

        Raises:
            MissingExtra: matplotlib is not installed.
        """
        return self.response.plot(names=["best response"])

    def __repr__(self) -> str:
        return (
            f"Exploitability({self.value:.3g} of a cost of {self.cost:.6g}; the response was solved to a residual of "
            f"{self.response.residual:.3g})"
        )


def exploitability(
    problem: Problem, controls: Any, solver: Solver, population: Any, *, steps: int, tol: float | None = None
) -> Exploitability:
    """How much one player can save while the others, and so the law, stay as they are.

        J(u; m_u) - min_v J(v; m_u)

    after S. Perrin et al. (2020), "Fictitious play for mean field games: continuous time analysis and applications",
    NeurIPS, sec. 2. The minimum is over the problem's own class of controls, and what the solver finds: a lower bound.

    Args:
        problem: the control problem, or its ``Equilibrium``.
        controls: u; or a solution or iterate that has them.
        solver: any solver of control problems; it starts at u.
        population: the cloud, or what ``mfoc.population`` takes, all of it.
        steps: most steps of the solver.
        tol: of the residual, as in ``mfoc.solve``.

    Raises:
        InvalidType, InvalidValue: as ``best_response`` and ``mfoc.solve``.
    """
    check_instance(Solver, "a solver such as mfoc.Gradient(...)", solver=solver)
    if isinstance(solver, Picard):
        raise InvalidType("solver is a Picard, which looks for an equilibrium; expected its inner solver")
    player = best_response(problem, controls, population)
    cost = float(evaluate(player, player.controls, population).value)
    response = solve(player, solver, population, steps=steps, tol=tol)
    return Exploitability(cost - response.value, cost, response)
