"""Calling hooks: what they return, and what they raise."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mfoc.checks import check_signature
from mfoc.distributed import announcing
from mfoc.errors import InvalidType

logger = logging.getLogger(__name__)


_METHODS = {"start": ["steps"], "finish": ["solution"], "failed": ["iterate"], "close": []}


def check_hooks(hooks: Any) -> None:
    """Refuses what is no list of functions of the iterate."""
    if not isinstance(hooks, Sequence) or not all(callable(hook) and not isinstance(hook, type) for hook in hooks):
        raise InvalidType("hooks must be a list of functions of the iterate (instances, not classes)")
    for k, hook in enumerate(hooks):
        for method, arguments in _METHODS.items():
            if hasattr(hook, method):
                check_signature(arguments, **{f"hooks[{k}].{method}": getattr(hook, method)})
        check_signature(["iterate"], **{f"hooks[{k}]": hook})


def kept_at(hooks: Sequence[Any]) -> str:
    """Where hooks have saved iterates, in words: those with a ``path``, and ``saved``, the step of what is there."""
    found = []
    for hook in hooks:
        if (path := getattr(hook, "path", None)) is not None:
            saved = getattr(hook, "saved", None)
            found.append(f"the last checkpoint is {path}" + ("" if saved is None else f", of step {saved}"))
    return ", and ".join(found)


def says_stop(returned: object) -> bool:
    """Whether a hook returned True: Python's, NumPy's, or a tensor's; no number is one."""
    if isinstance(returned, Tensor):
        return returned.dtype == torch.bool and returned.numel() == 1 and bool(returned)
    if isinstance(returned, np.ndarray):
        return returned.dtype == np.bool_ and returned.size == 1 and bool(returned.all())
    return isinstance(returned, bool | np.bool_) and bool(returned)


@contextmanager
def closing(closes: Sequence[Callable[[], object]]) -> Iterator[None]:
    """Calls every one of them at the end, however it comes."""
    error: BaseException | None = None
    try:
        yield
    except BaseException as raised:
        error = raised
        raise
    finally:
        with announcing():  # of an error that comes first here; one before is announced already
            all_called(closes, error)


def all_called(functions: Iterable[Callable[[], object]], error: BaseException | None = None) -> None:
    """Calls every function, whatever the others raise; then raises the first error, with a note of each later one.

    Args:
        functions: what to call.
        error: one that is on its way already; those of the functions are only noted on it.
    """
    first = error
    for function in functions:
        try:
            function()
        except BaseException as raised:
            if first is None or (isinstance(first, Exception) and not isinstance(raised, Exception)):
                first, raised = raised, first  # Ctrl-C is not to be lost in a note
            if raised is not None:
                with suppress(Exception):
                    first.add_note(f"mfoc.solve: another hook failed: {raised!r}")
                logger.error("a hook failed: %r", raised, exc_info=raised)
    if first is not None and first is not error:
        raise first
