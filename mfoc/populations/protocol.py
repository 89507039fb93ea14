"""What a population is, and the one that draws its particles on demand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mfoc.checks import kind_of
from mfoc.distributed import active, share
from mfoc.errors import InvalidType, InvalidValue
from mfoc.particles import Particles, concatenated

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

    @property
    def runs_user_code(self) -> bool:
        """Whether a user's code makes the batches, so that nobody knows that batch n is a function of n.

        A population of tensors or mapped files says False: to draw a batch again, and compare, would be in vain.
        """
        return True

    def again(self, step: int) -> Particles:
        """The batch of step ``step``, made once more where a user's code makes it, whatever is kept."""
        return self(step)

    def described(self) -> dict[str, Any]:
        """What decides which particles a step sees, as plain values: of two runs, or two ranks, these are compared."""
        return {"type": type(self).__name__.strip("_"), "size": self.size, "batch_size": self.batch_size}

    def close(self) -> None:
        """Ends what fetches batches ahead, if anything does; a batch that is asked for later begins it again."""

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
            InvalidValue: the particles of this population have no places: they are drawn on demand, or read one after
                another.
        """
        raise InvalidValue(f"the particles of {self!r} have no places to be taken from; expected a population of data")

    def __repr__(self) -> str:
        return f"{type(self).__name__.strip('_')}(size={self.size}, batch_size={self.batch_size})"


class Drawn(Population):
    """Particles from a function of the step."""

    def __init__(self, draw: Callable[[int], Particles]) -> None:
        self._draw = draw

    def __call__(self, step: int) -> Particles:
        return shared(self._all(step))

    def epoch(self) -> Iterator[Particles]:
        yield self._all(0)

    def described(self) -> dict[str, Any]:
        return {"type": "function", "size": None, "batch_size": None}

    def _all(self, step: int) -> Particles:
        cloud = self._draw(step)
        if not isinstance(cloud, Particles):
            raise InvalidType(f"the population's function returned {kind_of(cloud)}; expected mfoc.Particles")
        return cloud


def shared(cloud: Particles) -> Particles:
    """This rank's share of a cloud, whose particles know their numbers where there are ranks."""
    if not active():
        return cloud
    mine = share(torch.arange(len(cloud), device="cpu"))
    return replace(cloud, index=cloud.indices()) if len(mine) == len(cloud) else cloud[mine]
