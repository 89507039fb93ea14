"""The errors mfoc raises: each is also the built-in error a caller would expect.

This is below everything: it does not check its arguments.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any


class MfocError(Exception):
    """Base of every error raised by mfoc."""


class InvalidValue(MfocError, ValueError):
    """An argument has the right type and a wrong value (shape, range, length, ...)."""


class InvalidType(MfocError, TypeError):
    """An argument has the wrong type."""


class NonFiniteError(MfocError, ArithmeticError):
    """A state, costate, cost or gradient became NaN or infinite during a solve.

    Attributes:
        stage: the stage where it appeared first, or None when it is not known.
        step: the solver step at which it was seen.
        last: the last iterate (``mfoc.Iterate``) whose controls evaluated to finite numbers.
    """

    def __init__(self, message: str, *, stage: int | None, step: int, last: Any) -> None:
        super().__init__(message)
        self.stage = stage
        self.step = step
        self.last = last


class MissingExtra(MfocError, ImportError):
    """An optional dependency is not installed."""


def require(module: str, extra: str) -> ModuleType:
    """Imports an optional dependency, or says how to install it.

    Args:
        module: dotted name of the module.
        extra: the mfoc extra that brings it.

    Raises:
        MissingExtra: the module is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f"this needs {module!r}, which is not installed: pip install 'mfoc[{extra}]'", name=error.name
        ) from error
