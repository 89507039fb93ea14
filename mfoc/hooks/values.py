"""What a checkpoint can hold: tensors and plain values, which are read back without running any code."""

from __future__ import annotations

import io
from collections import Counter, OrderedDict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mfoc.checks import kind_of
from mfoc.errors import InvalidType
from mfoc.tree import Tree

_VALUES = {type(None), bool, int, float, complex, str, bytes, torch.Size, torch.dtype, torch.device}
_DICTS = {dict, OrderedDict, Counter}
_TENSORS = {Tensor, torch.nn.Parameter}
_DEEPEST = 100
_WIDEST = 8 * 255  # bits of an int, with its sign: longer ones are written in a way that torch does not read
_CURES = {
    "ndarray": "torch.as_tensor(...) makes one",
    "deque": "list(...) makes one",
    "range": "list(...) makes one",
    "frozenset": "set(...) makes one",
    "defaultdict": "dict(...) makes one",
    "slice": "keep its start, stop and step",
}


def plain(**trees: Tree) -> dict[str, Tree]:
    """Trees as a checkpoint holds them: containers are new ones, tensors are detached and share no memory.

    Tensors that have all of their memory for themselves are not copied.

    Args:
        **trees: name=pytree of tensors and plain values.

    Returns:
        The trees, by name.

    Raises:
        InvalidType: an entry would not come back as it was; the path to it is named.
    """
    walk = _Plain()
    return {name: walk.of(tree, name) for name, tree in trees.items()}


class _Plain:
    """A walk over trees, which knows the memory that it has met."""

    def __init__(self) -> None:
        self._met: set[tuple[torch.device, int]] = set()
        self._above: list[int] = []

    def of(self, value: Any, path: str) -> Any:
        kind = type(value)
        if kind in _VALUES:
            return _value(value, path)
        if isinstance(value, Tensor):
            return self._tensor(value, path)
        if kind not in _DICTS and kind not in (list, tuple, set):
            raise _refused(path, _words(value), _cure(value))
        if id(value) in self._above:
            raise _refused(path, "a container that holds itself")
        if len(self._above) >= _DEEPEST:
            raise _refused(path, f"nested more than {_DEEPEST} deep")
        self._above.append(id(value))
        try:
            return self._container(value, path)
        finally:
            self._above.pop()

    def _container(self, value: Any, path: str) -> Any:
        if isinstance(value, set):
            return {_key(entry, f"an entry of {path}") for entry in value}
        if isinstance(value, dict):
            pairs = ((_key(k, f"a key of {path}"), self.of(entry, f"{path}[{k!r}]")) for k, entry in value.items())
            made: Any = type(value)()
            for key, entry in pairs:
                made[key] = entry
            return made
        return type(value)([self.of(entry, f"{path}[{k}]") for k, entry in enumerate(value)])

    def _tensor(self, value: Tensor, path: str) -> Tensor:
        if type(value) not in _TENSORS:
            raise _refused(
                path, f"{kind_of(value)}, a subclass of Tensor", "as_subclass(torch.Tensor) makes a plain one"
            )
        if value.is_quantized:
            raise _refused(path, "a quantized tensor", "dequantize() makes a plain one")
        if value.is_nested or value.layout != torch.strided:
            what = "nested" if value.is_nested else str(value.layout).removeprefix("torch.")
            raise _refused(path, f"a {what} tensor", "to_dense() makes a plain one" * (not value.is_nested))
        if value.is_meta:
            raise _refused(path, "a tensor on the meta device, which has no values")
        value = value.detach().resolve_conj().resolve_neg()
        memory = value.untyped_storage()
        place = value.device, memory.data_ptr()
        whole = memory.nbytes() == value.numel() * value.element_size()
        if not whole or (value.numel() and place in self._met):  # a view is saved alone
            return value.clone()
        self._met.add(place)
        return value


def _key(value: Any, path: str) -> Any:
    """A key of a dict, or an entry of a set."""
    if type(value) is tuple:
        return tuple([_key(entry, path) for entry in value])
    if type(value) not in _VALUES:
        raise _refused(path, _words(value))
    return _value(value, path)


def _value(value: Any, path: str) -> Any:
    if type(value) is int and value.bit_length() >= _WIDEST:
        raise _refused(path, f"an int of {value.bit_length()} bits, which torch does not read back")
    if value == b"":
        raise _refused(path, "bytes of length 0, which torch does not read back")
    return value


def _words(value: Any) -> str:
    return f"{kind_of(value)} ({type(value).__module__})"


def _cure(value: Any) -> str:
    if isinstance(value, np.generic):
        return ".item() makes one of Python's"
    for base in (bool, int, float, str, dict, list, tuple, set):
        if isinstance(value, base):
            return f"{base.__name__}(...) makes a plain one"
    return _CURES.get(type(value).__name__, "")


def _refused(path: str, what: str, cure: str = "") -> InvalidType:
    hint = f": {cure}" if cure else ""
    return InvalidType(
        f"{path} is {what}; a checkpoint holds tensors and plain values (numbers, strings, None, and lists, tuples, "
        f"sets and dicts of them), which come back as they were and run no code when they are read{hint}"
    )


def check_readable(record: dict[str, Any]) -> None:
    """Refuses what this version of torch cannot read back: the structure is written, without its tensors, and read.

    Raises:
        InvalidType: it cannot; torch's reason is given.
    """
    written = io.BytesIO()
    try:
        torch.save(_hollow(record), written)
        written.seek(0)
        torch.load(written, weights_only=True)
    except Exception as error:  # torch raises pickle and runtime errors alike
        told = str(error).splitlines()  # at length, how to read what is not safe
        reason = next((line.strip() for line in told if "Unpickler error" in line), told[0])
        raise InvalidType(f"torch {torch.__version__} cannot read back what the iterate holds: {reason}") from error


def _hollow(value: Any) -> Any:
    if isinstance(value, Tensor):
        return torch.empty(0, dtype=value.dtype)
    if isinstance(value, dict):
        return {key: _hollow(entry) for key, entry in value.items()}
    if type(value) in (list, tuple):
        return type(value)([_hollow(entry) for entry in value])
    return value
