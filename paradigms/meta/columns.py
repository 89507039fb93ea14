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

from collections.abc import Iterator
from functools import lru_cache
from itertools import product
from math import prod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

Axes = tuple[int, ...]  # a number for each spatial axis

# The rule by which convolutions go by columns, from measurements of networks of three or four layers, 1 to 25 shots.
_OVERLAP = 2.5  # in how many patches a number of an image is: each is a copy to make, to keep, and to fold
_OUT = 16  # channels out, at least: thin products are slow
_LARGEST = 400_000  # numbers in the columns of a task, or in its outputs twice, at most: more do not stay in cache


class Patch(NamedTuple):
    """What is seen by an output of a convolution, per spatial axis."""

    kernel: Axes
    stride: Axes
    padding: Axes
    dilation: Axes

    def positions(self, sizes: Axes) -> Axes:
        """How many outputs there are along each axis."""
        axes = zip(sizes, *self, strict=True)
        return tuple((n + 2 * pad - dilation * (k - 1) - 1) // stride + 1 for n, k, stride, pad, dilation in axes)


def by_columns(patch: Patch, out: int) -> bool:
    """Whether convolutions to so many channels go by columns: a rule, so that the same run has the same bits."""
    return out >= _OUT and prod(patch.kernel) <= _OVERLAP * prod(patch.stride)


def known(leaf: Tensor) -> bool:
    """Whether products are known to be faster than torch's own convolutions: in float32 and float64 on a CPU."""
    return leaf.device.type == "cpu" and leaf.dtype in (torch.float32, torch.float64)


def fits(x: Tensor, weight: Tensor, patch: Patch) -> bool:
    """Whether ``convolve_last`` takes these (if not, torch has the words for it), and they are not too many."""
    if x.shape[-1] != weight.shape[2] or x.dtype != weight.dtype:
        return False
    found, out, inner = patch.positions(x.shape[2:-1]), weight.shape[1], weight[0, 0].numel()
    return all(n > 0 for n in found) and x.shape[1] * prod(found) * max(inner, 2 * out) <= _LARGEST


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


class _Block(NamedTuple):
    """Entries of images ``[..., channels]``: how many along each axis, their strides, and where they begin."""

    counts: Axes
    strides: Axes
    begin: int


class _Plan(NamedTuple):
    """Where the entries of patches lie in padded images, and in columns; all in numbers, for one image."""

    pads: list[int]  # of ``F.pad``; empty where there are none
    wide: int  # numbers in a padded image
    deep: int  # numbers in its columns
    width: int  # of a row of columns
    patches: _Block  # in a padded image, in the order of the columns
    inside: _Block  # what of a padded image is not padding
    folds: list[tuple[_Block, _Block]]  # of columns, and where in a padded image they are added
    bare: list[_Block] | None  # what of a padded image the first fold leaves out; None: parts between


@lru_cache(maxsize=1024)
def _plan(patch: Patch, sizes: Axes, channels: int) -> _Plan:
    found, axes = patch.positions(sizes), range(len(sizes))
    padded = [n + 2 * pad for n, pad in zip(sizes, patch.padding, strict=True)]
    at, row = _strides(padded, channels), _strides(found, prod(patch.kernel) * channels)
    tap = _strides(patch.kernel, channels)
    moves, gaps = ([n * at[i] for i, n in enumerate(each)] for each in (patch.stride, patch.dilation))
    folds = []
    for taps in product(*(_blocks(patch, i) for i in axes)):
        counts = (*(n for i in axes for n in (found[i], taps[i][1])), channels)
        source = (*(n for i in axes for n in (row[i], tap[i])), 1)
        target = (*(n for i in axes for n in (moves[i], gaps[i])), 1)
        first = [taps[i][0] for i in axes]
        begins = (sum(n * k for n, k in zip(steps, first, strict=True)) for steps in (tap, gaps))
        folds.append((_Block(counts, source, next(begins)), _Block(counts, target, next(begins))))
    covered = [stride * n for stride, n in zip(patch.stride, found, strict=True)]
    full = all(next(_blocks(patch, i))[1] == patch.stride[i] for i in axes)
    return _Plan(
        pads=[0, 0, *(pad for pad in reversed(patch.padding) for _ in range(2))] if any(patch.padding) else [],
        wide=prod(padded) * channels,
        deep=prod(found) * prod(patch.kernel) * channels,
        width=prod(patch.kernel) * channels,
        patches=_Block((*found, *patch.kernel, channels), (*moves, *gaps, 1), 0),
        inside=_Block((*sizes, channels), (*at, 1), sum(pad * n for pad, n in zip(patch.padding, at, strict=True))),
        folds=folds,
        bare=[
            _Block((*padded[:i], padded[i] - covered[i], *padded[i + 1 :], channels), (*at, 1), covered[i] * at[i])
            for i in axes
            if padded[i] > covered[i]
        ]
        if full
        else None,
    )


def _strides(counts: Axes | list[int], last: int) -> list[int]:
    return [prod(counts[i + 1 :]) * last for i in range(len(counts))]


def _blocks(patch: Patch, axis: int) -> Iterator[tuple[int, int]]:
    """The first tap and the number of taps of blocks in which no two positions meet."""
    kernel = patch.kernel[axis]
    size = patch.stride[axis] if patch.dilation[axis] == 1 else 1
    for first in range(0, kernel, size):
        yield first, min(size, kernel - first)


class _Columns(Function):
    """``[tasks, shots, ..., C]`` to ``[tasks, positions, kernel * C]``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, patch: Patch) -> Tensor:
        ctx.shape, ctx.patch = x.shape, patch
        tasks, shots, *sizes, channels = x.shape
        plan = _plan(patch, tuple(sizes), channels)
        wide = F.pad(x, plan.pads).contiguous() if plan.pads else x.contiguous()
        held = _seen(wide, x.shape, plan.wide, plan.patches).clone(memory_format=torch.contiguous_format)
        return held.view(tasks, shots * plan.deep // plan.width, plan.width)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return _Fold.apply(g, ctx.shape, ctx.patch), None


class _Fold(Function):
    """The transpose of ``_Columns``."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, shape: Axes, patch: Patch) -> Tensor:
        ctx.patch = patch
        tasks, shots, *sizes, channels = shape
        plan = _plan(patch, tuple(sizes), channels)
        rows, out = rows.contiguous(), rows.new_empty(tasks * shots * plan.wide)
        if plan.bare is None:
            out.zero_()
        for block in plan.bare or ():
            _seen(out, shape, plan.wide, block).zero_()
        for k, (source, target) in enumerate(plan.folds):
            part, there = _seen(rows, shape, plan.deep, source), _seen(out, shape, plan.wide, target)
            if k == 0:
                there.copy_(part)
            else:
                there.add_(part)
        return _seen(out, shape, plan.wide, plan.inside)

    @staticmethod
    def backward(ctx: Any, h: Tensor) -> Any:
        return _Columns.apply(h, ctx.patch), None, None


def _seen(held: Tensor, shape: Axes, size: int, block: _Block) -> Tensor:
    """The block of each image, of so many numbers in ``held``; shape: ``[tasks, shots, ...]``."""
    tasks, shots = shape[:2]
    return held.as_strided((tasks, shots, *block.counts), (shots * size, size, *block.strides), block.begin)
