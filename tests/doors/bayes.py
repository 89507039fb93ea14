"""Networks with random weights: variational inference, and the posterior's log density."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mfoc
from paradigms.bayesian import NegativeLogLikelihood, log_density
from paradigms.bayesian import variational as variational_inference
from tests.architectures import Architecture
from tests.doors.plain import Network, each, is_chain, named, near, twice_differentiable

SAMPLES = 2


def variational(entry: Architecture) -> None:
    """J and its gradient at given noise: a loop over the draws, and the KL divergence written out."""
    net, (x, z) = entry.make(), entry.batch()
    likelihood = NegativeLogLikelihood(entry.loss)
    made = variational_inference(net, (x, z), likelihood=likelihood, samples=SAMPLES)
    particles, controls = made.population(0), made.problem.controls
    found = mfoc.evaluate(made.problem, controls, particles)

    torchs = Network(entry)
    tau = 1 / len(z)
    value = torch.zeros((), dtype=torch.float64, device=entry.device)
    gradient = [mfoc.tree.map(torch.zeros_like, u) for u in controls]
    for s in range(SAMPLES):
        for u, part, noise in _random(torchs.net, controls, particles.data["noise"]):
            _load(part, u["loc"] + F.softplus(u["scale"]) * noise["weights"][s])
        loss = each(entry.loss, torchs(x), z).mean()
        slopes = torchs.slopes(loss)
        of = {id(p): slopes[name] for name, p in named(torchs.net).items()}
        value += loss.detach().double() / SAMPLES
        for g, part, noise in _random(torchs.net, gradient, particles.data["noise"]):
            g["loc"] += _flat(part, of) / SAMPLES
            g["scale"] += _flat(part, of) * noise["weights"][s] / SAMPLES
    for u, g in zip(controls, gradient, strict=True):
        if u:
            spread = F.softplus(u["scale"])
            value += tau * float((0.5 * (spread.square() + u["loc"].square() - 1) - spread.log()).sum())
            g["scale"] += tau * (spread - 1 / spread)
            g["scale"] *= torch.sigmoid(u["scale"])
            g["loc"] += tau * u["loc"]
    near([found.value.double()], [value], entry.rtol)
    near(mfoc.tree.leaves(found.gradient), mfoc.tree.leaves(gradient), entry.rtol)


def density(entry: Architecture) -> None:
    """The log density and its gradient at two points, in evaluation mode."""
    net, (x, z) = entry.make(), entry.batch()
    made = log_density(net, (x, z), likelihood=NegativeLogLikelihood(entry.loss))
    torchs = Network(entry)
    torchs.net.eval()
    sizes = {name: p.shape for name, p in named(torchs.net).items()}
    assert list(made.shapes.values()) == list(sizes.values())
    drawn = torch.Generator().manual_seed(5)
    points = torch.randn(2, sum(map(math.prod, sizes.values())), generator=drawn, dtype=torch.float64)
    points = entry.cast(points)
    value, score = made.value_and_score(points)

    expected, slopes = [], []
    for point in points:
        _load_by_name(torchs.net, point)
        with twice_differentiable():  # recurrent layers of cuDNN have no derivative in evaluation mode
            fitted = each(entry.loss, torchs(x), z).sum()
        slope = torch.cat([slope.flatten() for slope in torchs.slopes(fitted).values()])
        prior = -0.5 * point.square().sum() - 0.5 * len(point) * math.log(2 * math.pi)
        expected.append(prior - fitted)
        slopes.append(-point - slope)
    near(list(value), expected, entry.rtol)
    near(list(score), slopes, entry.rtol)


def _random(net: nn.Module, controls: Any, noise: Any) -> Iterator[tuple[Any, nn.Module, Any]]:
    """Stages with weights: their control, the module and its noise."""
    parts = list(net.children()) if is_chain(net) else [net]
    return ((u, part, e) for u, part, e in zip(controls, parts, noise, strict=True) if u)


def _rows(part: nn.Module) -> bool:
    """A linear layer is laid out row by row, its bias last."""
    return type(part) is nn.Linear and all(p.requires_grad for p in part.parameters())


def _load(part: nn.Module, flat: Tensor) -> None:
    if _rows(part):
        assert isinstance(part, nn.Linear)
        both = flat.detach().reshape(part.out_features, -1)
        part.weight.data, part.bias.data = both[:, :-1].clone(), both[:, -1].clone()
        return
    _load_by_name(part, flat)


def _load_by_name(net: nn.Module, flat: Tensor) -> None:
    own = list(named(net).values())
    for p, value in zip(own, flat.detach().split([p.numel() for p in own]), strict=True):
        p.data.copy_(value.view(p.shape))


def _flat(part: nn.Module, slopes: dict[int, Tensor]) -> Tensor:
    own = [slopes[id(p)] for p in named(part).values()]
    return torch.cat([own[0], own[1][:, None]], 1).flatten() if _rows(part) else torch.cat([g.flatten() for g in own])
