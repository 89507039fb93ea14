"""Controlled SGD on one coordinate, in plain numbers, as Li, Tai & E (2017) write it (with covariances for moments)."""

from __future__ import annotations

import math
from collections.abc import Sequence


class Coordinate:
    """What is known of one coordinate: averages of the gradient and the weight, and the control."""

    def __init__(self, control: float) -> None:
        self.beta, self.control, self.velocity = 0.9, control, 0.0
        self.mean_g = self.mean_x = self.var_g = self.var_x = self.cov = 0.0

    def observe(self, x: float, g: float) -> None:
        """Averages with decay beta, deviations from the old means; then the slope a and the excess loss m."""
        beta, dg, dx = self.beta, g - self.mean_g, x - self.mean_x
        self.var_g -= (1 - beta) * (self.var_g - beta * dg * dg)
        self.var_x -= (1 - beta) * (self.var_x - beta * dx * dx)
        self.cov -= (1 - beta) * (self.cov - beta * dg * dx)
        self.mean_g += (1 - beta) * dg
        self.mean_x += (1 - beta) * dx
        self.slope = self.cov / self.var_x if self.var_x > 0 else 0.0

    def average(self, best: float) -> float:
        """Moves the control towards the best one, and only then sets the next decay."""
        self.control = self.beta * self.control + (1 - self.beta) * best
        second = self.mean_g**2 + self.var_g
        noisy = min(1.0, max(0.0, self.var_g / second)) if second > 0 else 0.0
        self.beta = 0.9 + 0.09 * noisy
        return self.control


def csgd_step(seen: Coordinate, x: float, g: float, lr: float, signal: str) -> float:
    """The next x; the control is u."""
    seen.observe(x, g)
    best = 1.0
    if seen.slope > 0:
        square = seen.mean_g**2 + (seen.var_g if signal == "second" else 0.0)
        excess = square / (2 * seen.slope)
        best = min(1.0, 2 * excess / (lr * seen.var_g)) if seen.var_g > 0 else 1.0
        best = best if best > 0 else 1.0
    return x - lr * seen.average(best) * g


def cmsgd_step(seen: Coordinate, x: float, g: float, lr: float) -> float:
    """The next x; the control is mu."""
    seen.observe(x, g)
    best = 1.0
    if seen.slope > 0:
        excess = (seen.mean_g**2 + seen.var_g) / (2 * seen.slope)
        damped = max(0.0, 1 - 2 * math.sqrt(lr * seen.slope))
        quiet = max(0.0, 1 - lr * seen.var_g / (4 * excess)) if excess > 0 else 1.0
        best = min(damped, quiet)
    seen.velocity = seen.average(best) * seen.velocity - lr * g
    return x + seen.velocity


def path(step: str, x: float, noise: Sequence[float], a: float, lr: float, control: float, signal: str) -> list[float]:
    """The iterates on f = a/2 x^2 with these disturbances of the gradient, the start included."""
    seen, found = Coordinate(control), [x]
    for xi in noise:
        g = a * x + xi
        x = csgd_step(seen, x, g, lr, signal) if step == "csgd" else cmsgd_step(seen, x, g, lr)
        found.append(x)
    return found
