"""What things are, in plain values: so that a run can be told from another, on another day or on another rank.

A description holds dicts, lists, words and numbers only, no address and no order of a hash. Equal things have equal
descriptions; not the other way round: what lists and dicts hold that functions use is not known, as it may change.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import re
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mfoc import tree
from mfoc.holdings import constants, of_function, of_library, of_object
from mfoc.printing import short
from mfoc.tree import Tree

Plain = Any  # None, a bool, a number, a word; a list or a dict by words of these

_MOST = 2**16  # entries of a tensor up to which its values are looked at
_DEEP = 6  # levels
_DEVICE = re.compile(r"(cpu|cuda|mps|xpu|hpu|mtia)(:\d+)?")
_BITS = 64  # of whole numbers that are kept as they are
_LAYERS = 64  # of a module whose layers are told one by one


def described(value: Any, *, depth: int = _DEEP) -> Plain:
    """What a value is: its class or its name, and its settings, those of what it is made of included."""
    if value is None or isinstance(value, bool | int | float | str | np.generic | enum.Enum):
        return _of_value(value)
    if depth == 0:
        return type(value).__qualname__
    inside = functools.partial(described, depth=depth - 1)
    if isinstance(value, Tensor | np.ndarray):
        return _of_tensor(value)
    if isinstance(value, nn.Module):
        return _of_module(value, inside)
    if isinstance(value, functools.partial):
        given = {str(place): inside(one) for place, one in enumerate(value.args)}
        given |= {name: inside(one) for name, one in value.keywords.items()}
        return {"type": _name(value.func), **given}
    if isinstance(value, type):
        return _name(value)
    if isinstance(value, types.FunctionType | types.MethodType):
        return _of_function(value, inside)
    if is_dataclass(value):
        own = {field.name: getattr(value, field.name, None) for field in fields(value) if field.init}
        return {"type": _name(type(value)), **{name: inside(one) for name, one in own.items()}}
    if isinstance(value, Mapping):
        return {str(name): inside(one) for name, one in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(repr(inside(one)) for one in value)
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return [inside(one) for one in value]
    return _of_object(value, inside)


def _of_value(value: Any) -> Plain:
    """A number or a word, as Python's own: others cannot be read back from a file."""
    if isinstance(value, enum.Enum):
        return str(value.name if value.name is not None else value.value)
    if isinstance(value, np.generic):
        value = value.item()
        return value if isinstance(value, bool | int | float | str) else repr(value)
    if isinstance(value, str):
        return "device" if _DEVICE.fullmatch(value) else str.__str__(value)  # a run may go on elsewhere
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value) if value.bit_length() <= _BITS else f"int {_digest(hex(value).encode())}"
    return float(value) if isinstance(value, float) else value


def _name(value: Any) -> str:
    """Without the module, which is another when a script is imported, or a library put in order.

    Nor is it told within which function it was written: a script may be put into one.
    """
    name = getattr(value, "__qualname__", None)
    return (name if isinstance(name, str) else type(value).__qualname__).rpartition("<locals>.")[2]


def _of_tensor(value: Any) -> Plain:
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biufc" or value.dtype.byteorder == ">":
            return f"ndarray {value.dtype.str} {list(value.shape)}"
        value = torch.as_tensor(value if value.flags.writeable else value.copy())
    if value.numel() == 1 and not value.is_meta:
        return _of_value(value.item()) if not value.is_complex() else repr(value.item())
    return f"{short(value)} {fingerprint(value)}" if value.numel() <= _MOST else short(value)


def _of_module(module: nn.Module, inside: Callable[[Any], Plain]) -> Plain:
    """Its class, and its layers and their settings, or a digest where there are many; not its weights."""
    layers = {name: _of_layer(part, inside) for name, part in module.named_modules()}
    known = {"type": _name(type(module)), "layers": {name: one for name, one in layers.items() if name}}
    known |= {name: one for name, one in layers[""].items() if name != "type"}
    return known if len(layers) <= _LAYERS else {"type": known["type"], "layers": _digest(repr(layers).encode())}


def _of_layer(part: nn.Module, inside: Callable[[Any], Plain]) -> dict[str, Plain]:
    own = {name: inside(one) for name, one in of_object(part).items() if _told(one)}
    weights = {name: str(list(weight.shape)) for name, weight in part.named_parameters(recurse=False)}
    return {"type": _name(type(part)), **own, **weights}


def _of_function(function: Any, inside: Callable[[Any], Plain]) -> Plain:
    """Its name, what it holds, and the numbers in its code that are not whole; no more of its code.

    Without what may change in it, such as a dict.
    """
    plain = getattr(function, "__func__", function)
    plain = getattr(plain, "_torchdynamo_orig_callable", plain)  # of what torch has compiled
    if not isinstance(plain, types.FunctionType):
        return inside(plain)
    held = of_function(plain)
    if (owner := getattr(function, "__self__", None)) is not None:
        held["self"] = owner
    found = {name: inside(one) for name, one in held.items() if _told(one) or name == "self"}
    rest = {"numbers": list(map(repr, constants(plain.__code__))), "holds": found}
    rest = {name: one for name, one in rest.items() if one}
    return {"type": _name(plain), **rest} if rest else _name(plain)


def _of_object(value: Any, inside: Callable[[Any], Plain]) -> Plain:
    """Its class, and where that is of no library, what it was made with; the name of what has one."""
    if isinstance(value, torch.dtype):
        return str(value)
    if isinstance(getattr(value, "__qualname__", None), str) and not hasattr(value, "__dict__"):
        return _name(value)
    kind = type(value)
    if of_library(kind.__module__):
        return _name(value)
    found = {name: inside(one) for name, one in of_object(value).items() if _told(one)}
    return {"type": _name(kind), "holds": found} if found else _name(kind)


_HELD = (
    *(bool, int, float, str, np.generic, enum.Enum, torch.dtype, tuple, frozenset),
    *(
        Tensor,
        np.ndarray,
        nn.Module,
        functools.partial,
        types.FunctionType,
        types.BuiltinFunctionType,
        types.MethodType,
    ),
)


def _told(one: Any) -> bool:
    """Whether it is told what a function or an object holds: what hardly changes by itself, and is no data."""
    return isinstance(one, _HELD) or (callable(one) and not of_library(type(one).__module__))


def layout(of: Tree, name: str, *, sizes: bool = True) -> Plain:
    """The leaves of a tree by their names: dtype, and shape or number of axes.

    Args:
        of: the tree.
        name: what to call it.
        sizes: with the sizes of the axes; without, of what may hang on the batch or on a rank's share of it.
    """
    return {
        label: f"{str(leaf.dtype).removeprefix('torch.')} {list(leaf.shape) if sizes else f'{leaf.ndim}d'}"
        for label, leaf in tree.named_leaves(of, name)
    }


def fingerprint(of: Tree) -> str:
    """A digest of a tree: its structure, and the values of its leaves bit for bit, wherever they are.

    Args:
        of: a pytree of tensors and plain values.

    Returns:
        32 hexadecimal digits.
    """
    digest = hashlib.blake2b(digest_size=16)
    for path, leaf in tree.dotted(of).items():
        for piece in (path.encode(), *_pieces(leaf)):
            digest.update(len(piece).to_bytes(8, "little"))
            digest.update(piece)
    return digest.hexdigest()


def _pieces(leaf: Any) -> list[bytes | memoryview]:
    if not isinstance(leaf, Tensor):
        return [repr(described(leaf)).encode()]
    kind = f"{leaf.dtype} {tuple(leaf.shape)}".encode()
    if leaf.is_meta:
        return [kind]
    return [kind, raw(leaf).numpy().data]


def raw(values: Tensor) -> Tensor:
    """The bytes of a tensor's values in their order, on the CPU, uint8.

    Args:
        values: a dense tensor with data, of any layout in memory.
    """
    # A tensor that is conjugated or negated lazily has other bits in memory than its values have.
    plain = values.detach().cpu().resolve_conj().resolve_neg().contiguous()
    # One of a single entry counts as contiguous whatever its strides are, such as every second row of two.
    return plain.as_strided((plain.numel(),), (1,)).view(torch.uint8)


def _digest(words: bytes) -> str:
    return hashlib.blake2b(words, digest_size=8).hexdigest()


def entries(description: Plain, name: str = "") -> dict[str, str]:
    """The entries of a description by their dotted names, in words."""
    if isinstance(description, Mapping):
        named = {str(key): one for key, one in description.items()}
    elif isinstance(description, list):
        named = {str(place): one for place, one in enumerate(description)}
    else:
        return {name: repr(description)}
    found: dict[str, str] = {}
    for key, one in named.items():
        found |= entries(one, _joined(name, key))
    return found or {name: "{}" if isinstance(description, Mapping) else "[]"}


def _joined(name: str, key: str) -> str:
    if not name:
        return key
    return name if key == "type" else f"{name}.{key}"


def differences(before: Plain, now: Plain) -> dict[str, tuple[str, str]]:
    """What differs between two descriptions: name -> (before, now)."""
    old, new = entries(before), entries(now)
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return {name: (old.get(name, "nothing"), new.get(name, "nothing")) for name in names}
