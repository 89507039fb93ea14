"""Particles that can only be read one after another: iterables with a length."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from mfoc import tree
from mfoc.checks import check_integer, kind_of
from mfoc.errors import InvalidType, InvalidValue
from mfoc.particles import Particles
from mfoc.populations.datasets import Collate, collated
from mfoc.populations.protocol import Population, shared
from mfoc.populations.stored import Keys
from mfoc.seeding import mixed_seed, seeded, turn

_BLOCKS, _BYTES = 64, 1 << 26  # what was read last is kept: a solve looks back by tens of steps
_END = object()


class Streamed(Population):
    """Batches of an iterable that gives the same items each time it is iterated, in its order.

    The same batches as those of a list of its items without shuffling. Steps that follow one another read on; a step
    further back than what is kept (64 batches, or as many as fit 64 MiB) begins again, and reads up to there.
    """

    size: int
    batch_size: int

    def __init__(
        self, source: Any, batch_size: int | None, collate: Collate, *, seed: int, drop_last: bool = False
    ) -> None:
        if isinstance(source, Iterator):
            raise InvalidType(
                f"source is {kind_of(source)}, which runs dry; expected what can be iterated from the beginning again"
            )
        self.size = length(source)
        self.batch_size = self.size if batch_size is None else min(batch_size, self.size)
        self._used = self.size - self.size % self.batch_size if drop_last else self.size
        self.batches_per_epoch = self._used // math.gcd(self._used, self.batch_size)
        self._source, self._collate, self._seed = source, collate, seed
        self._blocks = self._reader()
        self._kept: dict[int, Particles] = {}  # batches by their first place, the last read last

    def _reader(self) -> _Blocks:
        return _Blocks(self._source, self.size, self.batch_size, self._collate, self._seed)

    def __call__(self, step: int) -> Particles:
        check_integer(0, step=step)
        first = step * self.batch_size % self._used
        with turn():  # one thread at a time moves the iterator
            if first not in self._kept:
                self._keep(first, self._read(first, self._blocks))
            return shared(self._kept[first])

    def again(self, step: int) -> Particles:
        """See ``Population``; far from the beginning what is kept, as it would take a pass up to there."""
        first = step * self.batch_size % self._used
        if first >= _BLOCKS * self.batch_size:
            return self(step)
        with turn():
            return shared(self._read(first, self._reader()))

    def described(self) -> dict[str, Any]:
        return {
            "type": "iterable",
            "size": self.size,
            "batch_size": self.batch_size,
            "seed": self._seed,
            "drop_last": self._used < self.size,
        }

    def _read(self, first: int, blocks: _Blocks) -> Particles:
        rows: list[Any] = []
        place = first
        while wanted := self.batch_size - len(rows):
            block, skip = divmod(place, self.batch_size)
            found = blocks(block)[skip : skip + min(wanted, self._used - place)]
            rows += found
            place = (place + len(found)) % self._used
        places = torch.arange(first, first + self.batch_size, device="cpu")
        return blocks.cloud(rows, places if place == first + len(rows) else places % self._used, first)

    def _keep(self, first: int, cloud: Particles) -> None:
        room = min(_BLOCKS, max(2, _BYTES // _bytes(cloud)))
        for old in list(self._kept)[: max(0, len(self._kept) + 1 - room)]:
            del self._kept[old]
        self._kept[first] = cloud

    def epoch(self) -> Iterator[Particles]:
        blocks = self._reader()  # the batches of a solve go on where they were
        for first in range(0, self.size, self.batch_size):
            rows = blocks(first // self.batch_size)
            yield blocks.cloud(rows, torch.arange(first, first + len(rows), device="cpu"), first)


class _Blocks:
    """The items of a pass, in blocks: block k holds the items from k * count on.

    Each block is read with the global generators seeded by its number: what an iterable draws from them, as a buffer
    that shuffles does, is then the same in each pass. Only the block that was read last is at hand.
    """

    def __init__(self, source: Any, size: int, count: int, collate: Collate, seed: int) -> None:
        self._source, self._size, self._count = source, size, count
        self._collate, self._seed, self._key = collate, seed, Keys(seed)
        self._iterator: Iterator[Any] | None = None
        self._last, self._rows = -1, list[Any]()  # the block that was read last
        self._first: Particles | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Iterators are neither copied nor pickled: a copy begins again."""
        return {**vars(self), "_iterator": None, "_rows": []}

    def __call__(self, block: int) -> list[Any]:
        if block < self._last:
            self._iterator = None
        while self._iterator is None or self._last != block:
            self._read(0 if self._iterator is None else self._last + 1)
        return self._rows

    def cloud(self, rows: list[Any], places: Tensor, first: int) -> Particles:
        """Items as particles; what their collation draws, as one that mixes images does, depends on where they are."""
        if self._collate is default_collate:  # which draws nothing
            return collated(rows, self._collate, places)
        with seeded(mixed_seed(self._seed, first, 3)):
            return collated(rows, self._collate, places)

    def _read(self, block: int) -> None:
        first = block * self._count
        count = min(self._count, self._size - first)
        with seeded(self._key(block)):
            iterator = iter(self._source) if self._iterator is None else self._iterator
            self._iterator = None  # what fails is begun anew
            rows = list(islice(iterator, count))
            more = first + count == self._size and next(iterator, _END) is not _END
        if len(rows) < count or more:
            given = "more" if more else first + len(rows)
            raise InvalidValue(f"source gave {given} items; its length, len(source), says {self._size}")
        if block == 0:
            self._check_same(self.cloud(rows, torch.arange(count, device="cpu"), 0))
        self._iterator, self._last, self._rows = iterator, block, rows

    def _check_same(self, cloud: Particles) -> None:
        """Refuses an iterable whose first block is another one than it was."""
        if self._first is None:
            self._first = cloud
        before, now = ([leaf.cpu() for leaf in _leaves(c)] for c in (self._first, cloud))
        if len(before) != len(now) or not all(map(_equal, before, now)):
            raise InvalidValue(
                "source gives other items each time it is iterated, so that batch n is no function of n; shuffle by "
                "torch's, NumPy's or Python's global generator (seeded here), or pass a function n -> mfoc.Particles"
            )


def length(source: Any) -> int:
    """The number of items of an iterable.

    Raises:
        InvalidType: it does not say.
        InvalidValue: it has none.
    """
    try:
        size = len(source)
    except (TypeError, NotImplementedError) as error:
        raise InvalidType(
            f"source is {kind_of(source)}, an iterable dataset without a length; give it __len__, the number of its "
            "items, or pass a function n -> mfoc.Particles"
        ) from error
    if size == 0:
        raise InvalidValue("source is empty; a population needs at least one particle")
    return size


def _bytes(cloud: Particles) -> int:
    return 1 + sum(leaf.numel() * leaf.element_size() for leaf in _leaves(cloud))


def _leaves(cloud: Particles) -> list[torch.Tensor]:
    return tree.leaves(cloud.state) + (tree.leaves(cloud.data) if cloud.data is not None else [])


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and bool(torch.equal(one.nan_to_num(), other.nan_to_num()))
