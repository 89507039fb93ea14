"""Adversaries by hand: steepest ascent in balls, PGD and YOPO from their papers, and TRADES."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mfoc
from mfoc.tree import leaves
from tests.oracles.training import cost_from


def size(v: Tensor) -> Tensor:
    """The Euclidean norm of each particle's part, ready to divide it."""
    norms: Tensor = torch.linalg.vector_norm(v.reshape(len(v), -1), dim=1)
    return norms.view(-1, *[1] * (v.dim() - 1))


def entered(ball: mfoc.Ball, x: Tensor, eta: Tensor) -> Tensor:
    """The disturbed state, inside the bounds of the data."""
    return x + eta if ball.bounds is None else (x + eta).clamp(*ball.bounds)


def ascended(ball: mfoc.Ball, x: Tensor, eta: Tensor, slope: Tensor, step: float) -> Tensor:
    """One step of projected steepest ascent in the norm of the ball: Madry et al. (2018), as torchattacks takes it."""
    if ball.norm == "linf":
        return (entered(ball, x, eta) + step * slope.sign() - x).clamp(-ball.epsilon, ball.epsilon)
    eta = entered(ball, x, eta) + step * slope / torch.where(size(slope) == 0, 1, size(slope)) - x
    return eta * torch.where(size(eta) > ball.epsilon, ball.epsilon / size(eta), torch.ones_like(size(eta)))


def their_start(ball: mfoc.Ball, x: Tensor, generator: torch.Generator | None = None, *, index: Any = None) -> Tensor:
    """A random start drawn as torchattacks draws it, from one stream for the whole batch."""
    if ball.norm == "linf":
        return torch.empty_like(x).uniform_(-ball.epsilon, ball.epsilon, generator=generator)
    eta = torch.empty_like(x).normal_(generator=generator)
    radius = torch.zeros_like(size(eta)).uniform_(0, 1, generator=generator)
    return eta * (radius / size(eta) * ball.epsilon)


def placed(part: Any, x: Any, value: Tensor) -> Any:
    """A state with one of its entries replaced."""
    if part is None:
        return value
    if isinstance(x, dict):
        return {**x, part: value}
    return type(x)(value if i == part else entry for i, entry in enumerate(x))


def picked(part: Any, x: Any) -> Tensor:
    """The entry of a state that is disturbed."""
    found: Tensor = x if part is None else x[part]
    return found


def differentiable(state: Any) -> list[Tensor]:
    """The leaves that have a gradient, complex ones included."""
    return [leaf for leaf in leaves(state) if leaf.is_floating_point() or leaf.is_complex()]


def disturbed_cost(
    problem: mfoc.Problem,
    controls: Any,
    particles: mfoc.Particles,
    eta: Tensor,
    ball: mfoc.Ball,
    stage: int = 0,
    part: Any = None,
) -> Tensor:
    """The cost of each particle when the state that enters a stage is disturbed, ``[N]``."""
    x, z = particles.state, particles.data
    total = torch.zeros(len(particles), dtype=torch.float64)
    for t in range(stage):
        u = problem.schedule(controls, t)
        if problem.running_cost is not None:
            total = total + problem.running_cost(t, x, u, z)
        x = problem.dynamics(t, x, u, z)
    return total + cost_from(problem, stage, placed(part, x, entered(ball, picked(part, x), eta)), controls, z)


def pgd(loss: Callable[[Tensor], Tensor], x: Tensor, ball: mfoc.Ball, steps: int, step: float) -> Tensor:
    """Projected gradient ascent from no disturbance (Madry et al. 2018); ``loss`` is that of the disturbed states."""
    eta = torch.zeros_like(x)
    for _ in range(steps):
        point = entered(ball, x, eta).detach().requires_grad_()
        slope = torch.autograd.grad(loss(point), point)[0]
        eta = ascended(ball, x, eta, slope, step)
    return eta


def yopo(
    stages: Sequence[Callable[[Any], Any]],
    weights: Sequence[list[Tensor]],
    loss: Callable[[Any], Tensor],
    x: Any,
    ball: mfoc.Ball,
    eta: Tensor,
    m: int,
    n: int,
    step: float,
    *,
    s: int = 0,
    part: Any = None,
    running: Callable[[int, Any], Tensor] | None = None,
) -> tuple[Tensor, list[list[Tensor]]]:
    """You only propagate once: Zhang et al. (2019), sec. 3.2, with m passes of n steps each.

    Args:
        stages: ``stages[t](x)`` is f_t, with the tensors ``weights[t]`` in it.
        weights: of each stage.
        loss: the terminal cost ``[N]``.
        x: the clean states.
        ball: where the disturbance lives.
        eta: the disturbance at the start.
        m: passes.
        n: steps of ascent in each.
        step: their length.
        s: the stage that is disturbed.
        part: the entry of its state that is.
        running: ``running(t, x)`` is L_t.

    Returns:
        The last disturbance, and the gradient in the weights of each stage, added up over the passes.
    """
    cost = running or (lambda t, x: leaves(x)[0].new_zeros(len(leaves(x)[0]), dtype=torch.float64))
    totals = [[torch.zeros_like(w) for w in ws] for ws in weights]

    def add(t: int, slopes: Sequence[Tensor | None]) -> None:
        for total, slope in zip(totals[t], slopes, strict=True):
            total += 0 if slope is None else slope

    def hamiltonian(x: Any, p: list[Tensor]) -> Tensor:
        moved = zip(p, differentiable(stages[s](x)), strict=True)
        product: Any = sum((q.conj() * y).real.reshape(len(y), -1).sum(1) for q, y in moved)
        mean: Tensor = (product + cost(s, x)).mean()
        return mean

    for _ in range(m):
        value, h = torch.zeros(()), x
        for t in range(s):
            value, h = value + cost(t, h), stages[t](h)
        entry = mfoc.tree.detached(h)
        clean = picked(part, entry)
        h = placed(part, h, entered(ball, picked(part, h), eta))
        value, h = value + cost(s, h), stages[s](h)
        after = differentiable(h)
        for t in range(s + 1, len(stages)):
            value, h = value + cost(t, h), stages[t](h)
        others = [t for t in range(len(stages)) if t != s]
        wanted = [*after, *(w for t in others for w in weights[t])]
        found = iter(torch.autograd.grad((value + loss(h)).mean(), wanted, allow_unused=True))
        slopes = [(y, next(found)) for y in after]
        p = [len(clean) * (torch.zeros_like(y) if g is None else g) for y, g in slopes]
        for t in others:
            add(t, [next(found) for _ in weights[t]])
        for _ in range(n):
            point = entered(ball, clean, eta).requires_grad_()
            slope = torch.autograd.grad(hamiltonian(placed(part, entry, point), p), point)[0]
            eta = ascended(ball, clean, eta, slope, step)
        if weights[s]:
            h = hamiltonian(placed(part, entry, entered(ball, clean, eta)), p)
            add(s, torch.autograd.grad(h, weights[s], allow_unused=True))
    return eta, totals


def trades_step(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: mfoc.Particles,
    ball: mfoc.Ball,
    start: Tensor,
    *,
    beta: float,
    steps: int,
    size: float,
) -> float:
    """One step of the training loop of TRADES on inputs in [0, 1]: Zhang et al. (2019), algorithm 1.

    Returns:
        The loss before the step.
    """
    x, y = batch.state, batch.data
    natural = net(x).detach().softmax(1)
    point = (x + start).clamp(0, 1)
    for _ in range(steps):
        point.requires_grad_()
        loss = beta / len(x) * F.kl_div(net(point).log_softmax(1), natural, reduction="sum")
        slope = torch.autograd.grad(loss, point)[0]
        if ball.norm == "linf":
            eta = (point.detach() + size * slope.sign() - x).clamp(-ball.epsilon, ball.epsilon)
        else:
            eta = point.detach() + size * slope / slope.norm(dim=1, keepdim=True) - x
            eta = eta * (ball.epsilon / eta.norm(dim=1, keepdim=True)).clamp_max(1)
        point = (x + eta).clamp(0, 1)
    out = net(x)
    apart = F.kl_div(net(point).log_softmax(1), out.softmax(1), reduction="sum")
    value = F.cross_entropy(out, y) + beta / len(x) * apart
    optimizer.zero_grad()
    value.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return float(value.detach())
