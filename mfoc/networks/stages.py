"""Stages of a network: where it is cut into them, and how one runs with weights given from outside."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mfoc.checks import with_article
from mfoc.derivatives import transforming
from mfoc.errors import InvalidType, InvalidValue
from mfoc.networks.arguments import DATA, Arguments
from mfoc.networks.cuts import cut, fingerprint
from mfoc.networks.functional import FunctionalModule
from mfoc.networks.inspection import has_own_pass, hooked, is_chain, pure_copy, trainable
from mfoc.networks.modules import over_population
from mfoc.networks.purity import check_pure
from mfoc.tree import Tree
from mfoc.tree_nodes import registered

logger = logging.getLogger(__name__)

Named = list[tuple[str, nn.Module]]

Direct = Callable[[Any, dict[str, Tensor]], Any]

# Layers that are one function of torch.
_FUNCTIONS: dict[type[nn.Module], Callable[[Any], Any]] = {
    nn.ReLU: torch.relu,
    nn.Tanh: torch.tanh,
    nn.Sigmoid: torch.sigmoid,
}


def _direct(module: nn.Module, function: FunctionalModule) -> Direct | None:
    """What a layer of torch's own computes of its input and its weights, where it is one call: spares its machinery."""
    kind = type(module)
    if not function.plain:
        return None
    if kind in _FUNCTIONS:
        own = _FUNCTIONS[kind]
        return lambda x, u: own(x)
    recurrent = any(isinstance(part, nn.RNNBase) for part in module.modules())  # needs its kernels chosen
    if function.constant and not function.writes and not recurrent:
        forward = module.forward
        return lambda x, u: registered(forward(x))
    if any(not p.requires_grad for p in module.parameters()):
        return None
    biased = getattr(module, "bias", None) is not None
    if kind is nn.Linear:
        return _affine if biased else _linear
    if kind in (nn.Conv1d, nn.Conv2d):
        convolve: Any = module._conv_forward
        return lambda x, u: convolve(x, u["weight"], u["bias"] if biased else None)
    return None


def _affine(x: Tensor, u: dict[str, Tensor]) -> Tensor:
    return F.linear(x, u["weight"], u["bias"])


def _linear(x: Tensor, u: dict[str, Tensor]) -> Tensor:
    return F.linear(x, u["weight"])


def named_stages(net: nn.Module, stages: Sequence[str | Sequence[str]] | None) -> Named:
    """The stages of a network in order: names, and modules whose composition is the network.

    The modules share their parameters with ``net``.

    Args:
        net: the network.
        stages: see ``mfoc.from_module``.

    Raises:
        InvalidType: ``stages`` is not a list of names.
        InvalidValue: names unknown, repeated or out of order, or a forward pass that cannot be cut there.
    """
    if isinstance(stages, str) or (stages is not None and not isinstance(stages, Sequence)):
        raise InvalidType(f"stages is {stages!r}; expected a list of submodule names")
    kind, chain = type(net).__name__, is_chain(net)
    if chain and not has_own_pass(net):
        layers = _unrolled(net)
        return layers if stages is None else _grouped(net, stages)
    if stages is None:
        if any(True for _ in net.children()):
            logger.info(
                "net, %s, is one stage; solvers that hold the states between layers have more to hold on to where "
                "stages=[...] names submodules at which it is cut, out of %s",
                with_article(kind),
                list(dict(net.named_children())),
            )
        return [(kind, net)]
    if has_own_pass(net):
        raise InvalidValue(
            f"net, {with_article(kind)}, has hooks of its own or a __call__, which run around all of its stages and so "
            "would be left out; register them on its layers, or leave stages out: one stage, with its hooks"
        )
    for stage in stages:
        if not isinstance(stage, str):
            raise InvalidType(f"stages holds {stage!r}; for a module that is no nn.Sequential each stage is one name")
    return cut(net, [str(stage) for stage in stages])


def _children(net: nn.Module) -> Named:
    """Every child, one that is used twice included twice (``named_children`` leaves it out)."""
    return [(name, child) for name, child in net._modules.items() if child is not None]


def _unrolled(net: nn.Module, prefix: str = "") -> Named:
    layers: Named = []
    for name, child in _children(net):
        # Only a Sequential that does nothing else is opened: its hooks would be lost.
        opened = type(child) is nn.Sequential and not hooked(child)
        layers += _unrolled(child, f"{prefix}{name}.") if opened else [(prefix + name, child)]
    if not layers and not prefix:
        raise InvalidValue("net is an empty nn.Sequential; it has no stage")
    return layers


def _grouped(net: nn.Module, stages: Sequence[str | Sequence[str]]) -> Named:
    """Stages of a Sequential: each a child, or consecutive children."""
    children = dict(_children(net))
    for stage in stages:
        expected = "expected the name of a child or a list of consecutive names"
        if not isinstance(stage, str | Sequence):
            raise InvalidType(f"stages holds {stage!r}; {expected}")
        if not stage:
            raise InvalidValue(f"stages holds {stage!r}, which is empty; {expected}")
    flat: list[str] = [name for stage in stages for name in ([stage] if isinstance(stage, str) else stage)]
    for name in flat:
        if name not in children:
            raise InvalidValue(f"stages names {name!r}, which is no child of the network; it has {list(children)}")
    if flat != list(children):
        raise InvalidValue(f"stages must name every child of an nn.Sequential once, in order: {list(children)}")
    return [
        (stage, children[stage])
        if isinstance(stage, str)
        else ("+".join(stage), nn.Sequential(*(children[name] for name in stage)))
        for stage in stages
    ]


def shared_names(net: nn.Module, parts: Named) -> tuple[dict[str, str], ...]:
    """For each stage, the name in the network of each of its weights, by its name there."""
    full = {id(parameter): name for name, parameter in net.named_parameters()}
    return tuple({own: full[id(parameter)] for own, parameter in trainable(part).items()} for _, part in parts)


class Stage:
    """One stage: a module as a function of the state, of weights given from outside and of the data.

    Args:
        name: what errors call it.
        module: the module; a copy is run. The data reach it as ``z=`` where it says ``takes_data = True``.
        whole: the module is the network itself, which several inputs may enter: a dict by the names of the arguments,
            or a tuple in their order.
    """

    def __init__(self, name: str, module: nn.Module, *, whole: bool = False) -> None:
        self.name, self.module = name, over_population(pure_copy(module, name))
        self.function = FunctionalModule(self.module)
        self.direct = _direct(self.module, self.function)
        self.takes_data = getattr(self.module, "takes_data", False) is True  # data are given where they are asked for
        self.arguments = self._several() if whole else None
        self.checked = self.function.plain and not self.function.writes
        if not whole and len(needed := self._own_arguments().required) > 1:
            raise InvalidValue(
                f"stage {name!r}: its forward pass needs {', '.join(needed)}, and a stage is given its state. {DATA}"
            )

    def _own_arguments(self) -> Arguments:
        return Arguments.of(self.module, without="z" if self.takes_data else "")

    def _several(self) -> Arguments | None:
        found = self._own_arguments()
        return found if found.several else None

    def controls(self) -> dict[str, Tensor]:
        """The weights of the user's module, by name."""
        return self.function.initial()

    def __call__(self, x: Tree, u: dict[str, Tensor], z: Tree) -> Tree:
        """The next state at given weights."""
        if self.direct is not None:
            return self.direct(x, u)
        args, kwargs = ((x,), {}) if self.arguments is None else self.arguments.given(x)
        if self.takes_data:
            kwargs["z"] = z
        if not self.checked and not transforming():
            check_pure(self.function, f"stage {self.name!r}", u, *args, **kwargs)
            self.checked = True
        return self.function(u, *args, **kwargs)

    def kind(self) -> Hashable:
        """A fingerprint: stages with the same one compute the same function of (x, u, z). None when not sure."""
        return fingerprint(self.module)


@cache
def linear_kinds(outputs: int, inputs: int, *, bias: bool) -> frozenset[Hashable]:
    """The fingerprints of an ``nn.Linear`` of this size, in training and in evaluation mode."""
    layer = nn.Linear(inputs, outputs, bias, device="meta")
    return frozenset(Stage("", layer.train(mode)).kind() for mode in (True, False))
