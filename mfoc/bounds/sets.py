"""Sets that controls must lie in: boxes, simplices, Euclidean balls."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from numbers import Real
from typing import cast

import torch
from torch import Tensor

from mfoc import tree
from mfoc.bounds.protocol import count
from mfoc.checks import check_plain, check_positive, kind_of
from mfoc.errors import InvalidType, InvalidValue
from mfoc.printing import by_identity


class _Convex:
    """What sets have in common: a step lands on the nearest admissible control, J gains nothing, faces are flat."""

    def check(self, u: Tensor, lead: int, name: str) -> None:
        """Any leaf will do."""

    def stationary(self, u: Tensor, slope: Tensor, lead: int) -> Tensor:
        """What the slope has along the face: what presses against the boundary is held."""
        along: Tensor = self.face(u, slope, slope, lead)  # type: ignore[attr-defined]
        return along

    def bend(self, u: Tensor, slope: Tensor, lead: int) -> Tensor | None:
        """Faces are flat."""
        return None

    def land(self, u: Tensor, moved: Tensor, slope: Tensor, lead: int) -> Tensor:
        """The nearest admissible control, of what the step has along the face.

        The rest of it, which a metric other than the Euclidean brings in, would move entries that are held.
        """
        along = u + self.face(u, slope, moved - u, lead)  # type: ignore[attr-defined]
        projected: Tensor = self.project(along, lead)  # type: ignore[attr-defined]
        return projected

    def penalty(self, u: Tensor, lead: int) -> Tensor | None:
        """A set costs nothing."""
        return None


@by_identity
@dataclass(frozen=True, eq=False)
class Box(_Convex):
    """Controls between two bounds, entry by entry: low <= u <= high.

    Attributes:
        low: a number, or a tensor that broadcasts against the control; ``-math.inf`` where there is no bound.
        high: likewise, ``math.inf`` where there is none.

    Raises:
        InvalidType: a bound is neither a number nor a floating-point tensor.
        InvalidValue: a bound is NaN, or no control lies between them.
    """

    low: float | Tensor
    high: float | Tensor

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            bound = getattr(self, name)
            if isinstance(bound, bool) or not isinstance(bound, Real | Tensor):
                raise InvalidType(f"{name} is {kind_of(bound)}; expected a number or a tensor of the control's shape")
            if isinstance(bound, Tensor):
                check_plain("a number or a tensor of the control's shape", **{name: bound})
            elif sys.float_info.max < abs(cast(float, bound)) < math.inf:
                raise InvalidValue(f"{name} is {bound!r}; expected a number that a float holds, or infinity")
            if isinstance(bound, Tensor) and not bound.is_floating_point():
                raise InvalidType(f"{name} is a {bound.dtype} tensor; expected floating point, {name}.double() say")
            object.__setattr__(self, name, bound.detach() if isinstance(bound, Tensor) else float(bound))
        low, high = tree.tensor_of(self.low), tree.tensor_of(self.high)
        try:
            fits = bool((low.to(high.device) <= high).all())  # false for NaN, too
        except RuntimeError as error:
            raise InvalidValue(f"low {tuple(low.shape)} and high {tuple(high.shape)} do not broadcast") from error
        if not fits or bool((low == math.inf).any()) or bool((high == -math.inf).any()):
            raise InvalidValue(
                f"low is {self.low} and high is {self.high}; expected low <= high: no control lies between"
            )

    def limits(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Both bounds in the shape of the control."""
        low, high = (
            bound.to(u) if isinstance(bound, Tensor) else torch.full((), bound, dtype=u.dtype, device=u.device)
            for bound in (self.low, self.high)
        )  # filled where the control is: a number that is sent to a GPU waits for all that is queued there
        return low.expand(u.shape), high.expand(u.shape)

    def check(self, u: Tensor, lead: int, name: str) -> None:
        """Refuses a leaf that the bounds do not broadcast against."""
        for bound in (self.low, self.high):
            if isinstance(bound, Tensor):
                try:
                    bound.expand(u.shape)
                except RuntimeError as error:
                    raise InvalidValue(
                        f"bounds of {name}: a bound of shape {tuple(bound.shape)} for a control of {tuple(u.shape)}; "
                        "expected a number or a shape that broadcasts against it"
                    ) from error

    def project(self, u: Tensor, lead: int) -> Tensor:
        """Clamped."""
        return torch.clamp(u, *self.limits(u))

    def face(self, u: Tensor, slope: Tensor, v: Tensor, lead: int) -> Tensor:
        """Zero in the entries that the slope presses against their bound."""
        return v.masked_fill(self._pressed(u, slope), 0.0)

    def land(self, u: Tensor, moved: Tensor, slope: Tensor, lead: int) -> Tensor:
        """Clamped; entries that are pressed against their bound go there."""
        low, high = self.limits(u)
        return torch.where(self._pressed(u, slope), torch.where(slope > 0, low, high), moved.clamp(low, high))

    def dimension(self, u: Tensor, slope: Tensor, lead: int) -> Tensor:
        """The entries that are not pressed."""
        return count(~self._pressed(u, slope), u, lead)

    def _pressed(self, u: Tensor, slope: Tensor) -> Tensor:
        low, high = self.limits(u)
        # How near counts as on a bound, which solvers that come from within leave: a share of what scale there is. A
        # width that only stands for "large" is none.
        share, width = math.sqrt(torch.finfo(u.dtype).eps), high - low
        below, above = (
            torch.where(width.isfinite(), torch.minimum(width, bound.abs().clamp_min(1.0)), bound.abs()).nan_to_num(
                posinf=0.0
            )
            for bound in (low, high)
        )
        pressed = ((u <= low + share * below) & (slope > 0)) | ((u >= high - share * above) & (slope < 0))
        return pressed | (width == 0)


@dataclass(frozen=True)
class Simplex(_Convex):
    """Controls that are probabilities along their last axis: u >= 0, sum u = total.

    Attributes:
        total: what they sum to.
    """

    total: float = 1.0

    def __post_init__(self) -> None:
        check_positive(total=self.total)

    def check(self, u: Tensor, lead: int, name: str) -> None:
        """Refuses a number, which has no last axis."""
        if u.dim() <= lead:
            raise InvalidValue(f"bounds of {name}: it is a number, and a simplex is along the last axis [..., k]")

    def project(self, u: Tensor, lead: int) -> Tensor:
        """Duchi et al. (2008), "Efficient projections onto the l1-ball", fig. 1."""
        held, _ = u.sort(dim=-1, descending=True)
        excess = held.cumsum(-1) - self.total
        ranks = torch.arange(1, u.shape[-1] + 1, dtype=u.dtype, device=u.device)
        last = (held * ranks > excess).sum(-1, keepdim=True)
        shift = excess.gather(-1, last - 1) / last
        return (u - shift).clamp_min(0.0)

    def face(self, u: Tensor, slope: Tensor, v: Tensor, lead: int) -> Tensor:
        """Centred over the entries that are positive, or that the slope would make so."""
        free = self._free(u, slope)
        kept = v * free
        return (kept - kept.sum(-1, keepdim=True) / free.sum(-1, keepdim=True)) * free

    def land(self, u: Tensor, moved: Tensor, slope: Tensor, lead: int) -> Tensor:
        """As for every set; entries that are pressed against zero go there."""
        free = self._free(u, slope)
        return self.project((u + self.face(u, slope, moved - u, lead)).masked_fill(free == 0, -torch.inf), lead)

    def dimension(self, u: Tensor, slope: Tensor, lead: int) -> Tensor:
        """The free entries, less one."""
        free = self._free(u, slope)
        return count(free - free / free.sum(-1, keepdim=True), u, lead)

    def _free(self, u: Tensor, slope: Tensor) -> Tensor:
        """Which entries move along -slope: of those at zero, those whose slope is below the mean of the free ones."""
        positive = u > math.sqrt(torch.finfo(u.dtype).eps) * self.total / u.shape[-1]
        # The projection of -slope on the cone: entries at zero join in the order of their slopes while they lower it.
        key = torch.where(positive, -torch.inf, slope)
        order = key.argsort(dim=-1, stable=True)
        ordered = slope.gather(-1, order)
        ranks = torch.arange(1, u.shape[-1] + 1, dtype=u.dtype, device=u.device)
        means = ordered.cumsum(-1) / ranks
        before = torch.cat([torch.full_like(means[..., :1], torch.inf), means[..., :-1]], -1)
        joins = (positive.gather(-1, order) | (ordered < before)).to(u.dtype).cumprod(-1)
        return torch.zeros_like(u).scatter(-1, order, joins)


@dataclass(frozen=True)
class EuclideanBall(_Convex):
    """Controls of a Euclidean norm of at most the radius, over all axes; ``mfoc.Ball(radius, "l2")`` as bounds.

    Attributes:
        radius: the largest norm.
    """

    radius: float

    def __post_init__(self) -> None:
        check_positive(radius=self.radius)

    def project(self, u: Tensor, lead: int) -> Tensor:
        """Scaled down to the radius."""
        size = _norm(u, lead)
        return torch.where(size > self.radius, u * (self.radius / torch.where(size > 0, size, 1.0)), u)

    def face(self, u: Tensor, slope: Tensor, v: Tensor, lead: int) -> Tensor:
        """The tangential part, where the slope presses against the sphere."""
        normal = self._normal(u, slope, lead)
        return v - _inner(v, normal, lead) * normal

    def dimension(self, u: Tensor, slope: Tensor, lead: int) -> Tensor:
        """All, less one where the slope presses against the sphere."""
        normal = self._normal(u, slope, lead)
        return count(torch.ones_like(u), u, lead) - count(normal.square(), u, lead)

    def bend(self, u: Tensor, slope: Tensor, lead: int) -> Tensor | None:
        """The multiplier over the radius: of the Lagrangian's Hessian."""
        return -_inner(slope, self._normal(u, slope, lead), lead).reshape(u.shape[:lead]) / self.radius

    def _normal(self, u: Tensor, slope: Tensor, lead: int) -> Tensor:
        """The outward unit normal where the slope presses against the sphere; zero elsewhere."""
        size = _norm(u, lead)
        near = math.sqrt(torch.finfo(u.dtype).eps) * self.radius
        pressed = (size >= self.radius - near) & (_inner(slope, u, lead) < 0)
        return torch.where(pressed, u / torch.where(size > 0, size, 1.0), 0.0)


def _norm(u: Tensor, lead: int) -> Tensor:
    """Norms over all but the leading axes, which they broadcast against."""
    if lead == u.dim():
        return u.abs()
    return tree.length(u.flatten(lead), lead, keepdim=True).view(*u.shape[:lead], *[1] * (u.dim() - lead))


def _inner(a: Tensor, b: Tensor, lead: int) -> Tensor:
    axes = tuple(range(lead, a.dim()))
    return (a * b).sum(axes, keepdim=True) if axes else a * b
