"""Stages of a network: where it is cut into them, and how one runs with weights given from outside."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Sequence
from functools import cache
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mfoc.checks import with_article
from mfoc.errors import InvalidType, InvalidValue
from mfoc.networks.cuts import cut, fingerprint, shared_between
from mfoc.networks.inspection import has_own_pass, hooked, is_chain, pure_copy
from mfoc.networks.modules import over_population
from mfoc.tree import Tree

Named = list[tuple[str, nn.Module]]

# Layers whose forward pass is one call on the weights: evaluated directly, which spares the module machinery.
_DIRECT: dict[type[nn.Module], Callable[[Any, Tensor, dict[str, Tensor]], Tensor]] = {
    nn.Linear: lambda layer, x, u: F.linear(x, u["weight"], u.get("bias")),
    nn.Conv1d: lambda layer, x, u: layer._conv_forward(x, u["weight"], u.get("bias")),
    nn.Conv2d: lambda layer, x, u: layer._conv_forward(x, u["weight"], u.get("bias")),
}


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
    kind = type(net).__name__
    if has_own_pass(net):
        raise InvalidValue(
            f"net, {with_article(kind)}, has hooks of its own, which run around all of its stages and so would be left "
            "out; register them on its layers, or wrap it, nn.Sequential(net): one stage, with its hooks"
        )
    if not any(True for _ in net.children()) and not is_chain(net):
        raise InvalidValue(f"net is {with_article(kind)}, a single layer; wrap it, nn.Sequential(net): one stage")
    if is_chain(net):
        layers = _unrolled(net)
        return layers if stages is None else _grouped(net, stages)
    if stages is None:
        raise InvalidValue(
            f"net is {with_article(kind)}, whose order of execution is not declared; name the stages, "
            f"stages=[...], out of {list(dict(net.named_children()))}"
        )
    for stage in stages:
        if not isinstance(stage, str):
            raise InvalidType(f"stages holds {stage!r}; for a module that is no nn.Sequential each stage is one name")
    parts = cut(net, [str(stage) for stage in stages])
    shared = shared_between(parts)
    if shared is not None:
        name, first, second = shared
        raise InvalidValue(
            f"parameter {name!r} is used in stages {first!r} and {second!r}; a per-stage control cannot be shared. "
            "Choose cuts that keep its uses in one stage"
        )
    return parts


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


class Stage:
    """One stage: a private copy of a module, run with weights given from outside."""

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name, self.module = name, over_population(pure_copy(module, name))
        own = {
            id(parameter) for parameter in self.module.parameters()
        }  # a stage may hold others, which it does not train
        self.slots = [
            (key, owner, leaf)
            for prefix, owner in self.module.named_modules()
            for leaf, value in owner._parameters.items()
            if value is not None and value.requires_grad and id(value) in own
            for key in [f"{prefix}.{leaf}" if prefix else leaf]
        ]
        self.hooked = hooked(self.module)
        constants = any(not p.requires_grad for p in self.module.parameters())
        self.direct = None if self.hooked or constants else _DIRECT.get(type(self.module))
        # Buffers that a training forward pass may advance (spectral norm, counters): it gets copies.
        self.buffers = [
            (owner, key)
            for owner in self.module.modules()
            for key, value in owner._buffers.items()
            if value is not None and self.module.training
        ]
        # The data is a second argument named z; a first one of that name is the state.
        self.takes_data = "z" in list(inspect.signature(self.module.forward).parameters)[1:]

    def controls(self) -> dict[str, Tensor]:
        """The weights of the user's module, by name."""
        return {key: owner._parameters[leaf].detach().clone() for key, owner, leaf in self.slots}

    def __call__(self, x: Tree, u: dict[str, Tensor], z: Tree) -> Tree:
        """The next state at given weights."""
        if self.direct is not None:
            return self.direct(self.module, x, u)
        if not self.slots and not self.buffers:
            return self._run(x, z)
        # What torch.func.functional_call does, without its bookkeeping: the slots of a private copy are lent the
        # control's tensors for the length of the call.
        own = [owner._parameters[leaf] for _, owner, leaf in self.slots]
        kept = [owner._buffers[key] for owner, key in self.buffers]
        try:
            for owner, key in self.buffers:
                owner._buffers[key] = owner._buffers[key].clone()  # type: ignore[union-attr]
            for key, owner, leaf in self.slots:
                owner._parameters[leaf] = u[key]
            return self._run(x, z)
        finally:
            for (_, owner, leaf), value in zip(self.slots, own, strict=True):
                owner._parameters[leaf] = value
            for (owner, key), buffer in zip(self.buffers, kept, strict=True):
                owner._buffers[key] = buffer

    def _run(self, x: Tree, z: Tree) -> Tree:
        forward = self.module if self.hooked else self.module.forward
        return forward(x, z=z) if self.takes_data else forward(x)

    def kind(self) -> Hashable:
        """A fingerprint: stages with the same one compute the same function of (x, u, z). None when not sure."""
        return fingerprint(self.module)


@cache
def linear_kinds(outputs: int, inputs: int, *, bias: bool) -> frozenset[Hashable]:
    """The fingerprints of an ``nn.Linear`` of this size, in training and in evaluation mode."""
    layer = nn.Linear(inputs, outputs, bias, device="meta")
    return frozenset(Stage("", layer.train(mode)).kind() for mode in (True, False))
