"""Which of the processes of a group this one is, and how many there are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import torch.distributed as dist

_AVAILABLE = dist.is_available()  # of this build of torch; it is asked several times a step
_ALONE: ContextVar[bool] = ContextVar("alone", default=False)


def world_size() -> int:
    """The number of ranks; 1 without a process group, or within ``alone``."""
    return int(dist.get_world_size()) if _AVAILABLE and dist.is_initialized() and not _ALONE.get() else 1


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Within, this process counts as the only one: for what every rank computes by itself, on all the particles.

    The numbers are then those of one process to the bit, and no rank waits for another.
    """
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def active() -> bool:
    """Whether a process group of more than one rank is up."""
    return world_size() > 1


def rank() -> int:
    """This process's number among the ranks; 0 without a process group."""
    return dist.get_rank() if active() else 0


def is_main() -> bool:
    """Whether this process is the one that writes files and shows progress."""
    return not (_AVAILABLE and dist.is_initialized()) or dist.get_rank() == 0  # within ``alone``, too
