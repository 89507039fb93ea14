"""Kernels of fully-connected networks of infinite width, for any activation: the NNGP kernel and the NTK.

With sw2 = ``weight_variance``, sb2 = ``bias_variance`` and NTK parametrisation (all W, b standard normal),

    h^1     = sqrt(sw2 / d) W x + sqrt(sb2) b
    h^(l+1) = sqrt(sw2 / n) W phi(h^l) + sqrt(sb2) b            l = 1 .. depth - 1

the outputs h^depth at initialisation are Gaussian with covariance K = ``nngp`` in every unit (Neal 1996; Lee et al.
2018), and gradient descent follows the kernel Theta = ``ntk`` (Jacot, Gabriel & Hongler 2018, theorem 1):

    K^1     = sw2 <x, x'> / d + sb2                             Theta^1     = K^1
    K^(l+1) = sw2 E phi(u) phi(u') + sb2                        Theta^(l+1) = K^(l+1) + sw2 E phi'(u) phi'(u') Theta^l

(u, u') of covariance K^l. With ``residual=True`` the hidden layers after the first are h^(l+1) = h^l + [the above], for
which K^l and Theta^l are added to the right-hand sides; the first layer, which changes the width, and the last, which
reads out, have no skip connection. (What neural-tangents makes of FanInSum over Identity and serial(phi, Dense).)
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mfoc.analysis.activations import ActivationLike
from mfoc.analysis.gaussian import GaussianMoments
from mfoc.analysis.kernel.doors import check_alike, check_fits, check_samples, free_memory
from mfoc.analysis.kernel.drawing import draw_kernels
from mfoc.analysis.kernel.pairs import Side, distances
from mfoc.checks import check_flag, check_integer, check_non_negative
from mfoc.errors import InvalidType, InvalidValue
from mfoc.printing import by_identity

_BLOCK = 2**18  # pairs that go through a layer at once
_PARALLEL = 1e-3  # 1 - |cosine| below which an angle is measured between the inputs, not by their product


@by_identity
class InfiniteKernels(NamedTuple):
    """The two kernels of an infinitely wide network."""

    nngp: Tensor  # covariance of the outputs at initialisation [N1, N2]
    ntk: Tensor  # the kernel of gradient descent [N1, N2]

    def plot(self) -> Any:
        """Both kernels as images: a ``matplotlib.figure.Figure``.

        Raises:
            MissingExtra: matplotlib is not installed.
        """
        return draw_kernels({"NNGP, covariance of the outputs": self.nngp, "NTK, kernel of gradient descent": self.ntk})


def infinite_kernels(
    x1: Tensor,
    x2: Tensor | None = None,
    *,
    activation: ActivationLike | GaussianMoments,
    depth: int,
    weight_variance: float = 1.0,
    bias_variance: float = 0.0,
    residual: bool = False,
    memory: int | None = None,
) -> InfiniteKernels:
    """The NNGP kernel and the NTK of an infinitely wide network (see this module's equations).

    It works in float64, on the device of the inputs, whatever their dtype: a network of depth 100 at criticality keeps
    its digits, and inputs that are equal, opposite or zero give what they give in the limit. Gradients are not passed
    on. Analytic activations, ReLU and its kin cost about a microsecond a pair and layer; of activations with other
    kinks (hardtanh, ELU), pairs of correlation above 0.96 cost milliseconds.

    Args:
        x1: inputs ``[N1, ...]``, which are flattened.
        x2: inputs ``[N2, ...]``; ``x1`` again when None.
        activation: a name ("relu"), a function or a module; see ``Activation.of``.
        depth: how many dense layers; 1 is a linear model.
        weight_variance: sw2, the variance of a weight times the width of its input.
        bias_variance: sb2.
        residual: whether hidden layers after the first are added to their inputs.
        memory: how many bytes the kernels may take; half of what is free on the device when None.

    Returns:
        ``nngp`` and ``ntk``, ``[N1, N2]`` each, of the dtype and on the device of the inputs.

    Raises:
        InvalidType: inputs that are no tensors of real floating-point numbers, an activation that is none.
        InvalidValue: no inputs, or of two kinds; negative variances; no layer; kernels that would not fit.
    """
    network = InfiniteNetwork.of(activation, depth, weight_variance, bias_variance, residual)
    check_inputs(x1=x1)
    if x2 is not None:
        check_inputs(x2=x2)
        check_alike(x1, x2)
    check_integer(1, 2**63 - 1, optional=True, memory=memory)
    kernels = InfiniteKernels(*(part.to(x1.dtype) for part in network.kernels(x1, x2, memory=memory)))
    if not all(bool(part.isfinite().all()) for part in kernels):
        raise InvalidValue(f"the kernels leave the range of {x1.dtype}: give inputs in float64, or take fewer layers")
    return kernels


def check_inputs(**inputs: object) -> None:
    """Refuses what is no tensor ``[N, ...]`` of finite real numbers.

    Raises:
        InvalidType: it is no tensor, or of integers or complex numbers.
        InvalidValue: it is empty, has no axis, or is not finite.
    """
    check_samples(**inputs)
    for name, x in inputs.items():
        assert isinstance(x, Tensor)
        if not x.is_floating_point():
            raise InvalidType(f"{name} is of {x.dtype}; expected floating-point numbers, as of {name}.double()")


@dataclass(frozen=True, eq=False)
class InfiniteNetwork:
    """An infinitely wide network, to be evaluated; see ``infinite_kernels`` for what is in it."""

    activation: ActivationLike | GaussianMoments
    moments: GaussianMoments
    depth: int
    weight_variance: float
    bias_variance: float
    residual: bool

    @classmethod
    def of(
        cls,
        activation: ActivationLike | GaussianMoments,
        depth: int,
        weight_variance: float,
        bias_variance: float,
        residual: bool,
    ) -> InfiniteNetwork:
        """A network out of arguments that are checked.

        Raises:
            InvalidType, InvalidValue: as ``infinite_kernels``.
        """
        check_integer(1, depth=depth)
        check_non_negative(weight_variance=weight_variance, bias_variance=bias_variance)
        check_flag(residual=residual)
        if isinstance(activation, nn.Module):
            activation = copy.deepcopy(activation)  # as it is now
        moments = GaussianMoments.of(activation)
        return cls(activation, moments, depth, weight_variance, bias_variance, residual)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled without the moments, which are found again."""
        settings = self.depth, self.weight_variance, self.bias_variance, self.residual
        return InfiniteNetwork.of, (self.activation, *settings)

    @torch.no_grad()
    def kernels(self, x1: Tensor, x2: Tensor | None, *, memory: int | None = None) -> tuple[Tensor, Tensor]:
        """``nngp`` and ``ntk`` in float64. What is kept of a pair is 1 - correlation, which keeps its digits.

        Raises:
            InvalidValue: they would not fit.
        """
        room = free_memory(x1.device) // 2 if memory is None else memory
        shape = (2, len(x1), len(x1 if x2 is None else x2))
        check_fits(shape, torch.float64, room, cures="take fewer samples at a time: kernel[i, j] is of x1[i], x2[j]")
        one = _flat(x1)
        two = one if x2 is None else _flat(x2)
        blocks = _blocks(len(one), len(two), x2 is None)
        gain = self.weight_variance
        s1, s2 = (x.square().mean(1).sqrt() for x in (one, two))
        delta, ntk = torch.zeros(2, len(one), len(two), dtype=torch.float64, device=one.device)
        for rows, columns in blocks:
            part = s1[rows, None], s2[columns]
            apart = _one_less_cosine(one[rows], two[columns])
            if x2 is None:
                apart.fill_diagonal_(0.0)  # columns begin where rows do
            delta[rows, columns] = self._mixed(*part, gain, gain * part[0] * part[1] * apart)
        s1, s2 = ((gain * s.square() + self.bias_variance).sqrt() for s in (s1, s2))
        for rows, columns in blocks:
            ntk[rows, columns] = s1[rows, None] * s2[columns] * (1 - delta[rows, columns])
        for layer in range(1, self.depth):
            skip = float(self.residual and layer < self.depth - 1)
            s1, s2 = self._pass(s1, s2, delta, ntk, blocks, skip)
        for rows, columns in blocks:
            delta[rows, columns] = s1[rows, None] * s2[columns] * (1 - delta[rows, columns])
            if x2 is None:
                for kernel in (delta, ntk):
                    _mirror(kernel, rows)
        return delta, ntk

    @torch.no_grad()
    def diagonals(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """nngp(x, x) and ntk(x, x) of every input, [N] each, float64."""
        q = self.weight_variance * _flat(x).square().mean(1) + self.bias_variance
        theta = q
        for layer in range(1, self.depth):
            skip = float(self.residual and layer < self.depth - 1)
            branch = self.weight_variance * self.moments.second_moment(q) + self.bias_variance
            theta = branch + (skip + self.weight_variance * self.moments.slope_moment(q)) * theta
            q = branch + skip * q
        return q, theta

    def __str__(self) -> str:
        """Its layers, activation and variances, in a few words."""
        name = self.moments.activation.name
        layers = f"{self.depth} {'residual ' * self.residual}dense layer{'s' * (self.depth > 1)}, {name}"
        return f"{layers}, weight variance {self.weight_variance:g}, bias variance {self.bias_variance:g}"

    def _pass(
        self, s1: Tensor, s2: Tensor, delta: Tensor, ntk: Tensor, blocks: list[tuple[slice, slice]], skip: float
    ) -> tuple[Tensor, Tensor]:
        """One layer: ``delta`` and ``ntk`` in place; the standard deviations s1 and s2 after it."""
        one = Side(self.moments, s1.square())
        two = one if s2 is s1 else Side(self.moments, s2.square())
        after1, after2 = (self._after(side, skip) for side in (one, two))
        sw2, sb2 = self.weight_variance, self.bias_variance
        for rows, columns in blocks:
            at = rows, columns
            old, new = (s1[rows, None], s2[columns]), (after1[rows, None], after2[columns])
            if self.moments.homogeneous:
                ratio, slope = self.moments.decorrelation(s1.new_ones(1, 1), delta[at])
                gain, roots = float(self.moments.second_moment(s1.new_ones(()))), old[0] * old[1]
                both = roots * (gain - ratio * delta[at])
                delta[at] = self._mixed(*old, sw2 * gain + skip, roots * delta[at] * (sw2 * ratio + skip))
            else:
                apart, slope = distances(one, two, delta[at], rows, columns)
                both = (one.second[rows, None] + two.second[columns] - apart) / 2
                moved = sw2 * apart + skip * ((old[0] - old[1]).square() + 2 * old[0] * old[1] * delta[at])
                lost = (moved - (new[0] - new[1]).square()).clamp(min=0) / 2  # E[(h - h')^2] holds the change of s too
                delta[at] = (lost / (new[0] * new[1]).clamp(min=1e-300)).clamp(max=2)
            ntk[at] = sw2 * both + sb2 + (sw2 * slope + skip) * ntk[at]
        return after1, after2

    def _after(self, side: Side, skip: float) -> Tensor:
        q = self.weight_variance * side.second + self.bias_variance + skip * side.q
        if not bool(q.isfinite().all()):
            raise InvalidValue(
                f"the variances of the pre-activations overflow; with {self.moments.activation.name} and "
                f"weight_variance {self.weight_variance} they grow without end: take a smaller one, or fewer layers"
            )
        return q.sqrt()

    def _mixed(self, s1: Tensor, s2: Tensor, gain: float, lost: Tensor) -> Tensor:
        """1 - c after a map of variances q -> gain q + sb2, whose covariance is gain s1 s2 + sb2 - ``lost``.

        sqrt(q1 q2) - k is a sum of what is lost and of what a bias turns, each positive: no digit is lost.
        """
        q1, q2 = (gain * s.square() + self.bias_variance for s in (s1, s2))
        top = (q1 * q2).sqrt()
        turned = gain * self.bias_variance * (s1 - s2).square()
        rest = lost + turned / (top + gain * s1 * s2 + self.bias_variance).clamp(min=1e-300)
        return (rest / top.clamp(min=1e-300)).clamp(0, 2)


def _flat(x: Tensor) -> Tensor:
    return x.detach().to(torch.float64).reshape(len(x), -1)


def _blocks(n: int, m: int, symmetric: bool) -> list[tuple[slice, slice]]:
    """Rows and columns that are done at once; of a symmetric kernel, the upper half."""
    size = max(1, _BLOCK // m)
    return [(slice(k, min(n, k + size)), slice(k if symmetric else 0, m)) for k in range(0, n, size)]


def _mirror(kernel: Tensor, rows: slice) -> None:
    """The lower half of a symmetric kernel [N, N] from the upper one, at these rows."""
    square = kernel[rows, rows]
    square.copy_(square.triu() + square.triu(1).mT)
    kernel[rows.stop :, rows] = kernel[rows, rows.stop :].mT


def _one_less_cosine(x1: Tensor, x2: Tensor) -> Tensor:
    """1 - cos of the angle between all inputs, [N, M]; with all its digits where they are parallel or opposite."""
    e1, e2 = (x / torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp(min=1e-300) for x in (x1, x2))
    cosine = e1 @ e2.mT
    delta: Tensor = 1 - cosine
    rows, columns = (cosine.abs() > 1 - _PARALLEL).nonzero(as_tuple=True)
    for part in torch.split(torch.arange(len(rows), device=rows.device), max(1, 2**21 // x1.shape[1])):
        i, j = rows[part], columns[part]
        sign = cosine[i, j].sign()
        short = (e1[i] - sign[:, None] * e2[j]).square().sum(1) / 2
        delta[i, j] = torch.where(sign > 0, short, 2 - short)
    return delta
