"""Implicit MAML: the fast weights settle at an equilibrium, and its adjoint is solved by conjugate gradients.

    phi* = argmin_phi L_S(phi) + strength / 2 ||phi - phi_0||^2
    dL_Q(phi*)/dphi_0 = p,   (I + H / strength) p = grad L_Q(phi*),   H the Hessian of L_S at phi*

Rajeswaran, Finn, Kakade, Levine (2019), arXiv:1909.04630, eq. (3) and (6). Neither the path to the equilibrium nor its
length enters the adjoint, so that memory does not grow with the inner steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

import mfoc
from mfoc import InvalidType, InvalidValue, deprecation, tree
from mfoc.checks import check_between, check_integer, check_non_negative, check_positive
from mfoc.derivatives import gradients
from paradigms.meta.formulations import MetaFormulation, assemble, checked_controls
from paradigms.meta.loop import Loop, Pair, TaskObjective
from paradigms.meta.losses import Loss, TaskLoss
from paradigms.meta.stacked import StackedNetwork, Weights
from paradigms.meta.task_laws import as_tasks, check_tasks
from paradigms.reporting import Estimate, student_interval


@deprecation.renamed(inner="objective")
@dataclass(frozen=True)
class Equilibrium:
    """The settled fast weights of each task.

    Attributes:
        objective: losses and slopes.
        strength: the weight of the proximal term.
        steps: gradient steps towards the equilibrium.
        rate: their step size.
        cg_steps: steps of conjugate gradients for the adjoint.
        cg_tol: a task's solve ends when its residual has fallen by this factor.
    """

    objective: TaskObjective
    strength: float
    steps: int
    rate: float
    cg_steps: int
    cg_tol: float

    def __call__(self, fast: Weights, body: Weights, pair: Pair, steps: int | None = None) -> Weights:
        """From phi_0 ``[tasks, ...]`` to the equilibrium; in another number of steps, where it is given."""
        if any(leaf.requires_grad for leaf in pair):
            raise InvalidValue("the equilibrium of imaml is not differentiated in the tasks' data; detach them")
        settled = _Settle.apply((self, pair, tuple(fast)), steps, *fast.values())
        return dict(zip(fast, settled, strict=True))

    @torch.no_grad()
    def settle(self, start: Weights, pair: Pair, steps: int | None = None) -> Weights:
        """Gradient descent on the regularised support loss."""
        phi = dict(start)
        for _ in range(self.steps if steps is None else steps):
            slopes = self.objective.slopes(phi, {}, pair)
            phi = {
                name: leaf - self.rate * (slopes[name] + self.strength * (leaf - start[name]))
                for name, leaf in phi.items()
            }
        return phi

    def solve(self, phi: Weights, g: Sequence[Tensor], pair: Pair) -> list[Tensor]:
        """The solution p of (I + H / strength) p = g, each task on its own, by conjugate gradients."""
        right = [leaf.detach() for leaf in g]
        return _conjugate_gradients(self.operator(phi, pair), right, self.cg_steps, self.cg_tol)

    def operator(self, phi: Weights, pair: Pair) -> Callable[[list[Tensor]], list[Tensor]]:
        """The map of v to (I + H / strength) v, the Hessian at phi."""
        with torch.enable_grad():
            free = {name: tree.free(leaf) for name, leaf in phi.items()}
            slopes = list(self.objective.slopes(free, {}, pair).values())
        leaves = list(free.values())

        def apply(v: list[Tensor]) -> list[Tensor]:
            bent = gradients(slopes, leaves, v, retain_graph=True)
            return [a + b / self.strength for a, b in zip(v, bent, strict=True)]

        return apply


def _conjugate_gradients(apply: Any, g: list[Tensor], steps: int, tol: float) -> list[Tensor]:
    """Conjugate gradients for all tasks at once, each with coefficients of its own (Hestenes & Stiefel 1952).

    A task whose residual is small, or whose direction has no positive curvature, stays where it is: the equilibrium is
    no minimum then. When that is so of the first direction, p = g, as if H were 0 (Nocedal & Wright 2006, algorithm
    7.1); ``residuals`` reports it.
    """
    p, r, d = [torch.zeros_like(a) for a in g], list(g), list(g)
    rr = tree.dot(r, r)
    goal = rr * tol * tol
    for k in range(steps):
        if bool((rr <= goal).all()):
            break
        bent = apply(d)
        curvature = tree.dot(d, bent)
        moving = (rr > goal) & (curvature > 0)
        a = torch.where(moving, rr / curvature, 0.0)
        if k == 0:
            p = _plus(p, ((rr > goal) & (curvature <= 0)).to(a.dtype), g)
        p, r = _plus(p, a, d), _plus(r, -a, bent)
        fresh = tree.dot(r, r)
        d = _plus(r, torch.where(moving, fresh / rr, 0.0), d)
        rr = torch.where(moving, fresh, torch.minimum(fresh, goal))
    return p


def _relative(left: list[Tensor], right: list[Tensor]) -> Tensor:
    """||left|| / ||right|| of each task ``[tasks]``; 0 for 0 / 0."""
    size = tree.dot(left, left)
    return torch.where(size == 0, size, size / tree.dot(right, right)).sqrt()


def _plus(x: list[Tensor], a: Tensor, y: list[Tensor]) -> list[Tensor]:
    return [u + a.view(-1, *[1] * (v.dim() - 1)) * v for u, v in zip(x, y, strict=True)]


_Given = tuple[Equilibrium, Pair, tuple[str, ...]]  # the names are those of the weights


class _Settle(Function):
    @staticmethod
    def forward(ctx: Any, given: _Given, steps: int | None, *start: Tensor) -> Any:
        spec, pair, names = ctx.given = given
        settled = spec.settle(dict(zip(names, start, strict=True)), pair, steps)
        ctx.save_for_backward(*settled.values())
        return tuple(settled.values())

    @staticmethod
    def backward(ctx: Any, *g: Tensor) -> Any:
        return None, None, *_Solve.apply(ctx.given, *g, *ctx.saved_tensors)


class _Solve(Function):
    """The adjoint, itself differentiable once: the operator is symmetric, so its derivative is one more solve."""

    @staticmethod
    def forward(ctx: Any, given: _Given, *tensors: Tensor) -> Any:
        spec, pair, names = ctx.given = given
        g, phi = tensors[: len(names)], tensors[len(names) :]
        found = spec.solve(dict(zip(names, phi, strict=True)), g, pair)
        ctx.save_for_backward(*phi, *found)
        return tuple(found)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *h: Tensor) -> Any:
        spec, pair, names = ctx.given
        phi, p = ctx.saved_tensors[: len(names)], ctx.saved_tensors[len(names) :]
        q = spec.solve(dict(zip(names, phi, strict=True)), h, pair)
        with torch.enable_grad():
            free = [tree.free(leaf) for leaf in phi]
            slopes = spec.objective.slopes(dict(zip(names, free, strict=True)), {}, pair)
            bent = gradients(list(slopes.values()), free, p, create_graph=True)
            found = gradients(bent, free, q)
        return None, *q, *(-leaf / spec.strength for leaf in found)


def imaml(
    net: nn.Module,
    loss: Loss | nn.Module,
    tasks: Any,
    *,
    inner_steps: int,
    inner_lr: float,
    strength: float,
    cg_steps: int = 5,
    cg_tol: float = 1e-6,
) -> MetaFormulation:
    """Implicit MAML: see the head of this module. One stage lifts the control, one jumps to the equilibrium.

    The adjoint is that of the exact equilibrium: it is as good as the inner solve and the conjugate gradients are near
    their limits.

    Args beside those of ``maml``:
        inner_steps: gradient steps towards the equilibrium (16 in the paper).
        inner_lr: their step size.
        strength: lambda, the weight of the proximal term (2 in the paper).
        cg_steps: steps of conjugate gradients (5 in the paper).
        cg_tol: relative residual at which they end.

    Raises:
        InvalidType, InvalidValue: see ``maml``; an operation without a second derivative; steps that diverge:
            inner_lr * strength of 2 and more, or a first batch on which they raise the regularised loss.
    """
    check_positive(inner_lr=inner_lr, strength=strength)
    if inner_lr * strength >= 2:
        raise InvalidValue(
            f"inner_lr * strength is {inner_lr} * {strength} = {inner_lr * strength:g}; steps towards the equilibrium "
            f"multiply the way back to phi_0 by 1 - inner_lr * strength and diverge from 2 on: inner_lr below "
            f"{2 / strength:g}"
        )
    check_integer(1, inner_steps=inner_steps, cg_steps=cg_steps)
    check_non_negative(cg_tol=cg_tol)
    model = StackedNetwork(net)
    objective = TaskObjective(model, TaskLoss(loss))
    settle = Equilibrium(objective, strength, inner_steps, inner_lr, cg_steps, cg_tol)
    loop = Loop(objective, tuple(model.names), settle=settle)
    controls = {"phi": model.initial()}

    def remake(steps: int) -> mfoc.Problem:
        return replace(loop, settle=replace(settle, steps=steps)).problem(controls, 1, None)

    made = assemble(loop, controls, tasks, 1, adapt_steps=inner_steps, inner_lr=inner_lr, remake=remake)
    _check_descent(loop, settle, controls, made.population(0).data)
    return made


def _check_descent(loop: Loop, settle: Equilibrium, controls: Any, z: Any) -> None:
    """Refuses steps that climb: step sizes beyond 2 / (strength + curvature of the loss)."""
    start, pair = loop.lift(controls["phi"], z)["fast"], z["support"]
    with torch.no_grad():
        settled = settle.settle(start, pair)
        away = [settled[name] - leaf for name, leaf in start.items()]
        before = settle.objective.value(start, {}, pair)
        after = settle.objective.value(settled, {}, pair) + settle.strength / 2 * tree.dot(away, away)
    if not bool(after.mean() <= before.mean()):
        raise InvalidValue(
            f"{settle.steps} steps of inner_lr {settle.rate:g} take the regularised support loss of the first batch "
            f"from {float(before.mean()):.4g} to {float(after.mean()):.4g}; gradient descent diverges where inner_lr "
            f"exceeds 2 / (strength + curvature of the loss), strength {settle.strength:g}: take a smaller inner_lr"
        )


@dataclass(frozen=True)
class Residuals:
    """How exact the equilibria of implicit MAML and their adjoints are, relative, 0 is exact; print it.

    Attributes:
        equilibrium: the slope of the regularised support loss where the inner steps end, relative to where they began.
        adjoint: the residual of the conjugate gradients, relative to the right-hand side.
        worst: the largest of both over the tasks.
    """

    equilibrium: Estimate
    adjoint: Estimate
    worst: tuple[float, float]

    def __repr__(self) -> str:
        return (
            f"relative residuals: equilibrium {self.equilibrium}, at worst {self.worst[0]:.3g}; "
            f"adjoint {self.adjoint}, at worst {self.worst[1]:.3g}"
        )


def residuals(formulation: MetaFormulation, solution: Any, tasks: Any = None, *, confidence: float = 0.95) -> Residuals:
    """How exact the gradient of implicit MAML is: more inner steps lower the first residual, ``cg_steps`` the second.

    Args:
        formulation: what ``imaml`` returned.
        solution: the solution, an iterate, controls, or the problem for its initial controls.
        tasks: what ``imaml`` takes; the formulation's own when None. Batch 0 is measured.
        confidence: level of the intervals.

    Raises:
        InvalidType: a formulation that has no equilibrium.
        InvalidValue: a solution or tasks that do not belong to it, no level of confidence.
    """
    controls = checked_controls(formulation, solution)
    check_between(0, 1, confidence=confidence)
    settle = formulation.loop.settle
    if not isinstance(settle, Equilibrium):
        raise InvalidType("formulation has no equilibrium; expected what paradigms.meta.imaml returns")
    loop, z = formulation.loop, check_tasks((formulation.population if tasks is None else as_tasks(tasks))(0)).data
    loop.check(controls, z)
    start, support = loop.lift(controls["phi"], z)["fast"], z["support"]
    settled = {name: leaf.requires_grad_() for name, leaf in settle.settle(start, support).items()}
    with torch.no_grad():
        first, last = (settle.objective.slopes(phi, {}, support) for phi in (start, settled))
        pulled = [last[name] + settle.strength * (settled[name] - start[name]) for name in start]
    with torch.enable_grad():
        value = settle.objective.value(settled, {}, z["query"]).sum()
        g = gradients(value, list(settled.values()))
    bent = settle.operator(settled, support)(settle.solve(settled, g, support))
    left = [a - b for a, b in zip(g, bent, strict=True)]
    found = [_relative(pulled, list(first.values())).detach(), _relative(left, g).detach()]
    equilibrium, adjoint = (student_interval(part, confidence) for part in found)
    return Residuals(equilibrium, adjoint, (float(found[0].max()), float(found[1].max())))
