"""Checkpoints: a run that is killed at any moment goes on, bit for bit."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mfoc import __version__
from mfoc.checks import check_instance, check_integer, kind_of
from mfoc.distributed import is_main
from mfoc.errors import InvalidType, InvalidValue
from mfoc.hooks.archive import first_line, read_archive, write_archive
from mfoc.hooks.files import Target
from mfoc.hooks.history import packed, unpacked
from mfoc.hooks.names import checked_name, opened
from mfoc.hooks.values import check_readable, plain
from mfoc.solving import Iterate, Solution

logger = logging.getLogger(__name__)

_VERSION = 3
_NAME = re.compile(r"mfoc\.iterate\.v(\d+)")
_FIRST = {"format", "step", "controls", "state"}
_KEYS = {1: _FIRST, 2: _FIRST | {"history"}, 3: _FIRST | {"history", "origin", "versions"}}


class Checkpoint:
    """Saves the iterate, so that a killed run goes on with ``solve(..., start=hooks.load(path))``, bit for bit.

    The history goes with it: some 32 bytes a step, and eight more for each number that the solver reports of itself.

    The file is written beside its place, synced, and renamed over it: at any moment the path holds a whole checkpoint,
    and its permissions stay. It carries its SHA-256: one that was damaged is refused when it is loaded. What would not
    come back as it was is refused after the first step, whatever ``every`` is.

    Resuming is exact when the population is a function of the step (``mfoc.population`` is) and the machine, the
    library versions and the number of threads are the same.

    Args:
        path: the file. Where it is a symbolic link, what it points to is replaced.
        every: steps between checkpoints; the last iterate is always saved, an error in user code included.

    Attributes:
        path: the file, its whole path.
        saved: the step of the last save, None before the first. Rank 0 writes; the other ranks take it that it does.

    Raises:
        InvalidType: the path is no file name.
        InvalidValue: no file can be there: its folder does not exist, the system cannot hold the name, or it is a
            folder, a FIFO, a device or a socket.
        StorageError: the folder cannot be written to; or, of a later save, no space is left.
    """

    def __init__(self, path: str | os.PathLike[str], *, every: int = 100) -> None:
        check_integer(1, every=every)
        self._target, self._every = Target(path), every
        self.path: Path = self._target.path
        self.saved: int | None = None
        self._newest = -1  # the step of the last save of this solve
        self._known = False  # that what there is can be saved
        self._refused = False
        self._tidy()

    def start(self, steps: int) -> None:
        """Removes what killed processes have left of this checkpoint: temporary files, beside it."""
        self._known = self._refused = False
        self._newest = -1
        self._tidy()

    def __call__(self, iterate: Iterate) -> None:
        """Saves, when it is time."""
        if iterate.step % self._every == 0:
            self._save(iterate)
        elif not self._known:
            self._record(iterate)

    def finish(self, solution: Solution) -> None:
        """Saves the iterate that a stopped or finished solve, or one with a NaN, ended with."""
        self._save(solution.last)

    def failed(self, iterate: Iterate) -> None:
        """Saves the last iterate of a solve that an error ended, if it is no older than what is saved.

        It may be: over ranks one alone cannot make steps again, and has what it held whole. That rank 0 saves here is
        nothing the others can count on: it may be the one that is gone.
        """
        if is_main() and not self._refused and iterate.step >= self._newest:  # refused: for a reason that has been said
            self._save(iterate)

    def _tidy(self) -> None:
        if is_main():
            self._target.tidy()

    def _save(self, iterate: Iterate) -> None:
        if is_main() or not self._known:
            record = self._record(iterate)
        if is_main():
            self._target.write(lambda file: write_archive(record, file))
            logger.debug("saved step %d to %s", iterate.step, self.path)
        self.saved = self._newest = iterate.step

    def _record(self, iterate: Iterate) -> dict[str, Any]:
        """What is written of an iterate."""
        check_instance(Iterate, "mfoc.Iterate", iterate=iterate)
        record: dict[str, Any] = {"format": f"mfoc.iterate.v{_VERSION}", "step": iterate.step}
        record["versions"] = {"mfoc": __version__, "torch": str(torch.__version__)}
        try:
            origin = None if iterate.origin is None else dict(iterate.origin)
            record |= plain(controls=iterate.controls, state=iterate.state, origin=origin)
            if not self._known:
                check_readable(record)
        except InvalidType:
            self._refused = True
            raise
        self._known = True
        return {**record, "history": packed(iterate.history)}


def load(path: str | os.PathLike[str], *, map_location: Any = None) -> Iterate:
    """The iterate in a checkpoint, for ``solve(..., start=...)``.

    Args:
        path: a file written by ``Checkpoint``.
        map_location: where to put the tensors, as in ``torch.load``.

    Raises:
        InvalidType: the path is no file name, or map_location nothing that torch takes.
        InvalidValue: no such file, not a checkpoint of this library, a damaged one, or one of a newer version; or its
            tensors cannot be put there.
    """
    name = checked_name(path)
    _check_location(map_location)
    with opened(name) as file:
        try:
            record, sealed = read_archive(file, map_location)
            return _iterate_of(record, sealed)
        except OSError as error:
            raise InvalidValue(f"path is {name}; it cannot be read: {error.strerror or error}") from error
        except InvalidValue as error:
            raise InvalidValue(f"path is {name}; {error}") from error.__cause__


def _check_location(where: Any) -> None:
    if isinstance(where, str):
        try:
            torch.device(where)
        except RuntimeError as error:
            raise InvalidValue(f"map_location is {where!r}; it is no device: {first_line(error)}") from error
    elif not (where is None or isinstance(where, torch.device | Mapping) or callable(where)):
        raise InvalidType(
            f"map_location is {kind_of(where)}; expected a device, its name, a dict of names, a function as in "
            "torch.load, or None"
        )


def _iterate_of(record: Any, sealed: bool) -> Iterate:
    """The iterate in a record, of whatever version."""
    found = _NAME.fullmatch(str(record.get("format"))) if isinstance(record, dict) else None
    if found is None:
        raise InvalidValue("it holds something else than an mfoc checkpoint")
    version = int(found[1])
    if version > _VERSION:
        versions = record.get("versions")
        writer = f" ({versions.get('mfoc')})" if isinstance(versions, dict) and "mfoc" in versions else ""
        raise InvalidValue(
            f"it is a checkpoint of format {version}, written by a newer mfoc{writer}; this one, {__version__}, "
            f"reads formats up to {_VERSION}: upgrade mfoc"
        )
    if version >= 3 and not sealed:
        raise InvalidValue("it is a damaged mfoc checkpoint: the checksum at its end is not there")
    step = record.get("step")
    if record.keys() != _KEYS.get(version) or type(step) is not int or step < 0:
        raise InvalidValue("it is a damaged mfoc checkpoint: entries are missing, or of another kind")
    try:
        history = unpacked(record.get("history", []))
    except (TypeError, ValueError) as error:
        raise InvalidValue("it is a damaged mfoc checkpoint: its history cannot be read") from error
    return Iterate(step, record["controls"], record["state"], history=history, origin=record.get("origin"))
