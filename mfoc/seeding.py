"""Seeds: unrelated random streams from a few integers, and global generators seeded for the length of a block."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def mixed_seed(*parts: int) -> int:
    """One 63-bit seed from several integers, well mixed (seeds 0, 1, 2, ... give unrelated streams)."""
    return int(np.random.SeedSequence(parts).generate_state(2, np.uint64)[0] >> np.uint64(1))


@contextmanager
def seeded(key: int) -> Iterator[None]:
    """Random transforms draw from global generators: seeded for the length of the block, then put back."""
    kept, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        try:
            torch.default_generator.manual_seed(key)
            random.seed(key)
            np.random.seed(key % 2**32)  # noqa: NPY002
            yield
        finally:
            random.setstate(kept)
            np.random.set_state(legacy)  # noqa: NPY002
