"""What minimises the frozen Hamiltonian: rows of a block, all at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from mfoc.bounds import RowRegion
from mfoc.checks import check_instance
from mfoc.printing import by_identity

Evaluate = Callable[[Tensor], tuple[Tensor, Tensor]]


@by_identity
class Minimum(NamedTuple):
    """Where an inner minimisation ended.

    Attributes:
        point: ``[G, n]``.
        value: the value last seen: at the point for ``LBFGS``, one step before it for ``Descent`` ``[G]``.
        unbounded: rows along which the function still fell after all trials of a line search, or reached minus
            infinity: it appears unbounded below ``[G]``.
        evaluations: values and gradients asked for.
    """

    point: Tensor
    value: Tensor
    unbounded: Tensor
    evaluations: int


@runtime_checkable
class Minimiser(Protocol):
    """What minimises the Hamiltonian inside MSA, E-MSA and the certificate."""

    def minimise(self, evaluate: Evaluate, start: Tensor, region: RowRegion | None = None) -> Minimum:
        """Minimises ``evaluate: [G, n] -> (value [G], slope [G, n])`` from ``start``, which lies in ``region``.

        ``region`` is None where the rows are free; else its penalty is part of what is minimised, not of ``value``.
        """


def check_minimiser(inner: Any) -> None:
    """Refuses what is not an inner minimiser, with an ``InvalidType``."""
    check_instance(Minimiser, "mfoc.minimisers.LBFGS(...) or mfoc.minimisers.Descent(lr=...)", inner=inner)
