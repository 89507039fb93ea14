"""What is measured of activations: their size, and how alike those of different inputs and tokens are."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

NAN = float("nan")


@dataclass(frozen=True, eq=False)
class Statistics:
    """Of activations ``[N, ...]``.

    Attributes:
        q: their mean square.
        c: the mean cosine between those of different inputs; NaN for a single input.
        tokens: the mean cosine between different tokens of an input; NaN where there are no tokens.
        constant: the share of units that are the same for every input (and token, and pixel); NaN for a single input.
    """

    q: float
    c: float
    tokens: float
    constant: float


@torch.no_grad()
def statistics(values: list[Tensor], *, unit_axis: int = -1, sequence_first: bool = False) -> Statistics:
    """Statistics of activations, summed in float64.

    Args:
        values: tensors ``[N, ...]`` that are one state together, usually one.
        unit_axis: the axis of the units: 1 of images ``[N, channels, ...]``, the last of tokens ``[N, tokens, units]``.
        sequence_first: tokens are ``[tokens, N, units]``.
    """
    wide = [_wide(each) for each in values]
    if sequence_first:
        wide = [each.transpose(0, 1) if each.dim() == 3 else each for each in wide]
    count = sum(each.numel() for each in wide)
    if not count:
        return Statistics(NAN, NAN, NAN, NAN)
    q = math.fsum(float(each.square().sum()) for each in wide) / count
    c = _cosine(torch.cat([each.reshape(len(each), -1) for each in wide], 1)[None])
    one = wide[0]
    has_tokens = len(wide) == 1 and one.dim() == 3 and unit_axis == -1
    return Statistics(q, c, _cosine(one) if has_tokens else NAN, _constant(wide, unit_axis))


def _wide(values: Tensor) -> Tensor:
    kind = torch.float32 if values.device.type == "mps" else torch.float64  # which has no float64
    real = torch.view_as_real(values).flatten(-2) if values.is_complex() else values
    real = real.detach().to(kind)
    return real if real.dim() else real[None]


def _cosine(rows: Tensor) -> float:
    """The mean cosine between different rows of each matrix ``[B, n, d]``, without their Gram matrices."""
    n = rows.shape[1]
    if n < 2:
        return NAN
    norms = rows.norm(dim=2, keepdim=True)
    units = torch.where(norms > 0, rows / norms, 0)
    alive = (norms > 0).sum((1, 2))  # a row of zeros has no direction
    pairs = (alive * (alive - 1)).sum()
    return float((units.sum(1).square().sum(1) - alive).sum() / pairs) if pairs else NAN


def _constant(values: list[Tensor], unit_axis: int) -> float:
    if len(values[0]) < 2:
        return NAN
    still = total = 0
    for each in values:
        rows = each if each.dim() > 1 else each[:, None]
        axis = unit_axis % rows.dim()
        columns = rows.movedim(axis, -1).reshape(-1, rows.shape[axis])
        still += int((columns.amax(0) == columns.amin(0)).sum())
        total += columns.shape[1]
    return still / total
