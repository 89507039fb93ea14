"""What an adversary may do: norm balls, their projections and steepest ascent in them.

Only the direction of a slope counts, whatever its size (1e-30 is a slope, too). A coordinate whose slope is NaN does
not move; where some are infinite they are the direction, and the finite ones count for nothing beside them. So a
disturbance is always finite and in the ball.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from mfoc.bounds import AdmissibleSet, Box, EuclideanBall
from mfoc.checks import check_choice, check_positive
from mfoc.errors import InvalidType, InvalidValue
from mfoc.printing import short
from mfoc.streams import drawn_key, normals, uniforms

_NORMS = ("linf", "l2")


@dataclass(frozen=True)
class Ball:
    """A ball: what the adversary of a ``Game`` may do, or where the controls of a ``Problem`` may lie.

    As an adversary's, ||eta|| <= epsilon per particle: a disturbance is kept inside the norm ball, and the state it
    produces, ``enter(x, eta)``, is clamped to the bounds. As a problem's, ``Problem(..., bounds=Ball(radius, "l2"))``,
    ||u|| <= epsilon for each leaf of the controls ("linf" is ``Box(-epsilon, epsilon)``).

    Attributes:
        epsilon: the radius, in units of the state (of the control).
        norm: "linf" or "l2", over all axes of a particle's state (of a leaf).
        bounds: least and largest value a disturbed state may have, or None; None for controls.
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
            raise InvalidType(f"bounds is {short(self.bounds)}; expected a pair of numbers (least, largest) or None")
        if not pair[0] < pair[1]:
            raise InvalidValue(f"bounds is {self.bounds!r}; expected least < largest")
        object.__setattr__(self, "bounds", (float(pair[0]), float(pair[1])))

    def as_bounds(self) -> AdmissibleSet:
        """The ball as a set of controls, ``Problem(bounds=Ball(radius, "l2"))``: of a leaf, over all its axes.

        Raises:
            InvalidValue: it has bounds of its own, which are those of a disturbed state.
        """
        if self.bounds is not None:
            raise InvalidValue(f"bounds is {self}; the bounds in it are those of a disturbed state: leave them out")
        return Box(-self.epsilon, self.epsilon) if self.norm == "linf" else EuclideanBall(self.epsilon)

    def enter(self, x: Tensor, eta: Tensor) -> Tensor:
        """The disturbed state ``[N, ...]``."""
        point = x + eta
        return point if self.bounds is None else point.clamp(*self.bounds)

    def sample(self, x: Tensor, generator: torch.Generator | None = None, *, index: Tensor | None = None) -> Tensor:
        """Random disturbances of the states x ``[N, ...]``.

        Uniform in the cube for "linf"; for "l2" a uniform direction with a uniform radius. That of a particle is a
        function of a key and the particle's index alone: the same in any batch, in any order and on any rank.

        Args:
            x: the states.
            generator: the key is one integer drawn from it; from torch's own when None.
            index: the particles' global indices ``[N]``, as in ``Particles.index``; 0 .. N-1 when None.
        """
        if index is None:
            index = torch.arange(len(x), device=x.device)
        key, index, rows = drawn_key(generator).to(x.device), index.to(x.device), _rows(x)
        wide = torch.promote_types(x.dtype, torch.float32)
        if self.norm == "linf":
            eta = uniforms(key, index, rows.shape[1], wide).mul_(2 * self.epsilon).sub_(self.epsilon)
        else:
            radius, eta = uniforms(key, index, 1, wide), normals(key, index, rows.shape[1], wide)
            eta = _polar(eta)[1].mul_(radius * self.epsilon)
        return eta.view(x.shape).to(x.dtype)

    def project(self, eta: Tensor) -> Tensor:
        """The nearest disturbance with norm at most epsilon (NaN counts as zero, infinity as very far)."""
        eta = eta.nan_to_num(0.0, torch.inf, -torch.inf)
        if self.norm == "linf":
            return eta.clamp(-self.epsilon, self.epsilon)
        size, direction = _polar(eta)
        return torch.where(size > self.epsilon, self.epsilon * direction, eta)

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
            return self.project(self.enter(x, eta) + times * step * _signs(slope) - x)
        direction = _polar(slope)[1]
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
            A non-negative number per particle ``[N]``; zero where no small move raises the cost, infinite where one
            along an infinite slope is left.
        """
        point = self.enter(x, eta)
        if self.norm == "l2":
            size, direction = _polar(slope)
            left = self.epsilon - _rows(direction * (point - x)).sum(1)
            rounding = 4 * torch.finfo(left.dtype).eps * self.epsilon  # times infinity it would be everything
            return torch.where(left > rounding, size.flatten() * left, 0)
        moves = self.enter(x, self.epsilon * _signs(slope)) - point
        gains = slope.nan_to_num(0.0, torch.inf, -torch.inf) * moves
        return _rows(torch.where(moves == 0, 0, gains)).sum(1)


def _signs(slope: Tensor) -> Tensor:
    return slope.nan_to_num(0.0, 1.0, -1.0).sign()


def _polar(x: Tensor) -> tuple[Tensor, Tensor]:
    """Euclidean norms ``[N, 1, ...]`` and unit vectors ``[N, ...]`` of the particles; a zero has no direction, zero.

    Divided by the largest entry first, so that no square over- or underflows. NaN counts as zero; of a vector with
    infinite entries these are the direction.
    """
    x = x.nan_to_num(0.0, torch.inf, -torch.inf)
    largest = _each(_rows(x).abs().amax(1), x)
    scaled = torch.where(largest.isinf(), x.isinf() * x.sign(), x / torch.where(largest > 0, largest, 1))
    size = _each(torch.linalg.vector_norm(_rows(scaled), dim=1), x)
    return largest * size, scaled / torch.where(size > 0, size, 1)


def _each(numbers: Tensor, x: Tensor) -> Tensor:
    """One number for each particle, shaped so that it broadcasts against x."""
    return numbers.view(-1, *[1] * (x.dim() - 1))


def _rows(x: Tensor) -> Tensor:
    """One row for each particle ``[N, d]``."""
    return x.reshape(len(x), -1)
