"""Which particles a step sees when the size of the batches changes along a run."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import torch
from torch import Tensor

from mfoc.populations import shuffled


class Orders:
    """Batches that run through one permutation of the particles after another, whatever their sizes.

    After any number of steps every particle was seen equally often, up to one. Every batch has the size of the
    schedule, and none holds a particle twice: one that begins in an epoch and ends in the next takes from the next
    first those that it does not hold yet. A pure function of the step, given the schedule.

    Args:
        size: number of particles.
        schedule: (step, batch size) from step 0 on, both increasing; sizes up to half the particles, or all of them.
        shuffle: a permutation an epoch, of (seed, epoch); else the order of the source.
        seed: a non-negative integer.
    """

    def __init__(self, size: int, schedule: Sequence[tuple[int, int]], *, shuffle: bool, seed: int) -> None:
        self._size, self._shuffle, self._seed = size, shuffle, seed
        self._steps, self._sizes, self._offsets = [0], [schedule[0][1]], [0]
        for step, batch in schedule[1:]:
            self.change(step, batch)
        self._orders: dict[int, Tensor] = {}  # of this epoch and the next, a memo

    def change(self, step: int, batch: int) -> None:
        """Batches of size ``batch`` from ``step`` on, later than any change so far."""
        self._offsets.append(self._offsets[-1] + (step - self._steps[-1]) * self._sizes[-1])
        self._steps.append(step)
        self._sizes.append(batch)
        self._orders = {}

    def __call__(self, step: int) -> Tensor:
        """The places of the particles of a step, int64 ``[batch size]``."""
        k = bisect_right(self._steps, step) - 1
        batch = self._sizes[k]
        if batch == self._size:  # all of them need no order, and are fetched without a copy
            return torch.arange(self._size, device="cpu")
        epoch, first = divmod(self._offsets[k] + (step - self._steps[k]) * batch, self._size)
        self._orders = {e: order for e, order in self._orders.items() if e >= epoch}
        mine = self._order(epoch)[first : first + batch]
        return mine if len(mine) == batch else torch.cat([mine, self._order(epoch + 1)[: batch - len(mine)]])

    def _order(self, epoch: int) -> Tensor:
        """The order of an epoch, from which the batch that crosses into it takes no particle that it already holds."""
        orders = self._orders  # read once: another thread may replace it
        if (order := orders.get(epoch)) is None:
            order = self._apart(epoch)
            self._orders = {**orders, epoch: order}
        return order

    def _apart(self, epoch: int) -> Tensor:
        order, begin = self._permutation(epoch), epoch * self._size
        k = bisect_right(self._offsets, begin) - 1
        batch = self._sizes[k]
        held = (begin - self._offsets[k]) % batch
        if held == 0:
            return order
        # What follows moves only the first ``batch`` places of an epoch, and asks for the last ``held`` of the one
        # before: as a batch is at most half of the particles, those were not moved themselves.
        before = self._permutation(epoch - 1)[self._size - held :]
        new = ~torch.isin(order, before)
        new &= new.cumsum(0) <= batch - held
        return torch.cat([order[new], order[~new]])

    def _permutation(self, epoch: int) -> Tensor:
        if self._shuffle:
            return shuffled(self._size, self._seed, epoch)
        return torch.arange(self._size, device="cpu")
