"""Damped Picard iteration on best responses: u <- (1 - damping) u + damping BR(u)."""

from __future__ import annotations

from dataclasses import dataclass

from mfoc import tree
from mfoc.checks import check_instance, check_integer, check_positive
from mfoc.errors import InvalidType, InvalidValue
from mfoc.meanfield.equilibrium import Equilibrium, held
from mfoc.particles import Particles
from mfoc.pontryagin import evaluate
from mfoc.problem import Problem
from mfoc.solving import Info, Solver
from mfoc.tree import Tree


@dataclass(frozen=True, eq=False)
class Picard:
    """Solves an ``Equilibrium`` by best responses: the law is held, a player's problem solved, a part of the way gone.

    Undamped (damping 1) it converges where the best response contracts: short horizons or weak interaction. Monotone
    games may need damping (P. Cardaliaguet, S. Hadikhanloo 2017, "Learning in mean field games: the fictitious play",
    ESAIM: COCV 23(2), who damp by 1/k). The best response is an ordinary control problem, so that ``inner`` may compare
    values of J. What is mixed are the controls: a mean of two controls is one of the same class, though for a network's
    weights that is an interpolation and no more.

    Attributes:
        inner: the solver of a player's problem.
        steps: its steps, from the controls of now; it starts without memory each time.
        damping: the share of the way gone, in (0, 1].
    """

    inner: Solver
    steps: int = 10
    damping: float = 0.5

    def __post_init__(self) -> None:
        check_instance(Solver, "a solver such as mfoc.Gradient(...)", inner=self.inner)
        check_integer(1, steps=self.steps)
        check_positive(damping=self.damping)
        if self.damping > 1:
            raise InvalidValue(f"damping is {self.damping}; expected a share of the way, in (0, 1]")

    @property
    def respects_bounds(self) -> bool:
        """Whether the inner solver does: admissible sets are convex, so that a part of the way stays within."""
        return bool(getattr(self.inner, "respects_bounds", False))

    def init(self, problem: Problem, controls: Tree) -> Tree:
        """Nothing is carried from step to step."""
        if not isinstance(problem, Equilibrium):
            raise InvalidType(f"problem is {problem!r}; Picard looks for an equilibrium: mfoc.Equilibrium(problem)")
        return {}

    def step(self, problem: Problem, controls: Tree, state: Tree, particles: Particles) -> tuple[Tree, Tree, Info]:
        """A best response to the law under the controls, and a part of the way to it; see ``mfoc.Solver``."""
        assert isinstance(problem, Equilibrium)
        value, gradient = evaluate(problem, controls, particles)
        player = held(problem, controls, particles)
        response, memory = controls, self.inner.init(player, controls)
        for _ in range(self.steps):
            response, memory, _ = self.inner.step(player, response, memory, particles)
        moved = tree.map(lambda u, v: u + self.damping * (v - u), controls, response)
        if problem.region is not None:
            moved = problem.region.project(moved)  # a mean may be outside by its rounding
        return moved, {}, Info(value, gradient)
