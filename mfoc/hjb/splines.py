"""Functions on a uniform grid: tensor products of cubic (or linear) B-splines, differentiable.

de Boor, "A Practical Guide to Splines" (2001), ch. IV: with the not-a-knot end condition the error is O(dx^4) up to the
boundary. Cubic splines are twice differentiable across nodes, so that Newton's method can minimise through them. Beyond
the grid each axis goes on linearly, with the value and the slope that it has at the boundary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mfoc.checks import check_choice, check_instance, check_tensor, kind_of
from mfoc.errors import InvalidType, InvalidValue

LEAST = {"cubic": 4, "linear": 2}  # nodes of an axis
WIDTH = {"cubic": 4, "linear": 2}  # splines of an axis that are not zero at a point


@dataclass(frozen=True, eq=False)
class Grid:
    """A box of points: the product of uniform axes. What its methods are given is not checked: a value's is.

    Attributes:
        axes: of each state, increasing and equally spaced ``[n_i]``.
        kind: "cubic" or "linear".

    Raises:
        InvalidType, InvalidValue: no tensors, fewer nodes than the splines need, axes that do not increase in equal
            steps.
    """

    axes: tuple[Tensor, ...]
    kind: str = "cubic"

    def __post_init__(self) -> None:
        check_choice(*LEAST, kind=self.kind)
        check_instance(tuple | list, "a tensor [n] for each state variable", axes=self.axes)
        if not self.axes:
            raise InvalidValue("axes is empty; expected a tensor [n] for each state variable")
        for k, axis in enumerate(self.axes):
            _check_axis(f"axes[{k}]", axis, self.kind)

    @property
    def shape(self) -> tuple[int, ...]:
        """Nodes of each axis."""
        return tuple(len(axis) for axis in self.axes)

    @property
    def size(self) -> int:
        """The number of points P."""
        return math.prod(self.shape)

    def __repr__(self) -> str:
        spans = [f"[{float(axis[0]):.4g}, {float(axis[-1]):.4g}]" for axis in self.axes]
        return f"{' x '.join(map(str, self.shape))} points on {' x '.join(spans)}"

    def points(self) -> Tensor:
        """All points ``[P, d]``, the last axis running fastest."""
        return torch.cartesian_prod(*self.axes).reshape(self.size, -1)

    def inside(self, x: Tensor) -> Tensor:
        """Whether points ``[N, d]`` lie on the grid, to a rounding ``[N]``."""
        low, high = (torch.stack([axis[end] for axis in self.axes]) for end in (0, -1))
        slack = 64 * torch.finfo(x.dtype).eps * (high - low)
        return ((x >= low - slack) & (x <= high + slack)).all(1)

    def nearest(self, x: Tensor) -> Tensor:
        """Number ``[N]`` of the grid point that is nearest to each point ``[N, d]``."""
        number = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        for k, axis in enumerate(self.axes):
            here = ((x[:, k] - axis[0]) / _spacing(axis)).round().long().clamp(0, len(axis) - 1)
            number = number * len(axis) + here
        return number

    def coefficients(self, values: Tensor) -> Tensor:
        """The coefficients of the spline through values ``[n_1, ..., n_d]``: two more on each axis if it is cubic."""
        if self.kind == "linear":
            return values
        for k, axis in enumerate(self.axes):
            values = torch.tensordot(_interpolation(len(axis), axis), values.movedim(k, 0), 1).movedim(0, k)
        return values

    def evaluate(self, coefficients: Tensor, x: Tensor) -> Tensor:
        """The spline at points x ``[N, d]``: ``[N]``, differentiable in x."""
        width, weights = WIDTH[self.kind], []
        number = torch.zeros(len(x), 1, dtype=torch.int64, device=x.device)
        offsets = torch.arange(width, device=x.device)
        for k, axis in enumerate(self.axes):
            position = (x[:, k] - axis[0]) / _spacing(axis)
            cell = position.detach().nan_to_num().floor().clamp(0, len(axis) - 2).long()
            weights.append((_cubic if self.kind == "cubic" else _linear)(position - cell))
            here = cell[:, None] + offsets
            number = (number[:, :, None] * coefficients.shape[k] + here[:, None, :]).flatten(1)
        found = coefficients.reshape(-1)[number]
        for weight in reversed(weights):
            found = (found.view(len(x), -1, width) * weight[:, None, :]).sum(2)
        return found[:, 0]


def _spacing(axis: Tensor) -> Tensor:
    return (axis[-1] - axis[0]) / (len(axis) - 1)


def _linear(s: Tensor) -> Tensor:
    return torch.stack([1 - s, s], 1)


def _cubic(s: Tensor) -> Tensor:
    """The four B-splines ``[N, 4]`` of the cell at s in [0, 1], which go on linearly beyond."""
    inner = s.clamp(0, 1)
    beyond = (s - inner)[:, None]
    r = 1 - inner
    square, other = inner * inner, r * r
    weights = [other * r, 4 + square * (3 * inner - 6), 4 + other * (3 * r - 6), square * inner]
    slopes = [-3 * other, 9 * square - 12 * inner, 12 * r - 9 * other, 3 * square]
    return (torch.stack(weights, 1) + beyond * torch.stack(slopes, 1)) / 6


def _interpolation(n: int, like: Tensor) -> Tensor:
    """Values at n nodes to the n + 2 coefficients of the not-a-knot spline ``[n + 2, n]``."""
    system = torch.zeros(n + 2, n + 2, dtype=torch.float64, device="cpu")
    rows = torch.arange(n, device="cpu")
    for k, weight in enumerate((1 / 6, 4 / 6, 1 / 6)):
        system[rows, rows + k] = weight
    fourth = torch.tensor(
        [-1.0, 4.0, -6.0, 4.0, -1.0], dtype=torch.float64, device="cpu"
    )  # the third derivative does not jump
    system[n, :5] = fourth
    system[n + 1, -5:] = fourth
    inverse: Tensor = torch.linalg.inv(system)
    return inverse[:, :n].to(like)


def as_grid(axes: Any, kind: str, like: Tensor) -> Grid:
    """The grid of these axes, in the dtype and on the device of a control.

    Raises:
        InvalidType: they are no sequence of tensors.
        InvalidValue: there are none or more than three, or one is too short, not increasing or not equally spaced.
    """
    if isinstance(axes, Tensor) or not isinstance(axes, Sequence):
        raise InvalidType(f"axes is {kind_of(axes)}; expected a list of one tensor [n] for each state variable")
    if not 1 <= len(axes) <= 3:
        raise InvalidValue(f"axes are {len(axes)}; a grid serves 1 to 3 state variables; mfoc.hjb.fit serves more")
    for k, axis in enumerate(axes):
        _check_axis(f"axes[{k}]", axis, kind)
    # Made anew: to a rounding of the spacing, which the axes given may have in another dtype.
    return Grid(tuple(_axis(axis, like) for axis in axes), kind)


def _check_axis(name: str, axis: Any, kind: str) -> None:
    check_tensor(f"an axis [n] with n >= {LEAST[kind]} ({kind})", floating=False, dim=1, **{name: axis})
    if len(axis) < LEAST[kind]:
        raise InvalidValue(f"{name} has shape {tuple(axis.shape)}; expected [n] with n >= {LEAST[kind]} ({kind})")
    gaps = axis.double().diff()
    if not bool((gaps > 0).all()) or float((gaps - gaps.mean()).abs().max()) > 1e-3 * float(gaps.mean()):
        raise InvalidValue(f"{name} is not increasing in equal steps; expected torch.linspace(low, high, n)")


def _axis(given: Tensor, like: Tensor) -> Tensor:
    return torch.linspace(float(given[0]), float(given[-1]), len(given), dtype=like.dtype, device=like.device)
