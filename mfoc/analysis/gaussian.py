"""Expectations of an activation under Gaussian laws: what mean-field theory and infinite kernels are made of.

With z, z1, z2 standard normals, z1 and z2 of correlation c, and u1 = sqrt(q1) z1, u2 = sqrt(q2) z2:

    second_moment   V(q) = E phi(sqrt(q) z)^2
    slope_moment    E phi'(sqrt(q) z)^2
    growth          dV/dq = E[phi phi' z] / sqrt(q), which holds at kinks, where the form with phi'' does not
    pair            E phi(u1) phi(u2) and E phi'(u1) phi'(u2)
    decorrelation   E[(phi(u1) - phi(u2))^2] / (2 q delta) at q1 = q2 = q, delta = 1 - c: no digit is lost near c = 1

Analytic activations are integrated by the trapezoid rule and, in two dimensions, by Mehler's series; those with kinks,
and at large variances those that are calm far out, by Gauss-Legendre rules on panels. Which step is fine enough is
measured for each activation when it is first met.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from mfoc import tree
from mfoc.analysis.activations import Activation, ActivationLike
from mfoc.analysis.closed import closed_decorrelation, closed_pair, mean_square_slope
from mfoc.analysis.hermite import MOST, coefficients, correlated, enough_terms, lost, slope_at
from mfoc.analysis.quadrature import panels, trapezoid
from mfoc.checks import check_plain
from mfoc.errors import InvalidType, InvalidValue
from mfoc.printing import by_identity

_LEAST = 1e-30  # a variance that stands for zero: what is linear at zero is linear there
_AT_ONCE = 2**21  # numbers in one evaluation
_TRIED = (0.05, 1.0, 8.0)  # variances at which a rule is compared with a finer one
_REACHES = (9.5, 14.0, 20.0, 28.0, 37.0)  # the density underflows beyond
_AGREE = 2e-13
_NARROW = 0.05  # a strip, in standard deviations, below which growing panels take fewer nodes
_FAR = (1e4, 1e6, 1e8, 1e10)  # variances at which growing panels are compared with finer ones
_MIDDLE = 1e-12  # a node as close to zero as that is the middle one

Integrand = Callable[[Tensor, Tensor, Tensor], Tensor]  # of phi(u), phi'(u), z


@by_identity
@dataclass(frozen=True, eq=False)
class GaussianMoments:
    """The expectations of one activation. Everything is in float64, on the device of the variances.

    Attributes:
        activation: the activation.
        strip: half the width of the strip around the real axis in which its rules may take it for analytic (between
            its kinks): a number that was found good, not a theorem.
        reach: how many standard deviations the rules look.
        growing: by what factor the distance from zero and from kinks grows from panel to panel at large variances,
            where the activation varies ever more slowly there, as tanh and softplus do but no sine; else 1.
    """

    activation: Activation
    strip: float
    reach: float
    growing: float = 1.0

    @staticmethod
    def of(activation: ActivationLike | GaussianMoments) -> GaussianMoments:
        """The moments of an activation (a name, a function or a module; see ``Activation.of``).

        Raises:
            InvalidType: none of these.
            InvalidValue: not an activation, or one whose moments no rule finds.
        """
        if isinstance(activation, GaussianMoments):
            return activation
        described = Activation.of(activation)
        if described not in _FOUND:
            _FOUND[described] = _tuned(described)
        return _FOUND[described]

    @property
    def homogeneous(self) -> bool:
        """Whether phi(a u) = a phi(u) for a > 0: linear, ReLU and its kin, whose V is proportional to q."""
        return self.activation.family == "homogeneous"

    def mean(self, q: Tensor) -> Tensor:
        """E phi(sqrt(q) z), for q [...]."""
        return self._expect(q, lambda phi, slope, z: phi, slopes=False)

    def second_moment(self, q: Tensor) -> Tensor:
        """V(q) = E phi(sqrt(q) z)^2, for q [...]."""
        if self.homogeneous:
            return mean_square_slope(self.activation.slopes) * _checked(q)
        return torch.where(
            q == 0, self._at_zero()[0], self._expect(q, lambda phi, slope, z: phi.square(), slopes=False)
        )

    def slope_moment(self, q: Tensor) -> Tensor:
        """E phi'(sqrt(q) z)^2, for q [...]."""
        if self.homogeneous:
            return torch.full_like(_checked(q), mean_square_slope(self.activation.slopes))
        return torch.where(q == 0, self._at_zero()[1], self._expect(q, lambda phi, slope, z: slope.square()))

    def growth(self, q: Tensor) -> Tensor:
        """dV/dq = E[phi phi' z] / sqrt(q), for q [...]."""
        if self.homogeneous:
            return self.slope_moment(q)
        safe = _checked(q).clamp(min=_LEAST)
        return self._expect(q, lambda phi, slope, z: phi * slope * z) / safe.sqrt()

    def pair(self, q1: Tensor, q2: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """The covariance function and its derivative, of every pair of two sets of variances.

        Args:
            q1: [N].
            q2: [M].
            c: the correlation of u1 and u2, [N, M], in [-1, 1].

        Returns:
            E phi(u1) phi(u2) and E phi'(u1) phi'(u2), [N, M] each.
        """
        q1, q2, c = _checked(q1), _checked(q2), c.to(torch.float64)
        if self.activation.family != "other":
            return closed_pair(self.activation, q1[:, None], q2[None], c)
        terms = self._terms(torch.cat([q1, q2]))
        if terms <= MOST:
            function = self.activation.function
            first, second = (coefficients(function, q, terms) for q in (q1, q2))
            value, slope = correlated(first, second, c)
            return value, slope / (q1[:, None] * q2[None]).clamp(min=_LEAST**2).sqrt()
        ones = torch.ones_like(c)
        return self._plane(q1[:, None] * ones, q2[None] * ones, 1 - c, lambda p, s: (p[0] * p[1], s[0] * s[1]))

    def decorrelation(self, q: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        """How a small angle between two inputs passes, and the slope of the correlation map.

        Args:
            q: [...], above zero.
            delta: 1 - c, in [0, 2], [...].

        Returns:
            E[(phi(u1) - phi(u2))^2] / (2 q delta) and E phi'(u1) phi'(u2), [...] each. Both are E phi'^2 at delta = 0.
        """
        delta = delta.to(torch.float64) + 0 * q
        q = _checked(q).clamp(min=_LEAST) + 0 * delta
        if self.activation.family != "other":
            return closed_decorrelation(self.activation, q, delta)
        terms = self._terms(q)
        if terms <= MOST:
            squares = coefficients(self.activation.function, q, terms).square() / q[..., None]
            return lost(squares, delta), slope_at(squares, delta)
        safe = delta.clamp(min=1e-24)
        change, slope = self._plane(q, q, safe, lambda p, s: ((p[0] - p[1]).square(), s[0] * s[1]))
        return change / (2 * q * safe), slope

    # ---- the rules

    def _at_zero(self) -> tuple[float, float]:
        """phi(0)^2, and the mean of phi'^2 on both sides of zero: what a vanishing variance sees, exactly."""
        sides = torch.tensor([-1e-15, 1e-15], dtype=torch.float64, device="cpu")
        value = self.activation.function(torch.zeros(1, dtype=torch.float64, device="cpu"))
        return float(value.square()), float(self.activation.slope(sides).square().mean())

    def _terms(self, q: Tensor) -> int:
        if self.activation.kinks or not q.numel():
            return 2 * MOST if q.numel() else 1
        return enough_terms(self.strip, float(q.max()))

    def _rule(self, root: Tensor, largest: float) -> tuple[Tensor, Tensor]:
        """Nodes and weights for standard deviations [P], of which the largest is known: [1 or P, n] each."""
        return self._axis(self._kinks(root), self.strip / largest)

    def _kinks(self, root: Tensor) -> Tensor:
        """Where the kinks are, and zero for growing panels, in standard deviations: [..., k]."""
        kinks = self.activation.kinks if self.growing == 1 else sorted({0.0, *self.activation.kinks})
        return torch.tensor(kinks, dtype=root.dtype, device=root.device) / root[..., None]

    def _expect(self, q: Tensor, integrand: Integrand, *, slopes: bool = True) -> Tensor:
        """The mean of an integrand at every variance; those of one size share a rule."""
        root = _checked(q).clamp(min=_LEAST).sqrt().reshape(-1)
        out = torch.empty_like(root)
        sizes, order = root.log2().ceil().clamp(min=-2).sort(stable=True)
        parts: list[Tensor] = []
        known, counts = torch.unique_consecutive(sizes.cpu(), return_counts=True)  # on the host, which waits but once
        for size, places in zip(known, torch.split(order, counts.tolist()), strict=True):
            width = self._rule(2 ** size[None], float(2**size))[0].shape[-1]
            parts += torch.split(places, max(1, _AT_ONCE // width))
        for part, largest in zip(parts, tree.floats([root[part].max() for part in parts]), strict=True):
            z, w = self._rule(root[part], largest)
            u = root[part, None] * z
            phi = self.activation.function(u)
            slope = self.activation.slope(u) if slopes else phi
            out[part] = (integrand(phi, slope, z) * w).sum(-1)
        return out.reshape(q.shape)

    def _plane(
        self, q1: Tensor, q2: Tensor, delta: Tensor, integrand: Callable[..., tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """Two means over pairs (u1, u2), one after the other along the axes (z1 + z2, z1 - z2) / sqrt(2).

        On a line of constant difference, kinks are points; the lines on which two of them meet are where the outer
        rule is cut. The difference itself is small where delta is, so nothing cancels. At q1 = q2 an integrand that
        does not tell u1 from u2, as all do here, is the same at the difference -d.
        """
        points = torch.stack([(q1 + 0 * delta).reshape(-1), (q2 + 0 * delta).reshape(-1), delta.reshape(-1)], 1)
        means = [torch.stack(self._pieces(point[:1], point[1:2], point[2:], integrand)) for point in points]
        both = torch.cat(means, 1) if means else delta.new_zeros(2, 0)
        return both[0].reshape(delta.shape), both[1].reshape(delta.shape)

    def _pieces(
        self, q1: Tensor, q2: Tensor, delta: Tensor, integrand: Callable[..., tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        root1, root2 = q1.clamp(min=_LEAST).sqrt(), q2.clamp(min=_LEAST).sqrt()
        along, across = (1 - delta / 2).clamp(min=1e-300).sqrt(), (delta / 2).clamp(min=1e-300).sqrt()
        strip = self.strip / float(torch.maximum(root1, root2))
        one, two = self._kinks(root1), self._kinks(root2)  # [1, k]
        meeting = ((one[..., :, None] - two[..., None, :]) / (2 * across[:, None, None])).flatten(-2)
        d, outer = (part[0] for part in self._axis(meeting, strip / float(across)))
        if bool(q1 == q2):
            kept = d > -_MIDDLE
            d, outer = d[kept], outer[kept] * (1 + (d[kept] > _MIDDLE).to(outer))
        means = d.new_zeros(2, len(d))
        crossings = torch.cat([one - across * d[:, None], two + across * d[:, None]], -1) / along
        width = self._axis(crossings[:1], strip / float(along))[0].shape[-1]
        for part in torch.split(torch.arange(len(d), device=d.device), max(1, _AT_ONCE // width)):
            s, inner = self._axis(crossings[part], strip / float(along))
            shift = across * d[part, None]
            pair = [root1 * (along * s + shift), root2 * (along * s - shift)]
            values = [self.activation.function(u) for u in pair]
            slopes = [self.activation.slope(u) for u in pair]
            for row, value in enumerate(integrand(values, slopes)):
                means[row, part] = (value * inner).sum(-1)
        both = means @ outer
        return both[:1], both[1:]

    def _axis(self, breaks: Tensor, strip: float) -> tuple[Tensor, Tensor]:
        """The rule for one axis, cut at breaks [P, k], which are the activation's kinks."""
        if self.activation.kinks or (self.growing > 1 and strip < _NARROW):
            return panels(breaks, min(4.0, 3 * strip), self.reach, growing=self.growing)
        z, w = (part.to(breaks) for part in trapezoid(strip, self.reach))
        return z[None], w[None]


_FOUND: WeakKeyDictionary[Activation, GaussianMoments] = WeakKeyDictionary()


def _checked(q: Tensor) -> Tensor:
    check_plain("a tensor of variances", q=q)
    if q.is_complex():
        raise InvalidType(f"q has dtype {q.dtype}; expected variances, real numbers")
    q = q.detach().to(torch.float64)
    if bool(((q < 0) | ~q.isfinite()).any()):
        raise InvalidValue("q holds a negative or non-finite number; expected variances")
    return q


def _tuned(activation: Activation) -> GaussianMoments:
    """The coarsest rule that agrees with a finer and longer one on every moment."""
    q = torch.tensor(_TRIED, dtype=torch.float64, device="cpu")

    def all_of(strip: float, reach: float) -> Tensor:
        rule = GaussianMoments(activation, strip, reach)
        return torch.stack([rule.mean(q), rule.second_moment(q), rule.slope_moment(q), rule.growth(q)])

    for reach in _REACHES:
        for halvings in range(9 if reach == _REACHES[0] else 3):
            strip = 3.0 / 2**halvings
            coarse, fine = all_of(strip, reach), all_of(strip / 2, min(1.4 * reach, 37.5))
            size = torch.stack([fine[1].sqrt(), fine[1], fine[2], (fine[1] * fine[2] / q).sqrt()])
            if bool(((coarse - fine).abs() <= _AGREE * size + 1e-300).all()):
                return _grown(GaussianMoments(activation, strip, reach))
    raise InvalidValue(
        f"the Gaussian moments of activation {activation.name!r} do not converge: its square or its slope's has no "
        "mean, or it varies too fast; expected a function such as tanh or ReLU, continuous, of bounded slope"
    )


def _grown(equal: GaussianMoments) -> GaussianMoments:
    """The same rules with growing panels, where these agree with finer ones far out, and with equal ones as they start.

    A narrow strip, which says that the activation varies fast, is not tried: equal panels would take too many nodes.
    """
    growing, finer = (GaussianMoments(equal.activation, equal.strip, equal.reach, by) for by in (2.0, 1.6))
    q = torch.tensor(_FAR, dtype=torch.float64, device="cpu")

    def all_of(moments: GaussianMoments, q: Tensor) -> Tensor:
        return torch.stack([moments.second_moment(q), moments.slope_moment(q), moments.growth(q)])

    if equal.homogeneous or equal.strip < _NARROW:
        return equal
    coarse, fine, plain = all_of(growing, q), all_of(finer, q), all_of(equal, q[:1])
    size = torch.stack([fine[0], fine[1], (fine[0] * fine[1] / q).sqrt()])
    same = ((coarse - fine).abs() <= 4 * _AGREE * size) & fine.isfinite()
    alike = (coarse[:, :1] - plain).abs() <= 4 * _AGREE * size[:, :1]
    return growing if bool(same.all()) and bool(alike.all()) else equal
