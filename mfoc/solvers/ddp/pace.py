"""What each problem of a batch carries from step to step: how far its model is trusted, and whether it is done."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from mfoc.solvers.ddp.backward import Policy
from mfoc.solvers.ddp.forward import Nominal, gap_size
from mfoc.tree import Tree

# mu as a share of |Q_uu|: the first, what it grows and shrinks by, and the least that is not zero
_FIRST, _UP, _DOWN, _LEAST = 1e-3, 8.0, 6.0, 1e-6
_NEAR = 0.2  # of |J|, that a full step expects where the exact model is tried
_SHORT = 0.2  # step lengths below which the model is not trusted, and mu grows


@dataclass(frozen=True, eq=False)
class Pace:
    """One number for each problem.

    Attributes:
        regularisation: mu ``[B]``.
        expected: what the model expected the full step to change J by, at the last step ``[B]``.
        slope: the norm of the (projected) gradient that was expected at ``[B]``.
        weight: of the gaps in the merit ``[B]``.
        near: whether the last step was full, and promised little of J: the exact model is tried ``[B]``.
    """

    regularisation: Tensor
    expected: Tensor
    slope: Tensor
    weight: Tensor
    near: Tensor

    @staticmethod
    def unknown() -> dict[str, Tree]:
        """The entries of the solver's state before the first step."""
        return {field.name: None for field in fields(Pace)}

    @classmethod
    def of(cls, state: dict[str, Tree], at: Nominal) -> Pace:
        """That of the solver's state; of new problems where they are another number."""
        held = state["regularisation"]
        if held is None or held.shape != at.cost.shape:
            zero = torch.zeros_like(at.cost)
            return cls(zero, zero - torch.inf, zero + 1, zero, zero > 0)
        return cls(**{field.name: state[field.name] for field in fields(cls)})

    def done(self, slope: Tensor, at: Nominal) -> Tensor:
        """Which problems have nothing left to gain ``[B]``: the last gain, scaled by the gradients since.

        Where the cost or the data changed the gradient did, so that a problem which was done is taken up again.
        """
        gain = -self.expected * (slope / self.slope).square()
        small: Tensor = (gain <= torch.finfo(slope.dtype).eps ** 1.5 * at.cost.abs()) | (slope == 0)
        if at.gaps is not None:
            small = small & (gap_size(at.gaps) == 0)
        return small

    def weighed(self, some: Tensor, policy: Policy, at: Nominal) -> Tensor | None:
        """A weight by which the full step lowers the merit, never less than before (Nocedal & Wright 2006, 18.36)."""
        if at.gaps is None:
            return None
        size = gap_size(at.gaps)
        needed = 2 * (policy.linear + policy.quadratic.clamp_min(0) / 2).clamp_min(0) / size
        needed = torch.where(size > 0, torch.maximum(needed, policy.multiplier), 0.0)
        return torch.maximum(self.weight[some], needed)

    def after(
        self, some: Tensor, policy: Policy, length: Tensor, slope: Tensor, weight: Tensor | None, at: Nominal
    ) -> dict[str, Tensor]:
        """The entries of the solver's state after a step of some problems."""
        mu = self.regularisation[some]
        grown = torch.maximum(_UP * mu, _FIRST * policy.scale)
        shrunk = torch.where(mu / _DOWN < _LEAST * policy.scale, 0.0, mu / _DOWN)
        mu = torch.where(length < _SHORT, grown, torch.where(length == 1, shrunk, mu))
        trusted = (length == 1) if weight is None else torch.zeros_like(length, dtype=torch.bool)
        expected = torch.where(trusted, policy.expected(), -torch.inf)
        near = (length == 1) & (-policy.expected() < _NEAR * at.cost.abs())
        return {
            "near": self.near.index_copy(0, some, near),
            "regularisation": self.regularisation.index_copy(0, some, mu),
            "expected": self.expected.index_copy(0, some, expected),
            "slope": self.slope.index_copy(0, some, slope[some]),
            "weight": self.weight if weight is None else self.weight.index_copy(0, some, weight),
        }
