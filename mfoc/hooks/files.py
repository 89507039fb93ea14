"""Files that are replaced whole: at any moment, whatever ends the process, the path holds the old one or the new."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from mfoc.errors import InvalidValue, StorageError
from mfoc.hooks.names import check_file, checked_name, explained_names, kind_at, status_of

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_BEGAN = time.time()
_FLAGS = os.O_CREAT | os.O_EXCL | os.O_WRONLY
_FLAGS |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_ROOM = 34  # bytes in the name of a temporary file beside the name of its target
_FULL = {
    errno.ENOSPC: "",
    errno.EDQUOT: " (the quota is used up)",
    errno.EFBIG: " (a file may not be as large: ulimit -f)",
}


class Target:
    """A file to be replaced, again and again.

    What can be known to be wrong with a path is said when it is made: a name that the system cannot hold, a folder that
    is not there or cannot be written to, something at the path that is no file. A symbolic link stays one: the file
    that it points to now is the one replaced.

    Args:
        path: the file, which need not exist.

    Raises:
        InvalidType: the path is no file name.
        InvalidValue: no file can be there.
        StorageError: the folder cannot be written to.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        name = checked_name(path)
        self.path = Path(os.path.abspath(name))
        with explained_names(name):
            check_file(name, status_of(name))
            place = os.path.realpath(name)
            if not os.path.isdir(os.path.dirname(place)):
                raise InvalidValue(f"path is {name}; its folder does not exist")
            self._place, self._folder = place, os.path.dirname(place)
            self._stem = _stem(self._folder, os.path.basename(place))
            try:
                self._mode = self._probed()
            except OSError as error:
                if error.errno in (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ):
                    raise
                raise self._failure(error) from error

    def _temporary(self) -> str:
        """A name that nobody can guess, of this process, beside the target."""
        return os.path.join(self._folder, f"{self._stem}.{os.getpid()}.{secrets.token_hex(8)}.tmp")

    def _probed(self) -> int:
        """The permissions that a new file gets here; that there can be one is seen by making it."""
        temporary = self._temporary()
        handle = os.open(temporary, _FLAGS, 0o666)  # nothing is ever in it
        try:
            return stat.S_IMODE(os.fstat(handle).st_mode)
        finally:
            os.close(handle)
            os.unlink(temporary)

    def write(self, fill: Callable[[BinaryIO], None]) -> None:
        """Replaces the file by what ``fill`` writes; whatever fails, the old one stays as it was.

        Raises:
            StorageError: the system refuses, as where a disk is full; or what is at the path is no file any more.
        """
        try:
            self._write(fill)
        except StorageError:
            raise
        except OSError as error:
            raise self._failure(error) from error

    def _write(self, fill: Callable[[BinaryIO], None]) -> None:
        old = status_of(self._place, follow=False)
        if old is not None and not (stat.S_ISREG(old.st_mode) or stat.S_ISLNK(old.st_mode)):
            raise StorageError(f"{self.path} is {kind_at(old)} now and is left alone; expected a file", path=self.path)
        temporary = self._temporary()
        handle = os.open(temporary, _FLAGS, 0o600)  # private until it is whole
        try:
            self._filled(handle, temporary, fill, old)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        _sync_folder(self._folder)

    def _filled(
        self, handle: int, temporary: str, fill: Callable[[BinaryIO], None], old: os.stat_result | None
    ) -> None:
        file = os.fdopen(handle, "wb")
        try:
            _lock(handle)  # held for as long as it is written, so that it is not taken for a dead process's
            fill(file)
            file.flush()
            _permit(handle, self._mode, old)
            os.fsync(handle)
            if os.name != "posix":  # where an open file cannot be renamed
                file.close()
            os.replace(temporary, self._place)
        finally:
            with contextlib.suppress(OSError):  # what is still in the buffer, after an error
                file.close()

    def tidy(self) -> None:
        """Removes the temporary files that dead processes have left of this target."""
        if os.name != "posix":  # nothing there says which process is alive
            return
        ours = re.compile(re.escape(self._stem) + r"\.(\d+)(\.[0-9a-f]{16})?\.tmp")
        with contextlib.suppress(OSError), os.scandir(self._folder) as entries:
            for entry in entries:
                found = ours.fullmatch(entry.name)
                if found is None:
                    continue
                with contextlib.suppress(OSError):  # another process may be faster
                    if entry.is_file(follow_symlinks=False) and _abandoned(entry, int(found[1])):
                        os.unlink(entry.path)

    def _failure(self, error: OSError) -> StorageError:
        return storage_error(self.path, error, "; what was there is as it was" if os.path.exists(self._place) else "")


def storage_error(path: Path, error: OSError, left: str = "") -> StorageError:
    """What the system says of a file that cannot be written, as an error of this library.

    Args:
        path: the file.
        error: the system's.
        left: what to say of what is there, a clause.
    """
    if error.errno in _FULL:
        message = f"no space left on {path}{_FULL[error.errno]}"
    elif error.errno == errno.ENOENT:
        message = f"{path} cannot be written: its folder does not exist any more"
    else:
        message = f"{path} cannot be written: {error.strerror or error}"
    return StorageError(message + left, errno=error.errno, path=path)


def _stem(folder: str, name: str) -> str:
    """What the names of a target's temporary files begin with; shorter where the system could not hold them."""
    try:
        most = os.pathconf(folder, "PC_NAME_MAX")
    except (AttributeError, OSError, ValueError):
        most = 255
    whole = os.fsencode(name)
    return f".{name}" if len(whole) + _ROOM + 1 <= most else f".mfoc-{hashlib.sha256(whole).hexdigest()[:16]}"


def _lock(handle: int) -> None:
    if fcntl is not None:
        with contextlib.suppress(OSError):  # some file systems have no locks
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _permit(handle: int, mode: int, old: os.stat_result | None) -> None:
    """Owner and permissions of the file that was there, or the permissions of a new one."""
    if not hasattr(os, "fchmod"):  # Windows
        return
    if old is not None and stat.S_ISREG(old.st_mode):
        mode, new = stat.S_IMODE(old.st_mode) & 0o777, os.fstat(handle)
        if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
            try:
                os.fchown(handle, old.st_uid, old.st_gid)
            except OSError:  # only root gives files away; what was for one group is not for another
                mode &= ~0o070 if old.st_gid != new.st_gid else 0o777
    with contextlib.suppress(PermissionError):  # file systems without permissions
        os.fchmod(handle, mode)


def _abandoned(entry: os.DirEntry[str], pid: int) -> bool:
    """Whether nobody writes to a temporary file any more.

    A process that is alive is left alone; so is one of another machine or container, whose number says nothing here, by
    the lock that it holds. A file as old as this process, of its own number, is of an earlier one of that number.
    """
    earlier = pid == os.getpid() and entry.stat(follow_symlinks=False).st_mtime < _BEGAN - 1
    return (earlier or not _alive(pid)) and not _locked(entry.path)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return True


def _locked(name: str) -> bool:
    if fcntl is None:
        return False
    handle = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(handle)
    return False


def _sync_folder(folder: str) -> None:
    """Makes the rename itself durable, where folders can be opened (not on Windows)."""
    if os.name != "posix":
        return
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    except PermissionError:  # a folder that may be written and not read
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # folders that cannot be synced
            raise
    finally:
        os.close(handle)
