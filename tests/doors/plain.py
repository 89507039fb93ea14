"""What the doors are held against: plain torch on a network of one's own."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.parametrizations import _SpectralNorm

from tests.architectures import Architecture

IGNORED = 255


def called(net: nn.Module, x: Any) -> Any:
    """The network on inputs that are a tensor, a tuple by position or a dict by name."""
    if isinstance(x, dict):
        return net(**x)
    return net(*x) if isinstance(x, tuple) else net(x)


def values(output: Any) -> list[Tensor]:
    """The tensors of an output, in order."""
    if isinstance(output, Tensor):
        return [output]
    if dataclasses.is_dataclass(output):
        return [getattr(output, entry.name) for entry in dataclasses.fields(output)]
    entries = output.values() if isinstance(output, dict) else output
    return [tensor for entry in entries for tensor in values(entry)]


def named(net: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by their names without what wraps the network."""
    found = {name: p for name, p in net.named_parameters() if p.requires_grad}
    return {name.removeprefix("_orig_mod.").removeprefix("module."): p for name, p in found.items()}


def is_chain(net: nn.Module) -> bool:
    """Whether its layers are its forward pass."""
    return isinstance(net, nn.Sequential) and type(net).forward is nn.Sequential.forward


def is_torchs(loss: Any) -> bool:
    """Whether a loss has a reduction, as those of torch have."""
    return hasattr(loss, "reduction") or "reduction" in inspect.signature(loss).parameters


def mean(loss: Any, output: Any, z: Any) -> Tensor:
    """The loss of a batch."""
    found: Tensor = loss(output, z) if is_torchs(loss) else loss(output, z).mean()
    return found


def each(loss: Any, output: Any, z: Any) -> Tensor:
    """The loss of each particle ``[N]``: over its entries, those that do not count are zeros."""
    if not is_torchs(loss):
        found: Tensor = loss(output, z)
        return found
    if isinstance(loss, nn.Module):
        kept, loss.reduction = loss.reduction, "none"
        found = loss(output, z)
        loss.reduction = kept
    else:
        found = loss(output, z, reduction="none")
    return found.flatten(1).mean(1) if found.dim() > 1 else found


def shares(loss: Any, output: Any, z: Any) -> Tensor:
    """Numbers ``[N]`` whose mean is the loss of the batch."""
    found = each(loss, output, z)
    if getattr(loss, "ignore_index", -100) == IGNORED:
        found = found / (z != IGNORED).double().mean()
    return found


class Network:
    """The network of an entry as torch trains it."""

    def __init__(self, entry: Architecture) -> None:
        self.entry, self.net, self.loss = entry, entry.plain(), entry.loss

    def __call__(self, x: Any) -> Any:
        return called(self.net, x)

    def pieces(self) -> list[nn.Module]:
        """What comes before the disturbed stage, that stage, and what follows."""
        if not is_chain(self.net):
            return [nn.Identity(), self.net, nn.Identity()]
        s, net = self.entry.at, cast(nn.Sequential, self.net)
        return [net[:s], net[s], net[s + 1 :]]

    def slopes(self, value: Tensor) -> dict[str, Tensor]:
        """The gradient in the weights."""
        self.net.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in named(self.net).items()}

    def step(self, value: Tensor) -> None:
        """A step of SGD."""
        for name, slope in self.slopes(value).items():
            named(self.net)[name].data -= self.entry.lr * slope


def placed(entry: Architecture, weights: dict[str, Tensor]) -> nn.Module:
    """The network with these tensors in the place of its parameters, for good: what recomputes finds them, too."""
    net = entry.plain()
    replaced = {id(p): weights[name] for name, p in named(net).items()}
    for owner in net.modules():
        for leaf, parameter in list(owner._parameters.items()):
            if id(parameter) in replaced:
                del owner._parameters[leaf]
                setattr(owner, leaf, replaced[id(parameter)])
    return net


def averaged(net: nn.Module, x: Any) -> nn.Module:
    """The network in evaluation mode, after a pass in its own; averages of norms in training mode are of the batch."""
    with torch.no_grad():
        called(net, x)
    norms = [part for part in net.modules() if isinstance(part, nn.modules.batchnorm._NormBase) and part.training]
    for norm in norms:
        norm.reset_running_stats()
        if norm.track_running_stats and not isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.momentum = 1.0  # update_bn leaves instance norms alone
    if any(isinstance(norm, nn.modules.batchnorm._BatchNorm) for norm in norms):
        torch.optim.swa_utils.update_bn([x], net)
    elif norms:
        with torch.no_grad():
            called(net, x)
    return net.eval()


def near(found: Any, expected: Any, rtol: float, floor: float = 0.0) -> None:
    """Asserts that tensors are equal to rounding, relative to the largest; and that there is something to compare."""
    names = list(expected) if isinstance(expected, dict) else range(len(expected))
    assert len(found) == len(expected)
    scale = max(float(expected[name].detach().abs().max()) for name in names)
    assert scale > floor, "the reference is zero everywhere"
    for name in names:
        mine, other = found[name].detach(), expected[name].detach()
        assert (mine.dtype, mine.device) == (other.dtype, other.device)
        torch.testing.assert_close(mine, other, rtol=rtol, atol=rtol * scale, msg=lambda m, n=name: f"{n}: {m}")


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Attention and recurrent layers by the kernels that have second derivatives, weight and spectral norm by formulas.

    The second derivative of torch's fused weight norm is wrong (seen in 2.15, on a CPU): the Hessian is not symmetric,
    and differs from differences of gradients. Torch's spectral norm takes its singular vectors for constants, which
    makes no difference to first derivatives alone.
    """

    def weight_norm(v: Tensor, g: Tensor, dim: int) -> Tensor:
        return v * (g / torch.norm_except_dim(v, 2, dim))

    def spectral_norm(self: Any, weight: Tensor) -> Tensor:
        if not self.training:
            found: Tensor = power_method(self, weight)
            return found
        return weight / torch.linalg.matrix_norm(weight.flatten(1), 2)

    power_method = _SpectralNorm.forward
    fused: Any = torch._weight_norm
    old: Any = torch.nn.utils.weight_norm.__globals__
    try:
        torch._weight_norm = old["_weight_norm"] = weight_norm  # type: ignore[attr-defined]
        _SpectralNorm.forward = spectral_norm  # type: ignore[method-assign]
        with sdpa_kernel(SDPBackend.MATH), torch.backends.cudnn.flags(enabled=False):
            yield
    finally:
        torch._weight_norm = old["_weight_norm"] = fused  # type: ignore[attr-defined]
        _SpectralNorm.forward = power_method  # type: ignore[method-assign]
