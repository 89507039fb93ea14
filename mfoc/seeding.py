"""Seeds: unrelated random streams from a few integers, and global generators seeded for a while.

The global generators belong to all threads of a process. Those that seed them take turns (``turn``): what is drawn
within ``seeded`` is then a function of its seed, whatever other threads do by ``seeded`` at the same time.
"""

from __future__ import annotations

import ctypes
import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch

_legacy: Any = np.random  # whose stubs do not know that its generator can be replaced
_turns = [threading.RLock()]  # one for the process; in a list, as a forked process gets another


def turn() -> AbstractContextManager[Any]:
    """The lock of whoever seeds the global generators, or reads a source whose items may draw from them.

    There is one for both: two locks would be taken in either order, by a dataset that reads a population, say.
    """
    return _turns[0]


def _renew() -> None:
    """In a forked process: the thread that had its turn may not be there to end it."""
    if _turns[0].acquire(blocking=False):
        _turns[0].release()
    else:
        _turns[0] = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


def mixed_seed(*parts: int) -> int:
    """One 63-bit seed from several integers, well mixed (seeds 0, 1, 2, ... give unrelated streams)."""
    if min(parts) < 0:
        np.random.SeedSequence(parts)  # says what is wrong
    words = []
    for part in parts:  # as SeedSequence itself would cut them, which takes it twice as long
        words.append(part & 0xFFFFFFFF)
        while part := part >> 32:
            words.append(part & 0xFFFFFFFF)
    low, high = np.random.SeedSequence(np.array(words, dtype=np.uint32)).generate_state(2).tolist()
    return int((low | high << 32) >> 1)


@contextmanager
def seeded(key: int, device: torch.device | None = None) -> Iterator[None]:
    """Random transforms draw from global generators: seeded for the length of the block, then put back.

    Blocks of several threads wait for one another. What a thread draws outside of such blocks can still come between.

    Args:
        key: the seed.
        device: a GPU whose generator is seeded and put back as well.
    """
    with turn():
        yield from _seeded(key, device)


def _seeded(key: int, device: torch.device | None) -> Iterator[None]:
    gpu = device if device is not None and device.type == "cuda" else None
    # Not by ``torch.random.fork_rng``, which takes five times as long: this runs once a batch.
    torch_state, python_state = torch.default_generator.get_state(), random.getstate()
    restore_numpy = _numpy_kept()
    gpu_state = None if gpu is None else torch.cuda.get_rng_state(gpu)
    try:
        torch.default_generator.manual_seed(key)
        if gpu is not None:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(key)
        random.seed(key)
        np.random.seed(key % 2**32)  # noqa: NPY002
        yield
    finally:
        torch.default_generator.set_state(torch_state)
        if gpu is not None and gpu_state is not None:
            torch.cuda.set_rng_state(gpu_state, gpu)
        random.setstate(python_state)
        restore_numpy()


def _numpy_kept() -> Callable[[], None]:
    """Keeps the state of NumPy's global generator, which must be seeded then; what it returns puts it back.

    ``get_state`` and ``set_state`` take 100 microseconds together, more than a small batch does: they go through 624
    words one by one. Copied as they lie in memory, these take one.
    """
    own = _legacy.get_bit_generator()
    if not isinstance(own, np.random.MT19937) or not _lies_as_expected():
        return _numpy_kept_slowly(own)
    words = _memory(own)
    before = words.raw
    # Normal numbers are made in pairs. One that is left over is given without a word being drawn.
    first = np.random.standard_normal()  # noqa: NPY002
    left = first if words.raw == before else None

    def restore() -> None:
        _legacy.set_bit_generator(own)  # so nothing is left over
        ctypes.memmove(words, before, len(before))
        if left is not None:
            state: Any = np.random.get_state(legacy=False)  # noqa: NPY002
            np.random.set_state({**state, "has_gauss": 1, "gauss": left})  # noqa: NPY002

    return restore


def _numpy_kept_slowly(own: Any) -> Callable[[], None]:
    """The same by the public doors; one that cannot be seeded as of old makes room for one that can."""
    state: Any = np.random.get_state(legacy=False)  # noqa: NPY002
    if not isinstance(own, np.random.MT19937):
        _legacy.set_bit_generator(np.random.MT19937())

    def restore() -> None:
        _legacy.set_bit_generator(own)
        np.random.set_state(state)  # noqa: NPY002

    return restore


def _memory(generator: np.random.MT19937) -> Any:
    """The state of a Mersenne twister where it lies: 624 words, and how many of them are used up."""
    return _WORDS.from_address(generator.ctypes.state_address)


_WORDS = ctypes.c_char * (4 * 625)


@cache
def _lies_as_expected() -> bool:
    """Whether NumPy keeps a Mersenne twister as it does today, and as ``_memory`` reads it."""
    one = np.random.MT19937(1)
    one.random_raw(3)
    state: Any = one.state["state"]
    return bool(_memory(one).raw == state["key"].tobytes() + np.int32(state["pos"]).tobytes())
