"""Nodes of pytrees that torch does not know: dataclasses, and containers that hold constants beside tensors."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from operator import itemgetter
from typing import Any

from torch import Tensor
from torch.utils import _pytree as general

from mfoc.tree import Tree, leaves

_CONSTANTS = (type(None), bool, int, float, str)
_ENTRIES = "_entries_of_node"


def registered(tree: Tree) -> Tree:
    """The tree itself, once the dataclasses in it are known to be nodes, to torch as well.

    Their fields are their entries; what holds no tensor (None, a flag) is part of the structure. So it is in a tuple, a
    list or a dict, which then is of a kind made for that, a subclass of its own.
    """
    if isinstance(tree, Tensor):
        return tree
    found = leaves(tree)
    for leaf in found:
        if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            _register(type(leaf))
            return registered(tree)  # it may hold others
    return _with_constants(tree) if any(isinstance(leaf, _CONSTANTS) for leaf in found) else tree


def _register(kind: type[Any]) -> None:
    names = [field.name for field in dataclasses.fields(kind)]

    def flatten(node: Any) -> tuple[list[Any], Any]:
        values = {name: getattr(node, name) for name in names}
        held = _entries_of(node)
        if held is None:
            held = [n for n in names if any(isinstance(leaf, Tensor) for leaf in leaves(registered(values[n])))]
        return [values[name] for name in held], (held, {n: value for n, value in values.items() if n not in held})

    def unflatten(entries: Iterable[Any], context: Any) -> Any:
        node = object.__new__(kind)
        for name, value in {**context[1], **dict(zip(context[0], entries, strict=True))}.items():
            object.__setattr__(node, name, value)  # it may be frozen
        return _remembering(node, list(context[0]))

    def with_keys(node: Any) -> tuple[list[Any], Any]:
        entries, context = flatten(node)
        return [(general.GetAttrKey(name), e) for name, e in zip(context[0], entries, strict=True)], context

    general.register_pytree_node(kind, flatten, unflatten, flatten_with_keys_fn=with_keys)


# What a node is made of is what it was made from: torch puts numbers in the place of tensors to see its structure.


def _remembering(node: Any, entries: list[Any]) -> Any:
    with suppress(AttributeError):  # one with slots
        object.__setattr__(node, _ENTRIES, entries)
    return node


def _entries_of(node: Any) -> list[Any] | None:
    found: list[Any] | None = getattr(node, _ENTRIES, None)
    return found


def _with_constants(tree: Tree) -> Tree:
    """The tree with the constants in its tuples, lists and dicts as parts of the structure."""
    kind: Any = type(tree)
    if isinstance(tree, tuple) and (kind is tuple or hasattr(kind, "_fields")):
        entries = [_with_constants(entry) for entry in tree]
        return tuple.__new__(_holding(kind), entries)
    if kind is list:
        return _holding(kind)(_with_constants(entry) for entry in tree)
    if kind is dict or kind is OrderedDict:
        return _holding(kind)({key: _with_constants(entry) for key, entry in tree.items()})
    return tree


@cache
def _holding(kind: Any) -> Any:
    """A subclass of a container whose entries that are constants are part of the structure of a tree."""
    keyed, body = issubclass(kind, dict), {}
    if issubclass(kind, tuple):  # a named one has its names; what derives from it would be taken for a node by torch
        names = {name: property(itemgetter(k)) for k, name in enumerate(getattr(kind, "_fields", ()))}
        body = names
    made: Any = type(kind.__name__, (tuple if issubclass(kind, tuple) else kind,), body)

    def split(node: Any) -> tuple[list[Any], list[Any], Any]:
        items = list(node.items() if keyed else enumerate(node))
        keys = _entries_of(node)
        keys = [key for key, entry in items if not isinstance(entry, _CONSTANTS)] if keys is None else keys
        rest = tuple((key, _ENTRY if key in keys else entry) for key, entry in items)
        return [node[key] for key in keys], keys, rest

    def unflatten(entries: Iterable[Any], rest: Any) -> Any:
        values = iter(entries)
        pairs = [(key, next(values) if entry is _ENTRY else entry) for key, entry in rest]
        keys = [key for key, entry in rest if entry is _ENTRY]
        if keyed:
            return _remembering(made(pairs), keys)
        filled = [entry for _, entry in pairs]
        return _remembering(tuple.__new__(made, filled) if issubclass(kind, tuple) else made(filled), keys)

    def with_keys(node: Any) -> tuple[list[Any], Any]:
        entries, keys, rest = split(node)
        path = general.MappingKey if keyed else general.SequenceKey
        return [(path(key), entry) for key, entry in zip(keys, entries, strict=True)], rest

    general.register_pytree_node(made, lambda node: split(node)[::2], unflatten, flatten_with_keys_fn=with_keys)
    return made


_ENTRY = "an entry that is no constant"
