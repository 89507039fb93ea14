"""Products of drawn weights with states, and how their derivatives are found."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.forward_ad import unpack_dual

from mfoc.derivatives import transforming

_LARGE = 2**16  # numbers in the states from which on what is spared is more than what a function in Python costs
_KINDS = (Tensor, nn.Parameter)


def product(w: Tensor, b: Tensor | None, columns: Tensor) -> Tensor:
    """Drawn weights times states, plus biases, ``[S, out, B]``.

    Args:
        w: weights ``[S, out, in]``.
        b: biases ``[S, out, 1]``, or None.
        columns: states ``[S, in, B]``.
    """
    if w.shape[1] == 1 and columns.numel() >= _LARGE and columns.requires_grad and _reverse(w, columns):
        found: Tensor = _OneOutput.apply(w, b, columns)
        return found
    return _plain(w, b, columns)


def _plain(w: Tensor, b: Tensor | None, columns: Tensor) -> Tensor:
    return torch.bmm(w, columns) if b is None else torch.baddbmm(b, w, columns)


def _reverse(w: Tensor, columns: Tensor) -> bool:
    """Whether a backward pass is all that can be under way: no ``torch.func``, forward mode, autocast, compiler."""
    if not torch.is_grad_enabled() or transforming() or torch.compiler.is_compiling():
        return False
    if torch.is_autocast_enabled(w.device.type) or w.dtype != columns.dtype:
        return False
    return all(type(leaf) in _KINDS and _primal(leaf) for leaf in (w, columns))


def _primal(leaf: Tensor) -> bool:
    return unpack_dual(leaf).tangent is None  # type: ignore[no-untyped-call]


class _OneOutput(torch.autograd.Function):
    """``product`` for a single output. The derivative in the states is an outer product of two vectors for each draw.

    torch makes it by a product of matrices, which takes twice as long as a multiplication and gives the same numbers.
    All that ``backward`` does can be differentiated again.
    """

    @staticmethod
    def forward(ctx: Any, w: Tensor, b: Tensor | None, columns: Tensor) -> Tensor:
        ctx.save_for_backward(w, columns)
        return _plain(w, b, columns)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        w, columns = ctx.saved_tensors
        by_w, by_b, by_columns = ctx.needs_input_grad
        return (
            torch.bmm(slope, columns.mT) if by_w else None,
            slope.sum(-1, keepdim=True) if by_b else None,
            w.mT * slope if by_columns else None,
        )
