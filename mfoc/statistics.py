"""Intervals, and Student's t distribution, which those from small samples need."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Protocol

from torch import Tensor

from mfoc.checks import check_between, check_instance, check_integer
from mfoc.errors import InvalidValue

_MANY = 10_000  # degrees of freedom from which on the law is the normal one, corrected


class Interval(Protocol):
    """A number with an interval: an estimate, or a row of a table."""

    @property
    def value(self) -> float:
        """The number."""

    @property
    def low(self) -> float:
        """The lower end."""

    @property
    def high(self) -> float:
        """The upper end."""


def student_t_quantile(confidence: float, freedom: int) -> float:
    """The t with P(|T| <= t) = ``confidence``, T of Student's distribution.

    The distribution function for integer degrees of freedom is a finite sum (Abramowitz & Stegun 1964, eqs. 26.7.3 and
    26.7.4), which is inverted by bisection.

    Args:
        confidence: level of a two-sided interval, between 0 and 1.
        freedom: degrees of freedom: the size of the sample less one, for its mean.

    Raises:
        InvalidType, InvalidValue: no such level, no degree of freedom.
    """
    check_between(0, 1, confidence=confidence)
    check_integer(1, freedom=freedom)
    if freedom > _MANY:
        return _nearly_normal(NormalDist().inv_cdf(0.5 + confidence / 2), freedom)
    low, high = 0.0, math.pi / 2  # of theta = atan(t / sqrt(freedom))
    for _ in range(200):
        theta = (low + high) / 2
        if theta in (low, high):
            break
        low, high = (theta, high) if _within(theta, freedom) < confidence else (low, theta)
    return math.sqrt(freedom) * math.tan((low + high) / 2)


def mean_interval(sample: Tensor, confidence: float) -> tuple[float, float]:
    """The mean of a sample ``[n]`` and half the width of Student's interval for that of the population.

    The width is infinite for a sample of one, or with members that are not finite.

    Raises:
        InvalidType, InvalidValue: no such level; no sample, which is a vector of one number at least.
    """
    check_between(0, 1, confidence=confidence)
    check_instance(Tensor, "a sample, a tensor [n]", sample=sample)
    if sample.dim() != 1 or len(sample) == 0 or sample.is_complex():
        raise InvalidValue(f"sample is {sample.dtype} of shape {tuple(sample.shape)}; expected real numbers [n], n > 0")
    sample = sample.double()
    mean = float(sample.mean())
    if len(sample) < 2 or not math.isfinite(mean):
        return mean, math.inf
    return mean, student_t_quantile(confidence, len(sample) - 1) * float(sample.std()) / math.sqrt(len(sample))


def _nearly_normal(z: float, freedom: int) -> float:
    """Student's quantile from the normal one (Abramowitz & Stegun 1964, eq. 26.7.5), for many degrees of freedom."""
    corrections = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return float(z + sum(part / freedom ** (k + 1) for k, part in enumerate(corrections)))


def _within(theta: float, freedom: int) -> float:
    """P(|T| <= sqrt(freedom) tan(theta))."""
    cosine, sine = math.cos(theta), math.sin(theta)
    term, total = (1.0, 0.0) if freedom % 2 == 0 else (cosine, 0.0)
    for k in range(freedom // 2):
        total += term
        term *= cosine**2 * ((2 * k + 1) / (2 * k + 2) if freedom % 2 == 0 else (2 * k + 2) / (2 * k + 3))
    return sine * total if freedom % 2 == 0 else 2 / math.pi * (theta + sine * total)
