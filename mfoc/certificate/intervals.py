"""Intervals about the population, from the particles of a sample.

The particles are split into K groups of nearly equal size, and everything here is computed from one number per group,
or per pair of groups. Groups count as independent draws: ``weights [K]`` are their shares of the particles, and a
group's variance is taken as inverse to its share. What is learned of N particles is that the residual and the gap are
squares, or roots of squares, of something that is nearly Gaussian. Their sample values are therefore biased upwards, by
as much as they are worth themselves where the controls are near an optimum; and their law is neither Gaussian nor
symmetric there. With g_1 .. g_K the groups' vectors, m their mean and Sigma/K its covariance,

    ||m||^2  =  theta + tau + 2 <E g, m - E g> + (||m - E g||^2 - tau),     theta = ||E g||^2,  tau = tr Sigma / K

The linear term has Student's law with K - 1 degrees. The quadratic one is a sum of chi squares, taken as one chi square
of nu = (tr Sigma)^2 / tr Sigma^2 degrees (Satterthwaite, Biometrics Bulletin 2, 1946), over an estimate of tau with
nu (K - 1) degrees: an F law. Both are put together such that one dimension gives Student's interval of the mean, mapped
by the absolute value, and that any dimension gives the F test of theta = 0, which is exact for Gaussian vectors with a
covariance that is a multiple of the identity. The interval holds the theta that such a test does not reject. Unbiased
estimates of tr Sigma^2 and (tr Sigma)^2 are those of Bai & Saranadasa (Statistica Sinica 6, 1996, sec. 3).

The gap of a quadratic H is half such a square, in the metric of the inverse of its second derivative. Its vectors are
not needed: minimisers that leave one fold of the particles out, judged on every group, hold their inner products.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mfoc import tree
from mfoc.checks import check_between, check_integer
from mfoc.errors import InvalidValue
from mfoc.statistics import student_t_quantile

GROUPS = 20  # of the particles, where there are as many: more cost more, and sharpen Student's t by little
FOLDS = 5  # of the groups, each left out of a minimisation once: 2 give intervals that are far too wide near an optimum

Array = NDArray[np.float64]
_ROUNDING = 64 * float(np.finfo(np.float64).eps)
_quantile = lru_cache(maxsize=256)(student_t_quantile)


@dataclass(frozen=True)
class Measure:
    """One quantity: what it is on the particles given, and what is known of it in the population they come from.

    Attributes:
        value: the quantity of the sample itself; a residual's equals the gradient's norm.
        low, high: the interval for the population, which holds its quantity as often as the confidence says. ``value``
            may lie outside: a norm and a gap of a sample are too large, an eigenvalue too small.
        estimate: of the population's quantity, freed of the bias of ``value``; None where there is none.
        conservative: the interval covers at least as often as its confidence says, not just as often.
    """

    value: float
    low: float
    high: float
    estimate: float | None = None
    conservative: bool = False

    def __str__(self) -> str:
        if math.isnan(self.value):
            return "n/a"
        return f"{self.value:9.2e} [{self.low:9.2e}, {self.high:9.2e}]"


def fold_of_group(groups: int, folds: int = FOLDS) -> Tensor:
    """The fold of each group ``[K]``: 0, 1, 2, .., 0, 1, 2, ..; as many folds as groups where there are fewer groups.

    Raises:
        InvalidType, InvalidValue: no group, or less than two folds.
    """
    check_integer(1, groups=groups)
    check_integer(2, folds=folds)
    return torch.arange(groups, device="cpu") % min(folds, groups)


def residual_interval(
    gram: Tensor, weights: Tensor, confidence: float = 0.95, *, dimension: int | None = None
) -> Measure:
    """The norm ||E g|| of a mean vector, from the inner products of the groups' vectors.

    Vectors that differ by less than about 1e-7 of their length are equal here, for their inner products show no more.

    Args:
        gram: ``<g_k, g_l>``, ``[K, K]``; in float64, of vectors that were cast before they were multiplied.
        weights: the share of the particles in each group ``[K]``.
        confidence: how often the interval is to hold ||E g||.
        dimension: of the vectors, where it is known: there are no more directions to vary in.

    Returns:
        The measure; its ``value`` is ||sum_k w_k g_k||. One group says nothing of the spread: ``high`` is infinite.

    Raises:
        InvalidType, InvalidValue: arguments of other shapes, no level, weights that are no shares.
    """
    check_between(0, 1, confidence=confidence)
    check_integer(1, optional=True, dimension=dimension)
    shares, products = _shares(weights), _numbers(gram)
    groups = len(shares)
    _check_shape("gram", products, (groups, groups))
    if not np.isfinite(products).all():
        return _unknown(products)
    scale = float(np.abs(products).max()) or 1.0
    products = products / scale
    with_mean = products @ shares
    square = max(float(shares @ with_mean), 0.0)
    length = math.sqrt(scale)
    value = math.sqrt(square) * length
    if groups == 1:
        return Measure(value, 0.0, math.inf, value)
    centred = products - with_mean[:, None] - with_mean[None] + square
    spread = _Spread.of(centred, shares, dimension)
    if spread.tau <= _ROUNDING:
        return Measure(value, value, value, value)
    along = _variance(with_mean, shares) / square if square > 0 else spread.tau / spread.nu
    ends = _square_interval(square, along, spread, groups - 1, confidence)
    estimate, low, high = (math.sqrt(end) * length for end in ends)
    return Measure(value, low, high, estimate)


def gap_interval(
    full: Tensor,
    crossed: Tensor,
    folds: Tensor,
    weights: Tensor,
    confidence: float = 0.95,
    *,
    dimension: int | None = None,
) -> Measure:
    """The gap E H(u) - min_v E H(v), from minimisers v of the sample's means with and without each fold.

    The sample's own gap is too large by about b/N, for v is fitted to it; a minimiser judged on particles that it was
    not fitted to gives about b/N J/(J-1) too little. ``estimate`` is the combination without either. The gap is half a
    square where H is nearly quadratic between these minimisers; far from the optimum only the linear term counts, and
    H may be anything.

    Args:
        full: ``E_k [H(u) - H(v)]``, ``[K]``, at v, which minimises sum_k w_k E_k H.
        crossed: ``E_k [H(u) - H(v_j)]``, ``[J, K]``, at v_j, which minimises the same sum without the groups of fold j.
        folds: the fold of each group ``[K]``, 0 .. J-1: see `fold_of_group`.
        weights: the share of the particles in each group ``[K]``.
        confidence: how often the interval is to hold the gap.
        dimension: of u, where it is known. In one dimension nothing but the sample's gap needs ``crossed``.

    Returns:
        The measure; its ``value`` is the sample's gap. It is infinite where that is. One group, or a mean that has no
        minimiser without a fold, leaves ``high`` infinite. Two folds know little of the directions in which minimisers
        vary: the interval is conservative.

    Raises:
        InvalidType, InvalidValue: arguments of other shapes, no level, weights that are no shares, an empty fold.
    """
    check_between(0, 1, confidence=confidence)
    check_integer(1, optional=True, dimension=dimension)
    shares, values, judged = _shares(weights), _numbers(full), _numbers(crossed)
    groups = len(shares)
    _check_shape("full", values, (groups,))
    if not np.isfinite(values).all():
        return _unknown(values)
    value = max(float(shares @ values), 0.0)
    if groups == 1:
        return Measure(value, 0.0, math.inf, value)
    where = _folds(folds, groups)
    _check_shape("crossed", judged, (int(where.max()) + 1, groups))
    if not np.isfinite(judged).all():
        return Measure(value, 0.0, math.inf, value, conservative=True)
    scale = max(float(np.abs(values).max()), float(np.abs(judged).max())) or 1.0
    spread = _fold_spread(judged / scale, where, shares, dimension)
    square, variance = 2 * value / scale, _variance(values / scale, shares)
    if spread.tau <= _ROUNDING and variance <= _ROUNDING**2:
        return Measure(value, value, value, value)
    tau = max(spread.tau, 0.0)
    at_minimum = square <= 1e-6 * tau  # u is v: the values of `full` are rounding, and tell no variance
    along = tau / spread.nu if at_minimum else variance / square
    if dimension == 1 and not at_minimum:  # the one direction there is
        spread = _Spread(along, 1.0, groups - 1)
    ends = _square_interval(square, along, spread, groups - 1, confidence)
    estimate, low, high = (end * scale / 2 for end in ends)
    return Measure(value, low, high, estimate, conservative=len(judged) == 2 and dimension != 1)


def eigenvalue_interval(
    lowest: float | Tensor,
    full: Tensor,
    crossed: Tensor,
    error: float | Tensor,
    weights: Tensor,
    confidence: float = 0.95,
    *,
    folds: int = FOLDS,
    dimension: int | None = None,
) -> Measure:
    """The smallest eigenvalue of E A, A symmetric, from eigenvectors of the sample's means with and without each fold.

    It is a concave function of the mean: the sample's is too small. A vector judged on particles that it was not fitted
    to gives too much, as any fixed vector does. Between the lower end of the one and the upper end of the other the
    population's lies at least as often as the confidence says. ``estimate`` is the combination of both without the bias
    of order 1/N. A matrix with one entry gives Student's interval of its mean, which is not conservative.

    Args:
        lowest: the smallest Ritz value of the sample's mean: never below its smallest eigenvalue.
        full: ``w' A_k w``, ``[K]``, at the unit vector w of ``lowest``.
        crossed: ``w_j' A_k w_j``, ``[K]``, at the vector of the sample without the fold j of the group k.
        error: how far below ``lowest`` the sample's smallest eigenvalue may be.
        weights: the share of the particles in each group ``[K]``.
        confidence: how often, at least, the interval is to hold the eigenvalue.
        folds: how many there are.
        dimension: of the matrices, where it is known.

    Returns:
        The measure; its ``value`` is ``lowest``. One group leaves both ends infinite.

    Raises:
        InvalidType, InvalidValue: arguments of other shapes, no level, weights that are no shares.
    """
    check_between(0, 1, confidence=confidence)
    check_integer(1, optional=True, dimension=dimension)
    check_integer(1, folds=folds)
    shares, values, judged = _shares(weights), _numbers(full), _numbers(crossed)
    groups, value, below = len(shares), float(lowest), float(error)
    exact = dimension == 1
    _check_shape("full", values, (groups,))
    _check_shape("crossed", judged, (groups,))
    if not math.isfinite(value) or not np.isfinite(values).all():
        return replace(_unknown(np.append(values, value)), value=value)
    if groups == 1:
        return Measure(value, -math.inf, math.inf, value, conservative=not exact)
    t = _quantile(confidence, groups - 1)
    spread = t * math.sqrt(_variance(values, shares))
    low = value - below - spread
    if exact:
        return Measure(value, low, value + spread, value)
    if not np.isfinite(judged).all():
        return Measure(value, low, math.inf, value, conservative=True)
    above = float(shares @ judged)
    count = min(folds, groups)
    high = max(above + _reach_of_folds(judged, shares, count, confidence), value)
    share = count / (2 * count - 1)
    estimate = min(max(share * value + (1 - share) * above, low), high)
    return Measure(value, low, high, estimate, conservative=True)


def _reach_of_folds(judged: Array, shares: Array, folds: int, confidence: float) -> float:
    """How far above the mean of what folds judged the interval reaches.

    Where the lowest eigenvalues are nearly equal the vectors without each fold are fitted to what the others judge: the
    groups' values are then no independent draws, and their mean varies half as much again as their spread tells. So
    the folds count, by Student's t of as many, where they are apart further than their groups.
    """
    if folds < 2:
        return math.inf
    where = np.arange(len(shares)) % folds  # as fold_of_group has them
    sizes: Array = np.asarray(np.bincount(where, shares), dtype=np.float64)
    means: Array = np.asarray(np.bincount(where, shares * judged) / sizes, dtype=np.float64)
    variance = max(_variance(judged, shares), _variance(means, sizes))
    return _quantile(confidence, folds - 1) * math.sqrt(variance)


@dataclass(frozen=True, eq=False)
class _Spread:
    """How a mean vector varies about its expectation."""

    tau: float  # E ||m - E m||^2
    nu: float  # how many directions it varies in, as if equally in each
    freedom: int  # degrees of freedom per direction

    @staticmethod
    def of(centred: Array, shares: Array, dimension: int | None) -> _Spread:
        """From the inner products of the groups' vectors less their mean ``[K, K]``."""
        freedom = len(shares) - 1
        weighted = np.sqrt(np.outer(shares, shares)) * centred / freedom
        tau = float(np.trace(weighted))
        if freedom == 1:  # a single difference: nothing is known of directions, and one is the widest
            return _Spread(tau, 1.0, freedom)
        total = float((weighted**2).sum())
        squares = freedom**2 / ((freedom - 1) * (freedom + 2)) * (total - tau**2 / freedom)
        most = math.inf if dimension is None else float(dimension)
        nu = (tau**2 - 2 * squares / freedom) / squares if squares > 0 else most
        return _Spread(tau, min(max(nu, 1.0), most, 1 / _ROUNDING), freedom)


def _fold_spread(judged: Array, where: NDArray[np.int64], shares: Array, dimension: int | None) -> _Spread:
    """How twice the root of the gap varies, from what each minimiser without a fold loses on each group ``[J, K]``.

    With H_k = 1/2 (v - c_k)' A (v - c_k), crossed[j, k] is v_j' A c_k but for what depends on j alone and on k alone;
    and v_j - v = - s_j / (1 - s_j) (c_j - v), s_j the share of fold j and c_j the mean of its c_k.
    """
    count = len(judged)
    of_fold = np.stack([shares * (where == j) for j in range(count)])  # [J, K]
    sizes = of_fold.sum(1)
    lost = judged - judged.mean(0)
    lost = lost - (lost @ shares)[:, None]
    products = -(lost @ of_fold.T / sizes) * ((1 - sizes) / sizes)[:, None]
    products = (products + products.T) / 2
    beside = products @ sizes
    return _Spread.of(products - beside[:, None] - beside[None] + sizes @ beside, sizes, dimension)


def _square_interval(
    square: float, along: float, spread: _Spread, freedom: int, confidence: float
) -> tuple[float, float, float]:
    """Estimate and interval of theta = ||E m||^2.

    Args:
        square: ||m||^2.
        along: the variance of m along itself, with ``freedom`` degrees of freedom.
        spread: of m in all directions.
        freedom: of ``along``.
        confidence: of the interval.
    """
    t, tau = _quantile(confidence, freedom), max(spread.tau, 0.0)
    tail = (1 - confidence) / 2
    least, most = _f_quantiles((tail, confidence), spread.nu, spread.freedom)
    if spread.nu == 1:
        most = _quantile(confidence, spread.freedom) ** 2  # the same, exactly: there is nothing beside `along`
    least_of_one = _f_quantiles((tail,), 1.0, spread.freedom)[0]
    sd, own = math.sqrt(along), along * (t**2 - 1)
    # The linear term and the square along it move together; the other directions' squares are independent of them.
    rest_above = max((tau * (most - 1)) ** 2 - own**2, 0.0)
    rest_below = max((tau * (1 - least)) ** 2 - (along * (1 - least_of_one)) ** 2, 0.0)
    estimate = square - tau

    def largest(root: float) -> float:
        """The largest estimate that theta = root^2 is not rejected for."""
        return root**2 + math.sqrt((2 * t * sd * root + own) ** 2 + rest_above)

    def smallest(root: float) -> float:
        return root**2 - math.sqrt(max(2 * t * sd * root - own, 0.0) ** 2 + rest_below)

    low = 0.0
    if estimate > largest(0.0):
        low = _crossing(largest, estimate, 0.0, math.sqrt(estimate))[0]
    start = max(t * sd, math.sqrt(max(estimate, 0.0)))  # `smallest` increases from here on
    high = start
    if smallest(start) < estimate:
        step = start + math.sqrt(square + tau)
        while smallest(start + step) < estimate:
            step *= 2
        high = _crossing(smallest, estimate, start, start + step)[1]
    top = high**2
    if square < tau * least:
        # Smaller than chance allows for any theta: the controls were fitted to these very particles. Then theta is what
        # the sample's mean is worth.
        top = max(top, tau * most)
    return max(estimate, 0.0), low**2, top


def _crossing(function: Callable[[float], float], level: float, low: float, high: float) -> tuple[float, float]:
    """Two neighbouring numbers between which an increasing function takes a level."""
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if function(middle) < level else (low, middle)
    return low, high


_MANY = 1000.0  # degrees of freedom from which an F law keeps its form, and only its width shrinks


@lru_cache(maxsize=256)  # of nu = 1, which is asked for again and again
def _f_quantiles(levels: tuple[float, ...], nu: float, freedom: int) -> tuple[float, ...]:
    """Quantiles of Fisher's F with nu and nu * freedom degrees, by quadrature of the density of its logarithm."""
    first = min(nu, _MANY)
    second = first * freedom
    width = 12 * math.sqrt(2 / first + 2 / second)  # twelve standard deviations, and tails that fall as exponentials
    log_f = np.linspace(-width - 80 / first, width + 80 / second, 2048)
    exponent = first / 2 * log_f - (first + second) / 2 * np.log1p(np.exp(log_f) / freedom)
    density = np.exp(exponent - exponent.max())
    total = np.cumsum(density) - density / 2
    quantiles = np.exp(np.interp(levels, total / density.sum(), log_f))
    return tuple((1 + (quantiles - 1) * math.sqrt(first / nu)).tolist())


def _variance(values: Array, shares: Array) -> float:
    """The squared standard error of the weighted mean of the groups' values."""
    return float(shares @ (values - shares @ values) ** 2) / (len(shares) - 1)


def _unknown(values: Array) -> Measure:
    """The measure of what is not finite: not known where a number is not, else infinite."""
    bad = values[~np.isfinite(values)]
    value = math.nan if np.isnan(bad).any() or len(set(bad.tolist())) > 1 else float(bad[0])
    return Measure(value, value, value, value)


def _numbers(values: Tensor) -> Array:
    return np.asarray(tree.tensor_of(values).detach().to("cpu", torch.float64).numpy())


def _shares(weights: Tensor) -> Array:
    shares = _numbers(weights)
    if shares.ndim != 1 or not len(shares) or not (shares > 0).all() or not np.isfinite(shares).all():
        raise InvalidValue(f"weights is {weights!r}; expected the share of the particles in each group, all positive")
    return np.asarray(shares / shares.sum())


def _folds(folds: Tensor, groups: int) -> NDArray[np.int64]:
    where = _numbers(folds).astype(np.int64)
    _check_shape("folds", where, (groups,))
    if len(np.unique(where)) < 2 or set(where.tolist()) != set(range(int(where.max()) + 1)):
        raise InvalidValue(f"folds is {where.tolist()}; expected the fold of each group, 0 .. J-1, J from 2 on")
    return where


def _check_shape(name: str, values: NDArray[np.generic], expected: tuple[int, ...]) -> None:
    if values.shape != expected:
        raise InvalidValue(f"{name} is of shape {list(values.shape)}; expected {list(expected)}, by group")
