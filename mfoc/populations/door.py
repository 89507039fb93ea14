"""The door: whatever holds the data becomes a population."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    default_collate,
)

from mfoc import tree
from mfoc.checks import check_flag, check_integer, check_plain, check_signature, is_plain, kind_of
from mfoc.errors import InvalidType, InvalidValue
from mfoc.particles import Particles, usable
from mfoc.populations.conversion import check_finite, converted, parts
from mfoc.populations.datasets import Items
from mfoc.populations.held import Held
from mfoc.populations.mapped import Mapped, mapped
from mfoc.populations.protocol import Drawn, Population
from mfoc.populations.stored import Stored
from mfoc.populations.streamed import Streamed
from mfoc.seeding import mixed_seed

logger = logging.getLogger(__name__)

_LARGE = 1 << 28  # bytes


def population(source: Any, *, batch_size: int | None = None, shuffle: bool = True, seed: int = 0) -> Population:
    """Particles for ``solve`` and ``certify``, from whatever holds the data.

    Args:
        source: one of

            * a tensor or numpy array, the state cloud ``[N, ...]``;
            * a pair (x, z), state and data, of tensors, arrays or pytrees of them. Arrays that are mapped from files
              larger than memory (``np.memmap``, ``np.load(..., mmap_mode="r")``) are read a batch at a time, and
              converted and checked then; all at once where ``batch_size`` does not divide them into batches;
            * ``Particles``, for states that are pytrees;
            * a map-style ``Dataset`` of tensors, or of pairs (x, z), collated as by a DataLoader. What its items draw
              from the global generators is seeded; these belong to all threads: no other may draw meanwhile;
            * an ``IterableDataset``, or anything else with ``__iter__`` and a length, the number of its items: read in
              its own order, whatever ``shuffle`` says, and begun again at its end. It must give the same items each
              time: what it draws from the global generators of torch, NumPy and Python is seeded so that it does. Steps
              that follow one another read on; one far back (64 batches, fewer where they are large) begins again, and
              reads up to there;
            * a ``DataLoader``: its dataset, batch size, collate function, ``drop_last`` and choice of shuffling are
              used, and the seed of its generator beside ``seed``; one with workers or pinned memory is refused;
            * a function ``n -> Particles``, which must depend on nothing but n.

            uint8 states (images) become floats in [0, 1], integer class labels (1-D data) become int64, and so do
            unsigned integers of 16 bits and more, wherever they are. bool stays what it is: a mask. Of tensors larger
            than 256 MiB a batch is checked when it is taken, not all of them here.
        batch_size: particles in a batch; all of them when None.
        shuffle: a new order each epoch, a function of (seed, epoch); else batch n holds the particles from
            n * batch_size on, and those that are missing at the end from the beginning.
        seed: a non-negative integer.

    Returns:
        A function of the step index. Particles carry their ``index``: the place in the data, or in the draw.

    Raises:
        InvalidType: a source that is none of these, or an iterable without a length.
        InvalidValue: an empty or ragged source, non-finite states, a bad batch size or seed. Where batches are read
            when they are asked for, ``population(n)`` raises it, and names the particle.
    """
    if isinstance(source, Population):
        if batch_size is not None:
            raise InvalidValue("batch_size was given with a population, which has batches of its own")
        return source
    check_integer(0, seed=seed)
    check_flag(shuffle=shuffle)
    check_integer(1, batch_size=batch_size, optional=True)
    if isinstance(source, DataLoader):
        return _from_loader(source, batch_size, seed)
    if type(source) is TensorDataset:  # a subclass may have a __getitem__ of its own
        tensors = source.tensors
        if len(tensors) not in (1, 2):
            raise InvalidValue(f"the TensorDataset holds {len(tensors)} tensors; expected the state, or state and data")
        source = tensors[0] if len(tensors) == 1 else tensors
    if isinstance(source, Particles | Tensor | np.ndarray | tuple | list):
        return Stored(_arrays(source, batch_size), batch_size, shuffle=shuffle, seed=seed)
    if _iterable(source):
        return Streamed(source, batch_size, default_collate, seed=seed)
    if hasattr(source, "__getitem__") and hasattr(source, "__len__") and not isinstance(source, dict | str | bytes):
        return Stored(Items(source, default_collate), batch_size, shuffle=shuffle, seed=seed)
    if callable(source) and not isinstance(source, nn.Module):
        if batch_size is not None:
            raise InvalidValue("batch_size was given with a function; the function decides how many particles it draws")
        check_signature(("n",), population=source)
        return Drawn(source)
    if isinstance(source, dict):
        raise InvalidType("source is a dict; a state that is one is given as a pair, (source, None) or (source, z)")
    raise InvalidType(
        f"source is {kind_of(source)}; expected a tensor, a pair (x, z), mfoc.Particles, a Dataset, "
        "a DataLoader or a function n -> mfoc.Particles"
    )


def as_particles(source: Any) -> Particles:
    """Particles as they are, or every particle of what ``population`` takes, as one cloud."""
    cloud = usable(source) if isinstance(source, Particles) else population(source).cloud()
    if not all(is_plain(leaf) for leaf in tree.leaves((cloud.state, cloud.data))):
        for name, part in (("state", cloud.state), ("data", cloud.data)):
            for label, leaf in tree.named_leaves(part, name) if part is not None else ():
                check_plain("a tensor [N, ...] of numbers", **{label: leaf})
    return cloud


def _arrays(source: Any, batch_size: int | None) -> Held | Mapped:
    """Tensors and arrays: those in files are left there, if they come in batches."""
    if batch_size is not None and mapped(source):
        files = Mapped(source)
        if batch_size < len(files):
            return files
    if mapped(source) and (size := _bytes(source)) > _LARGE:
        logger.warning(
            "all particles are read into memory at once, %.1f GB of mapped files; with batch_size=... smaller than the "
            "population a batch at a time is", size / 2**30,
        )  # fmt: skip
    # Tensors may be mapped from files, too, and do not say so: large ones are not read through here.
    checked = batch_size is None or _bytes(source) <= _LARGE
    cloud = converted(source, check=checked)
    return Held(cloud, checked=checked) if batch_size is None or batch_size < len(cloud) else Held(_finite(cloud))


def _finite(cloud: Particles) -> Particles:
    check_finite(cloud)
    return cloud


def _bytes(source: Any) -> int:
    """The size of a source in memory, or in files."""
    state, data, _ = parts(source)
    leaves = tree.leaves([state, data])
    # A tensor that is not plain may have no such number; it is refused, by name, when it is taken in.
    plain = (leaf for leaf in leaves if not isinstance(leaf, Tensor) or is_plain(leaf, on_meta=True))
    return sum(int(getattr(leaf, "nbytes", 0)) for leaf in plain)


def _iterable(source: Any) -> bool:
    """Whether it can be read one item after another, and in no other way."""
    if isinstance(source, IterableDataset):  # it has a __getitem__ that raises
        return True
    unordered = isinstance(source, set | frozenset | dict | str | bytes)
    return (
        hasattr(source, "__iter__") and hasattr(source, "__len__") and not (unordered or hasattr(source, "__getitem__"))
    )


def _from_loader(loader: Any, batch_size: int | None, seed: int) -> Population:
    if batch_size is not None:
        raise InvalidValue("batch_size was given with a DataLoader; set it on the DataLoader")
    if loader.num_workers:
        raise InvalidValue(
            f"the DataLoader has num_workers={loader.num_workers}, and batches are made in this process, when a step "
            "asks for them; expected num_workers=0. Items that take long to make are made once, beforehand, and held "
            "as tensors, or kept in a file that is mapped (np.memmap)"
        )
    if loader.pin_memory:
        raise InvalidValue(
            "the DataLoader has pin_memory=True, and particles are not moved to a device: their data have to be where "
            "the controls are; expected pin_memory=False, and a dataset or collate_fn whose tensors are there"
        )
    if loader.generator is not None:  # whose state moves on: its seed decides instead
        seed = mixed_seed(seed, loader.generator.initial_seed(), 6)
    data, sampler, count = loader.dataset, loader.sampler, loader.batch_size
    if isinstance(data, IterableDataset) and count is not None:
        return Streamed(data, count, loader.collate_fn, seed=seed, drop_last=loader.drop_last)
    plain = isinstance(sampler, RandomSampler | SequentialSampler) and count is not None
    # Each particle once an epoch.
    if not plain or len(sampler) != len(data) or getattr(sampler, "replacement", False):
        raise InvalidType(
            "this DataLoader has batches or a sampler of its own, so batch n is no function of n; "
            "pass the dataset, or a function n -> mfoc.Particles"
        )
    return Stored(
        Items(data, loader.collate_fn),
        count,
        shuffle=isinstance(sampler, RandomSampler),
        seed=seed,
        drop_last=loader.drop_last,
    )
