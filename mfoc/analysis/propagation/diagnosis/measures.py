"""What is measured of the blocks of a network: activations, gains forward and backward, gradients of their weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mfoc.analysis.jacobians import Gain, gain, random_like, squares
from mfoc.analysis.propagation.recording.blocks import Block
from mfoc.analysis.propagation.recording.record import Point
from mfoc.errors import InvalidValue

NAN = float("nan")


@dataclass(frozen=True, eq=False)
class Measured:
    """Of one block.

    Attributes:
        forward: the gain of a random perturbation of its input.
        backward: the squared norm of the gradient that arrives at its input to that at its output, which is
            ||J^T g||^2 / ||g||^2 where nothing bypasses the block; NaN where nothing arrives.
        arrives: ||g||, at its output.
        gradient: the norm of the loss's gradient in its parameters; NaN without a loss, or without parameters.
        idle: the ids of its parameters whose gradient is exactly zero.
    """

    forward: Gain
    backward: float
    arrives: float
    gradient: float
    idle: frozenset[int] = frozenset()


def measure(
    blocks: Sequence[Block],
    outputs: list[Tensor],
    cotangents: list[Tensor] | None,
    parameters: Sequence[Sequence[Tensor]],
    *,
    probes: int,
    seed: int,
) -> list[Measured]:
    """Gains and gradients, by one backward pass through the network and ``probes`` through each block.

    Args:
        blocks: the blocks, recorded.
        outputs: what is differentiated: the loss, or the network's output.
        cotangents: with what; None for a loss.
        parameters: those of each block.
        probes: random products for each forward gain.
        seed: of what is drawn.
    """
    generator = torch.Generator().manual_seed(seed)
    places = {point.key: point for block in blocks for point in (*block.starts, *block.ends)}
    weights = list({id(p): p for own in parameters for p in own}.values())
    found = _pull(outputs, [*(point.edge for point in places.values()), *weights], cotangents)
    arrived = dict(zip(places, found, strict=False))
    slopes = {id(p): slope for p, slope in zip(weights, found[len(places) :], strict=True)}
    measured = []
    for block, own in zip(blocks, parameters, strict=True):
        ends, starts = block.ends, block.starts
        shapes = [point.tensor for point in ends]
        units = sum(each.numel() for each in shapes)
        drawn = [squares(_products(ends, starts, random_like(shapes, generator))) for _ in range(probes)]
        g = [_filled(arrived[point.key], point) for point in ends]
        before = [_filled(arrived[point.key], point) for point in starts]
        norm = float(squares(g).sum())
        backward = float(squares(before).sum()) / norm if norm > 0 else NAN
        held = [slopes[id(p)] for p in own if slopes[id(p)] is not None]
        slope = sum(float(squares(each).sum()) for each in held) ** 0.5 if cotangents is None and own else NAN
        idle = {id(p) for p in own if slopes[id(p)] is None or not bool(slopes[id(p)].count_nonzero())}
        measured.append(Measured(gain(drawn, units), backward, norm**0.5, slope, frozenset(idle)))
    return measured


def _products(ends: Sequence[Point], starts: Sequence[Point], w: list[Tensor]) -> list[Tensor]:
    found = _pull([point.end for point in ends], [point.edge for point in starts], w)
    return [_filled(each, point) for each, point in zip(found, starts, strict=True)]


def _filled(found: Tensor | None, point: Point) -> Tensor:
    return torch.zeros_like(point.tensor, requires_grad=False) if found is None else found


def _pull(outputs: list[Any], inputs: list[Any], w: list[Tensor] | None) -> list[Any]:
    try:
        return list(torch.autograd.grad(outputs, inputs, w, retain_graph=True, allow_unused=True))
    except RuntimeError as error:
        raise InvalidValue(
            f"net has no derivative that autograd can take: {error}. Reentrant checkpointing "
            "(torch.utils.checkpoint, use_reentrant=True) and cuDNN's recurrent layers in evaluation mode have none"
        ) from error
