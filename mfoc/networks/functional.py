"""Modules called with weights given from outside, whenever their code runs.

``torch.func.functional_call`` lends a module its weights for the length of a call, so that what runs later, in the
backward pass, reads others: the recomputation of ``torch.utils.checkpoint``, a hook on a gradient, a custom autograd
function that holds its module. Here each call has a module of its own: a new shell of every part, over the same
attributes, that holds the weights of the call for good.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mfoc import tree
from mfoc.derivatives import recurrent_kernels, transforming
from mfoc.networks.inspection import HOOKS, copied, hooked, pure_copy, without_wrappers
from mfoc.networks.recomputation import without_reentry
from mfoc.networks.references import attributes, refers, tensors
from mfoc.networks.reparametrised import made_exact
from mfoc.tree_nodes import registered

_GRADIENTS = "does not require grad"  # what torch says to a forward pass that takes gradients where there are none


@dataclass(frozen=True, eq=False)
class _Part:
    """What a part of a module is made of, beside its weights."""

    kind: type[nn.Module]
    attributes: dict[str, Any]
    parameters: dict[str, str | Tensor | None]  # the name of a weight that is given, or a constant
    buffers: dict[str, Tensor | None]
    children: dict[str, int | None]  # places of the parts
    linked: dict[str, Any]  # attributes that refer to parts or weights: lists of layers, bound methods


class FunctionalModule:
    """A module called with weights given from outside: a pure function of weights and inputs.

    Each call starts from the module's own buffers and attributes.

    Args:
        module: a module of one's own, such as ``functional`` makes of a user's.

    Attributes:
        module: the module.
        names: of the weights, the parameters that require grad, in the order of the module. One that is met several
            times has its first name.
        plain: all parts are torch's own, and none has hooks.
        differentiates: it takes gradients in its forward pass, seen when it ran where none are asked for.
        fresh_hooks: its forward pass registers hooks, and each call starts without them.
        writes: it may write into its inputs, and is given copies; see ``mfoc.networks.purity``.
        constant: plain, and nothing is given and nothing in it can change.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        # A module may say itself which parameters are its own.
        self._first = {id(p): key for key, p in self.module.named_parameters() if p.requires_grad}
        self.names = list(self._first.values())
        self._modules = list(self.module.modules())
        places = {id(part): place for place, part in enumerate(self._modules)}
        self._own = {id(leaf): leaf for part in self._modules for leaf in tensors(part)}
        self._parts = [self._part(part, places) for part in self._modules]
        self._links = any(part.linked for part in self._parts)
        self.plain = all(type(part).__module__.startswith("torch.nn.") and not hooked(part) for part in self._modules)
        moving = [part.training or not self.plain for part in self._modules]  # torch's own write in training mode only
        self._copied = {place for place, part in enumerate(self._parts) if part.buffers and moving[place]}
        self.constant = self.plain and not self.names and not any(p.training and p._buffers for p in self._modules)
        recurrent = [part.training for part in self._modules if isinstance(part, nn.RNNBase)]
        self._recurrent, self._modes = bool(recurrent), all(recurrent)
        self._hooked = hooked(self.module)
        self.differentiates = self.fresh_hooks = False
        self.writes = not self.plain or any(getattr(part, "inplace", False) for part in self._modules)
        own = next((p for p in self.module.parameters() if p.requires_grad), None)
        self._home = None if own is None else (own.device, own.dtype)
        self._elsewhere: dict[tuple[torch.device, torch.dtype], FunctionalModule] = {}

    def initial(self) -> dict[str, Tensor]:
        """Copies of the module's own weights, by name."""
        own = dict(self.module.named_parameters())
        return {key: own[key].detach().clone() for key in self.names}

    def __call__(self, weights: Mapping[str, Tensor], /, *args: Any, **kwargs: Any) -> Any:
        """The module's output at given weights."""
        own = self.on(weights)
        if self.differentiates and not transforming():
            return own.with_gradients(weights, args, kwargs)
        try:
            return own.evaluate(weights, args, kwargs)
        except RuntimeError as error:
            if not asks_for_gradients(error) or transforming():
                raise
        found = own.with_gradients(weights, args, kwargs)
        self.differentiates = True
        return found

    def evaluate(self, weights: Mapping[str, Tensor], args: Any, kwargs: Any) -> Any:
        """The output at weights that are where this function is."""
        if self.writes:
            args, kwargs = tree.map(_clone, [args, kwargs])
        return registered(self.run(self.at(weights), *args, **kwargs))

    def with_gradients(self, weights: Mapping[str, Tensor], args: Any, kwargs: Any) -> Any:
        """The output of a forward pass that takes gradients in its weights or its input, where none are asked for."""
        free = {key: w if w.requires_grad else tree.free(w) for key, w in weights.items()}
        given = [leaf for leaf in tree.leaves([weights, args, kwargs]) if isinstance(leaf, Tensor)]
        asked = torch.is_grad_enabled() and any(leaf.requires_grad for leaf in given)
        with torch.enable_grad():
            found = self.evaluate(free, args, kwargs)
        return found if asked else tree.detached(found)

    def on(self, weights: Mapping[str, Tensor]) -> FunctionalModule:
        """This function where the weights are: with constants and buffers on their device, in their dtype."""
        like = next(iter(weights.values()), None)
        if like is None or self._home is None or (like.device, like.dtype) == self._home:
            return self
        place = like.device, like.dtype
        if place not in self._elsewhere:
            made = FunctionalModule(copied(self.module).to(device=place[0], dtype=place[1]))
            made.writes, made.fresh_hooks = self.writes, self.fresh_hooks
            self._elsewhere[place] = made
        return self._elsewhere[place]

    def run(self, module: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
        """The output of a module that ``at`` has made."""
        call = module if self._hooked else module.forward
        # torch.compile knows checkpointing by itself, and a lock would cut its graph here.
        if not self._recurrent and (self.plain or torch.compiler.is_dynamo_compiling()):
            return call(*args, **kwargs)
        with without_reentry(), recurrent_kernels(self._modes) if self._recurrent else nullcontext():
            return call(*args, **kwargs)

    def at(self, weights: Mapping[str, Tensor]) -> nn.Module:
        """A module with these weights, over the same constants: for one evaluation, which may advance its buffers."""
        return self.module if self.constant else self._made(weights, self._copied)

    def twin(self, weights: Mapping[str, Tensor]) -> nn.Module:
        """A module with these weights that is to be kept, and run as often as one likes: all of its buffers are copies.

        Spectral norm in it is exact in training mode, weight norm twice differentiable, and nothing is compiled.
        """
        made = without_wrappers(self._made(weights, range(len(self._parts))))
        made_exact(made)
        return made

    def _made(self, weights: Mapping[str, Tensor], moving: Collection[int]) -> nn.Module:
        made: list[nn.Module] = [object.__new__(part.kind) for part in self._parts]
        buffers: dict[int, Tensor] = {}
        for place, (part, new) in enumerate(zip(self._parts, made, strict=True)):
            held = new.__dict__
            held.update(part.attributes)
            held["_parameters"] = {
                leaf: weights[value] if isinstance(value, str) else value for leaf, value in part.parameters.items()
            }
            held["_buffers"] = dict(part.buffers)
            if place in moving:
                held["_buffers"] = {
                    leaf: None if value is None else buffers.setdefault(id(value), value.clone())
                    for leaf, value in part.buffers.items()
                }
            held["_modules"] = {name: None if c is None else made[c] for name, c in part.children.items()}
            if self.fresh_hooks:
                held.update({key: held[key].copy() for key in HOOKS})
        if self._links:
            self._link(made, weights, buffers)
        return made[0]

    @property
    def parts(self) -> list[nn.Module]:
        """The parts of the module."""
        return self._modules

    def settle(self, module: nn.Module) -> None:
        """Copies from now on only those buffers that may change, seen after an evaluation of a module."""
        for place, part in enumerate(module.modules()):
            own = self._parts[place].buffers
            kept = part._buffers.keys() == own.keys() and all(_same(part._buffers[key], own[key]) for key in own)
            if kept and not part.training:
                self._copied.discard(place)

    def _part(self, part: nn.Module, places: Mapping[int, int]) -> _Part:
        held = attributes(part)
        known = {*places, *self._own}
        return _Part(
            type(part),
            held,
            {leaf: None if p is None else self._first.get(id(p), p) for leaf, p in part._parameters.items()},
            dict(part._buffers),
            {name: None if child is None else places[id(child)] for name, child in part._modules.items()},
            {key: value for key, value in held.items() if refers(value, known)},
        )

    def _link(self, made: list[nn.Module], weights: Mapping[str, Tensor], buffers: Mapping[int, Tensor]) -> None:
        """Attributes that refer to parts or weights refer to the new ones."""
        memo: dict[int, Any] = {key: buffers.get(key, leaf) for key, leaf in self._own.items()}
        memo |= {key: weights[name] for key, name in self._first.items()}
        memo |= {id(old): new for old, new in zip(self._modules, made, strict=True)}
        for part, new in zip(self._parts, made, strict=True):
            for key, value in part.linked.items():
                new.__dict__[key] = copy.deepcopy(value, memo)


def functional(module: nn.Module, name: str = "") -> FunctionalModule:
    """A module as a pure function of its weights and inputs.

    Batch norm in training mode uses the statistics of what it is given and has no running averages to advance; spectral
    norm in training mode is exact.

    Args:
        module: the module; it is copied, never changed.
        name: what an error calls it.

    Raises:
        InvalidValue: it cannot be copied, or a function in it holds one of its parts (a lambda, a hook).
    """
    return FunctionalModule(pure_copy(module, name))


def asks_for_gradients(error: RuntimeError) -> bool:
    """Whether a forward pass failed as it takes gradients, where none are recorded."""
    return _GRADIENTS in str(error)


def _clone(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def _same(left: Tensor | None, right: Tensor | None) -> bool:
    return left is right or (left is not None and right is not None and torch.equal(left, right))
