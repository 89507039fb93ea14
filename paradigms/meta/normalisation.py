"""Batch norm over the shots of each task, derived by hand to second order.

Per channel, with x_hat = r (x - mean), r = (var + eps)^(-1/2), m values a channel, bars for means over them and
a_g = mean(g x_hat), the derivative of y = w x_hat + b towards x is w r P(g), P(g) = g - bar g - a_g x_hat, which is
symmetric: <h, P(g)> = <g, P(h)>. Its own derivative is a combination of h, g and x_hat with one coefficient a channel:
a few passes over memory, where autograd's composite formula takes some twenty.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

_OUTPUTS = [True, True, True]


def normalise(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Batch norm with the statistics of the batch.

    Args:
        x: ``[n, C, ...]``.
        weight: ``[C]``.
        bias: ``[C]``.
        eps: added to the variance.
    """
    result: Tensor = _Normalise.apply(x, weight, bias, eps)
    return result


class _Normalise(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        out, mean, rate = torch.native_batch_norm(x, weight, bias, None, None, True, 0.0, eps)
        ctx.save_for_backward(x, weight)
        ctx.statistics, ctx.eps = (mean, rate), eps
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        return (*_Derivative.apply(g, x, weight, ctx.statistics, ctx.eps), None)


class _Derivative(Function):
    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, weight: Tensor, statistics: tuple[Tensor, Tensor], eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        mean, rate = statistics
        found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.native_batch_norm_backward(
            g.contiguous(), x, weight, None, None, mean, rate, True, eps, _OUTPUTS
        )
        # Outputs kept on ctx itself would be a cycle that is never collected.
        ctx.save_for_backward(g, x, weight, *found[1:])
        ctx.statistics, ctx.eps = statistics, eps
        ctx.set_materialize_grads(False)
        return found

    @staticmethod
    def backward(ctx: Any, h: Tensor | None, h_weight: Tensor | None, h_bias: Tensor | None) -> Any:
        g, x, weight, *sums = ctx.saved_tensors
        h = torch.zeros_like(x) if h is None else h
        if torch.is_grad_enabled():  # derived once more: in plain operations, from x itself
            mean, rate = statistics = _statistics(x, ctx.eps)
            found = _second(
                g, x, weight, h, h_weight, h_bias, statistics, _sums(g, x, mean, rate), _sums(h, x, mean, rate)
            )
        else:
            of_h = torch.ops.aten.native_batch_norm_backward(
                h.contiguous(), x, weight, None, None, *ctx.statistics, True, ctx.eps, [False, True, True]
            )[1:]
            found = _second(g, x, weight, h, h_weight, h_bias, ctx.statistics, (sums[0], sums[1]), of_h)
        return *found, None, None


def _sums(value: Tensor, x: Tensor, mean: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
    """Per channel, the sum of value times x_hat and the sum of value."""
    axes, shape = [0, *range(2, x.dim())], [1, -1, *[1] * (x.dim() - 2)]
    return (value * (x - mean.view(shape))).sum(axes) * rate, value.sum(axes)


def _statistics(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    var, mean = torch.var_mean(x, [0, *range(2, x.dim())], correction=0)
    return mean, (var + eps).rsqrt()


def _second(
    g: Tensor,
    x: Tensor,
    weight: Tensor,
    h: Tensor,
    h_weight: Tensor | None,
    h_bias: Tensor | None,
    statistics: tuple[Tensor, Tensor],
    sums_g: tuple[Tensor, Tensor],
    sums_h: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives of <h, w r P(g)> + <h_weight, sum g x_hat> + <h_bias, sum g> in g, x and weight."""
    axes, shape = [0, *range(2, x.dim())], [1, -1, *[1] * (x.dim() - 2)]
    mean, rate = statistics
    m = x.numel() // x.shape[1]

    def combined(rest: Tensor, *terms: tuple[Tensor, Tensor]) -> Tensor:
        out = terms[0][1] * terms[0][0].view(shape)
        for coefficient, value in terms[1:]:
            wide = coefficient.view(shape)
            out = torch.addcmul(out, value, wide) if torch.is_grad_enabled() else out.addcmul_(value, wide)
        return out + rest.view(shape) if torch.is_grad_enabled() else out.add_(rest.view(shape))

    g_bar, a_g, h_bar, a_h = sums_g[1] / m, sums_g[0] / m, sums_h[1] / m, sums_h[0] / m
    s = (g * h).mean(axes) - g_bar * h_bar - a_g * a_h
    step, bend = weight * rate, weight * rate * rate

    of_x, rest = -step * a_h, -step * h_bar
    if h_weight is not None:
        of_x = of_x + h_weight
    if h_bias is not None:
        rest = rest + h_bias
    to_g = combined(rest - of_x * rate * mean, (step, h), (of_x * rate, x))

    of_h, of_g, of_x = -bend * a_g, -bend * a_h, -bend * (s - 2 * a_h * a_g)
    rest = bend * (a_g * h_bar + a_h * g_bar)
    if h_weight is not None:
        of_g, of_x = of_g + rate * h_weight, of_x - rate * h_weight * a_g
        rest = rest - rate * h_weight * g_bar
    to_x = combined(rest - of_x * rate * mean, (of_h, h), (of_g, g), (of_x * rate, x))
    return to_g, to_x, rate * m * s
