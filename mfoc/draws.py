"""Random draws: global generators watched, and calls asked whether they draw.

The global generators are those of torch (the CPU's and of GPUs), NumPy's and Python's own. Other threads draw from
them, too: that a state has moved during a call is a reason to ask (``watched``), no proof (``draws``).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

_TRIES = 5
_REST = 0.01  # seconds


def watched() -> Callable[[], bool]:
    """Watches the global generators; what it returns says whether they have been drawn from since.

    Whoever draws: this thread or another. One in the user's hands cannot be watched: what draws from it gives another
    value each time.
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


def draws(call: Callable[[], object], vote: Callable[[bool], bool] = bool) -> bool:
    """Whether a call draws from the global generators, itself and not another thread. It is called up to five times.

    A call during which no state moves has not drawn. Of torch's draws this thread's are seen as they are made. Of
    others it is known by whether the states move while the thread does nothing.

    Args:
        call: what is asked about; it may be called again.
        vote: whether something is true on any rank, where a call waits for the other ranks: they call as often.
    """
    always, seen, began = True, 0, time.perf_counter()
    for _ in range(_TRIES):
        drawn, sight = watched(), _Sight()
        with sight:
            call()
        moved = drawn()
        if not vote(moved):
            return False
        always, seen = always and moved, seen + sight.drawn
    rest = max(_REST, time.perf_counter() - began)
    return vote(always and (seen == _TRIES or not _restless(rest)))


def _restless(seconds: float) -> bool:
    """Whether other threads draw from the global generators, seen while this one waits."""
    drawn = watched()
    time.sleep(min(seconds, 1.0))
    return drawn()


class _Sight(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees the operations of this thread that draw from a generator which they were not given."""

    supports_higher_order_operators = True  # they are called as they are

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """To keep the compiler out of it would import it, which takes seconds."""
        return False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.drawn = False

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in getattr(func, "tags", ()) or _has_generator(args, given):
            return func(*args, **given)
        moved = watched()  # not all of them draw: attention without dropout does not
        found = func(*args, **given)
        self.drawn |= moved()
        return found


def _has_generator(args: Any, kwargs: Any) -> bool:
    return any(isinstance(each, torch.Generator) for each in (*args, *kwargs.values()))
