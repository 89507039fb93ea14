"""Particles in files that are larger than memory: arrays mapped into it, of which a batch at a time is read.

What ``np.memmap`` and ``np.load(..., mmap_mode="r")`` return is mapped, and so are views of it. A batch is converted
and checked when it is read, to the bits that the whole would have been converted to in memory. This process allocates
no more than a batch. The pages of the file that it has looked at are the system's cache: tools count them as resident,
and the system takes them back when memory is short. (To give them back here costs eight times what a batch does.)
"""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mfoc import tree
from mfoc.particles import Particles
from mfoc.populations.conversion import as_tensor, check_array, check_finite, converted, image, label, parts
from mfoc.populations.held import taking
from mfoc.populations.stored import Key
from mfoc.tree import Tree


def mapped(source: Any) -> bool:
    """Whether a source holds an array that is mapped from a file."""
    return any(mapping(leaf) is not None for leaf in tree.leaves(list(parts(source)[:2])))


def mapping(leaf: Any) -> mmap.mmap | None:
    """The mapping that an array is a view of, if it is one."""
    while isinstance(leaf, np.ndarray | memoryview):
        leaf = leaf.base if isinstance(leaf, np.ndarray) else leaf.obj
    return leaf if isinstance(leaf, mmap.mmap) else None


class Mapped:
    """Arrays as a source; leaves that are not mapped are converted and held in memory.

    Args:
        source: a pair (x, z) of trees of arrays and tensors, or the state alone.

    Raises:
        InvalidType: a leaf is neither tensor nor array of numbers.
        InvalidValue: leaves of unequal length, or a state in memory that is not finite.
    """

    runs_user_code = False

    def __init__(self, source: Any) -> None:
        state, data, _ = parts(source)
        self._state = tree.map(lambda leaf: _ready(leaf, "state", image), state)
        self._data = None if data is None else tree.map(lambda leaf: _ready(leaf, "data", label), data)
        outlines = tree.map(_outline, self._state), None if data is None else tree.map(_outline, self._data)
        like = converted(outlines, check=False)
        held = [leaf for leaf in tree.leaves(self._state) if isinstance(leaf, Tensor)]
        if held:
            check_finite(Particles(held))
        self._size, self._dtype = len(like), torch.get_default_dtype()
        # Where the places are wanted: where the first leaf is, as for particles in memory.
        first = tree.leaves(self._state)[0]
        self.device = first.device if isinstance(first, Tensor) else torch.device("cpu")

    def __len__(self) -> int:
        return self._size

    def __call__(self, index: Tensor, _key: Key) -> Particles:
        take, rows = taking(index), index.cpu().numpy()

        def state(leaf: Any) -> Tensor:
            return take(leaf) if isinstance(leaf, Tensor) else image(_rows(leaf, rows), self._dtype)

        def data(leaf: Any) -> Tensor:
            return take(leaf) if isinstance(leaf, Tensor) else label(_rows(leaf, rows))

        made = None if self._data is None else tree.map(data, self._data)
        cloud = Particles(tree.map(state, self._state), made, index.clone())
        check_finite(cloud)
        return cloud

    def whole(self) -> None:
        """It is not at hand."""


def _ready(leaf: Any, name: str, convert: Any) -> Tree:
    if mapping(leaf) is None:
        return convert(as_tensor(leaf, name))
    check_array(leaf, name)
    return leaf.view(np.ndarray)  # whose rows are taken faster than those of ``np.memmap``


def _outline(leaf: Any) -> Tensor:
    """A tensor of the shape of a leaf, without values: so that unequal lengths are refused as they always are."""
    return torch.zeros((), device="cpu").expand(leaf.shape)


def _rows(leaf: np.ndarray[Any, Any], rows: np.ndarray[Any, Any]) -> Tensor:
    return as_tensor(leaf.take(rows, axis=0), "state")
