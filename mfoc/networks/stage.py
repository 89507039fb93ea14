"""One stage of a network: a private copy of a module, run with weights given from outside."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mfoc.networks.inspection import BOOKKEEPING, hooked, pure_copy
from mfoc.tree import Tree

# Layers whose forward pass is one call on the weights: evaluated directly, which spares the module machinery.
_DIRECT: dict[type[nn.Module], Callable[[Any, Tensor, dict[str, Tensor]], Tensor]] = {
    nn.Linear: lambda layer, x, u: F.linear(x, u["weight"], u.get("bias")),
    nn.Conv1d: lambda layer, x, u: layer._conv_forward(x, u["weight"], u.get("bias")),
    nn.Conv2d: lambda layer, x, u: layer._conv_forward(x, u["weight"], u.get("bias")),
}


class Stage:
    """One stage: a private copy of a module, run with weights given from outside."""

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name, self.module = name, pure_copy(module, name)
        self.slots = [
            (key, owner, leaf)
            for prefix, owner in self.module.named_modules()
            for leaf, value in owner._parameters.items()
            if value is not None and value.requires_grad
            for key in [f"{prefix}.{leaf}" if prefix else leaf]
        ]
        trainable = all(p.requires_grad for p in self.module.parameters())
        self.hooked = hooked(self.module)
        self.direct = None if self.hooked or not trainable else _DIRECT.get(type(self.module))
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
        if any(True for _ in self.module.buffers()):
            return None
        parts: list[Hashable] = []
        for prefix, module in self.module.named_modules():
            plain = _plain_attributes(module)
            if plain is None or type(module).__module__.startswith("torch.fx"):
                return None
            shapes = tuple(
                (k, None if v is None else (tuple(v.shape), v.requires_grad)) for k, v in module._parameters.items()
            )
            if any(v is not None and not v.requires_grad for v in module._parameters.values()):
                return None
            parts.append((prefix, type(module), module.training, plain, shapes))
        return tuple(parts)


def _plain_attributes(module: nn.Module) -> Hashable | None:
    """The module's own attributes, or None when one of them cannot be compared."""
    plain = tuple((k, v) for k, v in sorted(module.__dict__.items()) if k not in BOOKKEEPING)
    try:
        hash(plain)
    except TypeError:
        return None
    return None if hooked(module) or any(isinstance(value, Tensor) for _, value in plain) else plain
