"""Networks that are a chain of dense or convolution layers and activations: those whose initialisation theory knows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from mfoc.analysis.gaussian import GaussianMoments
from mfoc.errors import InvalidType, InvalidValue
from mfoc.networks.inspection import BOOKKEEPING, has_own_pass, is_chain, is_dropout

PLAIN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_POOLS = tuple(
    getattr(nn, f"{kind}Pool{n}d") for kind in ("Avg", "Max", "AdaptiveAvg", "AdaptiveMax") for n in (1, 2, 3)
)
_SAME = (nn.Identity, nn.Flatten, nn.Unflatten)


@dataclass(frozen=True, eq=False)
class Layer:
    """A dense or convolution layer of a chain, and what stands before it.

    Attributes:
        name: its name in the network.
        module: the layer.
        before: all parts between the layer before and this one, in their order.
        moments: of the activation that it reads; those of the identity where there is none.
        first: it reads data, or a pool of what came before, of which theory knows no law.
    """

    name: str
    module: Any
    before: tuple[nn.Module, ...]
    moments: GaussianMoments
    first: bool


def layers_of(net: nn.Module) -> list[Layer] | None:
    """The layers of a chain in their order; None where the network is no such chain, or not all of it is known."""
    known: dict[Any, GaussianMoments] = {}
    found: list[Layer] = []
    activations: list[nn.Module] = []
    before: list[nn.Module] = []
    broken = True
    for name, leaf in _leaves(net):
        if has_own_pass(leaf):
            return None
        if is_plain(leaf):
            moments = _moments(activations, known)
            if moments is None:
                return None
            found.append(Layer(name, leaf, tuple(before), moments, broken))
            activations, before, broken = [], [], False
            continue
        before.append(leaf)
        if isinstance(leaf, _POOLS):
            broken = True
        elif not (isinstance(leaf, _SAME) or is_dropout(leaf)):
            activations.append(leaf)
    known_tail = all(not list(leaf.parameters()) or isinstance(leaf, nn.PReLU) for leaf in activations)
    return found if found and known_tail else None


def is_plain(module: nn.Module) -> bool:
    """Whether a module is one of torch's dense or convolution layers, with weights of its own and its own pass."""
    made = parametrize.is_parametrized(module) or "weight" not in module._parameters  # pruned, or by an older norm
    return type(module) in PLAIN and not made


def _leaves(net: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The parts of nested chains in their order; a part that is called twice comes twice."""
    if not is_chain(net) or has_own_pass(net):
        yield prefix, net
        return
    for name, part in net._modules.items():
        if part is not None:
            yield from _leaves(part, f"{prefix}.{name}" if prefix else name)


def _moments(activations: list[nn.Module], known: dict[Any, GaussianMoments]) -> GaussianMoments | None:
    """Those of several activations one after another; None where one of them is none."""
    keys = tuple(map(_key, activations))
    if keys not in known:
        try:
            known[keys] = GaussianMoments.of(_composed(activations))
        except (InvalidType, InvalidValue):
            return None
    return known[keys]


def _composed(activations: list[nn.Module]) -> Any:
    plain = [_elementwise(part) for part in activations]
    if not plain:
        return nn.Identity()
    if len(plain) == 1:
        return plain[0]

    def composed(u: Tensor) -> Tensor:
        for part in plain:
            u = part(u)
        return u

    return composed


def _elementwise(part: nn.Module) -> Any:
    """An activation as a function of any shape: of a PReLU, one with the mean square of its channels' slopes."""
    if isinstance(part, nn.PReLU):
        return nn.LeakyReLU(_slope(part))
    if list(part.parameters()):
        raise InvalidValue("a layer with weights is no activation")
    return part


def _slope(part: nn.PReLU) -> float:
    return float(part.weight.detach().double().square().mean().sqrt())


def _key(part: nn.Module) -> Any:
    """What tells two activations apart: their class and settings where these can be compared, else themselves."""
    if isinstance(part, nn.PReLU):
        return nn.PReLU, _slope(part)
    settings = tuple(sorted((name, value) for name, value in vars(part).items() if name not in BOOKKEEPING))
    if any(True for _ in part.parameters()) or any(True for _ in part.buffers()) or list(part.children()):
        return id(part)
    try:
        hash(settings)
    except TypeError:
        return id(part)
    return type(part), settings, part.training
