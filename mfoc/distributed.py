"""Expectations over a population that may be split over processes.

Every mean over particles goes through ``expectation``: one all-reduce of one flat buffer, whatever is averaged.
Without a process group it returns what it was given.

This is below the public doors: it does not check its arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mfoc.errors import InvalidValue
from mfoc.tree import leaves, pieces

_AVAILABLE = dist.is_available()  # of this build of torch; it is asked several times a step


def world_size() -> int:
    """The number of ranks; 1 without a process group."""
    return int(dist.get_world_size()) if _AVAILABLE and dist.is_initialized() else 1


def active() -> bool:
    """Whether a process group of more than one rank is up."""
    return world_size() > 1


def rank() -> int:
    """This process's number among the ranks; 0 without a process group."""
    return dist.get_rank() if active() else 0


def is_main() -> bool:
    """Whether this process is the one that writes files and shows progress."""
    return rank() == 0


def share(index: Tensor) -> Tensor:
    """This rank's part of the particles of a batch.

    Args:
        index: particle indices of the whole batch ``[N]``.

    Raises:
        InvalidValue: fewer particles than ranks.
    """
    if not active():
        return index
    ranks = world_size()
    if len(index) < ranks:
        raise InvalidValue(f"a batch of {len(index)} particles cannot be split over {ranks} ranks; use larger batches")
    return index[rank() :: ranks]


def expectation(means: Sequence[Tensor], particles: int) -> list[Tensor]:
    """Population means of tensors that are means over this rank's particles.

    Args:
        means: tensors of any shapes, each already averaged over the local particles.
        particles: number of local particles, the weight of this rank.

    Returns:
        The means over the particles of all ranks, in the shapes given.
    """
    if not active():
        return list(means)
    # Half precision cannot hold the number of particles, nor their sum.
    wide = reduce(torch.promote_types, (mean.dtype for mean in means), torch.float32)
    flat = torch.cat([mean.detach().reshape(-1).to(wide) for mean in means])
    buffer = torch.cat([flat * particles, flat.new_tensor([particles])])
    dist.all_reduce(buffer)
    found = pieces(buffer[:-1] / buffer[-1], means)
    return [piece.to(mean.dtype) for piece, mean in zip(found, means, strict=True)]


def gathered(rows: Tensor) -> Tensor:
    """The rows of all ranks ``[B, ...]``, in the order from which ``share`` takes them.

    Args:
        rows: this rank's ``[N, ...]``.
    """
    if not active():
        return rows
    ranks, own = world_size(), rank()
    counts = torch.zeros(ranks, dtype=torch.int64, device=rows.device)
    counts[own] = len(rows)
    dist.all_reduce(counts)
    most = int(counts.max())
    whole = rows.new_zeros(most, ranks, *rows.shape[1:])
    whole[: len(rows), own] = rows
    dist.all_reduce(whole)
    last = max((count - 1) * ranks + r for r, count in enumerate(counts.tolist()))
    return whole.flatten(0, 1)[: last + 1]


def any_rank(flag: object, like: Any) -> bool:
    """Whether the flag is true on any rank, so that all of them stop together.

    Args:
        flag: this rank's; its truth counts.
        like: a tree with a tensor on this rank's device.
    """
    if not active():
        return bool(flag)
    device = leaves(like)[0].device
    vote = torch.tensor([int(bool(flag))], device=device)
    dist.all_reduce(vote, op=dist.ReduceOp.MAX)
    return bool(vote.item())
