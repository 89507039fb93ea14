"""Newton's method in a trust region: second order where a Riccati recursion over the stages is out of reach."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from mfoc import tree
from mfoc.bounds import Region
from mfoc.checks import check_flag, check_integer, check_positive
from mfoc.distributed import expectation
from mfoc.particles import Particles
from mfoc.pontryagin import rollout
from mfoc.problem import Problem
from mfoc.solvers.expansion import Expansion, expand
from mfoc.solvers.projected import Boxed
from mfoc.solvers.steihaug import Descent, steihaug
from mfoc.solving import Info
from mfoc.tree import Tree

_TRIES = 12  # steps tried from one place, each in a smaller region
_ENOUGH = 1e-4  # share of the predicted reduction of J with which a step is accepted
_POOR, _GOOD = 0.25, 0.75  # the share below which the region shrinks, above which it grows
_LOOSE = 0.5  # largest share of the slope at which conjugate gradients end
_ROUNDINGS = 10.0  # by how many, of E |cost|, a difference of two J may be off


@dataclass(frozen=True)
class NewtonCG:
    """Trust-region Newton with conjugate gradients, on all controls together.

    The step makes J's quadratic model small within a ball (Steihaug 1983; Nocedal & Wright 2006, "Numerical
    Optimization", alg. 4.1 and 7.2): the Hessian is met in products alone, each a backward pass through the backward
    pass of the roll-out, whose graph is kept for as long as the step lasts. Directions of negative curvature are
    followed to the boundary. A step is accepted where J falls by a share of what the model predicts, both plus what
    rounding may make of J (Conn, Gould & Toint 2000, "Trust-Region Methods", sec. 17.4.2); else the ball shrinks and
    the step is sought again, with no new gradient.

    Conjugate gradients end at the share of the slope by which the last model's slope was wrong (Eisenstat & Walker
    1996, choice 1), at most a half: convergence is superlinear, and a quadratic J takes two steps.

    Class of control: what the problem says, any of them. One control shared by the cloud, per stage or tied; one for
    each particle (``Problem.per_particle``); the parameters of a policy (``mfoc.feedback``). Particles may interact.
    A ``Box`` (``Problem.bounds``) is kept as by Lin & More (1999): a Cauchy point on the projected path, conjugate
    gradients on the free entries, a projected search. Other sets are refused; EMSA and MSA respect them.

    On minibatches model and acceptance are those of the batch, so that a step lowers J on its batch and noise is not
    averaged out: batches should be large. Only the radius, and by how much the last model was wrong, are carried on.

    Attributes:
        radius: of the first ball, in the norm of all controls. None: as long as the first Newton step where no negative
            curvature is met, else 1 + ||u||.
        products: most products in a search of a step.
        gauss_newton: leave out the curvature of the dynamics: products with M' C M, M what linearises the states in the
            controls and C the Hessian of the costs in states and controls. It is positive semi-definite where the costs
            are convex; convergence is superlinear only where the costs' slopes vanish at the solution or the dynamics
            are affine. With a scheme of ``mfoc.continuous`` other than Euler's, the running cost holds the drift within
            a step, and C its curvature.
    """

    radius: float | None = None
    products: int = 100
    gauss_newton: bool = False

    respects_bounds: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_positive(radius=self.radius, optional=True)
        check_integer(1, products=self.products)
        check_flag(gauss_newton=self.gauss_newton)

    def init(self, problem: Problem, controls: Tree) -> Tree:
        """The radius, None until the first step; the slopes' norms before and, by the model, after the last step."""
        problem.check_potential("NewtonCG's trust region")
        if problem.region is not None:
            Region(problem.region.sets).limits(tree.leaves(controls))  # refuses other sets before the first step
        return {"radius": self.radius, "slope": None, "expected": None}

    def step(self, problem: Problem, controls: Tree, state: Tree, particles: Particles) -> tuple[Tree, Tree, Info]:
        """One gradient, and the products of one search or, where steps are refused, of several; see ``mfoc.Solver``.

        Raises:
            InvalidValue: an operation of the problem cannot be differentiated twice, or bounds are no ``Box``.
        """
        model = expand(problem, controls, particles, gauss_newton=self.gauss_newton)
        place = _Place(problem, controls, particles, model, _box(problem, controls, model))
        gradient = place.tree_of(model.slope)
        finite = model.value.isfinite() & model.slope.isfinite().all()
        good, size = tree.floats([finite.to(model.slope.dtype), tree.length(place.stationary())])
        if not good:
            return controls, state, Info(model.value, gradient)  # the solve ends here, and says where it came from
        moved, radius, expected, report = self._search(place, state["radius"] or math.inf, self._share(size, state))
        known = None if math.isinf(radius) else radius
        report["radius"] = math.nan if known is None else known
        return moved, {"radius": known, "slope": size, "expected": expected}, Info(model.value, gradient, report)

    def _share(self, size: float, state: dict[str, Any]) -> float:
        """Of the slope, at which conjugate gradients end: Eisenstat & Walker (1996), eq. (2.1)."""
        before, expected = state["slope"], state["expected"]
        return _LOOSE if not before or expected is None else min(_LOOSE, abs(size - expected) / before)

    def _search(self, place: _Place, radius: float, share: float) -> tuple[Tree, float, float | None, dict[str, float]]:
        """New controls, the next radius, the norm of the slope that the model expects there, and what was done."""
        report: dict[str, float] = {"products": 0, "tries": 0, "accepted": 0, "negative_curvature": 0}
        for _ in range(_TRIES):
            found = place.descend(radius, share, self.products)
            report["products"] += found.products
            report["negative_curvature"] += found.curved
            if found.curved and math.isinf(radius):
                radius = 1.0 + float(tree.length(place.point))
                continue
            trial = place.tried(found)
            if trial.length == 0:
                break
            report["tries"] += 1
            radius = _resized(trial.length if math.isinf(radius) else radius, trial.length, trial.agreement)
            if trial.agreement > _ENOUGH:
                report["accepted"] = 1
                return trial.controls, radius, trial.slope, report
        return place.controls, radius, None, report


@dataclass(frozen=True, eq=False)
class _Trial:
    """A step that was tried.

    Attributes:
        controls: where it leads.
        length: its norm.
        agreement: by how much J falls, as a share of what the model says; -inf where it is not finite.
        slope: the norm of the slope that the model expects there.
    """

    controls: Tree
    length: float
    agreement: float
    slope: float


@dataclass(frozen=True, eq=False)
class _Place:
    """Where a step starts, and what is known of J there."""

    problem: Problem
    controls: Tree
    particles: Particles
    model: Expansion
    box: Boxed | None

    @property
    def point(self) -> Tensor:
        """The controls as one vector ``[n]``."""
        return tree.ravel(self.controls).detach().to(self.model.slope.dtype)

    def tree_of(self, vector: Tensor) -> Tree:
        """A vector ``[n]`` in the shape and dtype of the controls."""
        held = tree.leaves(self.controls)
        return tree.rebuild(self.controls, [part.to(held[0].dtype) for part in tree.pieces(vector, held)])

    def controls_after(self, step: Tensor) -> Tree:
        """The controls to which a step ``[n]`` leads."""
        return self.tree_of(self.point + step if self.box is None else self.box.landed(step))

    def descend(self, radius: float, share: float, products: int) -> Descent:
        """A step that makes the model small."""
        share = max(share, math.sqrt(torch.finfo(self.model.slope.dtype).eps))  # no product is more exact by far
        if self.box is not None:
            return self.box.descend(radius, share=share, products=products)
        return steihaug(self.model.slope, self.model.product, radius, share=share, products=products)

    def stationary(self, found: Descent | None = None) -> Tensor:
        """The model's slope ``[n]`` here or after a step, without what presses against bounds."""
        slope = self.model.slope if found is None else self.model.slope + found.image
        if self.box is None:
            return slope
        return self.box.projected_slope(slope, self.point if found is None else self.box.landed(found.step))

    def tried(self, found: Descent) -> _Trial:
        """What J says of a step; the host waits once for all of it."""
        trial, model = self.controls_after(found.step), self.model
        with torch.no_grad():
            cost = rollout(self.problem, trial, self.particles).cost.mean()
        reached = expectation([cost], len(self.particles))[0]
        change = model.slope @ found.step + found.step @ found.image / 2
        norms = [tree.length(found.step), tree.length(self.stationary(found))]
        length, slope, after, before, size, fall = tree.floats([*norms, reached, model.value, model.size, -change])
        if length == 0 or not math.isfinite(after):
            return _Trial(trial, length, -math.inf, slope)
        rounding = _ROUNDINGS * torch.finfo(cost.dtype).eps * size
        return _Trial(trial, length, (before - after + rounding) / (fall + rounding), slope)


def _box(problem: Problem, controls: Tree, model: Expansion) -> Boxed | None:
    """The model within the problem's bounds; None where all controls are free."""
    if problem.region is None:
        return None
    held, wide = tree.leaves(controls), model.slope.dtype
    low, high = (bound.to(wide) for bound in Region(problem.region.sets).limits(held))
    return Boxed(tree.ravel(controls).detach().to(wide), model.slope, model.product, low, high)


def _resized(radius: float, length: float, agreement: float) -> float:
    """The next radius, after a step of some length: Nocedal & Wright (2006), alg. 4.1."""
    if agreement < _POOR:
        return min(radius, length) / 4
    return max(radius, 2 * length) if agreement > _GOOD else radius
