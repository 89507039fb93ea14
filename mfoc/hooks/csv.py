"""A run as a CSV file, a row a record."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mfoc.checks import check_flag
from mfoc.distributed import is_main
from mfoc.errors import InvalidValue
from mfoc.hooks.files import Target
from mfoc.hooks.numbers import FIXED, Clerk, seen
from mfoc.hooks.rows import Rows
from mfoc.solving import Iterate


class CSV:
    """Appends a row to a CSV file: ``step, seconds, value, residual``, and numbers of your own.

    ``step`` is how many steps were done; ``value`` and ``residual`` are J and ||E dH/du|| as the last of them saw them,
    at the controls that it started from (``iterate.info``); ``seconds`` are counted from the very beginning of the run.

        hooks=[mfoc.hooks.CSV("run.csv", lambda it: {"accuracy": accuracy(net, it.controls)}, every=10)]

    Rows are handed to the system one by one: after a ``kill -9`` each is there whole or not at all (one that the kill
    has cut is dropped when the run goes on), and they are synced to the disk when the solve ends. A solve that goes on
    from ``start=`` goes on with the file: rows of steps that are made again are replaced. Over ranks rank 0 writes;
    the function is called on all of them, so that it may take means.

    Args:
        path: the file.
        function: ``function(iterate) -> dict`` of numbers, under the same names each time: the further columns.
            ``lambda it: it.info.extra`` writes what a solver reports of itself.
        every: steps between rows.
        overwrite: replace what is there, where it is of another run. It is refused unless asked for, after the first
            step: a solve that begins at step 0 takes an empty file, and one that goes on its own. So a script that is
            started again after each crash says True: what goes on from ``start=`` keeps its rows, and what begins anew
            since there is no checkpoint yet replaces them.

    Attributes:
        file: the file, its whole path.

    Raises:
        InvalidType: the path is no file name, or the function none; or, of a row, the function has returned something
            else than numbers.
        InvalidValue: no file can be there; or, in a solve, the file is of another run, has other columns, is damaged,
            or another run is writing to it.
        StorageError: the folder cannot be written to; or, of a later row, no space is left.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        function: Callable[[Iterate], Mapping[str, Any]] | None = None,
        *,
        every: int = 1,
        overwrite: bool = False,
    ) -> None:
        self._clerk = Clerk(function, every)
        check_flag(overwrite=overwrite)
        self.file: Path = Target(path).path  # not `path`, which says of a hook that it saves iterates
        self._overwrite = overwrite
        self._rows: Rows | None = None
        self._placed = False  # whether the file is known to be this run's, and stands at its step
        self._wrote = False  # whether this solve has written a row

    def start(self, steps: int) -> None:
        """Opens the file."""
        self._clerk.start()
        self._open()

    def __call__(self, iterate: Iterate) -> None:
        """Writes, when it is time."""
        if is_main() and not self._placed:
            self._place(iterate)
        due = self._clerk.due(iterate)
        if due is not None and is_main():
            self._write(iterate, *due)

    def close(self) -> None:
        """Syncs and closes the file."""
        rows, self._rows, self._placed = self._rows, None, False
        if rows is not None:
            rows.close()

    def _open(self) -> Rows | None:
        if self._rows is None and is_main():
            self._rows = Rows(self.file, FIXED, overwrite=self._overwrite)
            self._placed = self._wrote = False
        return self._rows

    def _place(self, iterate: Iterate) -> None:
        """Drops the rows of the steps that are made again, or all of another run's."""
        rows = self._open()
        assert rows is not None
        before = [row for row in rows.rows if row.step < iterate.step]
        reason = self._foreign(rows, iterate)
        if reason and not self._overwrite:
            cure = "take another file, or say overwrite=True, which replaces it, but keeps what start= goes on with"
            raise InvalidValue(f"path is {self.file}; {reason}: {cure}")
        if reason:
            rows.clear()
        else:
            rows.keep(len(before))
            self._clerk.clock.after(before[-1].cells[1] if before else 0.0)
        self._placed = True

    def _foreign(self, rows: Rows, iterate: Iterate) -> str:
        """Why what is there is not of this run; an empty string where it may be."""
        if not rows.rows:
            return ""
        first, last = rows.rows[0].step, rows.rows[-1].step
        if iterate.step == 1:
            # The same J at step 1 proves nothing: so begin all runs of a sweep.
            return (
                f"it holds the steps {first} to {last} of another run, or of this one, ended before its first "
                "checkpoint, and this one begins at step 0"
            )
        known = {int(record["step"]) + 1: (record["value"], record["residual"]) for record in iterate.history}
        for row in rows.rows:
            if row.step < iterate.step and row.step in known and not _same(row.cells[2:4], known[row.step]):
                there, here = row.cells[2:4], list(known[row.step])
                return f"it is of another run than start: J and residual at step {row.step} are {there}, not {here}"
        return ""

    def _write(self, iterate: Iterate, seconds: float, own: dict[str, int | float]) -> None:
        rows = self._rows
        assert rows is not None
        own = self._fitted(rows, own)
        rows.append([iterate.step, f"{seconds:.6f}", *map(repr, (*seen(iterate), *own.values()))])
        self._wrote = True

    def _fitted(self, rows: Rows, own: dict[str, int | float]) -> dict[str, int | float]:
        """The numbers in the order of the columns, which are made where there are none yet."""
        header = [*FIXED, *own]
        if sorted(header) == sorted(rows.header):
            return {name: own[name] for name in rows.header[len(FIXED) :]}
        if self._wrote or (rows.rows and not self._overwrite):
            raise InvalidValue(
                f"function(iterate) returned {list(own)}, and the columns of {self.file} are "
                f"{rows.header[len(FIXED) :]}: they are the same in every row, and other ones take another file"
            )
        rows.clear()
        rows.append(header)
        rows.header = header
        return own


def _same(cells: list[float], numbers: tuple[float, float]) -> bool:
    return all(a == b or (math.isnan(a) and math.isnan(b)) for a, b in zip(cells, numbers, strict=True))
