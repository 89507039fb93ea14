"""Seeds: unrelated random streams from a few integers, global generators seeded for a while, or watched."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

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
    """Watches the global generators; what it returns says whether they have been drawn from since.

    These are torch's (the CPU's and those of GPUs), NumPy's and Python's own. One in the user's hands cannot be
    watched: what draws from it gives another value each time.
    """
    before = _states()

    def drawn() -> bool:
        now = _states()
        return any(_moved(before.get(name), state) for name, state in now.items())

    return drawn


def _states() -> dict[str, Any]:
    """The state of each global generator there is now: those of a GPU appear when it is first used."""
    numpy: Any = np.random.get_state(legacy=False)  # noqa: NPY002
    words = {key: value.tobytes() if isinstance(value, np.ndarray) else value for key, value in numpy["state"].items()}
    states: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": (words, numpy["has_gauss"], numpy["gauss"]),
    }
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        states |= {f"cuda:{k}": state for k, state in enumerate(torch.cuda.get_rng_state_all())}
    if torch.backends.mps.is_available():
        states["mps"] = torch.mps.get_rng_state()
    return states


def _moved(before: Any, now: Any) -> bool:
    """Whether a generator has drawn since; one that has just appeared, whether it has drawn at all."""
    if before is None:  # a GPU's Philox generator: eight bytes of seed, eight of how far it has come
        return len(now) != 16 or bool(now[8:].any())
    return not torch.equal(before, now) if isinstance(now, torch.Tensor) else before != now
