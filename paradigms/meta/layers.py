"""Layers with weights or statistics of each task's own, whose derivatives of any order stay fast.

Convolutions. <g, conv(x, w)> is linear in each of x, w and g, so every derivative of a convolution, of any order, is
one of three grouped convolutions: towards g (the convolution itself), towards x (its transpose) and towards w (the
correlation of x with g). Autograd's own double backward of a grouped convolution loops over the groups; these do not.

Batch norm. Per channel, with x_hat = r (x - mean), r = (var + eps)^(-1/2), m values a channel, bars for means over them
and a_g = mean(g x_hat), the derivative of y = w x_hat + b towards x is w r P(g), P(g) = g - bar g - a_g x_hat, which is
symmetric: <h, P(g)> = <g, P(h)>. Its own derivative is a combination of h, g and x_hat with one coefficient a channel:
a few passes over memory, where autograd's composite formula takes some twenty.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

_G, _X, _W = range(3)  # the places of <g, conv(x, w)>


class Window(NamedTuple):
    """The hyper-parameters of a convolution, per spatial axis."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, window: Window) -> Tensor:
    """A grouped convolution of ``[n, C, ...]`` with a weight ``[O, C / groups, ...]`` and a bias ``[O]`` or None."""
    result: Tensor = _Convolution.apply(_G, (), window, bias, x, weight)
    return result


class _Convolution(Function):
    """The derivative of <g, conv(x, w)> towards one of its places, given the other two in order."""

    @staticmethod
    def forward(
        ctx: Any, place: int, shape: Sequence[int], window: Window, bias: Tensor | None, a: Tensor, b: Tensor
    ) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.place, ctx.window = place, window
        settings = (window.stride, window.padding, window.dilation, False, [0] * len(window.stride), window.groups)
        if place == _G:
            return torch.convolution(a, b, bias, *settings)
        x, w = (a.new_empty(shape), b) if place == _X else (b, a.new_empty(shape))
        mask = [place == _X, place == _W, False]
        found: Tensor = torch.ops.aten.convolution_backward(a, x, w, None, *settings, mask)[place - 1]
        return found

    @staticmethod
    def backward(ctx: Any, h: Tensor) -> Any:
        others = [place for place in (_G, _X, _W) if place != ctx.place]
        given = {ctx.place: h, **dict(zip(others, ctx.saved_tensors, strict=True))}

        def towards(place: int) -> Tensor:
            a, b = (given[other] for other in (_G, _X, _W) if other != place)
            result: Tensor = _Convolution.apply(place, given[place].shape, ctx.window, None, a, b)
            return result

        to_bias, *wanted = ctx.needs_input_grad[3:]
        found = [towards(place) if asked else None for place, asked in zip(others, wanted, strict=True)]
        return None, None, None, h.sum((0, *range(2, h.dim()))) if to_bias else None, *found


def normalise(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Batch norm of ``[n, C, ...]`` with the statistics of the batch; weight and bias are ``[C]``."""
    result: Tensor = _Normalise.apply(x, weight, bias, eps, False)
    return result


def normalise_last(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """The same of ``[tasks, shots, ..., C]``, each task with its own statistics; weight and bias are ``[tasks, C]``."""
    rows: Tensor = _Normalise.apply(x.flatten(1, -2), weight, bias, eps, True)
    return rows.view(x.shape)


class _Normalise(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, last: bool) -> Tensor:
        if last:  # torch's own kernels are for channels that are not
            mean = x.mean(1)
            out = x - mean.unsqueeze(1)
            rate = (out.square().mean(1) + eps).rsqrt()
            out = out.mul_((weight * rate).unsqueeze(1)).add_(bias.unsqueeze(1))
        else:
            out, mean, rate = torch.native_batch_norm(x, weight, bias, None, None, True, 0.0, eps)
        ctx.save_for_backward(x, weight)
        ctx.statistics, ctx.eps, ctx.last = (mean, rate), eps, last
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        return (*_Derivative.apply(g, x, weight, ctx.statistics, ctx.eps, ctx.last), None, None)


class _Derivative(Function):
    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, weight: Tensor, statistics: tuple[Tensor, Tensor], eps: float, last: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        if last:
            mean, rate = statistics
            g_x, g_1 = _sums(g, x, mean, rate, last)
            m, step = x.shape[1], weight * rate
            bend = step * rate * g_x / m
            to_x = _combined(bend * mean - step * g_1 / m, (step, g), (-bend, x), last=last)
        else:
            to_x, g_x, g_1 = _torchs(g, x, weight, statistics, eps, [True] * 3)
        # Outputs kept on ctx itself would be a cycle that is never collected.
        ctx.save_for_backward(g, x, weight, g_x, g_1)
        ctx.statistics, ctx.eps, ctx.last = statistics, eps, last
        ctx.set_materialize_grads(False)
        return to_x, g_x, g_1

    @staticmethod
    def backward(ctx: Any, h: Tensor | None, h_weight: Tensor | None, h_bias: Tensor | None) -> Any:
        g, x, weight, *sums = ctx.saved_tensors
        h = torch.zeros_like(x) if h is None else h
        statistics: tuple[Tensor, Tensor] = ctx.statistics
        last: bool = ctx.last
        if torch.is_grad_enabled():  # derived once more: in plain operations, from x itself
            var, mean = torch.var_mean(x, _layout(x, last)[0], correction=0)
            statistics = mean, (var + ctx.eps).rsqrt()
            sums, of_h = (_sums(value, x, mean, statistics[1], last) for value in (g, h))
        elif last:
            of_h = _sums(h, x, statistics[0], statistics[1], last)
        else:
            of_h = _torchs(h, x, weight, statistics, ctx.eps, [False, True, True])[1:]
        return *_second(g, x, weight, h, h_weight, h_bias, statistics, sums, of_h, last), None, None, None


def _torchs(
    g: Tensor, x: Tensor, weight: Tensor, statistics: tuple[Tensor, Tensor], eps: float, mask: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """The derivatives of <g, y> in x, weight and bias by torch's own kernel."""
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.native_batch_norm_backward(
        g.contiguous(), x, weight, None, None, *statistics, True, eps, mask
    )
    return found


def _layout(x: Tensor, last: bool) -> tuple[list[int], list[int]]:
    """The axes of x that statistics are taken over, and the shape with which they spread over x."""
    if last:
        return [1], [len(x), 1, -1]
    return [0, *range(2, x.dim())], [1, -1, *[1] * (x.dim() - 2)]


def _sums(value: Tensor, x: Tensor, mean: Tensor, rate: Tensor, last: bool) -> tuple[Tensor, Tensor]:
    """Per channel, the sum of value times x_hat and the sum of value."""
    axes, shape = _layout(x, last)
    return (value * (x - mean.view(shape))).sum(axes) * rate, value.sum(axes)


def _combined(rest: Tensor, *terms: tuple[Tensor, Tensor], last: bool) -> Tensor:
    """The sum of the terms, each a coefficient of every channel times a value, and of a number for every channel."""
    shape = _layout(terms[0][1], last)[1]
    out = terms[0][1] * terms[0][0].view(shape)
    for coefficient, value in terms[1:]:
        wide = coefficient.view(shape)
        out = torch.addcmul(out, value, wide) if torch.is_grad_enabled() else out.addcmul_(value, wide)
    return out + rest.view(shape) if torch.is_grad_enabled() else out.add_(rest.view(shape))


def _second(
    g: Tensor,
    x: Tensor,
    weight: Tensor,
    h: Tensor,
    h_weight: Tensor | None,
    h_bias: Tensor | None,
    statistics: tuple[Tensor, Tensor],
    sums_g: Sequence[Tensor],
    sums_h: Sequence[Tensor],
    last: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives of <h, w r P(g)> + <h_weight, sum g x_hat> + <h_bias, sum g> in g, x and weight."""
    axes, (mean, rate), m = _layout(x, last)[0], statistics, x.numel() // weight.numel()
    combined = partial(_combined, last=last)

    g_bar, a_g, h_bar, a_h = sums_g[1] / m, sums_g[0] / m, sums_h[1] / m, sums_h[0] / m
    s = (g * h).mean(axes) - g_bar * h_bar - a_g * a_h
    step, bend = weight * rate, weight * rate * rate

    of_x, rest = -step * a_h, -step * h_bar
    of_x = of_x if h_weight is None else of_x + h_weight
    rest = rest if h_bias is None else rest + h_bias
    to_g = combined(rest - of_x * rate * mean, (step, h), (of_x * rate, x))

    of_h, of_g, of_x = -bend * a_g, -bend * a_h, -bend * (s - 2 * a_h * a_g)
    rest = bend * (a_g * h_bar + a_h * g_bar)
    if h_weight is not None:
        of_g, of_x = of_g + rate * h_weight, of_x - rate * h_weight * a_g
        rest = rest - rate * h_weight * g_bar
    to_x = combined(rest - of_x * rate * mean, (of_h, h), (of_g, g), (of_x * rate, x))
    return to_g, to_x, rate * m * s
