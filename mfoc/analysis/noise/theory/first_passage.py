"""The exact mean time until a diffusion in one dimension first reaches a point.

For dx = -U'(x) dt + sqrt(2 D) dW and a < b the mean time from a to b is

    (1 / D) int_a^b dy e^(U(y) / D) int_(-inf)^y dz e^(-U(z) / D)

(C. Gardiner 2009, "Stochastic methods", sec. 5.5). Both integrals are taken by Gauss-Legendre rules on panels, in
logarithms, as e^(U / D) overflows long before the time does. Panels are halved until the time stands still.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from mfoc.analysis.noise.theory.quantities import as_tensors
from mfoc.analysis.quadrature import legendre
from mfoc.checks import check_callable, check_positive
from mfoc.errors import InvalidType, InvalidValue, MfocError

Potential = Callable[[Tensor], Tensor]

_ORDER = 16  # Gauss-Legendre nodes a panel
_SETTLED = 1e-11  # a change of the time, as a share of it, by which it stands still
_ROUGHLY = 1e-6  # that which is put up with in the end: at a kink the error falls with the square of a panel
_LEAST, _MOST = 16, 4096  # panels a piece
_DEEP = 45.0  # -ln of the share of the inner integral that may be cut off
_DOUBLINGS = 80  # of the distance to the left, until U must confine
_HUGE = 1e300  # in place of an infinite potential, so that differences are numbers
_WALL = 1e200  # in units of D, what counts as infinite


def mean_first_passage_time(potential: Potential, start: float, end: float, diffusion: float) -> float:
    """The mean time until dx = -U'(x) dt + sqrt(2 D) dW from ``start`` first reaches ``end``.

    On the far side of ``start`` the potential must confine, so that no path gets lost there. For SGD on a loss f in one
    dimension, in time t = eta times steps: U = f and D = eta Sigma / 2.

    Args:
        potential: ``U(x) -> [n]`` for float64 x ``[n]`` on the CPU. It may have kinks, with which the time has some six
            digits, and be inf on the far side of start, from a wall on.
        start: where the path begins.
        end: what it is to reach, on either side.
        diffusion: D > 0.

    Returns:
        The mean time: 0 where start is end, inf where it is too large for a float.

    Raises:
        InvalidType: no function, no numbers.
        InvalidValue: the potential is NaN or of another shape, does not confine, or is too rough to integrate;
            diffusion <= 0.
    """
    check_points(start=start, end=end)
    check_callable("a function U(x) -> [n]", potential=potential)
    check_positive(diffusion=diffusion)
    if start == end:
        return 0.0
    side = 1.0 if start < end else -1.0  # mirrored, so that the path climbs to the right

    def scaled(x: Tensor) -> Tensor:
        return evaluate(potential, side * x) / diffusion

    pieces = _pieces(scaled, side * start, side * end)
    log_time = _settled(lambda panels: _log_time(scaled, pieces, panels)) - math.log(diffusion)
    return math.exp(log_time) if log_time < math.log(_HUGE) else math.inf


def _settled(log_time: Callable[[int], float]) -> float:
    """The logarithm of the time with as many panels as it takes."""
    before, panels, change = math.inf, _LEAST, math.inf
    while panels <= _MOST:
        now = log_time(panels)
        change = abs(now - before)
        if change < _SETTLED * max(1.0, abs(now)):
            return now
        before, panels = now, 2 * panels
    if change < _ROUGHLY or before - 10 * change > math.log(_HUGE):  # too large for a float, whatever its digits
        return before
    raise InvalidValue(
        f"the time does not settle to {_ROUGHLY:g} with {_MOST} panels; expected a potential without jumps, not one "
        "that varies on a scale far below the distance from start to end"
    )


def check_points(**points: float) -> None:
    """Refuses what is no finite number on the axis.

    Raises:
        InvalidType: no number.
        InvalidValue: not finite.
    """
    as_tensors(**points)
    for name, point in points.items():
        if isinstance(point, Tensor):
            raise InvalidType(f"{name} is a tensor; expected a number on the axis, float({name})")


def evaluate(potential: Potential, x: Tensor) -> Tensor:
    """The potential at points ``[n]``, without a graph.

    Raises:
        InvalidValue: it is of another shape, NaN or -inf.
    """
    try:
        with torch.no_grad():
            u = potential(x)
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, MfocError):
            raise
        raise InvalidValue(f"potential cannot be evaluated at points [{len(x)}], {x.dtype}: {error}") from error
    if not isinstance(u, Tensor) or u.shape != x.shape:
        got = tuple(u.shape) if isinstance(u, Tensor) else u
        raise InvalidValue(f"potential returned {got!r} at {len(x)} points; expected a tensor of shape ({len(x)},)")
    bad = u.isnan() | (u == -torch.inf)
    if bool(bad.any()):
        raise InvalidValue(f"potential is {float(u[bad][0])} at {float(x[bad][0]):.4g}; expected a number")
    return u.to(torch.float64).clamp(max=_HUGE)


def _pieces(scaled: Callable[[Tensor], Tensor], start: float, end: float) -> Tensor:
    """Breaks between pieces of ever greater length to the left, from where U has confined the path, and the end.

    An infinite U confines it at once: there the first piece begins, as a rule for smooth functions cannot step over.
    """
    length, edges = end - start, [end, start]
    least, confined = math.inf, 0
    for k in range(1, _DOUBLINGS):
        left = start - length * (2.0**k - 1)
        x = torch.linspace(left, edges[-1], 129, dtype=torch.float64, device="cpu")
        u = scaled(x)
        walled = (u >= _WALL).nonzero()
        if len(walled):
            last = int(walled[-1])
            if last < len(x) - 1:  # else at the last edge itself
                edges.append(_wall(scaled, float(x[last]), float(x[last + 1])))
            return torch.tensor(edges[::-1], dtype=torch.float64, device="cpu")
        least = min(least, float(u.min()))
        edges.append(left)
        # The length of the piece counts as well: a logarithm confines only where its factor is large.
        rise = float(u[:65].min()) - least - math.log(2) * k
        confined = confined + 1 if rise > _DEEP else 0
        if confined == 3:  # not only there, but all the way through pieces that reach eight times as far
            return torch.tensor(edges[:-2][::-1], dtype=torch.float64, device="cpu")
    raise InvalidValue(
        f"the potential does not confine the path on the far side of the start: {abs(left):.3g} away it is only "
        f"{float(u[0]) - least:.3g} D above its lowest value. The mean time is infinite unless U rises there"
    )


def _wall(scaled: Callable[[Tensor], Tensor], inside: float, outside: float) -> float:
    """The point to the right of a wall, to rounding."""
    while inside < (middle := (inside + outside) / 2) < outside:
        if float(scaled(torch.tensor([middle], dtype=torch.float64, device="cpu"))) >= _WALL:
            inside = middle
        else:
            outside = middle
    return outside


def _log_time(scaled: Callable[[Tensor], Tensor], pieces: Tensor, panels: int) -> float:
    """The logarithm of the double integral, with that many panels in each piece."""
    steps = torch.arange(panels, dtype=torch.float64, device="cpu") / panels
    edges = torch.cat([(pieces[:-1, None] + pieces.diff()[:, None] * steps).flatten(), pieces[-1:]])
    lengths = edges.diff()[:, None]
    nodes, weights = legendre(_ORDER)
    u = scaled((edges[:-1, None] + lengths * nodes).flatten()).reshape(-1, _ORDER)
    floor = u.min(1, keepdim=True).values
    density = torch.exp(floor - u)
    inside = (lengths * (density @ _antiderivatives().mT)).clamp(min=0).log() - floor  # from the panel's left end
    whole = (lengths[:, 0] * (density @ weights)).log() - floor[:, 0]
    before = torch.cat([torch.full((1,), -torch.inf, dtype=torch.float64, device="cpu"), whole.logcumsumexp(0)[:-1]])
    inner = torch.logaddexp(before[:, None], inside)
    climbed = (u + inner + (lengths * weights).log())[-panels:]  # of the last piece, from start to end
    return float(climbed.flatten().logsumexp(0))


@lru_cache(maxsize=1)
def _antiderivatives() -> Tensor:
    """The matrix that takes a function's values at the nodes to its integrals from 0 to each node ``[m, m]``."""
    legendre_basis = np.polynomial.legendre
    nodes = 2 * legendre(_ORDER)[0].numpy() - 1
    values = legendre_basis.legvander(nodes, _ORDER - 1)
    integrals = np.stack(
        [legendre_basis.legval(nodes, legendre_basis.legint(row, lbnd=-1)) for row in np.eye(_ORDER)], axis=1
    )
    return torch.from_numpy(integrals @ np.linalg.inv(values) / 2)
