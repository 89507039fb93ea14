"""The critical line, on which gradients keep their size through depth."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mfoc.analysis.activations import ActivationLike
from mfoc.analysis.gaussian import GaussianMoments
from mfoc.analysis.propagation.theory.fixed_points import LengthMap, crossing, fixed_points, reached
from mfoc.checks import check_non_negative
from mfoc.errors import InvalidType, InvalidValue

_SCANNED = (-8, 4, 145)  # decades of q in which critical points are looked for


def critical_line(
    activation: ActivationLike, *, bias_variance: float | None = None, q_star: float | None = None
) -> tuple[float, float]:
    """The weights' and biases' variances with chi_1 = 1 (Poole et al. 2016; Pennington, Schoenholz & Ganguli 2017).

    At a fixed point q of the length map, chi_1 = 1 says weight_variance = 1 / E phi'(sqrt(q) z)^2 and bias_variance =
    q - weight_variance V(q). A point on the line is returned only where q is stable, that is where a deep network
    comes to it.

    Args:
        activation: a name, a function of a tensor, or a module.
        bias_variance: where on the line; or
        q_star: the variance of the pre-activations there. Exactly one of both.

    Returns:
        weight_variance, bias_variance.

    Raises:
        InvalidType: none of both, or both.
        InvalidValue: there is no such point: the biases' variance would be negative, or the fixed point is unstable.
    """
    if (bias_variance is None) == (q_star is None):
        raise InvalidType("critical_line takes one of bias_variance and q_star; expected exactly one")
    check_non_negative(optional=True, bias_variance=bias_variance, q_star=q_star)
    moments = GaussianMoments.of(activation)
    if moments.homogeneous:
        return _of_homogeneous(moments, bias_variance or 0.0)
    return _at(moments, float(q_star)) if q_star is not None else _with_bias(moments, float(bias_variance or 0.0))


def stable_variances(moments: GaussianMoments) -> list[tuple[float, float]]:
    """The intervals of q, in ascending order, whose critical points exist and are stable, to a grid's precision.

    Args:
        moments: of the activation.
    """
    q = torch.logspace(*_SCANNED, dtype=torch.float64, device="cpu")
    weights, biases = _line(moments, q)
    good = (biases >= -1e-15 * q) & (weights * moments.growth(q) < 1 - 1e-12)
    intervals: list[tuple[float, float]] = []
    for value, fits in zip(q.tolist(), good.tolist(), strict=True):
        if not fits:
            intervals.append((math.nan, math.nan))
        elif intervals and not math.isnan(intervals[-1][0]):
            intervals[-1] = (intervals[-1][0], value)
        else:
            intervals.append((value, value))
    return [interval for interval in intervals if not math.isnan(interval[0])]


def _line(moments: GaussianMoments, q: Tensor) -> tuple[Tensor, Tensor]:
    weights = 1 / moments.slope_moment(q)
    return weights, q - weights * moments.second_moment(q)


def _at(moments: GaussianMoments, q: float) -> tuple[float, float]:
    weights, biases = (float(part) for part in _line(moments, torch.tensor(q, dtype=torch.float64, device="cpu")))
    name = moments.activation.name
    biases = 0.0 if abs(biases) <= 4e-15 * max(q, 1e-300) else biases
    if biases < 0:
        raise InvalidValue(
            f"q_star is {q:g}: on the critical line of {name!r} the biases' variance would be {biases:.3g}; "
            + _advice(moments)
        )
    length_map = LengthMap(moments, weights, biases)
    if not length_map.is_stable(q):
        raise InvalidValue(
            f"q_star is {q:g}: the critical point of {name!r} there (weight_variance {weights:.6g}, bias_variance "
            f"{biases:.6g}) is unstable, the slope of its length map is {length_map.slope(q):.6g}; " + _advice(moments)
        )
    return weights, biases


def _advice(moments: GaussianMoments) -> str:
    intervals = stable_variances(moments)
    if not intervals:
        return "this activation has no stable critical point"
    least, most = 10.0 ** _SCANNED[0], 10.0 ** _SCANNED[1]
    shown = [
        f"{'0' if low <= least * 1.01 else f'{low:.3g}'} to {'infinity' if high >= most * 0.99 else f'{high:.3g}'}"
        for low, high in intervals
    ]
    return f"expected q_star from {' or from '.join(shown)}, where critical points are stable"


def _with_bias(moments: GaussianMoments, bias: float) -> tuple[float, float]:
    """The stable point with that bias that q = 1 leads to, or else the first one."""
    zero = torch.zeros((), dtype=torch.float64, device="cpu")
    candidates = [0.0] if bias == 0 and float(moments.second_moment(zero)) == 0 else []
    q = torch.logspace(*_SCANNED, dtype=torch.float64, device="cpu")
    excess = (_line(moments, q)[1] - bias).tolist()

    def off(value: float) -> float:
        return float(_line(moments, torch.tensor(value, dtype=torch.float64, device="cpu"))[1]) - bias

    ends = q.tolist()
    for low, high, at_low, at_high in zip(ends[:-1], ends[1:], excess[:-1], excess[1:], strict=True):
        if (at_low > 0) != (at_high > 0):
            candidates.append(crossing(off, low, high))
    stable = []
    for value in candidates:
        weights = float(_line(moments, torch.tensor(value, dtype=torch.float64, device="cpu"))[0])
        length_map = LengthMap(moments, weights, bias)
        if length_map.is_stable(value):
            stable.append((weights, value, length_map))
    for weights, value, length_map in stable:
        if abs(reached(length_map, fixed_points(length_map)) - value) <= 1e-6 * max(value, 1e-6):
            return weights, bias
    if stable:
        return stable[0][0], bias
    raise InvalidValue(
        f"bias_variance is {bias:g}: {moments.activation.name!r} has no stable critical point there; {_advice(moments)}"
    )


def _of_homogeneous(moments: GaussianMoments, bias: float) -> tuple[float, float]:
    if bias > 0:
        raise InvalidValue(
            f"bias_variance is {bias:g}: with {moments.activation.name!r}, whose critical point is without biases, "
            "the variance would grow with depth; expected 0"
        )
    rate = float(moments.slope_moment(torch.ones((), dtype=torch.float64, device="cpu")))
    return 1 / rate, 0.0
