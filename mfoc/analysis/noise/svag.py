"""SVAG: trainings at smaller and smaller steps that share one stochastic differential equation.

Li, Malladi & Arora (2021), "On the validity of modeling SGD with stochastic differential equations (SDEs)",
arXiv:2102.12470, sec. 4: steps of size lr / l along gradients of c1 L1 + c2 L2, two independent batches, have the mean
of SGD's gradients and l times their covariance. With l times as many steps the equation stays the same for every l, and
is the limit l -> infinity; l = 1 is SGD.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mfoc import tree
from mfoc.analysis.noise.samples import Samples
from mfoc.checks import check_integer, check_positive
from mfoc.populations import Population
from mfoc.problem import Problem
from mfoc.seeding import mixed_seed

_BATCH = 32


Train = Callable[[int], Tensor]


def svag_weights(l: int) -> tuple[float, float]:  # noqa: E741 - the paper's name
    """The weights c1, c2 = (1 +- sqrt(2 l - 1)) / 2 of two independent batches in one step of SVAG.

    In a training loop of your own: losses ``c1 * loss(batch1) + c2 * loss(batch2)``, the learning rate divided by l,
    and l times as many steps. They sum to 1, and their squares to l.

    Raises:
        InvalidType, InvalidValue: l is no positive integer.
    """
    check_integer(1, l=l)
    root = math.sqrt(2 * l - 1)
    return (1 + root) / 2, (1 - root) / 2


def svag_training(
    net: nn.Module | Problem[Any],
    loss: Any,
    data: Any,
    *,
    lr: float,
    steps: int,
    batch_size: int | None = None,
    seeds: int = 16,
    points: int = 1,
    seed: int = 0,
) -> Train:
    """A function of l: the losses ``[seeds, points]`` along SVAG, as ``valid_sde`` takes it.

    Weights are kept in float64 (float32 where the device has none) between steps, and seen by the network in its own
    dtype: rounding would stop small steps, those of large l before the others.

    Args:
        net: where training starts; it is not changed.
        loss: as for ``gradient_noise``.
        data: as for ``gradient_noise``.
        lr: the step at l = 1.
        steps: how many at l = 1.
        batch_size: samples in a batch, drawn with replacement; when None that of a DataLoader or ``mfoc.population``,
            or 32.
        seeds: trainings for each l.
        points: places, evenly along the training, at which the mean loss over all data is taken; 1 is its end.
        seed: of the batches.

    Raises:
        InvalidType, InvalidValue: what ``gradient_noise`` refuses; no step.
    """
    check_positive(lr=lr)
    batch_size = batch_size_of(data) if batch_size is None else batch_size
    check_integer(1, steps=steps, batch_size=batch_size)
    check_integer(2, seeds=seeds)
    check_integer(1, steps, points=points)
    check_integer(0, seed=seed)
    samples = Samples.of(net, loss, data)

    def train(factor: int) -> Tensor:
        keys = [(seed, k, factor) for k in range(seeds)]
        return torch.stack([_train(samples, factor, lr, steps, batch_size, points, key) for key in keys])

    return train


def batch_size_of(data: Any) -> int:
    """The batch size of a DataLoader or a population; 32 of what has none."""
    found = data.batch_size if isinstance(data, torch.utils.data.DataLoader | Population) else None
    return found or _BATCH


def _train(
    samples: Samples, factor: int, lr: float, steps: int, batch_size: int, points: int, key: tuple[int, ...]
) -> Tensor:
    """The losses at some places of one training ``[points]``; infinite from where they are not finite."""
    generator = torch.Generator().manual_seed(mixed_seed(*key))
    own = replace(samples, parameters=tree.map(lambda p: p.detach().clone().requires_grad_(), samples.parameters))
    wide = [leaf.detach().to(samples.wide, copy=True) for leaf in own.leaves]  # in bfloat16 small steps would be lost
    batches = svag_weights(factor)[: 1 if factor == 1 else 2]  # the second has weight zero in SGD
    weights = torch.cat([torch.full((batch_size,), c / batch_size, dtype=torch.float64, device="cpu") for c in batches])
    found = torch.full((points,), math.inf, dtype=torch.float64, device="cpu")
    places = {round((k + 1) * steps / points) * factor: k for k in range(points)}  # the same times for every l
    for step in range(1, steps * factor + 1):
        drawn = torch.randint(len(samples), (len(weights),), generator=generator, device="cpu").to(samples.device)
        slope = tree.pieces(own.gradient(samples.cloud[drawn], weights), own.leaves)
        with torch.no_grad():
            for p, kept, g in zip(own.leaves, wide, slope, strict=True):
                p.copy_(kept.sub_(g, alpha=lr / factor))
        if step in places:
            value = own.losses().double().mean()
            if not bool(value.isfinite()):
                break
            found[places[step]] = value.cpu()
    return found
