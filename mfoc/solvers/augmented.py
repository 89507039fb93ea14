"""Constraints by an augmented Lagrangian, around any solver."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mfoc import tree
from mfoc.checks import check_instance, check_integer, check_positive
from mfoc.distributed import alone
from mfoc.errors import InvalidType, InvalidValue
from mfoc.lagrangian import Lagrangian, Values, check_same, constraint_values
from mfoc.particles import Particles
from mfoc.pontryagin import Evaluation, evaluate
from mfoc.populations.whole import whole
from mfoc.problem import Problem
from mfoc.solving import Info, Solver
from mfoc.tree import Tree

logger = logging.getLogger(__name__)

_GROWTH, _ENOUGH = 10.0, 0.5  # of the penalty, where the violation has not fallen to that share
_HOPELESS, _MOST = 1e8, 1e12  # penalties at which the constraints are doubted, and beyond which there are no digits
_SHARE = 0.1  # of the residual, violation included, to which the solver minimises


@dataclass(frozen=True)
class AugmentedLagrangian:
    """Solves a problem with ``terminal`` and ``path`` constraints: the method of multipliers around another solver.

    A step minimises the augmented Lagrangian by the solver, from where it is, to a tenth of the residual, and
    updates the multipliers; the penalty grows where the violation has not halved (Birgin & Martinez 2014, "Practical
    augmented Lagrangian methods for constrained optimization", algorithm 4.1; Nocedal & Wright 2006, sec. 17.4). The
    class of control is that of the problem and the solver.

    ``Info.gradient`` is that of the Lagrangian; the residual that ``tol=`` is compared with has the violation in it,
    sqrt(E |c|^2) with what complementarity lacks. ``certify`` takes the solution, with its multipliers.

    Every particle holds its own multipliers, so the population is taken whole, in one order. Over ranks each of them
    makes every step, on the particles of all: nothing is won by more of them.

    Attributes:
        solver: what minimises: ``mfoc.EMSA()``, ``mfoc.NewtonCG()``, ``mfoc.Gradient(...)``, any ``Solver``.
        steps: most steps of it between two updates of the multipliers.
        penalty: the first penalty, per particle. None: such that its term is ten times J.
    """

    solver: Solver
    steps: int = 50
    penalty: float | None = None

    def __post_init__(self) -> None:
        check_instance(Solver, "a solver, such as mfoc.EMSA() or mfoc.Gradient(...)", solver=self.solver)
        if isinstance(self.solver, AugmentedLagrangian):
            raise InvalidType("solver is an AugmentedLagrangian already; expected what minimises inside")
        check_integer(1, steps=self.steps)
        check_positive(penalty=self.penalty, optional=True)

    @property
    def respects_bounds(self) -> bool:
        """Whether the solver inside keeps controls within the problem's bounds."""
        return bool(getattr(self.solver, "respects_bounds", False))

    @property
    def meets_constraints(self) -> bool:
        """It does."""
        return True

    def init(self, problem: Problem, controls: Tree) -> Tree:
        """Multipliers and penalty, None until the first step has seen the particles."""
        if not problem.constrained:
            raise InvalidValue(
                "the problem has no constraint to meet: solve it by the solver inside, or give it some, "
                "Problem(..., terminal=mfoc.Equality(c))"
            )
        self.solver.init(problem, controls)  # what it refuses is refused before the first step
        return {"multipliers": None, "penalty": None, "violation": None, "index": None}

    def step(self, problem: Problem, controls: Tree, state: Tree, particles: Particles) -> tuple[Tree, Tree, Info]:
        """One minimisation and one update of the multipliers; see ``mfoc.Solver``."""
        particles = whole(particles)
        with alone():
            return self._step(problem, controls, state, particles)

    def _step(self, problem: Problem, controls: Tree, state: Tree, particles: Particles) -> tuple[Tree, Tree, Info]:
        values = _values(problem, controls, particles)
        value, gradient = evaluate(problem, controls, particles)
        if state["multipliers"] is None:
            held = Lagrangian.start(problem, values, self._first(float(value), values))
            state = {**state, "index": particles.index}
        else:
            check_same(state["index"], particles, state["multipliers"], values)
            held = Lagrangian(problem, state["multipliers"], state["penalty"])
            gradient = self._slope(held, controls, particles)
        violation = held.violation(values)
        projected = None if problem.region is None else problem.region.stationary(controls, gradient)
        info = Info(value, gradient, {"penalty": held.penalty}, projected, violation)
        moved, taken, minimal = self._minimised(held, controls, particles, _SHARE * info.residual)
        info.extra["inner_steps"] = taken
        values = _values(problem, moved, particles)
        reached = held.violation(values)
        after = held.updated(values)
        # Short of the minimum (few steps, rounding) a larger penalty would only make it harder to reach.
        grows = minimal and state["violation"] is not None and reached > _ENOUGH * violation
        penalty = held.penalty * (_GROWTH if grows else 1.0)
        if grows and penalty >= _HOPELESS > held.penalty:
            logger.warning(
                "the penalty is %.0e and the violation still %.2g: can the constraints be met?", penalty, reached
            )
        kept = {"multipliers": after.multipliers, "penalty": min(penalty, _MOST), "violation": reached}
        return moved, {**kept, "index": state["index"]}, info

    def evaluate(self, problem: Problem, controls: Tree, state: Tree, particles: Particles) -> Evaluation:
        """J, and the gradient of the Lagrangian."""
        particles = whole(particles)
        with alone():
            value, gradient = evaluate(problem, controls, particles)
            if state["multipliers"] is not None:
                gradient = self._slope(Lagrangian(problem, state["multipliers"], 0.0), controls, particles)
        return Evaluation(value, gradient)

    def violation(self, problem: Problem, controls: Tree, state: Tree, particles: Particles) -> float:
        """How far the constraints are from being met."""
        particles = whole(particles)
        with alone():
            values = _values(problem, controls, particles)
            if state["multipliers"] is None:
                return Lagrangian.start(problem, values, 1.0).violation(values)
            return Lagrangian(problem, state["multipliers"], state["penalty"]).violation(values)

    def _first(self, value: float, values: Values) -> float:
        """The first penalty (Birgin & Martinez 2014, sec. 12.4)."""
        if self.penalty is not None:
            return self.penalty
        square = sum(tree.floats([each.square().sum(-1).mean() for each in values]))
        return min(max(10 * max(1.0, abs(value)) / max(1.0, square / 2), 1e-6), 1e6)

    def _minimised(self, held: Lagrangian, controls: Tree, particles: Particles, tol: float) -> tuple[Tree, int, bool]:
        """Where the solver has minimised the augmented Lagrangian, in how many steps, and whether to the tolerance."""
        problem, cloud = held.augmented(), held.particles(particles)
        state = self.solver.init(problem, controls)
        for k in range(self.steps):
            moved, state, info = self.solver.step(problem, controls, state, cloud)
            norm = tree.norm(problem.projected(controls, info.gradient))
            value, residual, left = tree.floats([info.value, norm, _moved(controls, moved).to(norm)])
            if not math.isfinite(value) or not math.isfinite(residual):
                return controls, k, False  # the loop looks for what is not finite, and says where
            if residual <= tol:
                return controls, k, True
            if not left:
                return controls, k + 1, False  # as far as rounding lets it
            controls = moved
        return controls, self.steps, False

    def _slope(self, held: Lagrangian, controls: Tree, particles: Particles) -> Tree:
        """The gradient of the Lagrangian, its multipliers fixed."""
        plain = Lagrangian(held.problem, held.multipliers, 0.0)
        return evaluate(plain.augmented(), controls, plain.particles(particles)).gradient


@torch.no_grad()
def _moved(before: Tree, after: Tree) -> Tensor:
    """Whether any number of the controls has changed, a boolean scalar."""
    pairs = zip(tree.leaves(before), tree.leaves(after), strict=True)
    return torch.stack([(old != new).any() for old, new in pairs]).any()


@torch.no_grad()
def _values(problem: Problem, controls: Tree, particles: Particles) -> Values:
    return constraint_values(problem, controls, particles)
