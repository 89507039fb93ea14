"""Hooks for ``solve``: functions of the iterate, called after each step.

A hook may also have ``start(steps)``, ``finish(solution)`` and ``close()``, which is called however the solve ends; a
hook that returns True stops the solve (``mfoc.solve`` says what counts as True).
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mfoc import tree
from mfoc.checks import check_callable, check_integer, check_signature, kind_of
from mfoc.distributed import is_main
from mfoc.errors import InvalidType, InvalidValue, require
from mfoc.solving import Iterate, Solution

logger = logging.getLogger(__name__)

_FORMAT = "mfoc.iterate.v2"
_KEYS = {  # of the formats that can be read
    "mfoc.iterate.v1": {"format", "step", "controls", "state"},  # without a history
    _FORMAT: {"format", "step", "controls", "state", "history"},
}


class Progress:
    """A live progress bar with the objective and the residual.

    Args:
        label: what to call the solve.
        display: a ``rich.progress.Progress`` to draw into; a new one when None.
    """

    def __init__(self, label: str = "solve", *, display: Any = None) -> None:
        self._rich = require("rich.progress", "plot")
        self._label, self._display, self._own = label, display, display is None
        self._task: Any = None

    def start(self, steps: int) -> None:
        """Shows the bar."""
        if not is_main():
            return
        if self._own:
            self._display = progress_display()
            self._display.start()
        self._task = self._display.add_task(self._label, total=steps, figures="")

    def __call__(self, iterate: Iterate) -> None:
        """Moves the bar."""
        if self._task is not None and iterate.info is not None:
            figures = f"J {float(iterate.info.value):.4g}"
            self._display.update(self._task, completed=iterate.step, figures=figures)

    def finish(self, solution: Solution) -> None:
        """Leaves the bar with the final figures."""
        if self._task is not None:
            figures = f"J {solution.value:.4g}  {solution.status.value}"
            self._display.update(self._task, completed=solution.last.step, figures=figures)

    def close(self) -> None:
        """Gives the terminal back."""
        if self._own and self._display is not None:
            self._display.stop()


def progress_display() -> Any:
    """A ``rich`` display that several ``Progress`` hooks can share."""
    rich = require("rich.progress", "plot")
    columns = [rich.TextColumn("{task.description:14s}"), rich.BarColumn(12), rich.MofNCompleteColumn()]
    return rich.Progress(*columns, rich.TimeElapsedColumn(), rich.TextColumn("{task.fields[figures]}"))


class Record:
    """Records what a function says of the iterate.

    Args:
        function: ``function(iterate) -> value``.
        every: steps between records.

    Attributes:
        steps: the steps at which it was called.
        seconds: time since the start of the solve at each of them, less the time spent in the function.
        values: what it returned.
    """

    def __init__(self, function: Callable[[Iterate], Any], *, every: int = 1) -> None:
        check_callable("a function of the iterate", function=function)
        check_signature(("iterate",), function=function)
        check_integer(1, every=every)
        self._function, self._every = function, every
        self.steps: list[int] = []
        self.seconds: list[float] = []
        self.values: list[Any] = []
        self._began = time.perf_counter()

    def start(self, steps: int) -> None:
        """Starts the clock, and the record anew."""
        self.steps, self.seconds, self.values = [], [], []
        self._began = time.perf_counter()

    def __call__(self, iterate: Iterate) -> None:
        """Records, when it is time."""
        if iterate.step % self._every == 0:
            called = time.perf_counter()
            self.steps.append(iterate.step)
            self.seconds.append(called - self._began)
            self.values.append(self._function(iterate))
            self._began += time.perf_counter() - called


class Checkpoint:
    """Saves the iterate, so that a killed run goes on with ``solve(..., start=hooks.load(path))``, bit for bit.

    The history goes with it: some 32 bytes a step, and eight more for each number that the solver reports of itself.

    The file is written beside its place, synced, and renamed over it: at any moment the path holds a whole checkpoint.
    Resuming is exact when the population is a function of the step (``mfoc.population`` is) and the machine, the
    library versions and the number of threads are the same.

    Args:
        path: the file.
        every: steps between checkpoints; the last iterate is always saved.
    """

    def __init__(self, path: str | os.PathLike[str], *, every: int = 100) -> None:
        if not isinstance(path, str | os.PathLike):
            raise InvalidType(f"path is {kind_of(path)}; expected a file name")
        check_integer(1, every=every)
        self._path, self._every = Path(path), every
        if not self._path.parent.is_dir():
            raise InvalidValue(f"path is {self._path}; its folder does not exist")
        if self._path.is_dir():
            raise InvalidValue(f"path is {self._path}; it is a folder, expected a file")

    def __call__(self, iterate: Iterate) -> None:
        """Saves, when it is time."""
        if iterate.step % self._every == 0:
            self._save(iterate)

    def finish(self, solution: Solution) -> None:
        """Saves the iterate a failed, stopped or finished solve ended with."""
        self._save(solution.last)

    def _save(self, iterate: Iterate) -> None:
        if not is_main():
            return
        # Copies, so that a view saves itself alone.
        kept = {"controls": tree.copy(iterate.controls), "state": tree.copy(iterate.state)}
        record = {"format": _FORMAT, "step": iterate.step, **kept, "history": _packed(iterate.history)}
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}.tmp")
        try:
            with open(temporary, "wb") as file:
                torch.save(record, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self._path)
            _sync_folder(self._path.parent)
        finally:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
        logger.debug("saved step %d to %s", iterate.step, self._path)


def _packed(history: Sequence[dict[str, float]]) -> list[list[Any]]:
    """Records as blocks of [names, a column of values each], a block for as long as the names are the same."""
    blocks: list[list[Any]] = []
    for record in history:
        if not blocks or blocks[-1][0] != list(record):
            blocks.append([list(record), []])
        blocks[-1][1].append(list(record.values()))
    return [[names, [_column(column) for column in zip(*rows, strict=True)]] for names, rows in blocks]


def _column(values: Sequence[Any]) -> Tensor | list[Any]:
    """Values of one type as a tensor, which takes little time and room; others as Python's own, which a file may hold.

    They come back as they were, but for numbers of other libraries, which become Python's.
    """
    kinds = set(map(type, values))
    if kinds == {float} or (kinds == {int} and all(abs(value) < 2**62 for value in values)):
        return torch.tensor(values, dtype=torch.float64 if kinds == {float} else torch.int64, device="cpu")
    return [_plain(value) for value in values]


def _plain(value: Any) -> Any:
    if type(value) in (float, int, bool, str):
        return value
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        return repr(value)


def _unpacked(blocks: list[list[Any]]) -> list[dict[str, float]]:
    found = []
    for names, columns in blocks:
        rows = zip(*(column.tolist() if isinstance(column, Tensor) else column for column in columns), strict=True)
        found += [dict(zip(names, row, strict=True)) for row in rows]
    return found


def _sync_folder(folder: Path) -> None:
    """Makes the rename itself durable, where folders can be opened (not on Windows)."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def load(path: str | os.PathLike[str], *, map_location: Any = None) -> Iterate:
    """The iterate in a checkpoint, for ``solve(..., start=...)``.

    Args:
        path: a file written by ``Checkpoint``.
        map_location: where to put the tensors, as in ``torch.load``.

    Raises:
        InvalidValue: no such file, or not a checkpoint of this library.
    """
    try:
        record = torch.load(path, weights_only=True, map_location=map_location)
    except FileNotFoundError as error:
        raise InvalidValue(f"path is {path}; there is no such file") from error
    except Exception as error:  # torch raises pickle, zip and runtime errors alike
        raise InvalidValue(f"path is {path}; it is not a checkpoint: {error}") from error
    if not isinstance(record, dict) or record.get("format") not in _KEYS:
        raise InvalidValue(f"path is {path}; it holds something else than an mfoc checkpoint")
    if record.keys() != _KEYS[record["format"]] or not isinstance(record["step"], int):
        raise InvalidValue(f"path is {path}; it is a damaged mfoc checkpoint")
    history = _unpacked(record.get("history", []))
    return Iterate(record["step"], record["controls"], record["state"], history=history)
