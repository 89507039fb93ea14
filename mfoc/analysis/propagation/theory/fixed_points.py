"""Fixed points of the length map q -> gain V(q) + bias: all of them, and which one is reached."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from mfoc.analysis.gaussian import GaussianMoments
from mfoc.errors import InvalidValue

_SLOW = 1e-6  # |slope - 1| below this says nothing
_NOISE = 2e-14  # of V, relative
_FARTHEST = 1e9
_ITERATIONS = 3000


@dataclass(frozen=True)
class FixedPoint:
    """A fixed point of the length map.

    Attributes:
        q: the variance of the pre-activations there.
        slope: of the length map, chi_q.
        stable: whether variances nearby move towards it.
    """

    q: float
    slope: float
    stable: bool


@dataclass(frozen=True, eq=False)
class LengthMap:
    """q -> gain V(q) + bias, where gain is the weights' variance (over the share of units that dropout keeps)."""

    moments: GaussianMoments
    gain: float
    bias: float

    def __call__(self, q: float) -> float:
        """The variance in the next layer."""
        return self.gain * float(self.moments.second_moment(_one(q))) + self.bias

    def slope(self, q: float) -> float:
        """Its derivative."""
        return self.gain * float(self.moments.growth(_one(q)))

    def far_slope(self) -> float:
        """Its slope at infinity."""
        below, above = self.moments.activation.slopes
        return self.gain * (below**2 + above**2) / 2

    def excess(self, q: float) -> float:
        """How far q is moved; zero where that is rounding."""
        value = self(q)
        return _rounded(value - q if math.isfinite(value) else math.inf, q)

    def is_stable(self, q: float) -> bool:
        """Whether variances near the fixed point q stay near it; at slope 1, by where neighbours on both sides move."""
        slope = self.slope(q)
        if abs(slope - 1) > _SLOW:
            return abs(slope) < 1
        ratios = (1.001, 1.03, 1.3, 4.0, 32.0)
        above = [self.excess(q * ratio) for ratio in ratios] if q > 0 else [self.excess(1e-7 * 30**k) for k in range(5)]
        below = [self.excess(q / ratio) for ratio in ratios] if q > 0 else []
        return _first_sign(above) < 0 and _first_sign(below) >= 0

    def is_scale_free(self) -> bool:
        """Whether every q is a fixed point, as for ReLU with weights of variance 2 and no bias."""
        return self.moments.homogeneous and self.bias == 0 and abs(self.far_slope() - 1) < _NOISE


def fixed_points(length_map: LengthMap) -> tuple[FixedPoint, ...]:
    """All fixed points in ascending order; of a scale-free map, q = 1 stands for all.

    Sign changes on a grid of 13 decades a side are refined by Newton's method within their bracket, and so are pairs
    of roots between two points of the grid.

    Raises:
        InvalidValue: a fixed point beyond 1e9.
    """
    if length_map.moments.homogeneous:
        return _of_homogeneous(length_map)
    brackets, doubles = _brackets(length_map)
    found = [0.0] if length_map(0.0) == 0 else []
    found += [_root(length_map, low, high) for low, high in brackets] + doubles
    return tuple(_described(length_map, q) for q in sorted(found))


def reached(length_map: LengthMap, points: tuple[FixedPoint, ...], start: float = 1.0) -> float:
    """Where iterating from ``start`` ends: a fixed point, or infinity where it diverges."""
    if length_map.is_scale_free():
        return start
    if not _is_monotone(length_map.moments):
        return _iterated(length_map, points, start)
    excess = length_map.excess(start)
    if excess == 0:
        return min((point.q for point in points), key=lambda q: abs(q - start), default=start)
    if excess > 0:
        return min((point.q for point in points if point.q > start), default=math.inf)
    return max((point.q for point in points if point.q < start), default=0.0)


def _of_homogeneous(length_map: LengthMap) -> tuple[FixedPoint, ...]:
    slope, bias = length_map.far_slope(), length_map.bias
    if length_map.is_scale_free():
        return (FixedPoint(1.0, 1.0, True),)
    if slope < 1:
        return (FixedPoint(bias / (1 - slope), slope, True),)
    return () if bias else (FixedPoint(0.0, slope, False),)


# ---- the grid, made once an activation

_GRIDS: WeakKeyDictionary[GaussianMoments, tuple[list[float], list[float]]] = WeakKeyDictionary()


def _grid(moments: GaussianMoments) -> tuple[list[float], list[float]]:
    """Variances, and V there."""
    if moments not in _GRIDS:
        q = torch.cat(
            [
                torch.zeros(1, dtype=torch.float64, device="cpu"),
                torch.logspace(-18, 6, 241, dtype=torch.float64, device="cpu"),
            ]
        )
        values = moments.second_moment(q).nan_to_num(nan=math.inf)
        _GRIDS[moments] = (q.tolist(), values.tolist())
    return _GRIDS[moments]


def _is_monotone(moments: GaussianMoments) -> bool:
    values = _grid(moments)[1]
    return all(high >= low - 1e-14 * abs(low) for low, high in pairwise(values))


def _brackets(length_map: LengthMap) -> tuple[list[tuple[float, float]], list[float]]:
    """Intervals in which the map crosses the diagonal, and where it touches it."""
    variances, values = _grid(length_map.moments)
    excess = [_rounded(length_map.gain * v + length_map.bias - q, q) for q, v in zip(variances, values, strict=True)]
    known = [(q, e) for q, e in zip(variances, excess, strict=True) if e != 0]
    if known and known[-1][1] > 0 and length_map.far_slope() < 1:
        known += _beyond(length_map, known[-1][0])
    brackets, doubles = [], []
    for index, ((low, at_low), (high, at_high)) in enumerate(pairwise(known)):
        if (at_low > 0) != (at_high > 0):
            brackets.append((low, high))
        elif index + 2 < len(known) and _dips(known[index : index + 3]):
            pairs, touching = _between(length_map, low, known[index + 2][0], at_high > 0)
            brackets += pairs
            doubles += touching
    return brackets, doubles


def _rounded(excess: float, q: float) -> float:
    return 0.0 if abs(excess) <= _NOISE * q else excess


def _beyond(length_map: LengthMap, q: float) -> list[tuple[float, float]]:
    """Farther points, up to the first from which the map goes down, as it does in the end."""
    found = []
    while q < _FARTHEST:
        q = min(30 * q, _FARTHEST)
        excess = length_map.excess(q)
        found.append((q, excess))
        if excess < 0:
            return found
    raise InvalidValue(
        f"the fixed point of the length map lies beyond {_FARTHEST:g}, farther than is looked: with variances "
        f"{length_map.gain:g} of weights and {length_map.bias:g} of biases pre-activations grow too large; expected "
        "smaller ones"
    )


def _dips(three: list[tuple[float, float]]) -> bool:
    """Whether the middle of three points of one sign comes so close to the diagonal that the map may cross it nearby.

    In ln q the excess over q is smooth on the scale of the grid: V smooths phi^2 there. So it falls below the middle by
    a quarter of what it rises to a side at most, if it is a parabola; four times that is looked at. A plateau, whose
    only dips are rounding, as of hardtanh at small q, is passed over.
    """
    near = [abs(excess) / max(q, 1e-300) for q, excess in three]
    same = len({excess > 0 for _, excess in three}) == 1
    rise = max(near[0], near[2]) - near[1]
    return same and three[0][0] > 0 and near[1] <= min(near[0], near[2]) and near[1] <= rise


def _between(
    length_map: LengthMap, low: float, high: float, above: bool
) -> tuple[list[tuple[float, float]], list[float]]:
    """Two roots, or a double one, that the grid has stepped over: by golden section for the closest approach."""
    sign = 1 if above else -1

    def distance(position: float) -> float:
        q = math.exp(position)
        return sign * (length_map(q) - q) / q

    first, last, golden = math.log(low), math.log(high), (math.sqrt(5) - 1) / 2
    for _ in range(60):
        left, right = last - golden * (last - first), first + golden * (last - first)
        if distance(left) <= distance(right):
            last = right
        else:
            first = left
    middle = math.exp((first + last) / 2)
    closest = distance((first + last) / 2)
    if closest < -_NOISE:
        return [(low, middle), (middle, high)], []
    return [], [middle] if closest <= 10 * _NOISE else []


def _root(length_map: LengthMap, low: float, high: float) -> float:
    """The crossing within a bracket: Newton's method, halving where it would leave."""
    rising = length_map(low) > low  # the map is above the diagonal at the lower end
    q = math.sqrt(low * high) if low > 0 else high / 2
    for _ in range(200):
        excess = length_map(q) - q
        if (excess > 0) == rising:
            low = q
        else:
            high = q
        slope = length_map.slope(q) - 1
        step = q - excess / slope if slope != 0 else math.nan
        following = step if low < step < high else (low + high) / 2
        if abs(following - q) <= 2e-16 * q or high - low <= 2e-16 * high:
            return following
        q = following
    return q


def _described(length_map: LengthMap, q: float) -> FixedPoint:
    slope = length_map.slope(q)
    return FixedPoint(q, slope, length_map.is_stable(q))


def _first_sign(excesses: list[float]) -> float:
    """Zeros are rounding, in a region where the map is as good as the identity."""
    return next((excess for excess in excesses if excess != 0), 0.0)


def _iterated(length_map: LengthMap, points: tuple[FixedPoint, ...], start: float) -> float:
    """By iteration, for maps that are not monotone, where no bracket tells which fixed point is reached.

    One is: an orbit that stays bounded converges, as that of every continuous map without a cycle of two does (Coppel
    1955). There is none. V sqrt(q) is the integral of phi(u)^2 exp(-u^2 / 2q), up to a constant, and grows with q; of a
    cycle p < q that would say sqrt(p q) (sqrt(p) - sqrt(q)) >= bias (sqrt(q) - sqrt(p)), of opposite signs.
    """
    q = start
    targets = [point.q for point in points if point.stable]
    for _ in range(_ITERATIONS):
        q, before = length_map(q), q
        if not q < _FARTHEST:
            return math.inf
        if abs(q - before) <= 1e-9 * q:
            break
    return min(targets, key=lambda target: abs(target - q), default=math.inf)


def _one(q: float) -> Tensor:
    return torch.tensor(q, dtype=torch.float64, device="cpu")


def crossing(function: Callable[[float], float], low: float, high: float) -> float:
    """A root of a continuous function in a bracket, to the last digits (Brent 1973 would be faster; this is enough).

    Args:
        function: its signs differ at the ends.
        low: the lower end.
        high: the upper end.
    """
    sign = function(low) > 0
    value_low, value_high = function(low), function(high)
    for turn in range(200):
        inside = low + (high - low) * value_low / (value_low - value_high) if value_low != value_high else low
        q = inside if turn % 3 and low < inside < high else (low + high) / 2
        value = function(q)
        if value == 0:
            return q
        if (value > 0) == sign:
            low, value_low = q, value
        else:
            high, value_high = q, value
        if high - low <= 4e-16 * max(abs(low), abs(high)):
            break
    return (low + high) / 2
