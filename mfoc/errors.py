"""The errors mfoc raises: each is also the built-in error a caller would expect.

This is below everything: it does not check its arguments.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any

from mfoc.extras import how_to_install


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


class RankError(MfocError, RuntimeError):
    """Another rank of the process group failed, so that this one cannot go on.

    Attributes:
        rank: the rank that failed, the first of them; None where it is not known.
        step: the step of the solve at which it did, where it could say so.
    """

    def __init__(self, message: str, *, rank: int | None = None, step: int | None = None) -> None:
        super().__init__(message)
        self.rank = rank
        self.step = step


class StorageError(MfocError, OSError):
    """A file cannot be written: no space is left, the folder is not to be written to, it is gone, ...

    Attributes:
        errno: the number of the system's error, or None.
        path: the file.
    """

    def __init__(self, message: str, *, errno: int | None = None, path: Any = None) -> None:
        super().__init__(message)
        self.errno = errno
        self.path = path

    def __str__(self) -> str:
        return str(self.args[0])

    def __reduce__(self) -> tuple[Any, ...]:
        return _storage_error, (str(self), self.errno, self.path), self.__dict__


def _storage_error(message: str, errno: int | None, path: Any) -> StorageError:
    return StorageError(message, errno=errno, path=path)


class MissingExtra(MfocError, ImportError):
    """An optional dependency is not installed."""


class NameClash(MfocError, ImportError):
    """Another package has the name of one of this library's."""


def require(module: str, extra: str) -> ModuleType:
    """Imports an optional dependency, or says how to install it.

    Args:
        module: dotted name of the module.
        extra: the mfoc extra that brings it.

    Raises:
        MissingExtra: the module is not installed, or something that it imports is not, or it does not load.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        own = (error.name or module).partition(".")[0] == module.partition(".")[0]
        lacks = "which is not installed" if own else f"and that needs {error.name!r}, which is not installed"
        cure = how_to_install(module, extra)
        raise MissingExtra(f"this needs {module!r}, {lacks}: {cure}", name=error.name) from error
    except (ImportError, OSError, RuntimeError) as error:  # a library is missing, or two builds do not fit together
        raise MissingExtra(
            f"this needs {module!r}, which is installed and does not load ({error}): `mfoc doctor` looks for the cause",
            name=module,
        ) from error
