"""Rules for integrals against a standard normal law, on one axis: nodes z and weights that hold the density."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

REACH = 9.5  # exp(-9.5^2 / 2) is 2.5e-20
_DENSITY = 1 / math.sqrt(2 * math.pi)
_ORDER = 32  # Gauss-Legendre nodes a panel
_LONGEST = 4.0  # panel on which they integrate the density itself


def trapezoid(strip: float, reach: float = REACH, *, digits: float = 38.0) -> tuple[Tensor, Tensor]:
    """The trapezoid rule on ``[-reach, reach]``: for a function analytic in ``|Im z| < strip``.

    The error is about ``exp(-2 pi y / h + y^2 / 2)`` for every y below ``strip`` (Trefethen & Weideman 2014, theorem
    5.1, with the density's growth off the axis), so the step h follows from y.

    Args:
        strip: half the width of the strip around the real axis.
        reach: where the integrand has died out.
        digits: -ln of the error wanted.

    Returns:
        nodes [n], weights [n], float64.
    """
    y = min(strip, 8.0)
    half = math.ceil(reach * (digits + y * y / 2) / (2 * math.pi * y))
    z = torch.linspace(-reach, reach, 2 * half + 1, dtype=torch.float64, device="cpu")
    return z, _DENSITY * (reach / half) * torch.exp(-z.square() / 2)


@lru_cache(maxsize=4)
def legendre(order: int = _ORDER) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes and weights on [0, 1]: [order] each, float64."""
    nodes, weights = np.polynomial.legendre.leggauss(order)
    return torch.from_numpy((nodes + 1) / 2), torch.from_numpy(weights / 2)


def panels(
    breaks: Tensor, longest: float, reach: float = REACH, *, order: int = _ORDER, growing: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre rules on the pieces between breaks, for functions that are smooth on each.

    Args:
        breaks: in any order, [..., k]; those out of reach leave an empty panel.
        longest: no panel is longer than this; if ``growing``, none that touches a break.
        reach: the whole axis ends at -reach and reach.
        order: nodes a panel.
        growing: by what factor the distance from a break grows from panel to panel, up to length 4, where that takes
            fewer panels: for functions that vary ever more slowly away from all breaks. 1 for equal panels.

    Returns:
        nodes, weights [..., n], which hold the normal density.
    """
    turns = math.ceil(math.log(2 * reach / longest, growing)) + 1 if growing > 1 and longest < reach else 0
    if turns and 2 * turns * breaks.shape[-1] < 2 * reach / longest:
        steps = longest * growing ** torch.arange(turns, device="cpu").to(breaks)
        around = (breaks[..., None] + torch.cat([-steps, steps])).flatten(-2)
        breaks, longest = torch.cat([breaks, around], -1), _LONGEST
    grid = torch.linspace(-reach, reach, max(1, math.ceil(2 * reach / longest)) + 1, device="cpu").to(breaks)
    edges = torch.cat([grid.expand(*breaks.shape[:-1], -1), breaks.clamp(-reach, reach)], -1).sort(-1).values
    lengths = edges.diff(dim=-1)[..., None]
    x, w = (part.to(breaks) for part in legendre(order))
    z = (edges[..., :-1, None] + lengths * x).flatten(-2)
    return z, (lengths * w).flatten(-2) * _DENSITY * torch.exp(-z.square() / 2)
