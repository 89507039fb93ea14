"""Gaussian expectations by other means: mpmath in 25 digits, and plain double sums in extended precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mpmath
import numpy as np

Function = Callable[[Any], Any]


def mean(f: Function, breaks: Sequence[float] = ()) -> Any:
    """E f(z) in 25 digits, cut at the breaks."""
    with mpmath.workdps(25):
        cuts = sorted({-12, -3, 0, 3, 12, *(b for b in breaks if -12 < b < 12)})
        return mpmath.quad(lambda z: f(z) * mpmath.npdf(z), cuts)


def second_moment(f: Function, q: Any, kinks: Sequence[float] = ()) -> Any:
    """E f(sqrt(q) z)^2."""
    with mpmath.workdps(25):
        root = mpmath.sqrt(q)
        return mean(lambda z: f(root * z) ** 2, [k / root for k in kinks])


# The mean of an activation at u ~ N(m, s^2), in closed form: a pair's covariance is then one integral.
CONDITIONAL: dict[str, Callable[[Any, Any], Any]] = {
    "relu": lambda m, s: m * mpmath.ncdf(m / s) + s * mpmath.npdf(m / s),
    "erf": lambda m, s: mpmath.erf(m / mpmath.sqrt(1 + 2 * s**2)),
    "gelu": lambda m, s: (
        m * mpmath.ncdf(m / mpmath.sqrt(1 + s**2))
        + s**2 / mpmath.sqrt(1 + s**2) * mpmath.npdf(m / mpmath.sqrt(1 + s**2))
    ),
    "hardtanh": lambda m, s: (
        (m + 1) * mpmath.ncdf((m + 1) / s)
        + s * mpmath.npdf((m + 1) / s)
        - (m - 1) * mpmath.ncdf((m - 1) / s)
        - s * mpmath.npdf((m - 1) / s)
        - 1
    ),
    "linear": lambda m, s: m,
}
ACTIVATION: dict[str, Function] = {
    "relu": lambda u: max(u, mpmath.mpf(0)),
    "erf": mpmath.erf,
    "gelu": lambda u: u * mpmath.ncdf(u),
    "hardtanh": lambda u: min(max(u, mpmath.mpf(-1)), mpmath.mpf(1)),
    "linear": lambda u: u,
    "tanh": mpmath.tanh,
    "silu": lambda u: u / (1 + mpmath.exp(-u)),
    "elu": lambda u: u if u > 0 else mpmath.expm1(u),
    "softsign": lambda u: u / (1 + abs(u)),
}
SLOPE: dict[str, Function] = {  # where mpmath's differences would straddle a kink
    "relu": lambda u: mpmath.mpf(u > 0),
    "hardtanh": lambda u: mpmath.mpf(abs(u) < 1),
    "elu": lambda u: mpmath.mpf(1) if u > 0 else mpmath.exp(u),
    "softsign": lambda u: 1 / (1 + abs(u)) ** 2,
}
KINKS: dict[str, Sequence[float]] = {"relu": (0,), "hardtanh": (-1, 1), "elu": (0,), "softsign": (0,)}


def covariance(name: str, q1: Any, q2: Any, k: Any) -> Any:
    """E phi(u1) phi(u2) at covariance k."""
    with mpmath.workdps(25):
        q1, q2, k = mpmath.mpf(q1), mpmath.mpf(q2), mpmath.mpf(k)
        root, spread = mpmath.sqrt(q1), mpmath.sqrt(q2 - k**2 / q1)
        phi, given = ACTIVATION[name], CONDITIONAL[name]
        return mean(lambda z: phi(root * z) * given(k / root * z, spread), [b / root for b in KINKS.get(name, ())])


class Plain:
    """The mean-field theory of a smooth activation by double sums of long doubles: slow and plain."""

    def __init__(self, phi: Function, slope: Function, *, step: float = 0.07, reach: float = 10.0) -> None:
        half = int(np.ceil(reach / step))
        self.phi, self.phi_slope = phi, slope
        self.z = np.arange(-half, half + 1, dtype=np.longdouble) * np.longdouble(step)
        weights = np.exp(-(self.z**2) / 2)
        self.w = weights / weights.sum()

    def q_star(self, sw2: float, sb2: float) -> Any:
        """From q = 1 on, by iteration and then Newton's method."""
        q = np.longdouble(1)
        for _ in range(300):
            q = sw2 * self.length(q) + sb2
        for _ in range(20):
            q = q - (sw2 * self.length(q) + sb2 - q) / (sw2 * self.growth(q) - 1)
        return q

    def length(self, q: Any) -> Any:
        return (self.w * self.phi(np.sqrt(q) * self.z) ** 2).sum()

    def growth(self, q: Any) -> Any:
        u = np.sqrt(q) * self.z
        return (self.w * self.phi(u) * self.phi_slope(u) * self.z).sum() / np.sqrt(q)

    def slope(self, q: Any) -> Any:
        return (self.w * self.phi_slope(np.sqrt(q) * self.z) ** 2).sum()

    def pairs(self, q: Any, delta: Any) -> tuple[Any, Any]:
        """E (phi(u1) - phi(u2))^2 / (2 q delta), and E phi'(u1) phi'(u2)."""
        s, d = np.sqrt(1 - delta / 2) * self.z[:, None], np.sqrt(delta / 2) * self.z[None]
        u1, u2 = np.sqrt(q) * (s + d), np.sqrt(q) * (s - d)
        lost = self.w @ ((self.phi(u1) - self.phi(u2)) ** 2) @ self.w / (2 * q * delta)
        return lost, self.w @ (self.phi_slope(u1) * self.phi_slope(u2)) @ self.w

    def lost(self, q: Any, sw2: float) -> Any:
        """1 - c* in the chaotic phase, by halving."""
        low, high = np.longdouble(1e-14), np.longdouble(1)
        for _ in range(46):
            middle = (low + high) / 2
            low, high = (middle, high) if sw2 * self.pairs(q, middle)[0] > 1 else (low, middle)
        return (low + high) / 2
