"""Where the progress of a solve is shown: in a terminal, in a notebook, or in a log.

This is below the hooks: it does not check its arguments.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any, Protocol

from mfoc.errors import require

logger = logging.getLogger("mfoc.hooks.progress")

_WIDTH = 20  # of a bar in a notebook, in letters


@dataclass(frozen=True)
class Moment:
    """What is shown of a solve.

    Attributes:
        step: how many steps were done.
        steps: how many there are to be.
        figures: J and the residual, in words.
        left: seconds that it will take yet, about; None where that is not known, or over.
        elapsed: seconds since the start.
    """

    step: int
    steps: int
    figures: str
    left: float | None
    elapsed: float

    def __str__(self) -> str:
        return f"{self.figures}  {clock(self.left)} left" if self.left is not None else self.figures


class View(Protocol):
    """Where it is shown, and how often at most: ``seconds`` apart."""

    seconds: float

    def show(self, moment: Moment) -> None:
        """Shows a moment."""

    def close(self) -> None:
        """Shows nothing more."""


class Bar:
    """A bar of ``rich``, in a display of its own (which is opened and closed) or of somebody else's."""

    seconds = 0.2

    def __init__(self, label: str, steps: int, display: Any, *, own: bool) -> None:
        self._display, self._own = display, own
        if own:
            display.start()
        self._task = display.add_task(label, total=steps, figures="")

    def show(self, moment: Moment) -> None:
        """Moves the bar."""
        self._display.update(self._task, completed=moment.step, figures=str(moment))

    def close(self) -> None:
        """Gives the terminal back."""
        if self._own:
            self._display.stop()


class Cell:
    """A line in a notebook's output, which is written over: it needs no widgets, and stays when it is saved."""

    seconds = 0.5

    def __init__(self, label: str) -> None:
        self._label, self._handle = label, None

    def show(self, moment: Moment) -> None:
        """Writes the line."""
        done = round(_WIDTH * min(moment.step / max(moment.steps, 1), 1.0))
        bar = "━" * done + "┄" * (_WIDTH - done)
        line = f"{self._label}  {bar}  {moment.step}/{moment.steps}  {clock(moment.elapsed)}  {moment}"
        shown: Any = {"text/plain": line}
        if self._handle is None:
            display = require("IPython.display", "plot").display
            self._handle = display(shown, raw=True, display_id=True)
        else:
            self._handle.update(shown, raw=True)

    def close(self) -> None:
        """Leaves the line."""


class Log:
    """Messages for whoever listens to the logger of ``mfoc.hooks``: nothing is printed by itself."""

    seconds = 30.0

    def __init__(self, label: str) -> None:
        self._label = label

    def show(self, moment: Moment) -> None:
        """Sends a message."""
        where = f"{moment.step}/{moment.steps}"
        logger.info("%s: %s  %s  %s", self._label, where, clock(moment.elapsed), moment)

    def close(self) -> None:
        """Sends nothing."""


class Pace:
    """How long the steps take, by those of this solve: those made before it began took another's time."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self._first: tuple[int, float] | None = None

    def left(self, step: int, steps: int) -> float | None:
        """Seconds that the steps from here on will take, about.

        The first step, which warms up, is left out as soon as there is another.
        """
        now = time.perf_counter()
        if self._first is None:
            self._first = step, now
            return (steps - step) * (now - self.began)
        done, since = step - self._first[0], now - self._first[1]
        return (steps - step) * since / done if done > 0 else None

    @property
    def elapsed(self) -> float:
        """Seconds since the start of this solve."""
        return time.perf_counter() - self.began


def clock(seconds: float) -> str:
    """A time as hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
