"""Flags of the whole process, switched for a while by several threads at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager


class Shared:
    """A context manager that the first thread enters and the last one leaves.

    Where each saves a flag, switches it and puts it back, one that comes second saves what the first has switched, and
    may put it back last: for good.

    Args:
        make: makes the context manager.
    """

    def __init__(self, make: Callable[[], AbstractContextManager[object]]) -> None:
        self._make, self._lock, self._within = make, threading.Lock(), 0
        self._entered: AbstractContextManager[object] | None = None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Within it the flag is switched, whoever else is within it."""
        with self._lock:
            if self._within == 0:
                self._entered = self._make()
                self._entered.__enter__()
            self._within += 1
        try:
            yield
        finally:
            with self._lock:
                self._within -= 1
                if self._within == 0 and self._entered is not None:
                    self._entered.__exit__(None, None, None)
