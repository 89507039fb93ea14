"""Populations: where the particles of step n come from, as a pure function of (seed, n).

Nothing is carried from step to step, so a run that resumes at step n sees the batches of one that never stopped.
No particle is drawn more often than another. With shuffling each is visited once an epoch, and the last batch of an
epoch is short when the batch size does not divide the population: its particles weigh more in that epoch, others in the
next. Without, where they would be the same ones for ever, every batch is full and the batches run on cyclically through
the particles. When a process group is up, each rank takes its share of the batch. Particles know their number in the
population, ``Particles.index``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mfoc import tree
from mfoc.checks import check_flag, check_integer, check_signature, kind_of
from mfoc.distributed import share
from mfoc.errors import InvalidType, InvalidValue
from mfoc.particles import Particles, concatenated
from mfoc.seeding import mixed_seed, seeded
from mfoc.tree import Tree

Fetch = Callable[[Tensor, int], Particles]


class Population:
    """Batches of particles: ``population(n)`` is the batch of step n. Made by ``mfoc.population``.

    Attributes:
        size: number of particles, or None when they are drawn on demand.
        batch_size: particles in a batch, or None when they are drawn on demand.
        batches_per_epoch: batches after which every particle was seen equally often: those of one pass over the
            particles with shuffling; without, size / gcd(size, batch_size), several passes where batches do not fit.
    """

    size: int | None = None
    batch_size: int | None = None
    batches_per_epoch: int = 1

    def __call__(self, step: int) -> Particles:
        """This rank's share of the batch of step ``step``."""
        raise NotImplementedError

    def epoch(self) -> Iterator[Particles]:
        """Every particle once, in the order of the source (batch 0 when drawn on demand); the same on all ranks."""
        raise NotImplementedError

    def cloud(self) -> Particles:
        """Every particle once, as one cloud."""
        return concatenated(self.epoch())

    def fetch(self, index: Tensor, key: int) -> Particles:
        """The particles at these places of the source, for populations that are built on this one.

        Args:
            index: places, int64 ``[N]``.
            key: seed of what is drawn for them, as random crops are.

        Raises:
            InvalidValue: the particles of this population have no places: they are drawn on demand, say.
        """
        raise InvalidValue(f"the particles of {self!r} have no places to be taken from; expected a population of data")

    def __repr__(self) -> str:
        return f"{type(self).__name__.strip('_')}(size={self.size}, batch_size={self.batch_size})"


class _Drawn(Population):
    """Particles from a function of the step."""

    def __init__(self, draw: Callable[[int], Particles]) -> None:
        self._draw = draw

    def __call__(self, step: int) -> Particles:
        cloud = self._all(step)
        mine = share(torch.arange(len(cloud), device="cpu"))
        return cloud if len(mine) == len(cloud) else cloud[mine]

    def epoch(self) -> Iterator[Particles]:
        yield self._all(0)

    def _all(self, step: int) -> Particles:
        cloud = self._draw(step)
        if not isinstance(cloud, Particles):
            raise InvalidType(f"the population's function returned {kind_of(cloud)}; expected mfoc.Particles")
        return cloud


class _Stored(Population):
    """Particles that can be fetched by index: ``fetch(indices, key)``, key seeding whatever the fetch draws."""

    size: int
    batch_size: int

    def __init__(
        self, fetch: Fetch, size: int, batch_size: int | None, *, shuffle: bool, seed: int, drop_last: bool = False
    ) -> None:
        if size == 0:
            raise InvalidValue("source is empty; a population needs at least one particle")
        self.size, self.batch_size = size, size if batch_size is None else min(batch_size, size)
        self._fetch, self._seed = fetch, seed
        self._shuffle = shuffle and self.batch_size < size
        self._cyclic = not self._shuffle and not drop_last
        if self._cyclic:
            self.batches_per_epoch = size // math.gcd(size, self.batch_size)
        else:
            self.batches_per_epoch = size // self.batch_size if drop_last else -(-size // self.batch_size)
        least = (self._shuffle and not drop_last and size % self.batch_size) or self.batch_size
        share(torch.arange(least, device="cpu"))  # refuses batches too short to split
        self._order: tuple[int, Tensor] = (-1, torch.arange(size, device="cpu"))  # the permutation last made, a memo

    def __call__(self, step: int) -> Particles:
        check_integer(0, step=step)
        return self._fetch(share(self._batch(step)), mixed_seed(self._seed, step, 1))

    def fetch(self, index: Tensor, key: int) -> Particles:
        return self._fetch(index, key)

    def _batch(self, step: int) -> Tensor:
        """The particles of a step, of all ranks."""
        epoch, batch = divmod(step, self.batches_per_epoch)
        first = batch * self.batch_size
        if self._cyclic:
            return torch.arange(first, first + self.batch_size, device="cpu") % self.size
        if self._shuffle and self._order[0] != epoch:
            self._order = (epoch, shuffled(self.size, self._seed, epoch))
        return self._order[1][first : first + self.batch_size]

    def epoch(self) -> Iterator[Particles]:
        for batch, index in enumerate(torch.split(torch.arange(self.size, device="cpu"), self.batch_size)):
            yield self._fetch(index, mixed_seed(self._seed, batch, 2))


def shuffled(size: int, seed: int, epoch: int) -> Tensor:
    """The order in which an epoch visits the particles: a permutation, int64 ``[size]``, of (seed, epoch) alone."""
    generator = torch.Generator().manual_seed(mixed_seed(seed, epoch))
    return torch.randperm(size, generator=generator, device="cpu")


def population(source: Any, *, batch_size: int | None = None, shuffle: bool = True, seed: int = 0) -> Population:
    """Particles for ``solve`` and ``certify``, from whatever holds the data.

    Args:
        source: one of

            * a tensor or numpy array, the state cloud ``[N, ...]``;
            * a pair (x, z), state and data, of tensors, arrays or pytrees of them;
            * ``Particles``, for states that are pytrees;
            * a map-style ``Dataset`` of tensors, or of pairs (x, z), collated as a DataLoader would;
            * a ``DataLoader``: its dataset, batch size, collate function, ``drop_last`` and choice of shuffling are
              used; its workers and generator are not;
            * a function ``n -> Particles``, which must depend on nothing but n.

            uint8 states (images) become floats in [0, 1], integer class labels (1-D data) become int64.
        batch_size: particles in a batch; all of them when None.
        shuffle: a new order each epoch, a function of (seed, epoch); else batch n holds the particles from
            n * batch_size on, and those that are missing at the end from the beginning.
        seed: a non-negative integer.

    Returns:
        A function of the step index. Particles carry their ``index``: the place in the data, or in the draw.

    Raises:
        InvalidType: a source that is none of these.
        InvalidValue: an empty or ragged source, non-finite states, a bad batch size or seed.
    """
    if isinstance(source, Population):
        if batch_size is not None:
            raise InvalidValue("batch_size was given with a population, which has batches of its own")
        return source
    check_integer(0, seed=seed)
    check_flag(shuffle=shuffle)
    check_integer(1, batch_size=batch_size, optional=True)
    if isinstance(source, torch.utils.data.DataLoader):
        return _from_loader(source, batch_size, seed)
    if type(source) is torch.utils.data.TensorDataset:  # a subclass may have a __getitem__ of its own
        tensors = source.tensors
        if len(tensors) not in (1, 2):
            raise InvalidValue(f"the TensorDataset holds {len(tensors)} tensors; expected the state, or state and data")
        source = tensors[0] if len(tensors) == 1 else tensors
    if isinstance(source, Particles | Tensor | np.ndarray | tuple | list):
        cloud = _cloud(source)

        numbers = cloud.indices()

        def fetch(index: Tensor, _key: int) -> Particles:  # all of it, in order, is the cloud itself, not a copy
            if len(index) == len(cloud):
                return cloud
            data = None if cloud.data is None else tree.map(lambda leaf: leaf[index], cloud.data)
            return Particles(tree.map(lambda leaf: leaf[index], cloud.state), data, numbers[index])

        return _Stored(fetch, len(cloud), batch_size, shuffle=shuffle, seed=seed)
    if hasattr(source, "__getitem__") and hasattr(source, "__len__") and not isinstance(source, dict | str | bytes):
        collate = torch.utils.data.default_collate
        return _Stored(_collated(source, collate), len(source), batch_size, shuffle=shuffle, seed=seed)
    if callable(source):
        if batch_size is not None:
            raise InvalidValue("batch_size was given with a function; the function decides how many particles it draws")
        check_signature(("n",), population=source)
        return _Drawn(source)
    raise InvalidType(
        f"source is {kind_of(source)}; expected a tensor, a pair (x, z), mfoc.Particles, a map-style Dataset, "
        "a DataLoader or a function n -> mfoc.Particles"
    )


def as_particles(source: Any) -> Particles:
    """Particles as they are, or every particle of what ``population`` takes, as one cloud."""
    return source if isinstance(source, Particles) else population(source).cloud()


def _cloud(source: Any) -> Particles:
    """Particles from tensors or arrays, with images scaled and labels widened."""
    if isinstance(source, Particles):
        state, data, index = source.state, source.data, source.index
    elif isinstance(source, tuple | list):
        if len(source) != 2:
            raise InvalidValue(f"source is {kind_of(source)} of {len(source)}; {_of_many(source)}")
        (state, data), index = source, None
    else:
        state, data, index = source, None, None
    state = tree.map(lambda leaf: _image(_tensor(leaf, "state")), state)
    data = None if data is None else tree.map(lambda leaf: _label(_tensor(leaf, "data")), data)
    cloud = Particles(state, data, index)
    for name, leaf in tree.named_leaves(cloud.state, "state"):
        if leaf.is_floating_point() and not leaf.is_meta and not leaf.isfinite().all():
            bad = (~leaf.isfinite()).flatten(1).any(1) if leaf.dim() > 1 else ~leaf.isfinite()
            raise InvalidValue(f"{name} holds NaN or infinite values, first at particle {int(bad.nonzero()[0])}")
    return cloud


def _of_many(source: Any) -> str:
    """What to do with a list or tuple that is no pair (x, z)."""
    if all(isinstance(entry, int | float) for entry in source):
        return "numbers are made a cloud by torch.tensor(source)"
    if isinstance(source, list) and all(isinstance(entry, tuple | list) and len(entry) == 2 for entry in source):
        return "samples are stacked, (torch.stack([x for x, _ in source]), torch.stack([z for _, z in source]))"
    return "expected a pair (x, z) (use mfoc.Particles for a state that is itself a tuple)"


def _tensor(leaf: Any, name: str) -> Tensor:
    if isinstance(leaf, Tensor):
        return leaf.clone() if leaf.is_inference() else leaf  # those cannot be differentiated through
    if isinstance(leaf, np.ndarray):
        if leaf.dtype == object:
            raise InvalidValue(f"{name} is a ragged (object) array; every particle needs the same shape")
        if leaf.dtype.kind not in "biufc":
            raise InvalidType(f"{name} is an array of {leaf.dtype}; expected numbers")
        return torch.from_numpy(leaf.copy() if not leaf.flags.writeable or min(leaf.strides, default=0) < 0 else leaf)
    if isinstance(leaf, int | float | str):
        raise InvalidType(f"{name} holds {kind_of(leaf)}; expected tensors or arrays with leading axis N")
    raise InvalidType(f"{name} is {kind_of(leaf)}; expected a tensor or a numpy array")


def _image(leaf: Tensor) -> Tensor:
    return leaf.to(torch.get_default_dtype()) / 255 if leaf.dtype == torch.uint8 else leaf


def _label(leaf: Tensor) -> Tensor:
    narrow = leaf.dtype in (torch.uint8, torch.int8, torch.int16, torch.int32)
    return leaf.long() if narrow and leaf.dim() == 1 else leaf


def _collated(dataset: Any, collate: Callable[[list[Any]], Tree]) -> Fetch:
    """Fetches items one by one and collates them."""

    def fetch(index: Tensor, key: int) -> Particles:
        with seeded(key):
            rows = [dataset[i] for i in index.tolist()]
        try:
            batch = collate(rows)
        except (RuntimeError, ValueError, TypeError) as error:
            raise InvalidValue(f"the dataset's items do not collate into one batch (ragged?): {error}") from error
        if isinstance(batch, tuple | list):
            batch = batch[0] if len(batch) == 1 else tuple(batch)
        cloud = _cloud(batch)
        return Particles(cloud.state, cloud.data, index.to(tree.leaves(cloud.state)[0].device))

    return fetch


def _from_loader(loader: Any, batch_size: int | None, seed: int) -> Population:
    if batch_size is not None:
        raise InvalidValue("batch_size was given with a DataLoader; set it on the DataLoader")
    sampler = loader.sampler
    plain = isinstance(sampler, torch.utils.data.RandomSampler | torch.utils.data.SequentialSampler)
    plain &= not isinstance(loader.dataset, torch.utils.data.IterableDataset) and loader.batch_size is not None
    # Each particle once an epoch.
    if not plain or len(sampler) != len(loader.dataset) or getattr(sampler, "replacement", False):
        raise InvalidType(
            "this DataLoader has an iterable dataset or a sampler of its own, so batch n is no function of n; "
            "pass the dataset, or a function n -> mfoc.Particles"
        )
    return _Stored(
        _collated(loader.dataset, loader.collate_fn),
        len(loader.dataset),
        loader.batch_size,
        shuffle=isinstance(sampler, torch.utils.data.RandomSampler),
        seed=seed,
        drop_last=loader.drop_last,
    )
