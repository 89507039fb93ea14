"""Populations whose particles have a place each, from which they can be taken in any order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from mfoc.checks import check_integer
from mfoc.distributed import active, share
from mfoc.errors import InvalidValue
from mfoc.particles import Particles
from mfoc.populations.orders import Order
from mfoc.populations.protocol import Population
from mfoc.seeding import mixed_seed

Key = Callable[[], int]  # a seed, which takes as long to mix as a small batch to take: mixed where something may draw


_KEYS = 16


class Keys:
    """The seed of each step, mixed_seed(seed, step, 1), or of each block.

    They are mixed by the dozen: alone, between batches, each takes five times as long.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._mixed: tuple[int, list[int]] = (
            -1,
            [],
        )  # those of some steps from the first on, a memo, replaced as a whole

    def __call__(self, step: int) -> int:
        first = step - step % _KEYS
        mixed = self._mixed  # read once: another thread may replace it
        if mixed[0] != first:
            mixed = self._mixed = first, [mixed_seed(self._seed, first + k, 1) for k in range(_KEYS)]
        return mixed[1][step - first]


class Source(Protocol):
    """Where particles are taken from.

    Attributes:
        device: where it wants the places to be.
        runs_user_code: whether a user's code makes the particles.
    """

    device: torch.device
    runs_user_code: bool

    def __len__(self) -> int:
        """The number of particles."""

    def __call__(self, index: Tensor, key: Key, /) -> Particles:
        """The particles at these places, int64 ``[N]``; ``key()`` seeds whatever is drawn for them."""

    def whole(self) -> Particles | None:
        """All of them in order, where they are at hand and need not be taken."""


class Stored(Population):
    """Particles that are taken from a source by their places."""

    size: int
    batch_size: int

    def __init__(
        self, source: Source, batch_size: int | None, *, shuffle: bool, seed: int, drop_last: bool = False
    ) -> None:
        size = len(source)
        if size == 0:
            raise InvalidValue("source is empty; a population needs at least one particle")
        self.size, self.batch_size = size, size if batch_size is None else min(batch_size, size)
        self._source, self._seed, self._drop_last = source, seed, drop_last
        self._shuffle = shuffle and self.batch_size < size
        self._order = Order(
            size, self.batch_size, shuffle=shuffle, seed=seed, drop_last=drop_last, device=source.device
        )
        self.batches_per_epoch = self._order.batches_per_epoch
        self._key = Keys(seed)

    @property
    def runs_user_code(self) -> bool:
        return self._source.runs_user_code

    def described(self) -> dict[str, Any]:
        return {
            "type": "data",
            "size": self.size,
            "batch_size": self.batch_size,
            "shuffle": self._shuffle,
            "seed": self._seed if self._shuffle or self.runs_user_code else None,  # elsewhere nothing is drawn
            "drop_last": self._drop_last,
        }

    def __call__(self, step: int) -> Particles:
        check_integer(0, step=step)
        if self.batch_size == self.size and not active() and (cloud := self._source.whole()) is not None:
            return cloud
        return self._source(share(self._order(step)), lambda: self._key(step))

    def fetch(self, index: Tensor, key: int) -> Particles:
        cloud = self._source.whole() if len(index) == self.size else None
        if cloud is not None and torch.equal(index, torch.arange(self.size, device=index.device)):
            return cloud
        return self._source(index.to(self._source.device), lambda: key)

    def epoch(self) -> Iterator[Particles]:
        if self.batch_size == self.size and (cloud := self._source.whole()) is not None:
            yield cloud
            return
        places = torch.arange(self.size, device=self._source.device)
        for batch, index in enumerate(torch.split(places, self.batch_size)):
            yield self._source(index, lambda batch=batch: mixed_seed(self._seed, batch, 2))  # type: ignore[misc]
