"""What an adversary may do: norm balls, their projections and steepest ascent in them."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from mfoc.checks import check_choice, check_positive
from mfoc.errors import InvalidType, InvalidValue

_NORMS = ("linf", "l2")


_TINY = 1e-10  # keeps a vanishing gradient from being divided by zero


@dataclass(frozen=True)
class Ball:
    """What the adversary may do: ||eta|| <= epsilon per particle, and x + eta within bounds.

    A disturbance is kept inside the norm ball; the state it produces, ``enter(x, eta)``, is clamped to the bounds.

    Attributes:
        epsilon: the radius, in units of the state.
        norm: "linf" or "l2", over all axes of a particle's state.
        bounds: least and largest value a disturbed state may have, or None.
    """

    epsilon: float
    norm: str = "linf"
    bounds: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.epsilon, Real) and not isinstance(self.epsilon, bool):
            object.__setattr__(self, "epsilon", float(self.epsilon))  # a number of numpy, say
        check_positive(epsilon=self.epsilon)
        check_choice(*_NORMS, norm=self.norm)
        if self.bounds is None:
            return
        pair = self.bounds if isinstance(self.bounds, tuple | list) and len(self.bounds) == 2 else ()
        if not pair or any(isinstance(bound, bool) or not isinstance(bound, Real) for bound in pair):
            raise InvalidType(f"bounds is {self.bounds!r}; expected a pair of numbers (least, largest) or None")
        if not pair[0] < pair[1]:
            raise InvalidValue(f"bounds is {self.bounds!r}; expected least < largest")
        object.__setattr__(self, "bounds", (float(pair[0]), float(pair[1])))

    def enter(self, x: Tensor, eta: Tensor) -> Tensor:
        """The disturbed state ``[N, ...]``."""
        point = x + eta
        return point if self.bounds is None else point.clamp(*self.bounds)

    def sample(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Random disturbances of the states x ``[N, ...]``.

        Uniform in the cube for "linf"; for "l2" a uniform direction with a uniform radius.
        """
        eta = torch.empty_like(x)
        if self.norm == "linf":
            return eta.uniform_(-self.epsilon, self.epsilon, generator=generator)
        eta.normal_(generator=generator)
        size = _sizes(eta)
        radius = torch.zeros_like(size).uniform_(0, 1, generator=generator)
        return eta * (radius / size.clamp_min(_TINY) * self.epsilon)

    def project(self, eta: Tensor) -> Tensor:
        """The nearest disturbance with norm at most epsilon."""
        if self.norm == "linf":
            return eta.clamp(-self.epsilon, self.epsilon)
        return eta * (self.epsilon / _sizes(eta).clamp_min(_TINY)).clamp_max(1.0)

    def ascend(self, x: Tensor, eta: Tensor, slope: Tensor, step: float, *, times: int = 1) -> Tensor:
        """Projected steepest ascent from eta along a fixed slope.

        Args:
            x: the states ``[N, ...]``.
            eta: the disturbances.
            slope: the gradient at the disturbed state; only its direction (its signs, for "linf") counts.
            step: length of one step, in units of the state and in the ball's norm.
            times: number of steps.

        Returns:
            The new disturbances.
        """
        if self.norm == "linf":  # each coordinate moves to one side until it meets its bound: one long step does it
            return self.project(self.enter(x, eta) + times * step * slope.sign() - x)
        direction = slope / (_sizes(slope) + _TINY)
        for _ in range(times):
            eta = self.project(self.enter(x, eta) + step * direction - x)
        return eta

    def gap(self, x: Tensor, eta: Tensor, slope: Tensor) -> Tensor:
        """How far the adversary is from stationary: the largest <slope, eta' - eta> over all admissible eta'.

        The first-order stationary condition of Wang et al. (2019), "On the convergence and robustness of adversarial
        training", eq. (8), which is the Frank-Wolfe gap; exact for "linf", for "l2" without the bounds (so, too large).

        Args:
            x: the states ``[N, ...]``.
            eta: the disturbances.
            slope: the gradient of the cost at the disturbed state, per particle.

        Returns:
            A non-negative number per particle ``[N]``; zero where no small move raises the cost.
        """
        point = self.enter(x, eta)
        if self.norm == "l2":
            return (self.epsilon * _sizes(slope)).flatten() - _rows(slope * (point - x)).sum(1)
        best = self.enter(x, self.epsilon * slope.sign())
        return _rows(slope * (best - point)).sum(1)


def _sizes(x: Tensor) -> Tensor:
    """Euclidean norms of the particles, shaped so that they broadcast."""
    sizes: Tensor = torch.linalg.vector_norm(_rows(x), dim=1).view(-1, *[1] * (x.dim() - 1))
    return sizes


def _rows(x: Tensor) -> Tensor:
    """One row for each particle ``[N, d]``."""
    return x.reshape(len(x), -1)
