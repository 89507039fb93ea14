"""How a command ends: quietly, with a status, and with one line where something is wrong."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback as tracebacks
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Never

from mfoc.errors import MfocError, MissingExtra

FAILED, WRONG_USAGE, UNHEALTHY, INTERRUPTED, CLOSED_PIPE = 1, 2, 3, 130, 141


class TheirFault(Exception):
    """Code that is not this library's failed: a user's factory, a tutorial, another package.

    Args:
        what: what was being done, as in "deep of nets".
        error: what it raised.
    """

    def __init__(self, what: str, error: BaseException) -> None:
        said = str(error).strip().splitlines()
        super().__init__(f"{what} failed: {type(error).__name__}" + (f": {said[-1]}" if said else ""))


@contextmanager
def blaming(what: str) -> Iterator[None]:
    """Says of an error in this block that it is not this library's; an error of ours says so itself.

    Args:
        what: what is done in it, as in "deep of nets".

    Raises:
        TheirFault: the block raised something; or it wants to end the process.
    """
    try:
        yield
    except MfocError:
        raise
    except SystemExit as error:
        if error.code not in (None, 0, INTERRUPTED):
            raise TheirFault(what, error) from error
        raise
    except BrokenPipeError:
        raise
    except Exception as error:
        raise TheirFault(what, error) from error


def ending(run: Callable[[], int], *, traceback: bool = False) -> int:
    """Runs a command to its end; returns the exit status.

    Args:
        run: the command; what it returns is the status.
        traceback: whether an error is told with where it was raised.
    """
    try:
        with _ctrl_c_ends_it():
            status = run()
            sys.stdout.flush()
            return status
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as error:
        if error.code != INTERRUPTED:
            raise
        return INTERRUPTED
    except BrokenPipeError:  # who read it has gone, as `head` does
        _to_nowhere()
        return CLOSED_PIPE
    except Exception as error:
        if traceback:
            sys.stderr.write("".join(tracebacks.format_exception(error)))
        ours = isinstance(error, MfocError | OSError | TheirFault)
        more = "; `mfoc doctor` gives one command for all that is missing" if isinstance(error, MissingExtra) else ""
        said = f"{error}{more}" if ours else f"{type(error).__name__}: {error} (--traceback shows where)"
        sys.stderr.write(f"mfoc: {' '.join(said.split())}\n")
        return FAILED


@contextmanager
def _ctrl_c_ends_it() -> Iterator[None]:
    """A solve that Ctrl-C ends gives back what it has, and its caller goes on; a command is to end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(_number: int, _frame: FrameType | None) -> Never:
        raise SystemExit(INTERRUPTED)

    former: Any = signal.getsignal(signal.SIGINT)
    if former is signal.default_int_handler:  # not where it is ignored, as of a job in the background
        signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        if former is signal.default_int_handler:
            signal.signal(signal.SIGINT, former)


def _to_nowhere() -> None:
    """What is still to be written goes nowhere: the flush at the end of the process would fail, too."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
