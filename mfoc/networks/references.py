"""What a module refers to beside its registered parts: lists of layers, bound methods, functions that hold a layer."""

from __future__ import annotations

import functools
import gc
import logging
import types
import weakref
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mfoc.errors import InvalidValue

TABLES = ("_parameters", "_buffers", "_modules")  # where a module keeps what is registered
_PLAIN = (
    type(None), bool, int, float, complex, str, bytes, range, type, types.ModuleType,
    torch.dtype, torch.device, torch.Size, torch.Generator, np.ndarray, logging.Logger,
)  # fmt: skip
# What copy.deepcopy hands on as it is, whatever it holds.
_Cached = type(functools.lru_cache(lambda: None))
_HANDED_ON = (types.FunctionType, types.BuiltinFunctionType, weakref.ReferenceType, _Cached)
_OF_TORCH = "_flat_weight_refs"  # of recurrent layers: bookkeeping that no forward pass reads
_COMPILED = "_compiled_call_impl"  # of a module that was compiled in place: without it the module calls its forward
_SIMPLE = frozenset([type(None), bool, int, float, str])


def attributes(part: nn.Module) -> dict[str, Any]:
    """What a part of a module holds, beside the tables of what is registered."""
    return {key: value for key, value in part.__dict__.items() if key not in (*TABLES, _COMPILED)}


def tensors(part: nn.Module) -> Iterator[Tensor]:
    """The parameters and buffers of a part itself."""
    return (leaf for leaf in (*part._parameters.values(), *part._buffers.values()) if leaf is not None)


def refers(value: Any, known: Collection[int]) -> bool:
    """Whether one of these objects, given by ``id``, can be reached from a value that ``copy.deepcopy`` follows."""
    if type(value) in _SIMPLE or (isinstance(value, dict) and not value):  # most are: numbers, and hooks there are none
        return False
    return any(id(found) in known for found in _reached(value, set()))


def refuse_captured(module: nn.Module, name: str = "") -> None:
    """Refuses what holds a part of the module and is not copied with it: it would go on using the original's.

    Functions (a lambda, a hook), weak references and cached functions are such things.

    Raises:
        InvalidValue: says which part has one.
    """
    known = {id(part) for part in module.modules()} | {id(leaf) for part in module.modules() for leaf in tensors(part)}
    for where, part in module.named_modules():
        for key, value in attributes(part).items():
            for found in () if key == _OF_TORCH else _reached(value, set()):
                if isinstance(found, _HANDED_ON) and _holds(found, known):
                    called = f"module {'.'.join(filter(None, (name, where)))!r}" if name or where else "net"
                    kind = "a hook of its own" if key.endswith("_hooks") else f"attribute {key!r}"
                    raise InvalidValue(
                        f"{called} has {kind}, {_described(found)}, that holds a part of the network; a copy of the "
                        f"network, which is what is solved for, would go on using the original's. {_cure(found)}"
                    )


def _described(found: Any) -> str:
    if isinstance(found, weakref.ReferenceType):
        return "a weak reference"
    return f"the function {getattr(found, '__qualname__', type(found).__name__)}"


def _cure(found: Any) -> str:
    if isinstance(found, weakref.ReferenceType):
        return "Hold the part itself, in a list where it is not to be registered"
    if isinstance(found, _Cached):
        return "Leave the cache out"
    return "Make it a method, or take the part from the function's arguments"


def refuse_reaching(net: nn.Module, name: str, part: nn.Module) -> None:
    """Refuses a stage that refers to what belongs to another: its copy would hold a copy of that, too.

    Raises:
        InvalidValue: says by which attribute.
    """
    own = {id(x) for inner in part.modules() for x in (inner, *tensors(inner))}
    weighted = [inner for inner in net.modules() if any(True for _ in inner.parameters())]
    others = {id(x) for inner in weighted for x in (inner, *tensors(inner))} - own
    for inner in part.modules():
        for key, value in attributes(inner).items():
            if refers(value, others):
                raise InvalidValue(
                    f"stage {name!r} refers, by its attribute {key!r}, to a part of the network that belongs to "
                    "another stage; make them one stage"
                )


def _holds(found: Any, known: Collection[int]) -> bool:
    """Whether something that is handed on holds one of these objects."""
    if isinstance(found, weakref.ReferenceType):
        return id(found()) in known
    return any(refers(held, known) for held in _captured(found))


def _captured(function: Any) -> Iterator[Any]:
    """What a function holds: the variables around it, its default arguments, the object it is a method of."""
    if not isinstance(function, types.FunctionType):
        yield getattr(function, "__self__", None)
        yield getattr(function, "__wrapped__", None)
        return
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not filled yet
            continue
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()


def _reached(value: Any, seen: set[int]) -> Iterator[Any]:
    """A value and what can be reached from it: entries, attributes, slots, the object of a method.

    Not through what ``copy.deepcopy`` hands on, such as functions.
    """
    waiting = [value]
    while waiting:
        found = waiting.pop()
        kind = type(found)
        if isinstance(found, _PLAIN) or id(found) in seen or kind.__module__.startswith("torch.fx"):
            continue
        if kind.__module__.startswith("mfoc.networks.cuts"):  # what the stages of a network share
            continue
        seen.add(id(found))
        yield found
        if not isinstance(found, (Tensor, *_HANDED_ON)):
            waiting += gc.get_referents(found)
