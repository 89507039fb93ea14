"""Signals and gradients in residual networks of infinite width: they hover at the edge of chaos.

A block adds a branch to the state: h = W x + b, x' = x + V phi(h) + a, with weights of variance sw2/n in W and sv2/n in
V, biases of variance sb2 in b and sa2 in a. With p the mean square of the states, q that of h, d = p (1 - c) half the
mean square of the distance of two states of correlation c, and keep the share of units that dropout leaves in phi(h):

    q = sw2 p + sb2
    p' = p + sv2 V(q) / keep + sa2
    d' = d (1 + sv2 sw2 D) + sv2 V(q) (1/keep - 1)          D = E[(phi(u1) - phi(u2))^2] / (2 sw2 d)
    gradient factor of a block: 1 + sv2 sw2 E phi'(u)^2 / keep

(Yang & Schoenholz 2017, "Mean field residual networks: on the edge of chaos", Theorems 2, 4 and 7; dropout, each input
with a mask of its own, as in Schoenholz et al. 2017, section 4.) In d, not in c, no digit is lost where c comes near 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from mfoc.analysis.activations import ActivationLike
from mfoc.analysis.gaussian import GaussianMoments
from mfoc.analysis.propagation.theory.residual_signal import ResidualSignal
from mfoc.checks import check_integer, check_non_negative, check_positive
from mfoc.errors import InvalidType, InvalidValue

Growth = Literal["constant", "linear", "polynomial", "exponential", "faster than exponential"]

_LOOKED_AT = 1000  # blocks, for the verdict
_FAR = 1e6  # a variance at which an activation is as it is far out
_LARGEST = 1e150  # of p: squares of it are still numbers
_WIDEST = 1e8  # the largest variance at which an activation without closed forms is integrated in a blink
_WIDEST_PAIR = 1e4  # and two of them together


@dataclass(frozen=True, eq=False)
class ResidualPropagation:
    """The mean-field theory of a residual network: x' = x + V phi(W x + b) + a; print it for its verdict.

    Attributes:
        activation: phi: a name, a function or a module; see ``Activation.of``.
        weight_variance: sw2, of sqrt(n) W, the weights before the activation.
        bias_variance: sb2, of b.
        branch_weight_variance: sv2, of sqrt(n) V, the weights after it.
        branch_bias_variance: sa2, of a.
        dropout: the share of phi(h) that is set to zero, the rest divided by 1 - dropout, on its own for every input.

    Raises:
        InvalidType, InvalidValue: no activation; negative variances; no share.
    """

    activation: ActivationLike
    weight_variance: float
    bias_variance: float
    branch_weight_variance: float
    branch_bias_variance: float
    dropout: float = 0.0
    _moments: GaussianMoments = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_non_negative(
            weight_variance=self.weight_variance,
            bias_variance=self.bias_variance,
            branch_weight_variance=self.branch_weight_variance,
            branch_bias_variance=self.branch_bias_variance,
        )
        check_non_negative(dropout=self.dropout)
        if self.dropout >= 1:
            raise InvalidValue(f"dropout is {self.dropout:g}, which keeps nothing; expected a share in [0, 1)")
        object.__setattr__(self, "_moments", GaussianMoments.of(self.activation))

    # ---- the recursion

    def iterate(self, depth: int, p0: float = 1.0, c0: float | None = 0.5) -> ResidualSignal:
        """Lengths, correlation and gradients through ``depth`` blocks.

        Args:
            depth: L, how many blocks.
            p0: mean square of the input's entries.
            c0: correlation of two inputs of that length; None to leave the correlation out, which takes most time.

        Returns:
            p, q, c and the gradient at each depth, in float64.

        Raises:
            InvalidType, InvalidValue: no such depth, length or correlation; lengths that overflow.
        """
        check_integer(0, 2**31 - 1, depth=depth)
        check_positive(p0=p0)
        _check_correlation(c0)
        p, q, gains = [float(p0)], [], []
        d = None if c0 is None else [float(p0) * (1 - c0)]
        for block in range(depth):
            q.append(self.weight_variance * p[-1] + self.bias_variance)
            self._check_size(block, q[-1], pairs=d is not None)
            added, gain = self._branch(q[-1])
            if d is not None:
                d.append(self._apart(q[-1], d[-1]))
            p.append(p[-1] + added)
            gains.append(gain)
        lengths = torch.tensor(p, dtype=torch.float64, device="cpu")
        factors = torch.tensor([1.0, *reversed(gains)], dtype=torch.float64, device="cpu")
        c = None if d is None else 1 - torch.tensor(d, dtype=torch.float64, device="cpu") / lengths
        return ResidualSignal(
            lengths, torch.tensor(q, dtype=torch.float64, device="cpu"), c, factors.cumprod(0).flip(0)
        )

    def gradient_factor(self, p: float) -> float:
        """By how much a block enlarges squared gradients, where the states before it have mean square p.

        Raises:
            InvalidType, InvalidValue: no such length.
        """
        check_positive(p=p)
        return self._branch(self.weight_variance * p + self.bias_variance)[1]

    def gradient_depth(self, p0: float = 1.0, most: int = 10_000) -> float:
        """After how many blocks the squared gradient at the input is e times that in the state: they never vanish.

        In a network of a fixed variance this is the depth scale 1/ln chi. Here the factor depends on the length, and
        with it on the depth: for bounded activations the logarithm of the gradient grows as sqrt(L).

        Args:
            p0: mean square of the input's entries.
            most: how many blocks to look at.

        Returns:
            The depth, interpolated between blocks; infinite where ``most`` blocks do not suffice.

        Raises:
            InvalidType, InvalidValue: no such length or number of blocks.
        """
        check_positive(p0=p0)
        check_integer(1, 2**31 - 1, most=most)
        self._check_size(0, self.weight_variance * p0 + self.bias_variance, pairs=False)
        logarithm, p = 0.0, float(p0)
        for block in range(most if self.weight_variance * self.branch_weight_variance > 0 else 0):
            added, gain = self._branch(self.weight_variance * p + self.bias_variance)
            if logarithm + math.log(gain) >= 1:
                return block + (1 - logarithm) / math.log(gain)
            logarithm, p = logarithm + math.log(gain), min(p + added, _WIDEST)
        return math.inf

    # ---- the verdict

    @property
    def growth(self) -> Growth:
        """How the length p goes with depth in the end: from how V(q) goes with q far out."""
        if self.branch_weight_variance == 0 or self.weight_variance == 0:
            return "linear" if self._steady > 0 else "constant"
        power = self._power
        if power > 1:
            return "faster than exponential"
        if power == 1:
            return "exponential"
        return "polynomial" if power > 0 else "linear"

    @property
    def growth_rate(self) -> float:
        """In the end: what p is multiplied by in a block (exponential) or what it grows by (linear, constant).

        Where the growth is polynomial, the power of depth.
        """
        growth = self.growth
        if growth == "exponential":
            left, right = self._moments.activation.slopes
            slope = (left**2 + right**2) / 2
            return 1 + self.branch_weight_variance * self.weight_variance * slope / (1 - self.dropout)
        if growth == "polynomial":
            return 1 / (1 - self._power)
        if growth == "faster than exponential":
            return math.inf
        return self._steady

    def __str__(self) -> str:
        """The verdict, then the numbers it is made of."""
        rates = {
            "constant": "stay as they are",
            "exponential": f"grow exponentially (x {self.growth_rate:.4g} a block): keep branches small",
            "linear": f"grow linearly (+ {self.growth_rate:.4g} a block): depth costs little",
            "polynomial": f"grow as depth^{self.growth_rate:.3g}: depth costs little",
            "faster than exponential": "grow faster than exponentially: no deep network of this kind can be trained",
        }
        depth = self.gradient_depth(most=_LOOKED_AT)
        squared = f"are less than e times as large after {_LOOKED_AT} blocks"
        if depth < math.inf:
            squared = f"are e times as large after {depth:.3g} blocks, never small"
        name = self._moments.activation.name
        variances = (
            f"sw2 = {self.weight_variance:g}, sb2 = {self.bias_variance:g}, sv2 = {self.branch_weight_variance:g}, "
            f"sa2 = {self.branch_bias_variance:g}" + (f", dropout {self.dropout:g}" if self.dropout > 0 else "")
        )
        return f"lengths {rates[self.growth]}; squared gradients {squared} (residual, {name}, {variances})"

    def plot(self, depth: int = 50, p0: float = 1.0, c0: float | None = 0.5) -> Any:
        """Length, gradient and correlation through ``depth`` blocks: see ``iterate``."""
        return self.iterate(depth, p0, c0).plot()

    # ---- its parts

    def _check_size(self, block: int, q: float, *, pairs: bool) -> None:
        """Refuses variances that overflow, or at which an integral takes longer than anyone waits."""
        closed = self._moments.activation.family != "other"
        if not q < (_LARGEST if self._moments.homogeneous else _WIDEST):
            raise InvalidValue(
                f"q is {q:.3g} in block {block}; expected fewer blocks, a smaller p0 or smaller branch weights: no "
                "deep network of this kind can be trained"
            )
        if pairs and not closed and q > _WIDEST_PAIR:
            raise InvalidValue(
                f"q is {q:.3g} in block {block}, where a correlation takes long to compute; expected fewer blocks, or "
                "c0=None to leave it out"
            )

    def _branch(self, q: float) -> tuple[float, float]:
        """What a block adds to p, and by what it multiplies squared gradients."""
        at = torch.tensor(q, dtype=torch.float64, device="cpu")
        branch = self.branch_weight_variance / (1 - self.dropout)
        added = branch * float(self._moments.second_moment(at)) + self.branch_bias_variance
        return added, 1 + branch * self.weight_variance * float(self._moments.slope_moment(at))

    def _apart(self, q: float, d: float) -> float:
        """Half the mean-square distance d after a block, from that before it."""
        at = torch.tensor(q, dtype=torch.float64, device="cpu")
        noise = 0.0
        if self.dropout > 0:
            noise = self.branch_weight_variance * (1 / (1 - self.dropout) - 1) * float(self._moments.second_moment(at))
        if q == 0 or d == 0:  # all pre-activations are equal
            return d + noise
        delta = torch.tensor(min(self.weight_variance * d / q, 2.0), dtype=torch.float64, device="cpu")
        apart = q * float(delta) * float(self._moments.decorrelation(at, delta)[0])
        return d + self.branch_weight_variance * apart + noise

    @property
    def _steady(self) -> float:
        """What a block adds in the end, where that is a constant."""
        q = _FAR if self.weight_variance > 0 else self.bias_variance
        return self._branch(q)[0]

    @property
    def _power(self) -> float:
        """The s of V(q) ~ q^s far out: 1 where the activation has slopes there, 0 where it is bounded."""
        slopes = self._moments.activation.slopes
        if any(map(math.isinf, slopes)):
            return math.inf
        if any(slopes):
            return 1.0
        near, far = (
            float(self._moments.second_moment(torch.tensor(q, dtype=torch.float64, device="cpu")))
            for q in (_FAR, 4 * _FAR)
        )
        power = math.log(far / near, 4) if near > 0 else 0.0
        return power if power > 0.02 else 0.0


def _check_correlation(c0: float | None) -> None:
    if c0 is None:
        return
    if isinstance(c0, bool) or not isinstance(c0, int | float):
        raise InvalidType(f"c0 is {c0!r}; expected a correlation between -1 and 1, or None")
    if not -1 <= c0 <= 1:
        raise InvalidValue(f"c0 is {c0!r}; expected a correlation between -1 and 1")
