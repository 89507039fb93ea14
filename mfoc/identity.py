"""What things are, in plain values: so that a run can be told from another, on another day or on another rank.

A description holds dicts, lists, words and numbers only, no address and no order of a hash. Equal things have equal
descriptions; not the other way round: of a function its name is known, and the numbers that it is written with.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mfoc import tree
from mfoc.printing import short
from mfoc.tree import Tree

Plain = Any  # None, a bool, a number, a word; a list or a dict by words of these

_MOST = 2**16  # entries of a tensor up to which its values are looked at
_DEEP = 6  # levels


def described(value: Any, *, depth: int = _DEEP) -> Plain:
    """What a value is: its class or its name, and its settings, those of what it is made of included."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if depth == 0:
        return type(value).__qualname__
    inside = functools.partial(described, depth=depth - 1)
    if isinstance(value, Tensor):
        return _of_tensor(value)
    if isinstance(value, nn.Module):
        return _of_module(value)
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
        return sorted(map(repr, value))
    if isinstance(value, Sequence):
        return [inside(one) for one in value]
    return _name(value) if hasattr(value, "__qualname__") else type(value).__qualname__


def _name(value: Any) -> str:
    """Without the module, which is another when a script is imported, or a library put in order."""
    return str(getattr(value, "__qualname__", type(value).__qualname__))


def _of_tensor(value: Tensor) -> Plain:
    if value.numel() == 1 and not value.is_meta:
        return value.item()
    return f"{short(value)} {fingerprint(value)}" if value.numel() <= _MOST else short(value)


def _of_module(module: nn.Module) -> Plain:
    """Its class, and a digest of its layers and their settings; not of its weights."""
    lines = []
    for name, part in module.named_modules():
        own = {key: one for key, one in vars(part).items() if not key.startswith("_")}
        plain = {key: one for key, one in sorted(own.items()) if isinstance(one, bool | int | float | str | tuple)}
        lines.append(f"{name}: {type(part).__qualname__} {plain}")
    lines += [f"{name}: {tuple(weight.shape)}" for name, weight in module.named_parameters()]
    return {"type": type(module).__qualname__, "layers": _digest("\n".join(lines).encode())}


def _of_function(function: Any, inside: Callable[[Any], Plain]) -> Plain:
    """Its name, the numbers in its code that are not whole, and what it holds: its defaults, and what it closes over.

    Without global variables, and without what may change in it, such as a dict.
    """
    plain = inspect.unwrap(getattr(function, "__func__", function))
    held = dict(zip(plain.__code__.co_freevars, map(_contents, plain.__closure__ or ()), strict=True))
    held |= {f"default {place}": one for place, one in enumerate(plain.__defaults__ or ())}
    held |= plain.__kwdefaults__ or {}
    if (owner := getattr(function, "__self__", None)) is not None:
        held["self"] = owner
    found = {name: inside(one) for name, one in held.items() if one is not plain and isinstance(one, _HELD)}
    rest = {"numbers": list(map(repr, _constants(plain.__code__))), "holds": found}
    rest = {name: one for name, one in rest.items() if one}
    return {"type": _name(plain), **rest} if rest else _name(plain)


_HELD = (bool, int, float, str, Tensor, nn.Module, functools.partial, types.FunctionType, types.MethodType)


def _contents(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not yet filled
        return None


def _constants(code: types.CodeType) -> list[float]:
    found = []
    for one in code.co_consts:
        if isinstance(one, float):
            found.append(one)
        elif isinstance(one, types.CodeType):
            found += _constants(one)
    return found


def layout(of: Tree, name: str, *, lead: bool = True) -> Plain:
    """The leaves of a tree by their names: shape and dtype.

    Args:
        of: the tree.
        name: what to call it.
        lead: with the leading axis.
    """
    return {
        label: f"{str(leaf.dtype).removeprefix('torch.')} {list(leaf.shape[0 if lead else 1 :])}"
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
    # A tensor that is conjugated or negated lazily has other bits in memory than its values have.
    plain = leaf.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return [kind, plain.view(torch.uint8).numpy().data]


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
