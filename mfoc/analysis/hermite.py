"""Hermite coefficients of an activation, and Mehler's series of its correlations.

With u = sqrt(q) z and a_n(q) = E[phi(sqrt(q) z) He_n(z)] / sqrt(n!), standard normals z1, z2 of correlation c have

    E[phi(sqrt(q1) z1) phi(sqrt(q2) z2)] = sum_n a_n(q1) a_n(q2) c^n

(Mehler 1866; the dual activation of Daniely, Frostig & Singer 2016). At q1 = q2 every coefficient is positive: no
digit is lost, and 1 - c enters as a number of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from mfoc.analysis.quadrature import panels

_REACH = 13.0  # the functions below decay as exp(-z^2 / 4) only
_STEP = 0.045  # resolves what oscillates sqrt(n) times as fast, twice over, up to MOST terms
_TURNS = 40.0  # radians that 32 Gauss-Legendre nodes integrate
_AT_ONCE = 2**20  # numbers in one evaluation
MOST = 1024


@lru_cache(maxsize=8)
def _basis(terms: int) -> tuple[Tensor, Tensor]:
    """Nodes z [k], and He_n(z) / sqrt(n!) times the density and the step, [k, terms]."""
    half = math.ceil(_REACH / _STEP)
    z = torch.linspace(-_REACH, _REACH, 2 * half + 1, dtype=torch.float64, device="cpu")
    # Hermite functions, with exp(-z^2 / 4) inside: their recurrence neither overflows nor loses digits.
    rows = [torch.exp(-z.square() / 4)]
    rows.append(z * rows[0])
    for n in range(1, terms - 1):
        rows.append((z * rows[n] - math.sqrt(n) * rows[n - 1]) / math.sqrt(n + 1))
    outer = torch.exp(-z.square() / 4) * (_REACH / half / math.sqrt(2 * math.pi))
    return z, torch.stack(rows[:terms], 1) * outer[:, None]


def coefficients(function: Callable[[Tensor], Tensor], q: Tensor, terms: int) -> Tensor:
    """a_n(q) for n < ``terms``: [..., terms], for an analytic function and q [...]."""
    z, basis = (part.to(q.device) for part in _basis(terms))
    return function(q.sqrt()[..., None] * z) @ basis


def piecewise_coefficients(
    function: Callable[[Tensor], Tensor], kinks: Sequence[float], strip: float, root: Tensor, terms: int
) -> Tensor:
    """a_n for n < ``terms`` of a function with kinks, or of more terms than MOST: [R, terms].

    By Gauss-Legendre rules between the kinks, whose panels resolve the fastest He_n.

    Args:
        function: the activation.
        kinks: where it is not smooth.
        strip: see ``GaussianMoments``.
        root: standard deviations sqrt(q), [R].
        terms: how many.
    """
    longest = min(_TURNS / math.sqrt(terms), 3 * strip / float(root.max()), 4.0)
    out = root.new_empty(len(root), terms)
    width = 32 * (math.ceil(2 * _REACH / longest) + len(kinks))
    for part in torch.split(torch.arange(len(root), device=root.device), max(1, _AT_ONCE // width)):
        breaks = root.new_tensor(kinks) / root[part, None] if kinks else root.new_empty(1, 0)
        z, w = panels(breaks, longest, _REACH)  # [1 or part, nodes]
        before, here = torch.zeros_like(z), torch.exp(-z.square() / 4)
        weighted = function(root[part, None] * z) * w / here
        for n in range(terms):
            out[part, n] = torch.linalg.vecdot(weighted, here) if kinks else weighted @ here[0]
            before, here = here, (z * here - math.sqrt(n) * before) / math.sqrt(n + 1)
    return out


def enough_terms(strip: float, q: float) -> int:
    """How many terms reach rounding, for a function analytic in ``|Im u| < strip``; more than MOST where none do.

    a_n^2 decays as exp(-2 strip sqrt(2 n / q)), or faster.
    """
    needed = max(24.0, q * (40.0 / (2 * strip)) ** 2 / 2 + 24.0)
    return int(min(2 ** math.ceil(math.log2(needed)), 2 * MOST))


def correlated(first: Tensor, second: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Mehler's series and its derivative in c, by Horner's rule.

    Args:
        first: a_n(q1), [N, terms].
        second: a_n(q2), [M, terms].
        c: [N, M].

    Returns:
        sum_n a_n a_n c^n and sum_n n a_n a_n c^(n-1), [N, M] each.
    """
    value, slope = torch.zeros_like(c), torch.zeros_like(c)
    for n in range(first.shape[1] - 1, -1, -1):
        slope.mul_(c).add_(value)
        value.mul_(c).addr_(first[:, n], second[:, n])
    return value, slope


def lost(squares: Tensor, delta: Tensor) -> Tensor:
    """sum_n a_n^2 (1 - (1 - delta)^n) / delta, with all digits for small delta.

    Args:
        squares: a_n^2, [..., terms].
        delta: 1 - c in [0, 2], [...].

    Returns:
        [...].
    """
    n = torch.arange(squares.shape[-1], dtype=squares.dtype, device=squares.device)
    c = (1 - delta)[..., None]
    near = delta[..., None] < 0.5
    tiny = torch.where(near, delta[..., None], 0.25)
    kept = torch.where(near, -torch.expm1(n * torch.log1p(-tiny)), 1 - c**n) / delta.clamp(min=1e-300)[..., None]
    kept = torch.where(delta[..., None] < 1e-300, n, kept)
    return (squares * kept).sum(-1)


def slope_at(squares: Tensor, delta: Tensor) -> Tensor:
    """sum_n n a_n^2 (1 - delta)^(n-1), with all digits for small delta; arguments as those of ``lost``."""
    n = torch.arange(1, squares.shape[-1], dtype=squares.dtype, device=squares.device)
    c = (1 - delta)[..., None]
    return (squares[..., 1:] * n * c ** (n - 1)).sum(-1)
