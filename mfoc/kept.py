"""Trees of tensors as they were, by value: what the versions of tensors do not tell.

A write through ``.data`` or a NumPy view moves no version, nor does another entry in a dict.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from mfoc import tree
from mfoc.tree import Tree


class Kept:
    """Trees of tensors as they were, by value."""

    def __init__(self) -> None:
        self._trees: list[tuple[Tree, list[Any], list[Any]]] = []
        self._known: set[int] = set()

    def keep(self, given: Tree) -> None:
        """Remembers the leaves of a tree and their values, unless it knows all of them."""
        found = tree.leaves(given)
        if self._known.issuperset(map(id, found)):
            return
        self._known.update(map(id, found))  # which stay what they are: the leaves are held
        copies = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in found]
        self._trees.append((given, found, copies))

    def unchanged(self) -> bool:
        """Whether all trees have the leaves they had, with the bits they had."""
        return all(_identical(tree.leaves(given), found, copies) for given, found, copies in self._trees)

    def restore(self) -> None:
        """Writes the values back into the leaves."""
        for _, found, copies in self._trees:
            for leaf, copy in zip(found, copies, strict=True):
                if isinstance(leaf, Tensor):
                    with suppress(RuntimeError):  # rows that are one row in memory: an expanded tensor
                        leaf.copy_(copy)


def _identical(now: list[Any], found: list[Any], copies: list[Any]) -> bool:
    if len(now) != len(found) or any(a is not b for a, b in zip(now, found, strict=True)):
        return False
    return all(equal(leaf, copy) for leaf, copy in zip(found, copies, strict=True) if isinstance(leaf, Tensor))


def equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same values, of which NaN is one."""
    if one is other or one.is_meta or torch.equal(one, other):
        return True
    return one.shape == other.shape and bool(((one == other) | ((one != one) & (other != other))).all())


def all_equal(one: Tree, other: Tree) -> bool:
    """Whether the tensors of two trees of one structure hold the same values."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return equal(one, other)
    pairs = zip(tree.leaves(one), tree.leaves(other), strict=True)
    return all(equal(a, b) for a, b in pairs if isinstance(a, Tensor))
