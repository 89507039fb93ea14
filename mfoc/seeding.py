"""Seeds: unrelated random streams from a few integers, global generators seeded for a while, or watched."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch


def mixed_seed(*parts: int) -> int:
    """One 63-bit seed from several integers, well mixed (seeds 0, 1, 2, ... give unrelated streams)."""
    return int(np.random.SeedSequence(parts).generate_state(2, np.uint64)[0] >> np.uint64(1))


@contextmanager
def seeded(key: int, device: torch.device | None = None) -> Iterator[None]:
    """Random transforms draw from global generators: seeded for the length of the block, then put back.

    Args:
        key: the seed.
        device: a GPU whose generator is seeded and put back as well.
    """
    kept, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002
    gpus = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        try:
            torch.default_generator.manual_seed(key)
            for gpu in gpus:
                with torch.cuda.device(gpu):
                    torch.cuda.manual_seed(key)
            random.seed(key)
            np.random.seed(key % 2**32)  # noqa: NPY002
            yield
        finally:
            random.setstate(kept)
            np.random.set_state(legacy)  # noqa: NPY002


def watched() -> Callable[[], bool]:
    """Watches torch's global generators; what it returns says whether they have been drawn from since."""
    before = _states()
    return lambda: any(not torch.equal(a, b) for a, b in zip(before, _states(), strict=False))


def _states() -> list[torch.Tensor]:
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    return [torch.get_rng_state(), *gpus]
