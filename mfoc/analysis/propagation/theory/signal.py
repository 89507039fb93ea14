"""Signals through a deep fully connected network of random weights, in the limit of infinite width."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from mfoc.analysis.activations import ActivationLike
from mfoc.analysis.gaussian import GaussianMoments
from mfoc.analysis.propagation.theory.fixed_points import FixedPoint, LengthMap, fixed_points, reached
from mfoc.analysis.propagation.theory.signal_drawing import draw_course, draw_signals
from mfoc.checks import check_integer, check_non_negative, check_number, check_positive, check_tensor
from mfoc.errors import InvalidValue
from mfoc.printing import by_identity, table

Phase = Literal["ordered", "critical", "chaotic"]
CRITICAL = 1e-9  # |chi_1 - 1| below this is critical
_TOO_LARGE = 1e10
_Q, _C, _G = "variance q of the pre-activations", "correlation c of two inputs", "gradient, squared, over the last"


@by_identity
@dataclass(frozen=True, eq=False)
class Course:
    """What passes through the layers, the first entry before any: ``SignalPropagation.iterate``; ``.plot()`` it.

    Attributes:
        q: variance of the pre-activations, [depth + 1].
        c: correlation of the pre-activations of two inputs of equal length, [depth + 1].
        gradient: mean square of the gradient in a layer, over that in the last one, [depth + 1].
    """

    q: Tensor
    c: Tensor
    gradient: Tensor

    def __str__(self) -> str:
        last = len(self.q) - 1
        shown = sorted({round(last * part / 8) for part in range(9)})
        rows = [(k, f"{self.q[k]:.4g}", f"{self.c[k]:.6g}", f"{self.gradient[k]:.3g}") for k in shown]
        return table(("layer", "q", "c", "gradient"), rows)

    def plot(self) -> Any:
        """Length, correlation and gradient in each layer: a ``matplotlib.figure.Figure``.

        Raises:
            MissingExtra: matplotlib is not installed.
        """
        panels = {_Q: self.q, _C: self.c, _G: self.gradient}
        return draw_course(panels, linear=_C, x_label="layer", title=f"Through {len(self.q) - 1} layers, by theory")


@dataclass(frozen=True, eq=False)
class SignalPropagation:
    """Mean-field theory of h -> W phi(h) + b with W_ij ~ N(0, weight_variance / n) and b_i ~ N(0, bias_variance).

    Print it, or ``.plot()`` it. Of pre-activations h, q is the variance and c the correlation between two inputs; both
    follow maps of one number (Poole et al. 2016, eqs. 3 and 5), whose fixed points and slopes say what depth does to a
    signal and to a gradient (Schoenholz et al. 2017). It holds for convolutions, too, their fan-in in the place of n,
    where weights are delta-orthogonal or inputs are constant over space (Xiao et al. 2018).

    Attributes:
        activation: a name, a function of a tensor, or a module, applied to every entry.
        weight_variance: sigma_w^2.
        bias_variance: sigma_b^2.
        dropout: the share of activations that are set to zero, the others divided by 1 - dropout, on their own for
            every input: two equal inputs are then told apart (Schoenholz et al. 2017, section 5).

    Raises:
        InvalidType: an argument of the wrong type.
        InvalidValue: a variance that is negative or not finite, a share outside [0, 1), no activation.
    """

    activation: ActivationLike
    weight_variance: float
    bias_variance: float = 0.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_positive(weight_variance=self.weight_variance)
        check_non_negative(bias_variance=self.bias_variance)
        check_non_negative(dropout=self.dropout)
        if self.dropout >= 1:
            raise InvalidValue(f"dropout is {self.dropout:g}, which keeps nothing; expected a share in [0, 1)")
        object.__setattr__(self, "activation", GaussianMoments.of(self.activation).activation)

    # ---- the maps

    @cached_property
    def moments(self) -> GaussianMoments:
        """Expectations of the activation."""
        return GaussianMoments.of(self.activation)

    @cached_property
    def _lengths(self) -> LengthMap:
        return LengthMap(self.moments, self.weight_variance / (1 - self.dropout), self.bias_variance)

    def length_map(self, q: Tensor | float) -> Tensor:
        """The variance in the next layer, sigma_w^2 V(q) + sigma_b^2, for q [...].

        Raises:
            InvalidType, InvalidValue: q is no variance.
        """
        return self._lengths.gain * self.moments.second_moment(_checked("variances", q=q)) + self.bias_variance

    def correlation_map(self, c: Tensor | float, q: Tensor | float | None = None) -> Tensor:
        """The correlation in the next layer, for c [...] in [-1, 1].

        Args:
            c: correlation of the pre-activations of two inputs.
            q: their variance, [...]; the fixed point when None.

        Raises:
            InvalidType, InvalidValue: no numbers; c outside [-1, 1]; no q where there is no fixed point above zero.
        """
        c = _checked("correlations", c=c)
        if bool((c.abs() > 1).any()):
            raise InvalidValue("c holds a number outside [-1, 1]; expected correlations")
        if q is None and not 0 < self.q_star < math.inf:
            raise InvalidValue(f"q is None and the fixed point is {self.q_star:g}; give the variance q")
        q = _checked("variances", q=self.q_star if q is None else q)
        return 1 - self._uncorrelated(q, 1 - c)[0]

    def _uncorrelated(self, q: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        """1 - c in the next layer, and q there."""
        second, spread = self.moments.second_moment(q), self.moments.decorrelation(q, delta)[0]
        following = self._lengths.gain * second + self.bias_variance
        masks = (self._lengths.gain - self.weight_variance) * second
        return (masks + self.weight_variance * q * delta * spread) / following.clamp(min=1e-300), following

    # ---- lengths

    @cached_property
    def fixed_points(self) -> tuple[FixedPoint, ...]:
        """All fixed points of the length map in ascending order, with their slopes; q = 1 where every q is one."""
        return fixed_points(self._lengths)

    @cached_property
    def q_star(self) -> float:
        """The fixed point that iterating from q = 1 reaches; inf where it diverges."""
        return reached(self._lengths, self.fixed_points)

    @cached_property
    def chi_1(self) -> float:
        """sigma_w^2 E phi'^2 at q*: by how much a layer multiplies the mean square of a small change, or gradient."""
        return self._gradient_factor(self.q_star)

    @cached_property
    def chi_q(self) -> float:
        """The slope of the length map at q*."""
        if math.isfinite(self.q_star):
            return self._lengths.slope(self.q_star)
        return self._lengths.far_slope()

    def _gradient_factor(self, q: float) -> float:
        if math.isfinite(q):
            return self._lengths.gain * float(self.moments.slope_moment(_tensor(q)))
        return self._lengths.far_slope()

    @property
    def xi_q(self) -> float:
        """Layers over which a deviation from q* falls to 1/e, -1 / ln |chi_q|; NaN without a fixed point."""
        return float(depth_scale(_tensor(self.chi_q))) if math.isfinite(self.q_star) else math.nan

    # ---- correlations

    @cached_property
    def _lost(self) -> float:
        """1 - c*: the root of mask / delta + sigma_w^2 E[(phi(u1) - phi(u2))^2] / (2 q delta) = 1."""
        if not math.isfinite(self.q_star):
            return 0.0 if math.isfinite(self._lengths.far_slope()) else math.nan
        q = _tensor(self.q_star)
        masks = (self._lengths.gain - self.weight_variance) * float(self.moments.second_moment(q))
        share = masks / self.q_star if self.q_star > 0 else 0.0
        if self._orthogonal():  # the root is known, and for kinks a search would only find its rounding
            return 1.0
        if share == 0 and self.chi_1 <= 1 + CRITICAL:
            return 0.0
        lost = _decorrelated(self.moments, q, self.weight_variance, share)
        return lost if lost < 0.5 else 1 - self._polished(1 - lost)

    def _orthogonal(self) -> bool:
        """Whether c* is zero: an odd activation without biases passes on nothing that two inputs share.

        Then chi_1 > 1 at any q* > 0, by however little: of sum n a_n^2 (no a_0) over sum a_n^2 = q* / sigma_w^2. Linear
        activations, and a q* that comes of rounding, are left out.
        """
        if not self.q_star > 0 or self.moments.homogeneous or self.chi_1 <= 1:
            return False
        constant = self.bias_variance + self.weight_variance * float(self.moments.mean(_tensor(self.q_star))) ** 2
        return constant <= 1e-28 * self.q_star

    def _polished(self, c: float) -> float:
        """Newton's steps for c itself, which has more digits than 1 - c where it is small."""
        q = _tensor([self.q_star])
        for _ in range(2):
            value, slope = (self.weight_variance * float(part) for part in self.moments.pair(q, q, _tensor([[c]])))
            c = min(1.0, max(0.0, c - ((self.bias_variance + value) / self.q_star - c) / (slope - 1)))
        return c

    @property
    def c_star(self) -> float:
        """The stable fixed point of the correlation map: 1 unless chi_1 > 1, or there is dropout."""
        return 1 - self._lost

    @cached_property
    def chi_c(self) -> float:
        """The slope of the correlation map at c*, sigma_w^2 E phi'(u1) phi'(u2)."""
        if not math.isfinite(self.q_star):  # the bias no longer counts: c -> 1, at its slowest
            return 1.0 if math.isfinite(self._lengths.far_slope()) else math.nan
        if self._lost == 0:
            return self.chi_1
        slopes = self.moments.decorrelation(_tensor(self.q_star), _tensor(self._lost))[1]
        return self.weight_variance * float(slopes)

    @property
    def xi_c(self) -> float:
        """Layers over which correlations approach c* by a factor e, -1 / ln chi_c: how deep a signal can be told."""
        return math.inf if self.phase == "critical" and self._lost == 0 else float(depth_scale(_tensor(self.chi_c)))

    @property
    def phase(self) -> Phase:
        """By chi_1: "ordered" below 1, where gradients vanish; "chaotic" above, where they explode; else "critical"."""
        if abs(self.chi_1 - 1) <= CRITICAL:
            return "critical"
        return "ordered" if self.chi_1 < 1 else "chaotic"

    # ---- depth

    def iterate(self, depth: int, q0: float = 1.0, c0: float = 0.5) -> Course:
        """What two inputs of equal length, and a gradient, become through ``depth`` layers of this kind.

        Args:
            depth: number of layers.
            q0: variance of the pre-activations in the first.
            c0: their correlation there, in [-1, 1].

        Returns:
            q, c and the gradient in every layer; q is inf from where it exceeds 1e10, and what follows NaN.

        Raises:
            InvalidType: an argument of the wrong type.
            InvalidValue: a depth below 1, q0 not positive, c0 outside [-1, 1].
        """
        check_integer(1, depth=depth)
        check_positive(q0=q0)
        if not q0 < _TOO_LARGE:
            raise InvalidValue(f"q0 is {q0!r}; expected a variance below {_TOO_LARGE:g}")
        if not isinstance(c0, int | float) or not -1 <= c0 <= 1:
            raise InvalidValue(f"c0 is {c0!r}; expected a correlation, from -1 to 1")
        q, delta = _tensor(float(q0)), _tensor(1 - float(c0))
        lengths, losses, factors = [q], [delta], []
        for _ in range(depth):
            if not float(q) < _TOO_LARGE:
                q, delta, factor = _tensor(math.inf), _tensor(math.nan), math.nan
            else:
                factor = self._gradient_factor(float(q))
                delta, q = self._uncorrelated(q, delta.clamp(0, 2))
            lengths.append(q)
            losses.append(delta)
            factors.append(factor)
        backward = torch.tensor([*factors, 1.0], dtype=torch.float64, device="cpu").flip(0).cumprod(0).flip(0)
        return Course(torch.stack(lengths), 1 - torch.stack(losses), backward)

    def plot(self, depth: int | None = None) -> Any:
        """The maps of lengths and of correlations with their fixed points, and correlations through the layers.

        Args:
            depth: layers of the last; as far as correlations settle, from 20 to 200, when None.

        Returns:
            A ``matplotlib.figure.Figure``.

        Raises:
            InvalidType, InvalidValue: no number of layers.
            MissingExtra: matplotlib is not installed.
        """
        check_integer(1, optional=True, depth=depth)
        scale = self.xi_c if math.isfinite(self.xi_c) else 30.0
        return draw_signals(self, depth or int(min(max(20, 8 * scale), 200)))

    # ---- in words

    @property
    def notes(self) -> list[str]:
        """What is unusual here, a sentence each: divergence, several fixed points."""
        said = []
        if self._lengths.is_scale_free():
            said.append("every q is a fixed point; q* = 1 is where iterating from 1 stays")
        if self.q_star == math.inf:
            said.append("the variance diverges with depth: no fixed point is reached from q = 1")
        if len(self.fixed_points) > 1:
            shown = ", ".join(f"{p.q:.4g} ({'stable' if p.stable else 'unstable'})" for p in self.fixed_points)
            said.append(f"several fixed points of the length map: {shown}; q* is the one that q = 1 leads to")
        return said

    def __str__(self) -> str:
        name = self.moments.activation.name
        given = f"{name}, sigma_w^2 = {self.weight_variance:.6g}, sigma_b^2 = {self.bias_variance:.6g}"
        given += f", dropout {self.dropout:g}" * (self.dropout > 0)
        notes = "".join(f"\n  {note}" for note in self.notes)
        meaning = {
            "ordered": "inputs become alike and gradients vanish",
            "critical": "gradients neither vanish nor explode",
            "chaotic": "gradients explode",
        }[self.phase]
        return (
            f"{given}: {self.phase}; {meaning}\n"
            f"  q* = {self.q_star:.6g}   chi_1 = {self.chi_1:.6g}   chi_q = {self.chi_q:.6g}   xi_q = {self.xi_q:.4g}\n"
            f"  c* = {self.c_star:.6g}   chi_c = {self.chi_c:.6g}   xi_c = {self.xi_c:.4g} layers{notes}"
        )


def _decorrelated(moments: GaussianMoments, q: Tensor, weight_variance: float, share: float) -> float:
    """The root, in (0, 1], of a function of delta that is convex and falls (Mehler's coefficients are positive).

    Newton's method from the left never overshoots such a root; halving, in the logarithm, guards the start.
    """
    low, high, delta = 0.0, 1.0, 1e-3
    for _ in range(200):
        spread, slope = (weight_variance * float(part) for part in moments.decorrelation(q, _tensor(delta)))
        value = share / delta + spread - 1
        if value > 0:
            low = delta
        else:
            high = delta
        fall = (slope - spread - share / delta) / delta
        step = delta - value / fall if fall < 0 else math.nan
        inside = low < step <= high
        following = step if inside else (math.sqrt(low * high) if low > 0 else high * 1e-3)
        if abs(following - delta) <= 1e-15 * delta or following < 1e-290:
            return following
        delta = following
    return delta


def depth_scale(chi: Tensor) -> Tensor:
    """-1 / ln |chi|, in layers, for chi [...]: infinite from 1 on, where nothing decays."""
    size = chi.abs()
    inner = torch.where((size > 0) & (size < 1), -1 / size.log(), torch.where(size == 0, 0.0, math.inf))
    return torch.where(chi.isnan(), math.nan, inner)


def _tensor(value: Tensor | float | list[float] | list[list[float]]) -> Tensor:
    return (
        value.to(torch.float64) if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64, device="cpu")
    )


def _checked(expected: str, /, **values: Any) -> Tensor:
    """One finite number, or a tensor of them, in float64."""
    (value,) = values.values()
    if isinstance(value, Tensor):
        check_tensor(expected, floating=False, **values)
    else:
        check_number(**values)
    return _tensor(value)
