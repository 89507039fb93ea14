"""A live progress bar."""

from __future__ import annotations

from typing import Any

from mfoc.checks import kind_of
from mfoc.distributed import is_main
from mfoc.errors import InvalidType, require
from mfoc.solving import Iterate, Solution


class Progress:
    """A live progress bar with the objective and the residual.

    Args:
        label: what to call the solve.
        display: a ``rich.progress.Progress`` to draw into; a new one when None.

    Raises:
        InvalidType: the label is no string, or the display none of rich's.
    """

    def __init__(self, label: str = "solve", *, display: Any = None) -> None:
        self._rich = require("rich.progress", "plot")
        if not isinstance(label, str):
            raise InvalidType(f"label is {kind_of(label)}; expected a string")
        if not isinstance(display, self._rich.Progress | None):
            raise InvalidType(f"display is {kind_of(display)}; expected a rich.progress.Progress or None")
        self._display: Any = display
        self._label, self._own = label, display is None
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
