"""Bounds on an information, and what activities and labels are refused for. Everything is in nats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from mfoc.checks import check_instance
from mfoc.errors import InvalidType, InvalidValue


@dataclass(frozen=True)
class Bounds:
    """A lower and an upper bound on an information; equal where it is known.

    Attributes:
        lower: in nats.
        upper: in nats.
    """

    lower: float
    upper: float

    @property
    def middle(self) -> float:
        """Half-way between the bounds: what is drawn."""
        return (self.lower + self.upper) / 2

    def __str__(self) -> str:
        if self.lower == self.upper:
            return f"{self.lower:.3f}"
        return f"{self.lower:.3f} .. {self.upper:.3f}"


@runtime_checkable
class Estimator(Protocol):
    """How information is estimated from the activity of a layer: ``KDE`` and ``Binned``, or one of your own."""

    @property
    def caveat(self) -> str:
        """What the numbers are of, in half a sentence."""

    def about_input(self, activity: Tensor) -> Bounds:
        """I(X;T) of activities ``[N, k]``, one for each of N equally likely inputs."""

    def about_labels(self, activity: Tensor, labels: Tensor) -> Bounds:
        """I(T;Y) of activities ``[N, k]`` and classes ``[N]``."""


def checked_activity(activity: Tensor) -> Tensor:
    """Activities as a matrix ``[N, k]``, in float32 at least.

    Args:
        activity: of N samples ``[N, ...]``; a vector ``[N]`` is one unit.

    Raises:
        InvalidType: it is no tensor of floating-point numbers.
        InvalidValue: it is of fewer than two samples, empty, or not finite.
    """
    check_instance(Tensor, "a tensor of activities [N, k]", activity=activity)
    if not activity.is_floating_point():
        raise InvalidType(f"activity is {activity.dtype}; expected floating-point numbers, such as activity.float()")
    if activity.dim() == 0 or len(activity) < 2 or not activity.numel():
        raise InvalidValue(f"activity has shape {tuple(activity.shape)}; expected that of two samples or more, [N, k]")
    if not bool(activity.isfinite().all()):
        raise InvalidValue("activity holds NaN or infinite values; information is of finite ones")
    rows = activity.detach().flatten(1) if activity.dim() > 1 else activity.detach()[:, None]
    return rows.to(torch.promote_types(rows.dtype, torch.float32))


def checked_labels(labels: Tensor, samples: int) -> Tensor:
    """Classes ``[N]`` numbered from 0 without gaps.

    Raises:
        InvalidType: they are no tensor of whole numbers.
        InvalidValue: they are not one for each sample.
    """
    check_instance(Tensor, "a tensor of classes [N]", y=labels)
    if labels.is_floating_point() or labels.is_complex():
        raise InvalidType(
            f"y is {labels.dtype}; expected classes, whole numbers [N]: their conditional entropies are summed. Cut "
            "continuous targets into classes first, as torch.bucketize(y, edges) does"
        )
    if labels.shape != (samples,):
        raise InvalidValue(f"y has shape {tuple(labels.shape)}; expected a class for each sample, ({samples},)")
    found: Tensor = torch.unique(labels.detach(), return_inverse=True)[1]
    return found


def entropy(classes: Tensor) -> float:
    """The entropy of the empirical law of classes ``[N]``, numbered from 0."""
    shares = torch.bincount(classes).cpu().double() / len(classes)
    return float(torch.special.entr(shares).sum())
