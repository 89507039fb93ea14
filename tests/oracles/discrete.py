"""Discrete weights by other means, as plain torch loops: straight-through gradients, and the Bop optimiser."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize


class Bop:
    """Helwegen et al. (2019), arXiv:1906.02107, algorithm 1: flip w where |m| > tau and sign(m) = sign(w)."""

    def __init__(self, weights: list[Tensor], gamma: float, tau: float) -> None:
        self.weights, self.gamma, self.tau = weights, gamma, tau
        self.averages = [torch.zeros_like(weight) for weight in weights]

    @torch.no_grad()
    def step(self, slopes: Iterable[Tensor]) -> None:
        for weight, m, slope in zip(self.weights, self.averages, slopes, strict=True):
            m.copy_((1 - self.gamma) * m + self.gamma * slope)
            weight[(m.abs() > self.tau) & (m.sign() == weight.sign())] *= -1


class _Discretise(torch.autograd.Function):
    """sign(w), or w rounded to -1, 0 or 1 at +-1/2; the slope passes where |w| <= 1."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, ternary: bool) -> Tensor:
        ctx.save_for_backward(weight)
        return weight.clamp(-1, 1).round() if ternary else torch.where(weight >= 0, 1.0, -1.0).to(weight)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        return slopes[0] * (weight.abs() <= 1), None


class _StraightThrough(nn.Module):
    def __init__(self, ternary: bool) -> None:
        super().__init__()
        self.ternary = ternary

    def forward(self, weight: Tensor) -> Tensor:
        found: Tensor = _Discretise.apply(weight, self.ternary)
        return found


def straight_through_(net: nn.Module, *, ternary: bool) -> list[nn.Parameter]:
    """Linear layers on latent weights in [-1, 1] (Courbariaux et al. 2016, arXiv:1602.02830): the latent weights."""
    latent = []
    for layer in [part for part in net.modules() if isinstance(part, nn.Linear)]:
        nn.init.uniform_(layer.weight, -1, 1)
        parametrize.register_parametrization(layer, "weight", _StraightThrough(ternary), unsafe=True)
        latent.append(layer.parametrizations["weight"].original)  # type: ignore[index, union-attr]
    return latent


def train(net: nn.Module, optimisers: list[Any], batches: Iterable[tuple[Tensor, Tensor]], after: Any = None) -> None:
    """One step of every optimiser a batch."""
    for x, y in batches:
        for parameter in net.parameters():
            parameter.grad = None
        F.cross_entropy(net(x), y).backward()  # type: ignore[no-untyped-call]
        for optimiser in optimisers:
            optimiser()
        if after is not None:
            after()
