"""A CSV file that rows are appended to: each is there whole or not at all, whatever ends the process."""

from __future__ import annotations

import contextlib
import csv
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mfoc.errors import InvalidValue
from mfoc.hooks.files import fcntl, storage_error
from mfoc.hooks.names import check_file

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_APPEND
_FLAGS |= getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


@dataclass(frozen=True)
class Row:
    """A row of the file.

    Attributes:
        step: its first cell.
        cells: all of its cells, numbers.
        start: where it begins, in bytes.
    """

    step: int
    cells: list[float]
    start: int


class Rows:
    """The file, open, and locked where the system has locks.

    Args:
        path: the file.
        fixed: the names that its columns begin with.
        overwrite: take a file that holds something else for an empty one.

    Attributes:
        header: the names of its columns; empty where the file is.
        rows: what was there when it was opened.

    Raises:
        InvalidValue: what is there is no file, is being written to by somebody else, or holds something else.
        StorageError: the system refuses.
    """

    def __init__(self, path: Path, fixed: Sequence[str], *, overwrite: bool = False) -> None:
        self._path = path
        try:
            self._handle = os.open(path, _FLAGS, 0o666)
        except OSError as error:
            raise storage_error(path, error) from error
        try:
            check_file(str(path), os.fstat(self._handle))
            self._lock()
            with open(os.dup(self._handle), "rb") as file:
                file.seek(0)
                content = file.read()
            self._size = len(content)
            try:
                self.header, self.rows, self._whole = _parsed(content, fixed, path)
            except InvalidValue:
                if not overwrite:
                    raise
                self.header, self.rows, self._whole = [], [], 0
        except BaseException:
            self.close()
            raise

    def _lock(self) -> None:
        """Keeps others off, who would write between these rows."""
        if fcntl is None:
            return
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InvalidValue(f"path is {self._path}; another run is writing to it: take another file") from error
        except OSError:  # a file system without locks
            return

    def keep(self, rows: int) -> None:
        """Drops all rows but the first ones, and what is left of one that was cut off.

        Raises:
            StorageError: the system refuses.
        """
        self._cut(self.rows[rows].start if rows < len(self.rows) else self._whole)
        del self.rows[rows:]

    def clear(self) -> None:
        """Drops everything, the header too.

        Raises:
            StorageError: the system refuses.
        """
        self._cut(0)
        self.header, self.rows = [], []

    def _cut(self, size: int) -> None:
        try:
            if size != self._size:
                os.ftruncate(self._handle, size)
        except OSError as error:
            raise storage_error(self._path, error) from error
        self._size = size

    def append(self, cells: Iterable[Any]) -> None:
        """Adds a row, which the system has when this returns.

        Raises:
            StorageError: the system refuses; what was there is as it was.
        """
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(cells)
        data = line.getvalue().encode()
        try:
            left = data
            while left:
                left = left[os.write(self._handle, left) :]
        except OSError as error:
            with contextlib.suppress(OSError):  # a part of the row
                os.ftruncate(self._handle, self._size)
            raise storage_error(self._path, error, "; the rows before this one are there") from error
        self._size += len(data)

    def close(self) -> None:
        """Syncs and closes the file.

        Raises:
            StorageError: the system has not been able to write what it was given.
        """
        handle, self._handle = self._handle, -1
        if handle < 0:
            return
        try:
            os.fsync(handle)
        except OSError as error:
            raise storage_error(self._path, error) from error
        finally:
            os.close(handle)


def _parsed(content: bytes, fixed: Sequence[str], path: Path) -> tuple[list[str], list[Row], int]:
    """The header, the rows, and where the last whole row ends.

    Raises:
        InvalidValue: it is something else than such a file.
    """
    lines = content.split(b"\n")[:-1]  # the last is empty, or was cut off when the process was killed
    header = _cells(lines[0]) if lines else []
    if header[: len(fixed)] != list(fixed) and (lines or not ",".join(fixed).encode().startswith(content[:16])):
        raise InvalidValue(
            f"path is {path}; it holds something else than what mfoc.hooks.CSV writes, and is left alone: take another "
            "file, or say overwrite=True"
        )
    rows: list[Row] = []
    start = len(lines[0]) + 1 if lines else 0
    for number, line in enumerate(lines[1:], start=2):
        try:
            cells = [float(cell) for cell in _cells(line)]
            row = Row(int(cells[0]), cells, start)
            if len(cells) != len(header) or (rows and row.step <= rows[-1].step):
                raise ValueError
        except (ValueError, IndexError, OverflowError) as error:
            raise InvalidValue(
                f"path is {path}; its line {number} is damaged: mend or remove it, or say overwrite=True"
            ) from error
        rows.append(row)
        start += len(line) + 1
    return header, rows, start


def _cells(line: bytes) -> list[str]:
    return next(csv.reader([line.decode(errors="replace")]), [])
