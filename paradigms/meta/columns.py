"""Convolutions with weights of each task's own as matrix products of patches.

Values are ``[tasks, shots, ..., channels]``. The columns of x are its patches, one a row, ``[tasks, positions, kernel *
channels]``; a convolution is their product with the weights ``[tasks, kernel * channels, out]``, of all tasks in one
batched product. Columns are linear in x, and their transpose adds each patch back to where it came from, so that
derivatives of any order are columns, folds and products. The columns of a forward pass are kept: the derivative in the
weights and, in a second derivative, the convolution with what the weights moved by, need them again.

With channels last and kernel next to them, a row of a patch is contiguous in memory. With strides, what lies within one
stride is folded in one go: patches overlap only beyond it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function


class Patch(NamedTuple):
    """What is seen by an output of a convolution, per spatial axis."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    def positions(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """How many outputs there are along each axis."""
        axes = zip(sizes, *self, strict=True)
        return tuple((n + 2 * pad - dilation * (k - 1) - 1) // stride + 1 for n, k, stride, pad, dilation in axes)


def by_columns(x: Tensor, weight: Tensor, patch: Patch) -> bool:
    """Whether ``convolve_last`` is known to take these, and to be faster than torch's grouped convolution."""
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64) or weight.dtype != x.dtype:
        return False
    return x.shape[-1] == weight.shape[2] and all(n > 0 for n in patch.positions(x.shape[2:-1]))


def convolve_last(x: Tensor, weight: Tensor, bias: Tensor | None, patch: Patch) -> Tensor:
    """A convolution of ``[tasks, shots, ..., C]`` with weights ``[tasks, O, C, ...]`` and a bias ``[tasks, O]``."""
    kernel = arranged(weight).flatten(1, -2)
    rows = _Columns.apply(x, patch) if any(k > 1 for k in patch.kernel) or _moved(patch) else x.flatten(1, -2)
    out = torch.bmm(rows, kernel) if bias is None else torch.baddbmm(bias.unsqueeze(1), rows, kernel)
    return out.view(*x.shape[:2], *patch.positions(x.shape[2:-1]), -1)


def arranged(weight: Tensor) -> Tensor:
    """Weights ``[tasks, O, C, ...]`` as ``[tasks, ..., C, O]``."""
    return weight.permute(0, *range(3, weight.dim()), 2, 1)


def in_place_of(weight: Tensor) -> Tensor:
    """The same weights ``[O, C, ...]``, such that ``arranged`` of them lies in one piece."""
    there = weight.permute(*range(2, weight.dim()), 1, 0).contiguous()
    return there.permute(-1, -2, *range(weight.dim() - 2))


def _moved(patch: Patch) -> bool:
    return any(stride > 1 or padding for stride, padding in zip(patch.stride, patch.padding, strict=True))


class _Columns(Function):
    """``[tasks, shots, ..., C]`` to ``[tasks, positions, kernel * C]``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, patch: Patch) -> Tensor:
        ctx.shape, ctx.patch = x.shape, patch
        wide = _padded(x, patch)
        batch, step, axes = wide.stride()[:2], wide.stride()[2:-1], range(len(patch.kernel))
        found = patch.positions(x.shape[2:-1])
        strides = [*batch, *(patch.stride[i] * step[i] for i in axes), *(patch.dilation[i] * step[i] for i in axes), 1]
        seen = wide.as_strided((*x.shape[:2], *found, *patch.kernel, x.shape[-1]), strides)
        held = seen.clone(memory_format=torch.contiguous_format)
        return held.view(len(x), x.shape[1] * prod(found), prod(patch.kernel) * x.shape[-1])

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return _Fold.apply(g, ctx.shape, ctx.patch), None


class _Fold(Function):
    """The transpose of ``_Columns``."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, shape: Sequence[int], patch: Patch) -> Tensor:
        ctx.patch = patch
        axes = range(len(patch.kernel))
        found = patch.positions(shape[2:-1])
        rows = rows.reshape(*shape[:2], *found, *patch.kernel, shape[-1])
        out = rows.new_empty(*shape[:2], *(n + 2 * pad for n, pad in zip(shape[2:-1], patch.padding, strict=True)),
                             shape[-1])  # fmt: skip
        step = out.stride()[2:-1]
        # A position and a tap within its stride, for each axis, next to each other: contiguous where all taps are.
        strides = [*out.stride()[:2], *(s for i in axes for s in (patch.stride[i] * step[i], step[i])), 1]
        order = [0, 1, *(axis for i in axes for axis in (2 + i, 2 + len(axes) + i)), rows.dim() - 1]
        for k, taps in enumerate(product(*(_blocks(patch, i) for i in axes))):
            part = rows
            for i, (first, width) in enumerate(taps):
                part = part.narrow(2 + len(axes) + i, first, width)
            part = part.permute(order)
            begin = sum(patch.dilation[i] * first * step[i] for i, (first, _) in enumerate(taps))
            there = out.as_strided(part.shape, strides, begin)
            if k == 0:
                _clear(out, patch, found)
                there.copy_(part)
            else:
                there.add_(part)
        for i in axes:
            out = out.narrow(2 + i, patch.padding[i], shape[2 + i])
        return out

    @staticmethod
    def backward(ctx: Any, h: Tensor) -> Any:
        return _Columns.apply(h, ctx.patch), None, None


def _padded(x: Tensor, patch: Patch) -> Tensor:
    if not any(patch.padding):
        return x.contiguous()
    sizes = [n + 2 * pad for n, pad in zip(x.shape[2:-1], patch.padding, strict=True)]
    wide = inside = x.new_zeros(*x.shape[:2], *sizes, x.shape[-1])
    for i, pad in enumerate(patch.padding):
        inside = inside.narrow(2 + i, pad, x.shape[2 + i])
    inside.copy_(x)
    return wide


def _blocks(patch: Patch, axis: int) -> Iterator[tuple[int, int]]:
    """The first tap and the number of taps of blocks in which no two positions meet."""
    kernel = patch.kernel[axis]
    size = patch.stride[axis] if patch.dilation[axis] == 1 else 1
    for first in range(0, kernel, size):
        yield first, min(size, kernel - first)


def _clear(out: Tensor, patch: Patch, found: Sequence[int]) -> None:
    """Zeros wherever the first block is not written."""
    for i, (stride, count) in enumerate(zip(patch.stride, found, strict=True)):
        if next(_blocks(patch, i))[1] < stride:
            out.zero_()
            return
        out.narrow(2 + i, stride * count, out.shape[2 + i] - stride * count).zero_()
