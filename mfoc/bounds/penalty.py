"""The l1 penalty on controls, which is met by its proximal map as a set is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mfoc.bounds.protocol import count
from mfoc.checks import check_positive


@dataclass(frozen=True)
class L1:
    """The penalty weight * ||u||_1 on J, met by its proximal map: entries that do not pay for themselves are zero.

    It is part of J in ``evaluate``, in what a solve reports and in the certificate; ``rollout``'s cost per particle is
    without it.

    Attributes:
        weight: what an entry pays for each unit of its size.
    """

    weight: float

    def __post_init__(self) -> None:
        check_positive(weight=self.weight)

    def check(self, u: Tensor, lead: int, name: str) -> None:
        """Any leaf will do."""

    def project(self, u: Tensor, lead: int) -> Tensor:
        """Every control is admissible."""
        return u

    def stationary(self, u: Tensor, slope: Tensor, lead: int) -> Tensor:
        """The subgradient of least norm (Andrew & Gao 2007, eq. 4)."""
        at_zero = slope - slope.clamp(-self.weight, self.weight)
        return torch.where(u == 0, at_zero, slope + self.weight * u.sign())

    def face(self, u: Tensor, slope: Tensor, v: Tensor, lead: int) -> Tensor:
        """Zero in the entries that are held at zero."""
        return v.masked_fill((u == 0) & (slope.abs() <= self.weight), 0.0)

    def dimension(self, u: Tensor, slope: Tensor, lead: int) -> Tensor:
        """The entries that are not held at zero."""
        return count((u != 0) | (slope.abs() > self.weight), u, lead)

    def bend(self, u: Tensor, slope: Tensor, lead: int) -> Tensor | None:
        """Flat where it is smooth."""
        return None

    def land(self, u: Tensor, moved: Tensor, slope: Tensor, lead: int) -> Tensor:
        """Entries that would change their sign stop at zero; those at zero move against their subgradient only."""
        orthant = torch.where(u == 0, -self.stationary(u, slope, lead).sign(), u.sign())
        return torch.where(moved * orthant > 0, moved, 0.0)

    def penalty(self, u: Tensor, lead: int) -> Tensor | None:
        """The weighted norm."""
        return self.weight * u.abs().reshape(*u.shape[:lead], -1).sum(-1)
