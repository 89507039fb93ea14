"""Inner loops of meta-learning by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import mfoc

Pair = tuple[Tensor, Tensor]
Update = Callable[[int, str, Tensor, Tensor], Tensor]


def each_task(cloud: mfoc.Particles) -> list[tuple[Pair, Pair]]:
    """The tasks of a batch, one by one: support and query."""
    (x, y), (a, b) = cloud.data["support"], cloud.data["query"]
    return [((x[i], y[i]), (a[i], b[i])) for i in range(len(cloud))]


def called(net: nn.Module, weights: dict[str, Tensor], x: Tensor) -> Any:
    """The network at other weights, with the buffers it came with."""
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    return torch.func.functional_call(net, {**buffers, **weights}, (x,))


def inner_loop(
    net: nn.Module,
    loss: Callable[..., Tensor],
    cloud: mfoc.Particles,
    update: Update,
    extra: Sequence[Tensor] = (),
    *,
    steps: int,
    first_order: bool = False,
    moved: Sequence[str] | None = None,
    step_losses: Sequence[float] | None = None,
) -> list[Tensor]:
    """The mean query loss after inner steps, and its gradient in the weights and in ``extra``: a task at a time.

    Finn, Abbeel, Levine (2017), algorithm 1; with ``step_losses`` the multi-step loss of Antoniou et al. (2019).
    """
    phi = {name: p.detach().clone().requires_grad_() for name, p in net.named_parameters() if p.requires_grad}
    moved = list(phi) if moved is None else moved
    total = torch.zeros(())
    for (x, y), (a, b) in each_task(cloud):
        fast = dict(phi)
        for k in range(steps):
            inputs = [fast[name] for name in moved]
            slopes = torch.autograd.grad(loss(called(net, fast, x), y), inputs, create_graph=not first_order)
            fast |= {name: update(k, name, fast[name], slope) for name, slope in zip(moved, slopes, strict=True)}
            if step_losses is not None:
                total = total + step_losses[k] * loss(called(net, fast, a), b)
        if step_losses is None:
            total = total + loss(called(net, fast, a), b)
    value = total / len(cloud)
    return [value.detach(), *torch.autograd.grad(value, [*phi.values(), *extra])]


def maml(
    net: nn.Module, loss: Callable[..., Tensor], cloud: mfoc.Particles, *, steps: int, lr: float, **options: Any
) -> list[Tensor]:
    """``inner_loop`` of plain gradient steps."""
    return inner_loop(net, loss, cloud, lambda k, name, phi, slope: phi - lr * slope, steps=steps, **options)


def error(problem: mfoc.Problem, cloud: mfoc.Particles, expected: Sequence[Tensor]) -> float:
    """How far value and gradient of a problem are from these, relative to the largest; stored and recomputed."""
    worst, scale = 0.0, max(float(part.detach().abs().max()) for part in expected)
    for recompute in (False, True):
        found = mfoc.evaluate(problem, problem.controls, cloud, recompute=recompute)
        for mine, other in zip([found.value, *mfoc.tree.leaves(found.gradient)], expected, strict=True):
            assert mine.shape == other.shape
            assert mine.isfinite().all()
            worst = max(worst, float((mine - other).detach().abs().max()) / scale)
    return worst
