"""A batch that lies split over ranks, put together again."""

from __future__ import annotations

import torch
from torch import Tensor

from mfoc import tree
from mfoc.distributed import active, gathered, world_size
from mfoc.particles import Particles


def copied(cloud: Particles) -> bool:
    """Whether every rank holds the same particles: all of a batch that has fewer than there are ranks.

    Every rank must ask.
    """
    if not active():
        return False
    index = cloud.indices()
    mine = torch.stack([torch.ones_like(index), index], 1)
    counted = gathered(mine)
    ranks, n = world_size(), len(index)
    if cloud.index is None or len(counted) != ranks * n or n >= ranks:
        return False
    rows = counted.reshape(n, ranks, 2)
    return bool((rows == rows[:, :1]).all())


def whole(cloud: Particles) -> Particles:
    """The particles of all ranks, in the order from which they were shared: every rank must ask.

    Args:
        cloud: this rank's share of a batch.
    """
    if not active() or copied(cloud):
        return cloud
    index = cloud.indices()
    there = gathered(torch.ones_like(index)) == 1  # ranks may hold more or fewer than an even share

    def join(leaf: Tensor) -> Tensor:
        rows = gathered(leaf.to(torch.uint8)).bool() if leaf.dtype == torch.bool else gathered(leaf)
        return rows[there[: len(rows)]]

    data = None if cloud.data is None else tree.map(join, cloud.data)
    return Particles(tree.map(join, cloud.state), data, join(index))
