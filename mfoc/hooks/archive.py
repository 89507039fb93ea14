"""Archives of torch that carry their own SHA-256, so that any bit that changes is seen."""

from __future__ import annotations

import hashlib
import os
import struct
import zipfile
from typing import Any, BinaryIO, cast

import torch

from mfoc.errors import InvalidValue

# A zip archive ends with a record of 22 bytes, the last two of which are the length of a comment, and the comment. The
# digest is the comment: of every byte before it, its length included. Whoever knows nothing of it reads the archive.
_END = 22
_TAG = b"mfoc sha256 "
_COMMENT = len(_TAG) + 64
_BLOCK = 2**20
_FOLDER = 0x10  # the bit of an entry's attributes that says so


def write_archive(record: dict[str, Any], file: BinaryIO) -> None:
    """Writes what ``torch.load(..., weights_only=True)`` reads, and the digest of it.

    Raises:
        OSError: the file cannot be written; torch would say something else of it.
    """
    sealing = _Sealing(file)
    try:
        torch.save(record, cast(BinaryIO, sealing))  # which calls write and flush only
    except BaseException as error:
        raise sealing.failed or _first(error) from None
    if sealing.failed is not None:
        raise sealing.failed
    sealing.seal()


def _first(error: BaseException) -> BaseException:
    """What went wrong first: torch, which closes its archive whatever happens, puts an error of its own over it."""
    while isinstance(error, RuntimeError) and (before := error.__cause__ or error.__context__) is not None:
        error = before
    return error


class _Sealing:
    """A file that is written through to another, and hashed on the way.

    After an error nothing more is written and torch is told that all is well: it ends soon, and then the error is
    raised.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._digest, self._held = file, hashlib.sha256(), b""
        self.failed: BaseException | None = None

    def write(self, data: Any) -> int:
        """Writes, but for the last bytes, which are held back until it is known that they are the end."""
        view = memoryview(data).cast("B")
        if self.failed is None:
            try:
                self._write(view)
            except BaseException as error:
                self.failed = error
        return len(view)

    def _write(self, view: memoryview) -> None:
        if len(view) >= _END:
            self._pass(self._held)
            self._pass(view[:-_END])
            self._held = bytes(view[-_END:])
        else:
            joined = self._held + bytes(view)
            self._pass(joined[:-_END])
            self._held = joined[-_END:]

    def _pass(self, data: bytes | memoryview) -> None:
        self._digest.update(data)
        self._file.write(data)

    def flush(self) -> None:
        """Does nothing: the file is flushed by whoever opened it."""

    def seal(self) -> None:
        """Writes the end, with the digest as its comment."""
        if not (self._held[:4] == b"PK\5\6" and self._held[-2:] == b"\0\0"):
            raise InvalidValue(f"torch {torch.__version__} wrote something else than a zip archive without a comment")
        self._pass(self._held[:-2] + struct.pack("<H", _COMMENT))
        self._file.write(_TAG + self._digest.hexdigest().encode())


def read_archive(file: BinaryIO, map_location: Any) -> tuple[Any, bool]:
    """What is in an archive, and whether it carries a digest, which then is right.

    Raises:
        InvalidValue: the archive is damaged, or none; or its tensors cannot be put where they belong.
    """
    size = os.fstat(file.fileno()).st_size
    file.seek(max(size - _END - _COMMENT, 0))
    tail = file.read(_END + _COMMENT)
    comment = tail[_END:]
    sealed = tail[:4] == b"PK\5\6" and tail[_END - 2 : _END] == struct.pack("<H", _COMMENT) and comment.startswith(_TAG)
    if sealed:
        if _digest(file, size - _COMMENT) != comment[len(_TAG) :]:
            raise InvalidValue("it is a damaged mfoc checkpoint: its SHA-256 is another than it was")
    else:
        _check_entries(file)
    file.seek(0)
    try:
        return torch.load(file, weights_only=True, map_location=map_location), sealed
    except MemoryError:
        raise
    except Exception as error:  # torch raises pickle, zip and runtime errors alike
        reason = first_line(error)
        if sealed:
            where = "" if map_location is None else f" with map_location={map_location!r}"
            raise InvalidValue(f"it is whole, but its tensors cannot be read{where}: {reason}") from error
        raise InvalidValue(f"it is not a checkpoint: {reason}") from error


def first_line(error: Exception) -> str:
    """What an error says, without torch's pages on it."""
    return str(error).partition("\n")[0]


def _digest(file: BinaryIO, size: int) -> bytes:
    """SHA-256 of the first bytes of a file, in hexadecimal."""
    found = hashlib.sha256()
    file.seek(0)
    while size > 0 and (block := file.read(min(_BLOCK, size))):
        found.update(block)
        size -= len(block)
    return found.hexdigest().encode()


def _check_entries(file: BinaryIO) -> None:
    """Refuses an archive whose entries are not what their checksums say, which torch does not look at."""
    try:
        with zipfile.ZipFile(file) as archive:
            for entry in archive.infolist():  # torch reads nothing of a "folder", and leaves its tensor as it comes
                if entry.compress_type != zipfile.ZIP_STORED or entry.external_attr & _FOLDER:
                    raise InvalidValue(f"it is not a checkpoint, or a damaged one: {entry.filename} is no plain entry")
            damaged = archive.testzip()
    except InvalidValue:
        raise
    except Exception as error:  # of a file that is no archive, or a damaged one: of whatever kind
        raise InvalidValue(f"it is not a checkpoint, or a damaged one: {error}") from error
    if damaged is not None:
        raise InvalidValue(f"it is a damaged checkpoint: the checksum of {damaged} is another than it was")
