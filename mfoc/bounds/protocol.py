"""Sets of admissible controls, and the l1 penalty: what solvers and the certificate ask of them.

A set is applied to a leaf of the controls, a tensor ``[*lead, ...]``: each index into the ``lead`` first axes (stages
that are stacked, particles) is a control of its own. With the gradient g of J at u,

    stationary(u, g)   the projected gradient: minus the projection of -g on the tangent cone at u, which for a penalty
                       is the element of least norm of g + its subdifferential; zero where u is stationary
    face(u, g, v)      v without what leaves the face that strictly active constraints hold u to: a linear map of v
    land(u, v, g)      where a step from u to v lands: along the face first, then at the nearest admissible control

(Nocedal & Wright 2006, sec. 12.4 and 16.7; Andrew & Gao 2007, "Scalable training of L1-regularized log-linear models",
for the penalty.) Fed the projected gradient and landed so, any optimiser that rests where its gradient vanishes rests
at stationary controls alone, whatever its metric.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class AdmissibleSet(Protocol):
    """A set that a leaf of the controls must lie in, or a penalty on it; see the top of the file."""

    def check(self, u: Tensor, lead: int, name: str) -> None:
        """Refuses a leaf that the set is not made for, with an ``InvalidValue``."""

    def project(self, u: Tensor, lead: int) -> Tensor:
        """The nearest admissible control."""

    def stationary(self, u: Tensor, slope: Tensor, lead: int) -> Tensor:
        """The projected gradient."""

    def face(self, u: Tensor, slope: Tensor, v: Tensor, lead: int) -> Tensor:
        """The part of v along the face that strictly active constraints hold u to."""

    def dimension(self, u: Tensor, slope: Tensor, lead: int) -> Tensor:
        """Of that face ``[*lead]``."""

    def bend(self, u: Tensor, slope: Tensor, lead: int) -> Tensor | None:
        """The boundary's curvature times its multiplier ``[*lead]``, which the Hessian gains; None where flat."""

    def land(self, u: Tensor, moved: Tensor, slope: Tensor, lead: int) -> Tensor:
        """The admissible control where a step from u to ``moved`` lands."""

    def penalty(self, u: Tensor, lead: int) -> Tensor | None:
        """What is added to J ``[*lead]``; None for a set."""


def count(weights: Tensor, u: Tensor, lead: int) -> Tensor:
    """Sums over all but the leading axes ``[*lead]``, in the dtype of u."""
    return weights.to(u.dtype).reshape(*u.shape[:lead], -1).sum(-1).round()
