"""What a module refers to beside its registered parts: lists of layers, bound methods, functions that hold a layer."""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mfoc.errors import InvalidValue

TABLES = ("_parameters", "_buffers", "_modules")  # where a module keeps what is registered
_PLAIN = (
    type(None), bool, int, float, complex, str, bytes, range, type, types.ModuleType, types.BuiltinFunctionType,
    torch.dtype, torch.device, torch.Size, torch.Generator, np.ndarray, weakref.ReferenceType,
)  # fmt: skip
_SIMPLE = frozenset([type(None), bool, int, float, str])


def attributes(part: nn.Module) -> dict[str, Any]:
    """What a part of a module holds, beside the tables of what is registered."""
    return {key: value for key, value in part.__dict__.items() if key not in TABLES}


def tensors(part: nn.Module) -> Iterator[Tensor]:
    """The parameters and buffers of a part itself."""
    return (leaf for leaf in (*part._parameters.values(), *part._buffers.values()) if leaf is not None)


def refers(value: Any, known: Collection[int]) -> bool:
    """Whether one of these objects, given by ``id``, can be reached from a value that ``copy.deepcopy`` follows."""
    if type(value) in _SIMPLE or (isinstance(value, dict) and not value):  # most are: numbers, and hooks there are none
        return False
    return any(id(found) in known for found in _reached(value, set()))


def refuse_captured(module: nn.Module, name: str = "") -> None:
    """Refuses functions that hold a part of the module: its copy would go on using the original's.

    Raises:
        InvalidValue: says which part has one.
    """
    known = {id(part) for part in module.modules()} | {id(leaf) for part in module.modules() for leaf in tensors(part)}
    for where, part in module.named_modules():
        for key, value in attributes(part).items():
            for found in _reached(value, set()):
                if isinstance(found, types.FunctionType) and any(refers(x, known) for x in _captured(found)):
                    called = f"module {'.'.join(filter(None, (name, where)))!r}" if name or where else "net"
                    kind = "a hook of its own" if key.endswith("_hooks") else f"attribute {key!r}"
                    raise InvalidValue(
                        f"{called} has {kind}, the function {found.__qualname__}, that holds a part of the network; a "
                        "copy of the network, which is what is solved for, would go on using the original's. Make it a "
                        "method, or take the part from the function's arguments"
                    )


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


def _captured(function: types.FunctionType) -> Iterator[Any]:
    """What a function holds: the variables around it, and its default arguments."""
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not filled yet
            continue
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()


def _reached(value: Any, seen: set[int]) -> Iterator[Any]:
    """A value and what can be reached from it: entries, attributes, the object of a method; not through functions."""
    if isinstance(value, _PLAIN) or id(value) in seen or type(value).__module__.startswith("torch.fx"):
        return
    if type(value).__module__.startswith("mfoc.networks.cuts"):  # what the stages of a network share
        return
    seen.add(id(value))
    yield value
    if isinstance(value, Tensor | types.FunctionType):
        return
    inside: Any = ()
    if isinstance(value, Mapping):
        inside = [*value.keys(), *value.values()]
    elif isinstance(value, list | tuple | set | frozenset):
        inside = value
    elif isinstance(value, types.MethodType):
        inside = (value.__self__,)
    elif isinstance(value, functools.partial):
        inside = (value.func, *value.args, *value.keywords.values())
    for each in (*inside, *vars(value).values()) if hasattr(value, "__dict__") else inside:
        yield from _reached(each, seen)
