"""Convolutions with weights of their own for each task, as grouped convolutions that stay fast however often derived.

<g, conv(x, w)> is linear in each of x, w and g, so every derivative of a convolution, of any order, is one of three
grouped convolutions: the forward one, its transpose (towards x) and the correlation of x with g (towards w). Autograd's
own double backward of a grouped convolution loops over the groups; these three do not.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function


class Window(NamedTuple):
    """The hyper-parameters of a convolution, per spatial axis."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, window: Window) -> Tensor:
    """A grouped convolution whose derivatives of every order are grouped convolutions.

    Args:
        x: inputs ``[n, C, ...]``.
        weight: ``[O, C / groups, ...]``.
        bias: ``[O]``, or None.
        window: stride, padding, dilation and groups.
    """
    result: Tensor = _Forward.apply(x, weight, bias, window)
    return result


def _plain(x: Tensor, weight: Tensor, bias: Tensor | None, window: Window) -> Tensor:
    zeros = (0,) * len(window.stride)
    return torch.convolution(
        x, weight, bias, window.stride, window.padding, window.dilation, False, zeros, window.groups
    )


def _derivative(g: Tensor, x: Tensor, weight: Tensor, window: Window, towards: int) -> Tensor:
    mask = [towards == 0, towards == 1, False]
    zeros = [0] * len(window.stride)
    found: Tensor = torch.ops.aten.convolution_backward(
        g, x, weight, None, window.stride, window.padding, window.dilation, False, zeros, window.groups, mask
    )[towards]
    return found


class _Forward(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, window: Window) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.window = window
        return _plain(x, weight, bias, window)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        to_x, to_weight, to_bias, _ = ctx.needs_input_grad
        return (
            _ToInput.apply(g, weight, x.shape, ctx.window) if to_x else None,
            _ToWeight.apply(g, x, weight.shape, ctx.window) if to_weight else None,
            g.sum((0, *range(2, g.dim()))) if to_bias else None,
            None,
        )


class _ToInput(Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, weight: Tensor, shape: torch.Size, window: Window) -> Tensor:
        ctx.save_for_backward(g, weight)
        ctx.window = window
        return _derivative(g, g.new_empty(shape), weight, window, 0)

    @staticmethod
    def backward(ctx: Any, h: Tensor) -> Any:
        g, weight = ctx.saved_tensors
        to_g, to_weight = ctx.needs_input_grad[:2]
        return (
            _Forward.apply(h, weight, None, ctx.window) if to_g else None,
            _ToWeight.apply(g, h, weight.shape, ctx.window) if to_weight else None,
            None,
            None,
        )


class _ToWeight(Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, shape: torch.Size, window: Window) -> Tensor:
        ctx.save_for_backward(g, x)
        ctx.window = window
        return _derivative(g, x, g.new_empty(shape), window, 1)

    @staticmethod
    def backward(ctx: Any, h: Tensor) -> Any:
        g, x = ctx.saved_tensors
        to_g, to_x = ctx.needs_input_grad[:2]
        return (
            _Forward.apply(x, h, None, ctx.window) if to_g else None,
            _ToInput.apply(g, h, x.shape, ctx.window) if to_x else None,
            None,
            None,
        )
