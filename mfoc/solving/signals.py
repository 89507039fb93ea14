"""Signals that ask a solve to end: Ctrl-C, and SIGTERM, by which schedulers and shells end a process."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_CARRIED = ("last_iterate", "solution")  # what an error has with it


class Terminated(KeyboardInterrupt):
    """SIGTERM: ends a solve as Ctrl-C does, and then the process."""


class Signals:
    """What has been asked for.

    Attributes:
        asked: the signal that nobody has answered yet.
        agreed: whether all ranks end for what one of them was asked for.
    """

    def __init__(self, *, together: bool) -> None:
        self._together = together
        self.asked: int | None = None
        self.agreed = False

    def heard(self) -> None:
        """The solve ends for it."""
        self.asked, self.agreed = None, False

    def check(self) -> None:
        """Raises what was asked for and did not come through, as exceptions in destructors and callbacks do not."""
        if self.asked is not None and not self._together:
            self.raised()

    def raised(self) -> None:
        """Raises what was asked for, if anything was."""
        if self.asked is not None:
            raise error_of(self.asked)

    def after(self, error: Exception) -> None:
        """Raises what was asked for and not answered when something else failed, which is its cause."""
        if self.asked is not None:
            asked = error_of(self.asked)
            asked.__dict__.update({name: getattr(error, name) for name in _CARRIED if hasattr(error, name)})
            raise asked from error

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """Takes a signal; see ``signal.signal``."""
        first, self.asked = self.asked is None, number
        # Over ranks none leaves in the middle of a step, where the others wait for it: all end after it. Who asks twice
        # does not want to wait.
        if not (self._together and first):
            raise error_of(number)


def error_of(number: int) -> KeyboardInterrupt:
    """What a signal is raised as."""
    return Terminated("SIGTERM") if number == signal.SIGTERM else KeyboardInterrupt()


def terminated(solution: Any) -> Any:
    """What ends the process after SIGTERM, with the status by which shells and schedulers know it."""
    return _ending(solution.last, solution)


def _ending(at: Any, solution: Any) -> Any:
    error: Any = SystemExit(128 + signal.SIGTERM)
    error.last_iterate, error.solution = at, solution
    return error


@contextmanager
def listening(*, together: bool) -> Iterator[Signals]:
    """Listens to signals that nobody else listens to; only in the main thread can one.

    Args:
        together: note the first signal and raise nothing.
    """
    signals = Signals(together=together)
    defaults: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    main = threading.current_thread() is threading.main_thread()
    own = [number for number, default in defaults.items() if main and signal.getsignal(number) is default]
    try:
        try:
            for number in own:
                signal.signal(number, signals.handle)
            yield signals
        except Exception as error:  # what failed is one thing; that the process is to end is another
            signals.after(error)
            raise
        finally:
            for number in own:
                signal.signal(number, defaults[number])
        signals.raised()
    except Terminated as error:
        raise _ending(getattr(error, "last_iterate", None), getattr(error, "solution", None)) from error
