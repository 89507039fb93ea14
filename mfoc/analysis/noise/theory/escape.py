"""How long noise takes to leave a minimum, and which of two minima it leaves first."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mfoc.analysis.noise.theory.first_passage import Potential, check_points, evaluate, mean_first_passage_time
from mfoc.checks import check_callable, check_plain, check_positive
from mfoc.derivatives import gradients
from mfoc.errors import InvalidType, InvalidValue
from mfoc.figures import COLORS, new_axes

_LEVEL = 1e-4  # a slope that counts as none, as a share of curvature times distance
_HIGH = 5.0  # barriers, in units of D, from which on Kramers' formula is off by a tenth at most in the symmetric well


@dataclass(frozen=True, eq=False)
class Escape:
    """How long a path stays at a minimum; made by ``escape_time``. Times are t = eta times steps, for SGD.

    Attributes:
        exact: mean time from the minimum until the path first reaches a point beyond the barrier.
        kramers: what Kramers' formula says of it.
        height: of the barrier above the minimum, Delta U.
        diffusion: D.
    """

    exact: float
    kramers: float
    height: float
    diffusion: float

    @property
    def verdict(self) -> str:
        """What follows, in a sentence."""
        high = self.height / self.diffusion
        off = f" ({self.kramers / self.exact - 1:+.1%})" if math.isfinite(self.exact) else ""
        low = ", which is meant for higher barriers," if high < _HIGH else ""
        return (
            f"leaves after a time of {self.exact:.4g} on average, over a barrier of {high:.3g} D; Kramers' formula"
            f"{low} says {self.kramers:.4g}{off}"
        )

    def __repr__(self) -> str:
        return f"Escape({self.verdict})"


def kramers_time(potential: Potential, minimum: float, barrier: float, diffusion: float) -> float:
    """Kramers' mean time of escape from a minimum over a barrier, for dx = -U'(x) dt + sqrt(2 D) dW with small D.

    2 pi / sqrt(U''(minimum) |U''(barrier)|) exp(Delta U / D) is the time until the path is well beyond the barrier,
    from where it rarely returns. Half of it is the time until it first stands on the top, from where it falls back as
    often as not. Where U is smooth the error is a share of order D / Delta U (H. Kramers 1940; C. Gardiner 2009,
    "Stochastic methods", sec. 5.5.3). For SGD in time t = eta times steps: U is the loss and D = eta Sigma / 2.

    Args:
        potential: ``U(x) -> [n]`` for float64 x ``[n]``, twice differentiable by autograd.
        minimum: where U' = 0 and U'' > 0.
        barrier: where U' = 0 and U'' < 0, higher than the minimum.
        diffusion: D > 0.

    Returns:
        The time; inf where it is too large for a float.

    Raises:
        InvalidType: no function, no numbers.
        InvalidValue: no minimum or no maximum there, a barrier that is lower, diffusion <= 0.
    """
    check_points(minimum=minimum, barrier=barrier)
    check_callable("a function U(x) -> [n]", potential=potential)
    check_positive(diffusion=diffusion)
    u, slope, curvature = _derivatives(potential, minimum, barrier)
    for k, (name, point) in enumerate((("minimum", minimum), ("barrier", barrier))):
        kind, bent = ("minimum", curvature[k] > 0) if k == 0 else ("maximum", curvature[k] < 0)
        if not bent or abs(slope[k]) > _LEVEL * abs(curvature[k] * (barrier - minimum)):
            raise InvalidValue(
                f"{name} is {point!r}, where U' = {slope[k]:.3g} and U'' = {curvature[k]:.3g}; expected a {kind} of U, "
                "with a second derivative that is not zero"
            )
    if u[1] <= u[0]:
        raise InvalidValue(f"the barrier, U = {u[1]:.4g}, is no higher than the minimum, {u[0]:.4g}")
    exponent = (u[1] - u[0]) / diffusion
    prefactor = 2 * math.pi / math.sqrt(curvature[0] * -curvature[1])
    return prefactor * math.exp(exponent) if exponent < 700 else math.inf


def escape_time(potential: Potential, minimum: float, barrier: float, end: float, diffusion: float) -> Escape:
    """The exact mean time of escape from a minimum to a point beyond a barrier, beside Kramers' formula.

    Args:
        potential: ``U(x) -> [n]`` for float64 x ``[n]``, twice differentiable by autograd; it must confine on the side
            of the minimum.
        minimum: where the path begins.
        barrier: the maximum of U that it must pass.
        end: a point beyond, such as the next minimum.
        diffusion: D of dx = -U'(x) dt + sqrt(2 D) dW; eta Sigma / 2 for SGD.

    Returns:
        Both times and the height of the barrier.

    Raises:
        InvalidType, InvalidValue: as ``kramers_time`` and ``mean_first_passage_time``; an end that is not beyond.
    """
    check_points(end=end)
    kramers = kramers_time(potential, minimum, barrier, diffusion)
    if (end - barrier) * (barrier - minimum) <= 0:
        raise InvalidValue(f"end is {end!r}; expected a point beyond the barrier {barrier!r}, seen from {minimum!r}")
    u = evaluate(potential, torch.tensor([minimum, barrier], dtype=torch.float64, device="cpu"))
    exact = mean_first_passage_time(potential, minimum, end, diffusion)
    return Escape(exact, kramers, float(u[1] - u[0]), float(diffusion))


@dataclass(frozen=True, eq=False)
class DoubleWell:
    """A potential on the line with two minima of depth 0, a flat one on the left and a sharp one on the right.

    On each side of the barrier at 0 it is the quartic with the given height, minimum 0 and curvature there, and the
    curvature -flat / 2 on the top: so two derivatives are continuous, and the flat side is the usual quartic double
    well, ``height (1 - x^2 / w^2)^2``.

    Attributes:
        flat: curvature U'' at the left minimum.
        sharp: curvature at the right one, not below.
        height: of the barrier.

    Raises:
        InvalidType: not numbers.
        InvalidValue: not positive, sharp below flat, or so far apart that a coefficient overflows.
    """

    flat: float
    sharp: float
    height: float

    def __post_init__(self) -> None:
        check_positive(flat=self.flat, sharp=self.sharp, height=self.height)
        if self.sharp < self.flat:
            raise InvalidValue(f"sharp is {self.sharp!r}, below flat, {self.flat!r}; expected the larger curvature")
        if not all(math.isfinite(part) for side in (self.flat, self.sharp) for part in self._quartic(side)):
            raise InvalidValue(
                f"flat, sharp and height are {self.flat!r}, {self.sharp!r} and {self.height!r}, of which no quartic "
                "has finite coefficients; measure them in units in which they are of order one"
            )

    @property
    def flat_minimum(self) -> float:
        """Where the flat minimum is, below 0."""
        return -self._distance(self.flat)

    @property
    def sharp_minimum(self) -> float:
        """Where the sharp minimum is, above 0."""
        return self._distance(self.sharp)

    def __call__(self, x: Tensor) -> Tensor:
        """The potential at points ``[...]``.

        Raises:
            InvalidType: no plain tensor.
        """
        check_plain("points [...], a tensor", x=x)
        if x.is_complex():
            raise InvalidType(f"x has dtype {x.dtype}; expected real numbers")
        return torch.where(x < 0, self._side(-x, self.flat), self._side(x, self.sharp))

    def _distance(self, curvature: float) -> float:
        return math.sqrt(12 * self.height / (curvature + self.flat / 2))

    def _side(self, r: Tensor, curvature: float) -> Tensor:
        """Height - top r^2 / 2 + c3 r^3 + c4 r^4, c3 and c4 from U = U' = 0 and U'' = curvature at the minimum."""
        c3, c4 = self._quartic(curvature)
        return self.height + r.square() * (c3 * r + c4 * r.square() - self.flat / 4)

    def _quartic(self, curvature: float) -> tuple[float, float]:
        """c3 and c4; NaN where a float does not hold them."""
        top, w = self.flat / 2, self._distance(curvature)
        try:
            return (2 * top - curvature) / (3 * w), (curvature - top) / (4 * w**2)
        except ArithmeticError:  # w, or its square, is zero, or too large
            return math.nan, math.nan


@dataclass(frozen=True, eq=False)
class FlatSharp:
    """Escape from a flat minimum and from a sharp one of equal depth, over one barrier; see ``flat_against_sharp``.

    Attributes:
        well: the potential.
        flat: escape from the flat minimum to the sharp one.
        sharp: escape from the sharp minimum to the flat one.
    """

    well: DoubleWell
    flat: Escape
    sharp: Escape

    @property
    def ratio(self) -> float:
        """How many times as long the flat minimum is kept; by Kramers' formula where a time overflows."""
        if math.isinf(self.flat.exact) or math.isinf(self.sharp.exact):
            return math.sqrt(self.well.sharp / self.well.flat)
        return self.flat.exact / self.sharp.exact

    @property
    def verdict(self) -> str:
        """What follows, in a sentence."""
        if self.well.flat == self.well.sharp:
            return f"both minima are left after a time of {self.flat.exact:.4g} on average: they are alike"
        first, kept = ("sharp", "flat") if self.ratio >= 1 else ("flat", "sharp")
        times = max(self.ratio, 1 / self.ratio)
        return (
            f"the {first} minimum is left first: the {kept} one is kept {times:.3g} times as long "
            f"({self.flat.exact:.4g} against {self.sharp.exact:.4g}, flat against sharp)"
        )

    def __repr__(self) -> str:
        return f"FlatSharp({self.verdict})"

    def plot(self) -> Any:
        """The potential with both minima and how long each is kept, a ``matplotlib.figure.Figure``."""
        figure, (axis,) = new_axes(6.4, 3.6)
        left, right = self.well.flat_minimum, self.well.sharp_minimum
        room = 0.3 * (right - left)  # for the notes
        x = torch.linspace(left - room, right + room, 1000, dtype=torch.float64, device="cpu")
        x = x[self.well(x) < 1.2 * self.well.height]  # below the notes
        axis.plot(x.tolist(), self.well(x).tolist(), color=COLORS[0], linewidth=2)
        for point, name, escape in ((left, "flat", self.flat), (right, "sharp", self.sharp)):
            axis.plot([point], [0.0], "o", color=COLORS[1])
            note = f"{name}: kept for {escape.exact:.3g}\n(Kramers {escape.kramers:.3g})"
            axis.text(point, 1.3 * self.well.height, note, ha="center", fontsize=9)
        axis.set(xlabel="x", ylabel="U", ylim=(-0.08 * self.well.height, 1.6 * self.well.height))
        axis.set_xlim(left - room, right + room)
        axis.set_title(f"escape over a barrier of {self.flat.height / self.flat.diffusion:.3g} D", fontsize=10)
        return figure


def flat_against_sharp(flat: float, sharp: float, height: float, diffusion: float) -> FlatSharp:
    """Which of two minima of equal depth noise leaves first: for a high barrier the sharp one.

    By Kramers' formula the flat minimum is kept sqrt(sharp / flat) times as long, as the top and the height of the
    barrier are the same for both. Each time is off that formula by a share of order sqrt(D / height), as the third
    derivative of ``DoubleWell`` jumps at the top; as both are so by much the same share, their ratio is closer. This is
    for a noise that is alike in both; that of SGD grows with the curvature, so that there flat minima are kept longer
    still (Z. Xie, I. Sato & M. Sugiyama 2021, arXiv:2002.03495).

    Args:
        flat: curvature U'' at one minimum.
        sharp: curvature at the other, not below.
        height: of the barrier between them.
        diffusion: D of dx = -U'(x) dt + sqrt(2 D) dW; eta Sigma / 2 for SGD.

    Returns:
        Both escapes, exact and by Kramers' formula, and a verdict.

    Raises:
        InvalidType, InvalidValue: as ``DoubleWell`` and ``escape_time``.
    """
    well = DoubleWell(flat, sharp, height)
    left, right = well.flat_minimum, well.sharp_minimum
    return FlatSharp(
        well, escape_time(well, left, 0.0, right, diffusion), escape_time(well, right, 0.0, left, diffusion)
    )


def _derivatives(potential: Potential, *points: float) -> tuple[list[float], list[float], list[float]]:
    """U, U' and U'' at some points, by autograd."""
    x = torch.tensor(points, dtype=torch.float64, device="cpu")
    evaluate(potential, x)
    with torch.enable_grad():
        x = x.requires_grad_()
        u = potential(x)
        slope = gradients(u, [x], create_graph=True)[0]
        curvature = gradients(slope, [x])[0]
    return u.tolist(), slope.tolist(), curvature.tolist()
