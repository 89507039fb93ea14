"""A live progress bar."""

from __future__ import annotations

import logging
import time
from typing import Any

from mfoc.checks import check_flag, kind_of
from mfoc.distributed import is_main
from mfoc.errors import InvalidType, require
from mfoc.hooks.numbers import seen
from mfoc.hooks.views import Bar, Cell, Log, Moment, Pace, View, logger
from mfoc.solving import Iterate, Solution


class Progress:
    """A live progress bar with the objective, the residual and the time that is left.

    It is drawn in a terminal and in a notebook. Elsewhere, as where the output goes to a file, nothing is printed: the
    logger ``mfoc.hooks.progress`` gets a message (INFO) at the start, every half minute and at the end. Numbers are
    read from the device a few times a second, however short the steps are. Over ranks rank 0 shows it.

    Args:
        label: what to call the solve.
        display: a ``rich.progress.Progress`` to draw into, whatever it draws on (``progress_display()``, for several
            solves); a new one when None.
        quiet: True draws nothing, False draws also where nobody is seen to look; None finds out.

    Raises:
        MissingExtra: rich is not installed.
        InvalidType: the label is no string, the display none of rich's, or quiet no flag.
    """

    def __init__(self, label: str = "solve", *, display: Any = None, quiet: bool | None = None) -> None:
        self._rich = require("rich.progress", "plot")
        if not isinstance(label, str):
            raise InvalidType(f"label is {kind_of(label)}; expected a string")
        if not isinstance(display, self._rich.Progress | None):
            raise InvalidType(f"display is {kind_of(display)}; expected a rich.progress.Progress or None")
        if quiet is not None:
            check_flag(quiet=quiet)
        self._display: Any = display
        self._label, self._quiet = label, quiet
        self._view: View | None = None
        self._steps, self._next, self._pace = 0, 0.0, Pace()

    def start(self, steps: int) -> None:
        """Shows the bar."""
        self.close()
        self._steps, self._next, self._pace = steps, 0.0, Pace()
        self._view = self._made(steps) if is_main() else None

    def __call__(self, iterate: Iterate) -> None:
        """Moves the bar, when it is time."""
        if self._view is None or (now := time.perf_counter()) < self._next:
            return
        if isinstance(self._view, Log) and not logger.isEnabledFor(logging.INFO):
            return
        self._next = now + self._view.seconds
        value, residual = seen(iterate)
        left = self._pace.left(iterate.step, self._steps) if iterate.step < self._steps else None
        self._show(iterate.step, f"J {value:.4g}  residual {residual:.2g}", left)

    def finish(self, solution: Solution) -> None:
        """Leaves the bar with the final figures."""
        figures = f"J {solution.value:.4g}  residual {solution.residual:.2g}  {solution.status.value}"
        self._show(solution.last.step, figures, None)

    def close(self) -> None:
        """Gives the terminal back."""
        view, self._view = self._view, None
        if view is not None:
            view.close()

    def _show(self, step: int, figures: str, left: float | None) -> None:
        if self._view is not None:
            self._view.show(Moment(step, self._steps, figures, left, self._pace.elapsed))

    def _made(self, steps: int) -> View:
        if self._quiet:
            return Log(self._label)
        if self._display is not None:
            return Bar(self._label, steps, self._display, own=False)
        display = progress_display()
        if display.console.is_jupyter:
            return Cell(self._label)
        if not (display.console.is_terminal or self._quiet is False):
            return Log(self._label)
        try:
            return Bar(self._label, steps, display, own=True)
        except require("rich.errors", "plot").LiveError:  # another bar has the terminal, as of a solve around this one
            return Log(self._label)


def progress_display() -> Any:
    """A ``rich`` display that several ``Progress`` hooks can share."""
    rich = require("rich.progress", "plot")
    columns = [rich.TextColumn("{task.description:14s}"), rich.BarColumn(12), rich.MofNCompleteColumn()]
    return rich.Progress(*columns, rich.TimeElapsedColumn(), rich.TextColumn("{task.fields[figures]}"))
