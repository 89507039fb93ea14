"""Implicit MAML: the fast weights settle at an equilibrium, and its adjoint is solved by conjugate gradients.

    phi* = argmin_phi L_S(phi) + strength / 2 ||phi - phi_0||^2
    dL_Q(phi*)/dphi_0 = p,   (I + H / strength) p = grad L_Q(phi*),   H the Hessian of L_S at phi*

Rajeswaran, Finn, Kakade, Levine (2019), arXiv:1909.04630, eq. (3) and (6). Neither the path to the equilibrium nor its
length enters the adjoint, so that memory does not grow with the inner steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

import mfoc
from mfoc import InvalidValue
from paradigms.meta.checks import check_rate, check_steps, checked_network
from paradigms.meta.formulations import MetaFormulation, assemble
from paradigms.meta.inner import Inner, Loss, Pair, TaskLoss
from paradigms.meta.loop import Loop
from paradigms.meta.stacked import Weights


@dataclass(frozen=True)
class Equilibrium:
    """The settled fast weights of each task.

    Attributes:
        inner: losses and slopes.
        strength: the weight of the proximal term.
        steps: gradient steps towards the equilibrium.
        rate: their step size.
        cg_steps: steps of conjugate gradients for the adjoint.
        cg_tol: a task's solve ends when its residual has fallen by this factor.
    """

    inner: Inner
    strength: float
    steps: int
    rate: float
    cg_steps: int
    cg_tol: float

    def __call__(self, fast: Weights, body: Weights, pair: Pair) -> Weights:
        """From phi_0 ``[tasks, ...]`` to the equilibrium."""
        if any(leaf.requires_grad for leaf in pair):
            raise InvalidValue("the equilibrium of imaml is not differentiated in the tasks' data; detach them")
        settled = _Settle.apply(self, pair, tuple(fast), *fast.values())
        return dict(zip(fast, settled, strict=True))

    @torch.no_grad()
    def settle(self, start: Weights, pair: Pair) -> Weights:
        """Gradient descent on the regularised support loss."""
        phi = dict(start)
        for _ in range(self.steps):
            slopes = self.inner.slopes(phi, {}, pair)
            phi = {
                name: leaf - self.rate * (slopes[name] + self.strength * (leaf - start[name]))
                for name, leaf in phi.items()
            }
        return phi

    def solve(self, phi: Weights, g: Sequence[Tensor], pair: Pair) -> list[Tensor]:
        """P with (I + H / strength) p = g, each task on its own, by conjugate gradients."""
        with torch.enable_grad():
            free = {name: leaf.detach().requires_grad_() for name, leaf in phi.items()}
            slopes = list(self.inner.slopes(free, {}, pair).values())
        leaves = list(free.values())

        def apply(v: list[Tensor]) -> list[Tensor]:
            bent = torch.autograd.grad(slopes, leaves, v, retain_graph=True, allow_unused=True, materialize_grads=True)
            return [a + b / self.strength for a, b in zip(v, bent, strict=True)]

        return _conjugate_gradients(apply, [leaf.detach() for leaf in g], self.cg_steps, self.cg_tol)


def _conjugate_gradients(apply: Any, g: list[Tensor], steps: int, tol: float) -> list[Tensor]:
    """Conjugate gradients for all tasks at once, each with coefficients of its own (Hestenes & Stiefel 1952).

    A task whose residual is small, or whose direction has no positive curvature, stays where it is.
    """
    p, r, d = [torch.zeros_like(a) for a in g], list(g), list(g)
    rr = _dots(r, r)
    goal = rr * tol * tol
    for _ in range(steps):
        if bool((rr <= goal).all()):
            break
        bent = apply(d)
        curvature = _dots(d, bent)
        moving = (rr > goal) & (curvature > 0)
        a = torch.where(moving, rr / curvature, 0.0)
        p, r = _plus(p, a, d), _plus(r, -a, bent)
        fresh = _dots(r, r)
        d = _plus(r, torch.where(moving, fresh / rr, 0.0), d)
        rr = torch.where(moving, fresh, torch.minimum(fresh, goal))
    return p


def _dots(left: list[Tensor], right: list[Tensor]) -> Tensor:
    return torch.stack([(a * b).flatten(1).sum(1) for a, b in zip(left, right, strict=True)]).sum(0)


def _plus(x: list[Tensor], a: Tensor, y: list[Tensor]) -> list[Tensor]:
    return [u + a.view(-1, *[1] * (v.dim() - 1)) * v for u, v in zip(x, y, strict=True)]


class _Settle(Function):
    @staticmethod
    def forward(ctx: Any, spec: Equilibrium, pair: Pair, names: tuple[str, ...], *start: Tensor) -> Any:  # type: ignore[override]
        settled = spec.settle(dict(zip(names, start, strict=True)), pair)
        ctx.spec, ctx.pair, ctx.names = spec, pair, names
        ctx.save_for_backward(*settled.values())
        return tuple(settled.values())

    @staticmethod
    def backward(ctx: Any, *g: Tensor) -> Any:  # type: ignore[override]
        return None, None, None, *_Solve.apply(ctx.spec, ctx.pair, ctx.names, *g, *ctx.saved_tensors)


class _Solve(Function):
    """The adjoint, itself differentiable once: the operator is symmetric, so its derivative is one more solve."""

    @staticmethod
    def forward(ctx: Any, spec: Equilibrium, pair: Pair, names: tuple[str, ...], *given: Tensor) -> Any:  # type: ignore[override]
        g, phi = given[: len(names)], given[len(names) :]
        found = spec.solve(dict(zip(names, phi, strict=True)), g, pair)
        ctx.spec, ctx.pair, ctx.names = spec, pair, names
        ctx.save_for_backward(*phi, *found)
        return tuple(found)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *h: Tensor) -> Any:  # type: ignore[override]
        spec, names = ctx.spec, ctx.names
        phi, p = ctx.saved_tensors[: len(names)], ctx.saved_tensors[len(names) :]
        q = spec.solve(dict(zip(names, phi, strict=True)), h, ctx.pair)
        with torch.enable_grad():
            free = [leaf.detach().requires_grad_() for leaf in phi]
            slopes = spec.inner.slopes(dict(zip(names, free, strict=True)), {}, ctx.pair)
            bent = torch.autograd.grad(
                list(slopes.values()), free, list(p), create_graph=True, allow_unused=True, materialize_grads=True
            )
            paired = sum((b * c).sum() for b, c in zip(bent, q, strict=True))
            found = (
                torch.autograd.grad(paired, free, allow_unused=True, materialize_grads=True)  # type: ignore[arg-type]
                if isinstance(paired, Tensor) and paired.requires_grad
                else [torch.zeros_like(leaf) for leaf in free]
            )
        return None, None, None, *q, *(-leaf / spec.strength for leaf in found)


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

    Args:
        net: see ``maml``.
        loss: see ``maml``.
        tasks: see ``maml``.
        inner_steps: gradient steps towards the equilibrium (16 in the paper).
        inner_lr: their step size.
        strength: lambda, the weight of the proximal term (2 in the paper).
        cg_steps: steps of conjugate gradients (5 in the paper).
        cg_tol: relative residual at which they end.

    Returns:
        A formulation whose readout is the network with the solved initial weights.
    """
    check_rate("inner_lr", inner_lr)
    check_rate("strength", strength)
    check_steps("inner_steps", inner_steps)
    check_steps("cg_steps", cg_steps)
    if isinstance(cg_tol, bool) or not isinstance(cg_tol, int | float) or not 0 <= cg_tol < math.inf:
        raise InvalidValue(f"cg_tol is {cg_tol!r}; expected a non-negative number")
    model = checked_network(net)
    inner = Inner(model, TaskLoss(loss))
    settle = Equilibrium(inner, strength, inner_steps, inner_lr, cg_steps, cg_tol)
    loop = Loop(inner, tuple(model.names), settle=settle)
    controls = {"phi": model.initial()}

    def remake(steps: int) -> mfoc.Problem:
        return replace(loop, settle=replace(settle, steps=steps)).problem(controls, 1, None)

    return assemble(net, loop, controls, tasks, 1, inner_lr=inner_lr, remake=remake)
