"""Where an activation is kept at depth: the length q* at which chi_1 = 1 holds and lasts.

A layer h = W phi(x) + b with sw2 = chi / E phi'^2 at length q has gain chi for perturbations, and keeps q if
sb2 = q - sw2 V(q) is no variance below zero. It keeps q against disturbances if chi_q = sw2 dV/dq is not above one:
else what is a little too long grows from layer to layer, as with GELU and SiLU at small q. Hence the largest gain, up
to one, at which q lasts is

    chi(q) = min(1, q E phi'^2 / V(q), E phi'^2 / V'(q)).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mfoc.analysis.gaussian import GaussianMoments
from mfoc.errors import InvalidValue

_FURTHEST = 200.0  # a longer q* saturates bounded activations, and is nothing new to the others
_TRIED = 160
_MARGIN = 0.01  # chi_q <= .99: a disturbance halves in 70 layers
_EXACT = 1e-9
_STEEPEST = 1e12  # mean squares beyond are those of exp far out: no quadrature, and no network, is right there


@dataclass(frozen=True, eq=False)
class Step:
    """What a layer after an activation needs at a length.

    Attributes:
        chi: its gain, one where that lasts.
        weight_variance: sw2 = chi / E phi'^2.
        second_moment: V(q), the mean square of what the layer reads.
        bias_variance: what keeps q: q - sw2 V(q).
        chi_q: the slope of the length map.
    """

    chi: float
    weight_variance: float
    second_moment: float
    bias_variance: float
    chi_q: float


def step_at(moments: GaussianMoments, q: float) -> Step:
    """The layer after an activation at length q, with the largest gain up to one at which q lasts."""
    value, slope, growth = (
        float(part) for part in _moments(moments, torch.tensor([q], dtype=torch.float64, device="cpu"))
    )
    chi = min(1.0, *(_ratio(slope, other) for other in (value / q, growth)))
    chi = 1.0 if chi > 1 - _EXACT else chi
    variance = chi / slope
    return Step(chi, variance, value, max(q - variance * value, 0.0), variance * growth)


def lasting_length(activations: Sequence[GaussianMoments], q_star: float, *, leak: float = math.inf) -> float:
    """The smallest q from ``q_star`` on at which every activation has chi_1 = 1 for good; else the nearest to it.

    Args:
        activations: those that layers read; a layer after any of them is to keep the same q.
        q_star: the length that is asked for.
        leak: the largest fraction of q that may have to come from biases; of layers without biases it is lost.

    Raises:
        InvalidValue: an activation whose slope has no mean square above zero at any q.
    """
    if not activations:
        return q_star
    q = torch.logspace(
        math.log10(q_star), math.log10(max(_FURTHEST, q_star)), _TRIED, dtype=torch.float64, device="cpu"
    )
    q = torch.cat([torch.tensor([q_star], dtype=torch.float64, device="cpu"), q[1:]])
    chi, growth, lost = torch.ones_like(q), torch.zeros_like(q), torch.zeros_like(q)
    for moments in activations:
        value, slope, rate = _moments(moments, q)
        finite = value.isfinite() & slope.isfinite() & rate.isfinite()
        usable = (finite & (slope > 0) & (slope < _STEEPEST)).to(q)
        own = torch.minimum(q * slope / value.clamp(min=1e-300), slope / rate.clamp(min=1e-300)).clamp(max=1.0)
        chi = torch.minimum(chi, torch.nan_to_num(own * usable, 0.0))
        growth = torch.maximum(growth, torch.nan_to_num(rate / slope, torch.inf))
        lost = torch.maximum(lost, torch.nan_to_num(1 - value / (slope * q), torch.inf))
    if not bool((chi > 0).any()):
        names = ", ".join(repr(moments.activation.name) for moments in activations)
        raise InvalidValue(f"{names}: no gain is finite and above zero at any q >= {q_star:g}; is it constant?")
    critical = chi >= 1 - _EXACT
    safe = critical & (growth <= 1 - _MARGIN)
    safe[0] = critical[0]  # what is asked for needs no margin: with hardtanh and ReLU chi_q = 1 is harmless
    for fit in (safe & (lost <= leak), safe, critical):
        if bool(fit.any()):
            return float(q[fit][0])
    return float(q[chi.argmax()])


def _moments(moments: GaussianMoments, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return moments.second_moment(q), moments.slope_moment(q), moments.growth(q)


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0 else math.inf
