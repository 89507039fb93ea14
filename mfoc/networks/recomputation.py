"""Activation checkpointing with reentry, of modules that are differentiated by ``torch.autograd.grad``.

``torch.utils.checkpoint`` with ``use_reentrant=True`` runs a backward pass in a backward pass, which only
``.backward()`` allows, and only where an input requires grad; without reentry it gives the same numbers, and
derivatives of any order. Here the calls that a module makes are turned into such ones.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch.utils import checkpoint as torch_checkpoint

_turned = ContextVar("turned", default=False)
_installing = threading.Lock()


@contextmanager
def without_reentry() -> Iterator[None]:
    """Within, ``torch.utils.checkpoint`` never reenters; what it does elsewhere, and in other threads, is its own."""
    _install()
    token = _turned.set(True)
    try:
        yield
    finally:
        _turned.reset(token)


class _Turned:
    """Stands in for the function of torch that reenters."""

    def __init__(self, own: Any) -> None:
        self._own = own

    def apply(self, function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        """The checkpointed function, without reentry where that is asked for."""
        if not _turned.get():
            return self._own.apply(function, preserve, *args)

        def again(*inner: Any) -> Any:
            with without_reentry():  # checkpoints in it are met again when it is recomputed, in the backward pass
                return function(*inner)

        return torch_checkpoint.checkpoint(again, *args, use_reentrant=False, preserve_rng_state=preserve)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)


def _install() -> None:
    with _installing:
        own: Any = torch_checkpoint.CheckpointFunction
        if not isinstance(own, _Turned):
            torch_checkpoint.CheckpointFunction = _Turned(own)  # type: ignore[misc, assignment]
