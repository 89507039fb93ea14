"""Names of files, and what is found at them."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import Any, BinaryIO

from mfoc.checks import kind_of
from mfoc.errors import InvalidType, InvalidValue, StorageError

_KINDS = [
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
]


def checked_name(path: Any, word: str = "path") -> str:
    """The name of a file, as a string.

    Args:
        path: the name.
        word: of the argument that it is.

    Raises:
        InvalidType: it is none: neither a string nor a path.
        InvalidValue: no file can have it.
    """
    name = os.fspath(path) if isinstance(path, str | os.PathLike) else path
    if not isinstance(name, str):
        raise InvalidType(f"{word} is {kind_of(path)}; expected a file name, a string or a pathlib.Path")
    if not name:
        raise InvalidValue(f"{word} is an empty string; expected a file name")
    try:
        os.fsencode(name)
    except UnicodeEncodeError as error:
        raise InvalidValue(f"{word} is {name!r}; the system cannot write such a name: {error.reason}") from error
    if "\0" in name:
        raise InvalidValue(f"{word} is {name!r}; a name holds no NUL")
    return name


def opened(path: str | os.PathLike[str]) -> BinaryIO:
    """A regular file, open for reading: what could block, or has no end, is not read.

    Raises:
        InvalidType: the path is no file name.
        InvalidValue: there is no such file, it may not be read, or it is something else than a file.
    """
    name = checked_name(path)
    with explained_names(name):
        status = status_of(name)
        if status is None:
            raise InvalidValue(f"path is {name}; there is no such file")
        check_file(name, status)
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
        try:
            handle = os.open(name, flags)
        except FileNotFoundError as error:
            raise InvalidValue(f"path is {name}; there is no such file") from error
    file = os.fdopen(handle, "rb")
    try:
        check_file(name, os.fstat(handle))  # it may be another one since
    except InvalidValue:
        file.close()
        raise
    return file


@contextlib.contextmanager
def explained_names(name: str) -> Iterator[None]:
    """What the system says of a name, as an error of this library."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        reasons = {
            errno.ENAMETOOLONG: "the name is longer than the system can hold",
            errno.ELOOP: "its symbolic links lead in a circle",
        }
        short = name if len(name) < 200 else f"{name[:80]}...{name[-40:]}"
        raise InvalidValue(f"path is {short}; {reasons.get(error.errno or 0, error.strerror or error)}") from error


def status_of(name: str, *, follow: bool = True) -> os.stat_result | None:
    """What is there; None where nothing is."""
    try:
        return os.stat(name, follow_symlinks=follow)
    except (FileNotFoundError, NotADirectoryError):
        return None


def kind_at(status: os.stat_result) -> str:
    """What is there, in words."""
    return next((words for is_one, words in _KINDS if is_one(status.st_mode)), "something else")


def check_file(name: str, status: os.stat_result | None) -> None:
    """Refuses what is there and no file.

    Raises:
        InvalidValue: it is a folder, a FIFO, a device, ...
    """
    if status is not None and not stat.S_ISREG(status.st_mode):
        raise InvalidValue(f"path is {name}; it is {kind_at(status)}, expected a file")
