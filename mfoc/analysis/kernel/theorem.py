"""The theorem of Du, Zhai, Poczos & Singh 2018 (arXiv:1810.02054), held against a network and its data."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mfoc.networks.inspection import is_chain

_UNIT = 1e-3  # relative: how far from one a length may be, as data in float32 are


@dataclass(frozen=True)
class Theorem:
    """Which assumptions of theorem 4.1 hold, and how wide the network would have to be.

    f(x) = sum_r a_r relu(w_r x) / sqrt(m), only w trained, w_r ~ N(0, I), a_r = +-1, |x_i| = 1: with m =
    Omega(n^6 / (lambda_0^4 delta^3)) and steps of O(lambda_0 / n^2) on (1/2) |f - y|^2, gradient descent converges
    linearly with probability 1 - delta. lambda_0 is the smallest eigenvalue of the limiting kernel of the first layer.

    Attributes:
        unmet: the assumptions that do not hold, in words; of those on the form of the network, data and loss.
        width: m; None where the network has no such form.
        needed: n^6 / (lambda_0^4 delta^3), the constant taken as 1; infinite where lambda_0 is 0; None where the
            samples are not of unit length.
        lambda_0: its smallest eigenvalue, or None.
        step: the step in the theorem's loss, or None where the loss is not squared.
        allowed: lambda_0 / n^2, the constant taken as 1.
    """

    unmet: tuple[str, ...]
    width: int | None
    needed: float | None
    lambda_0: float | None
    step: float | None
    allowed: float | None

    @property
    def holds(self) -> bool:
        """Whether all of it holds, with constants of 1."""
        return not self.unmet and self._wide and self._slow

    @property
    def _wide(self) -> bool:
        return self.width is not None and self.needed is not None and self.width >= self.needed

    @property
    def _slow(self) -> bool:
        return self.step is not None and self.allowed is not None and self.step <= self.allowed

    def __str__(self) -> str:
        source = "Du et al. 2018, theorem 4.1"
        if self.width is None:
            return f"{source}: does not apply ({'; '.join(self.unmet)})"
        numbers = "" if self.needed is None else f"m = {self.width}, m needed {self.needed:.2g} (constant 1)"
        if self.step is not None and self.allowed is not None:
            numbers += f", step {self.step:.2g} against {self.allowed:.2g}"
        if self.unmet:
            return f"{source}: does not apply ({'; '.join(self.unmet)}){'; ' * bool(numbers)}{numbers}"
        said = "its condition holds" if self.holds else "its condition does not hold, which forbids nothing"
        return f"{source}: {said}: {numbers}"


def wide_two_layer(net: nn.Module, x: Tensor, scale: float | None, lr: float, delta: float) -> Theorem:
    """Holds the theorem against a network.

    Args:
        net: any network.
        x: samples ``[N, ...]``.
        scale: s of a loss (s / 2) |f - y|^2; None for another.
        lr: the step.
        delta: the probability of failure.
    """
    unmet, width = _form(net)
    if scale is None:
        unmet.append("the loss is not squared")
    flat = x.detach().flatten(1).double() if x.is_floating_point() else None
    if flat is None or bool(((flat.norm(dim=1) - 1).abs() > _UNIT).any()):
        unmet.append("the samples are not of length 1")
        return Theorem(tuple(unmet), width, None, None, None if scale is None else lr * scale, None)
    lowest = limiting_eigenvalue(flat)
    if lowest == 0:
        unmet.append("two samples are parallel")
    n = len(flat)
    needed = n**6 / (lowest**4 * delta**3) if lowest**4 > 0 else math.inf
    return Theorem(tuple(unmet), width, needed, lowest, None if scale is None else lr * scale, lowest / n**2)


def limiting_eigenvalue(x: Tensor) -> float:
    """The smallest eigenvalue of H_ij = <x_i, x_j> (pi - arccos <x_i, x_j>) / (2 pi), zero where it is rounding.

    Args:
        x: unit vectors ``[N, d]`` (definition 3.1 of the paper).
    """
    x = x / x.norm(dim=1, keepdim=True)
    cosine = (x @ x.mT).clamp(-1, 1)
    values = torch.linalg.eigvalsh(cosine * (math.pi - cosine.arccos()) / (2 * math.pi))
    lowest = float(values[0])
    return lowest if lowest > 10 * len(x) * torch.finfo(torch.float64).eps else 0.0


def _form(net: nn.Module) -> tuple[list[str], int | None]:
    """What of the network is not as in the theorem, and its width where it has two dense layers."""
    layers = [part for part in net if not isinstance(part, nn.Flatten)] if is_chain(net) else []  # type: ignore[attr-defined]
    kinds = [type(part) for part in layers]
    dense = len(kinds) == 3 and kinds[0] is kinds[2] is nn.Linear
    if not dense:
        return ["the network is no nn.Sequential of two dense layers"], None
    first, activation, last = layers
    width = first.out_features
    trained = {name for name, p in net.named_parameters() if p.requires_grad}
    biases = [b for b in (first.bias, last.bias) if b is not None]
    signs = last.weight.detach().double().abs() * math.sqrt(width)
    spread = float(first.weight.detach().double().square().mean())
    found = {
        "the activation is not ReLU": type(activation) is nn.ReLU,
        "there is more than one output": last.out_features == 1,
        "not the first layer's weight alone is trained": trained == {_name_of(net, first.weight)},
        "there are biases": not any(bool(b.ne(0).any()) for b in biases),
        "the second layer's weights are not +-1 / sqrt(m)": bool(((signs - 1).abs() <= _UNIT).all()),
        "the first layer's weights do not have variance 1": abs(spread - 1) <= 5 * math.sqrt(2 / first.weight.numel()),
    }
    return [name for name, holds in found.items() if not holds], width


def _name_of(net: nn.Module, parameter: nn.Parameter) -> str:
    return next(name for name, p in net.named_parameters() if p is parameter)
