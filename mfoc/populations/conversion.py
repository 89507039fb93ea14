"""Particles from tensors and arrays: images scaled, labels widened, everything checked."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mfoc import tree
from mfoc.checks import check_plain, kind_of
from mfoc.errors import InvalidType, InvalidValue
from mfoc.particles import Particles
from mfoc.tree import Tree

_NARROW = (torch.uint8, torch.int8, torch.int16, torch.int32)
_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)  # with which torch can compute next to nothing


def parts(source: Any) -> tuple[Tree, Tree, Tensor | None]:
    """State, data and index of a cloud, of a pair (x, z), or of the state alone; their leaves as they are.

    Raises:
        InvalidValue: a tuple or list that is no pair.
    """
    if isinstance(source, Particles):
        return source.state, source.data, source.index
    if isinstance(source, tuple | list):
        if len(source) != 2:
            raise InvalidValue(f"source is {kind_of(source)} of {len(source)}; {_of_many(source)}")
        return source[0], source[1], None
    return source, None, None


def converted(source: Any, index: Tensor | None = None, *, check: bool = True) -> Particles:
    """A cloud from tensors or arrays.

    Args:
        source: a cloud, a pair or a state.
        index: which particles of their population these are.
        check: whether all of them are looked at, for values that are not finite.

    Raises:
        InvalidType: something is neither tensor nor array of numbers.
        InvalidValue: ragged, or a state that is not finite.
    """
    state, data, own = parts(source)
    state = tree.map(lambda leaf: image(as_tensor(leaf, "state")), state)
    data = None if data is None else tree.map(lambda leaf: label(as_tensor(leaf, "data")), data)
    if index is not None:
        found = tree.leaves(state)
        own = index.to(found[0].device) if found else index
    cloud = Particles(state, data, own)
    if check:
        check_finite(cloud)
    return cloud


def check_finite(cloud: Particles) -> None:
    """Refuses a state with a value that is not finite, and says which particle has it."""
    if all(finite(leaf) for leaf in tree.leaves(cloud.state)):
        return
    for name, leaf in tree.named_leaves(cloud.state, "state"):
        if not finite(leaf):
            bad = (~leaf.isfinite()).flatten(1).any(1) if leaf.dim() > 1 else ~leaf.isfinite()
            first = int(cloud.indices()[bad.nonzero()[0]])
            raise InvalidValue(f"{name} holds NaN or infinite values, first at particle {first}")


def finite(leaf: Tensor) -> bool:
    """Whether no value is NaN or infinite; leaves of integers, and those without values, pass."""
    if leaf.is_complex() and not leaf.is_meta:
        return bool(leaf.isfinite().all())
    if not leaf.is_floating_point() or leaf.is_meta:
        return True
    # A sum is NaN or infinite where a term is: one pass instead of four. It may overflow, too: then all are asked.
    return math.isfinite((leaf.detach() if leaf.requires_grad else leaf).sum().item()) or bool(leaf.isfinite().all())


def as_tensor(leaf: Any, name: str) -> Tensor:
    """A leaf as a tensor, which shares its memory where it may be written to.

    Raises:
        InvalidType: it is neither tensor nor array of numbers.
        InvalidValue: a ragged array.
    """
    if isinstance(leaf, Tensor):
        check_plain("a tensor [N, ...] of numbers", **{name: leaf})
        return leaf.clone() if leaf.is_inference() else leaf  # those cannot be differentiated through
    if isinstance(leaf, np.ndarray):
        check_array(leaf, name)
        if not leaf.dtype.isnative:
            leaf = leaf.astype(leaf.dtype.newbyteorder("="))
        return torch.from_numpy(leaf.copy() if not leaf.flags.writeable or min(leaf.strides, default=0) < 0 else leaf)
    if isinstance(leaf, int | float | str):
        raise InvalidType(f"{name} holds {kind_of(leaf)}; expected tensors or arrays with leading axis N")
    raise InvalidType(f"{name} is {kind_of(leaf)}; expected a tensor or a numpy array{_of_a_file(leaf)}")


def check_array(leaf: np.ndarray[Any, Any], name: str) -> None:
    """Refuses an array that holds no numbers."""
    if leaf.dtype == object:
        raise InvalidValue(f"{name} is a ragged (object) array; every particle needs the same shape")
    if leaf.dtype.kind not in "biufc":
        raise InvalidType(f"{name} is an array of {leaf.dtype}; expected numbers")
    if isinstance(leaf, np.ma.MaskedArray):
        raise InvalidType(f"{name} is a masked array, and torch knows no masks; fill it, or take the mask as data")
    if leaf.dtype.kind in "fc" and leaf.dtype.itemsize > np.dtype("f8" if leaf.dtype.kind == "f" else "c16").itemsize:
        raise InvalidType(f"{name} is an array of {leaf.dtype}, which torch has not; expected astype(np.float64)")


def image(leaf: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """uint8 is taken for an image: floats in [0, 1], of the default dtype when None. Wider integers are numbers."""
    return leaf.to(dtype or torch.get_default_dtype()) / 255 if leaf.dtype == torch.uint8 else _signed(leaf)


def label(leaf: Tensor) -> Tensor:
    """Narrow integers, one for each particle, are taken for labels: int64."""
    return leaf.long() if leaf.dtype in _NARROW and leaf.dim() == 1 else _signed(leaf)


def _signed(leaf: Tensor) -> Tensor:
    """Unsigned integers of 16 bits and more (tokens, depths, labels) as int64, which holds their values.

    Raises:
        InvalidValue: it does not hold them: some are 2^63 or more.
    """
    if leaf.dtype not in _UNSIGNED:
        return leaf
    wide = leaf.long()
    if leaf.dtype == torch.uint64 and not leaf.is_meta and bool((wide < 0).any()):
        raise InvalidValue("a uint64 leaf holds values of 2^63 and more, which int64 does not; expected smaller ones")
    return wide


def _of_many(source: Any) -> str:
    """What to do with a list or tuple that is no pair (x, z)."""
    if all(isinstance(entry, int | float) for entry in source):
        return "numbers are made a cloud by torch.tensor(source)"
    if isinstance(source, list) and all(isinstance(entry, tuple | list) and len(entry) == 2 for entry in source):
        return "samples are stacked, (torch.stack([x for x, _ in source]), torch.stack([z for _, z in source]))"
    return "expected a pair (x, z) (use mfoc.Particles for a state that is itself a tuple)"


def _of_a_file(leaf: Any) -> str:
    """What to do with arrays of other libraries, which may lie in files (h5py, zarr)."""
    if not all(hasattr(leaf, name) for name in ("shape", "dtype", "__getitem__")):
        return ""
    return "; leaf[:] may make one, and a Dataset whose item i is (x[i], z[i]) reads them piece by piece"
