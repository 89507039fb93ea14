"""The forward pass of a network as a graph, by symbolic tracing, with the modules it is cut at kept whole."""

from __future__ import annotations

import dis
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from threading import RLock
from types import FrameType
from typing import Any

import torch
from torch import fx, nn

from mfoc.draws import draws, watched
from mfoc.networks.cuts.operations import asserted
from mfoc.networks.cuts.transformers import plain_forward
from mfoc.networks.inspection import has_own_pass

_TRACING = RLock()  # the network is written into and put back, and so is a class of torch

# What makes tensors of a size, which torch alone does not record where the size is of what is traced.
_FACTORIES: tuple[Any, ...] = tuple(
    getattr(torch, name)
    for name in [
        "ones",
        "zeros",
        "full",
        "empty",
        "eye",
        "arange",
        "linspace",
        "logspace",
        "tril_indices",
        "triu_indices",
        "tensor",
        "as_tensor",
        "rand",
        "randn",
        "randint",
        "randperm",
    ]
)


class Untraceable(Exception):
    """Why a forward pass cannot be read: never seen by a user, whose network is then cut in another way."""


@dataclass(frozen=True, eq=False)
class Traced:
    """A forward pass.

    Attributes:
        graph: its operations.
        constants: tensors that the trace made, by the name its nodes read them by.
    """

    graph: fx.Graph
    constants: dict[str, Any]


class _Tracer(fx.Tracer):
    """Opens the modules that named ones lie in; ``opened`` says whether others, of the user's making, are, too."""

    def __init__(self, net: nn.Module, names: Sequence[str], given: Sequence[str], *, opened: bool) -> None:
        super().__init__(autowrap_functions=_FACTORIES)
        self._autowrap_search.append(torch)
        self.proxy_buffer_attributes = True  # what is computed of buffers is computed again, not frozen
        self.given, self.opened, self.modes = given, opened, _modes()
        self.whole = {id(net.get_submodule(name)) for name in names}
        self.around = {
            id(net.get_submodule(".".join(parts[:n])))
            for parts in (name.split(".") for name in names)
            for n in range(len(parts))
        }

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        if id(module) in self.whole:
            return True
        if id(module) in self.around:
            return False
        return not self.opened or has_own_pass(module) or super().is_leaf_module(module, name)

    def call_module(self, module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        plain = plain_forward(module)
        if plain is not None and id(module) in self.around and not has_own_pass(module):
            forward = partial(plain, module)
        return super().call_module(module, forward, args, kwargs)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """A condition is asserted when the stage runs; any other cannot be decided now."""
        frame = inspect.currentframe()
        while frame is not None and frame.f_code.co_name in ("to_bool", "__bool__"):
            frame = frame.f_back
        if frame is None or not _asserts(frame):
            return super().to_bool(obj)
        where = f"{frame.f_code.co_filename}:{frame.f_lineno}"
        self.create_proxy("call_function", asserted, (obj, f"the assertion at {where} does not hold"), {})
        return True

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """A node that says whether it was made where gradients are off."""
        node = super().create_node(*args, **kwargs)
        if _modes() != self.modes:
            raise Untraceable("it changes a mode of torch (autocast, inference)")
        if not torch.is_grad_enabled():
            node.meta["no_grad"] = True
        return node

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        """The arguments that are given are open; the others keep their defaults, which control flow may depend on."""
        proxies = {name: self.create_proxy("placeholder", name, (), {}) for name in self.given}
        plain = plain_forward(self.root)

        def run(root: Any) -> Any:
            found = (plain or root_fn)(root, **proxies)
            if isinstance(found, dict) and type(found) is not dict:
                raise Untraceable(f"it returns a {type(found).__name__}, which a graph makes a dict of")
            return found

        return run, [self.root]


def _asserts(frame: FrameType) -> bool:
    """Whether the value that a frame is asking for decides an ``assert``: if it is true, a jump over the raising."""
    code = [
        step for step in dis.get_instructions(frame.f_code) if step.offset >= frame.f_lasti and step.opname != "CACHE"
    ]
    jump = next((k for k, step in enumerate(code[:3]) if "JUMP" in step.opname), None)
    if jump is None or "IF_TRUE" not in code[jump].opname:
        return False
    after = next(step for step in code[jump + 1 :] if step.opname != "NOT_TAKEN")
    return after.opname == "LOAD_ASSERTION_ERROR" or after.argval in ("AssertionError", AssertionError)


def _modes() -> tuple[bool, ...]:
    devices = ("cpu", "cuda")
    return torch.is_inference_mode_enabled(), *(torch.is_autocast_enabled(device) for device in devices)


@contextmanager
def _whole_functions() -> Iterator[None]:
    """Refuses functions with a backward pass of their own (checkpoints are some), which a trace would lose."""
    kept = torch.autograd.Function.__dict__["apply"]

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if any(isinstance(item, fx.Proxy) for item in (*args, *kwargs.values())):
            raise Untraceable(f"{cls.__name__} has a backward pass of its own")
        return kept.__get__(None, cls)(*args, **kwargs)

    torch.autograd.Function.apply = classmethod(apply)
    try:
        yield
    finally:
        torch.autograd.Function.apply = kept


def trace(net: nn.Module, names: Sequence[str], given: Sequence[str], *, opened: bool) -> Traced:
    """The forward pass of ``net`` when the arguments ``given`` are; the network is left as it was.

    Args:
        net: the network.
        names: modules to keep whole.
        given: names of arguments.
        opened: whether to trace through modules of the user's making that hold none of these; whole, they may do
            whatever they like.

    Raises:
        Untraceable: the forward pass cannot be traced, or draws random numbers, which a trace would freeze.
    """
    tracer = _Tracer(net, names, given, opened=opened)
    if not given:
        raise Untraceable("its arguments have no names")
    drawn = watched()
    with _TRACING, _restored(net) as changed, _whole_functions(), torch.enable_grad():
        try:
            graph = tracer.trace(net)
        except Exception as error:  # whatever the forward pass says to tracing
            raise Untraceable(str(error)) from error
        new = {(part, key) for part in net.modules() for key in changed(part)}
        made = {key: net.__dict__[key] for key in tracer.tensor_attrs.values() if (net, key) in new}
        if drawn() and draws(lambda: _Tracer(net, names, given, opened=opened).trace(net)):
            raise Untraceable("it draws random numbers")
        if len(new) > len(made):
            raise Untraceable("it changes its own attributes")
    return Traced(graph, made)


_SLOTS = ("_parameters", "_buffers", "_modules")


@contextmanager
def _restored(net: nn.Module) -> Iterator[Callable[[nn.Module], list[str]]]:
    """Puts the attributes of a network back; what it gives names those that a module has got in the meantime."""
    kept = [(part, dict(part.__dict__), [dict(part.__dict__[slot]) for slot in _SLOTS]) for part in net.modules()]
    before = {id(part): (own, slots) for part, own, slots in kept}

    def changed(part: nn.Module) -> list[str]:
        own, slots = before[id(part)]
        pairs = [(part.__dict__, own), *((part.__dict__[name], held) for name, held in zip(_SLOTS, slots, strict=True))]
        return [key for now, then in pairs for key in now if now[key] is not then.get(key, now)]

    try:
        yield changed
    finally:
        for part, own, slots in kept:
            part.__dict__.clear()
            part.__dict__.update(own)
            for name, held in zip(_SLOTS, slots, strict=True):
                part.__dict__[name].clear()
                part.__dict__[name].update(held)
