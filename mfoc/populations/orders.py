"""Which particles a step sees, as a function of (seed, step)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mfoc.seeding import mixed_seed

_KEPT = 2  # orders: of the epochs on both sides of a boundary, across which a solve looks back


def shuffled(size: int, seed: int, epoch: int) -> Tensor:
    """The order in which an epoch visits the particles: a permutation, int64 ``[size]``, of (seed, epoch) alone."""
    generator = torch.Generator().manual_seed(mixed_seed(seed, epoch))
    return torch.randperm(size, generator=generator, device="cpu")


class Order:
    """The places of each step's particles: a new permutation an epoch, or on and on through the source.

    Permutations are those of the CPU's generator, wherever the data are. They are moved there once an epoch.

    Args:
        size: number of particles.
        batch_size: particles in a batch, at most ``size``.
        shuffle: a permutation for each epoch.
        seed: a non-negative integer.
        drop_last: leave out a last batch that is not full, instead of a short one or one that begins anew.
        device: where the places are used.
    """

    def __init__(
        self, size: int, batch_size: int, *, shuffle: bool, seed: int, drop_last: bool, device: torch.device
    ) -> None:
        self._size, self._batch, self._seed, self._device = size, batch_size, seed, device
        self._shuffle = shuffle and batch_size < size
        self._cyclic = not self._shuffle and not drop_last
        if self._cyclic:
            self.batches_per_epoch = size // math.gcd(size, batch_size)
        else:
            self.batches_per_epoch = size // batch_size if drop_last else -(-size // batch_size)
        self.least = (self._shuffle and not drop_last and size % batch_size) or batch_size  # particles in a batch
        # A memo, the last used first. It is replaced as a whole: threads that meet here see one or the other.
        self._made: tuple[tuple[int, Tensor], ...] = ()

    def __call__(self, step: int) -> Tensor:
        """The places of the particles of a step, int64 ``[N]``, those of all ranks."""
        epoch, batch = divmod(step, self.batches_per_epoch)
        first = batch * self._batch
        if self._shuffle:
            return self._permutation(epoch)[first : first + self._batch]
        first %= self._size
        places = torch.arange(first, first + self._batch, device=self._device)
        return places if first + self._batch <= self._size else places % self._size

    def _permutation(self, epoch: int) -> Tensor:
        kept = self._made
        if kept and kept[0][0] == epoch:
            return kept[0][1]
        made = next((order for known, order in kept if known == epoch), None)
        if made is None:
            made = shuffled(self._size, self._seed, epoch).to(self._device)
        self._made = ((epoch, made), *(entry for entry in kept if entry[0] != epoch))[:_KEPT]
        return made
