"""What is written down of an iterate: how many steps, J, the residual, the seconds, and numbers of the user's own.

A row is of an iterate: ``step`` is how many steps were done, and J and the residual are what the last of them saw at
the controls that it started from, as in ``iterate.info``.

This is below the hooks: it does not check its arguments.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from mfoc.checks import check_callable, check_integer, check_signature, kind_of
from mfoc.errors import InvalidType, InvalidValue
from mfoc.solving import Iterate

FIXED = ("step", "seconds", "value", "residual")


class Clerk:
    """When something is written of a solve, and what: the arguments that ``CSV`` and ``TensorBoard`` share.

    Raises:
        InvalidType, InvalidValue: no function of an iterate, no whole number of steps.
    """

    def __init__(self, function: Callable[[Iterate], Mapping[str, Any]] | None, every: int) -> None:
        check_callable("a function of the iterate", optional=True, function=function)
        check_signature(("iterate",), optional=True, function=function)
        check_integer(1, every=every)
        self.clock = Clock()
        self._function, self._every = function, every

    def start(self) -> None:
        """Starts the clock."""
        self.clock.start()

    def due(self, iterate: Iterate) -> tuple[float, dict[str, int | float]] | None:
        """The seconds and the user's numbers to be written of this iterate; None where it is not its turn."""
        seconds = self.clock.at(iterate)
        if iterate.step % self._every:
            return None
        return seconds, {} if self._function is None else named_numbers(self._function(iterate))


def seen(iterate: Iterate) -> tuple[float, float]:
    """J and the residual that the last step saw; NaN where none was made."""
    history = iterate.history
    if history and history[-1]["step"] == iterate.step - 1:  # they are read there for many steps at once
        record = history[-1]
        return record["value"], record["residual"]
    if iterate.info is None:
        return float("nan"), float("nan")
    return float(iterate.info.value), iterate.info.residual


def named_numbers(said: Any) -> dict[str, int | float]:
    """What a user's function said of an iterate, as numbers of Python's.

    Raises:
        InvalidType: it is no dict of numbers.
        InvalidValue: a name cannot be printed, or is one of the columns that are there already.
    """
    if not isinstance(said, Mapping):
        cure = "{'name': number}" if as_number(said) is None else f"{{'name': {said!r}}}"
        raise InvalidType(f"function(iterate) returned {kind_of(said)}; expected a dict of numbers, as in {cure}")
    found: dict[str, int | float] = {}
    for name, value in said.items():
        number = as_number(value)
        if not isinstance(name, str):
            raise InvalidType(f"function(iterate) returned a dict with the key {name!r}; expected names, strings")
        if not (name and name.isprintable()):
            raise InvalidValue(f"function(iterate) returned the name {name!r}; expected one that can be printed")
        if number is None:
            raise InvalidType(
                f"function(iterate) returned {kind_of(value)} under {name!r}; expected a number that a float holds, "
                "or a tensor of one"
            )
        if name in FIXED:
            raise InvalidValue(f"function(iterate) returned {name!r}, which is written already; take another name")
        found[name] = number
    return found


def as_number(value: Any) -> int | float | None:
    """A number of Python's; None where it is none."""
    if isinstance(value, Tensor):
        value = value.item() if value.numel() == 1 and not value.is_complex() and not value.is_meta else None
    elif isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.size == 1):
        value = value.item()
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int) and value.bit_length() > 1023:  # no float holds it, and no reader of a table
        return None
    return value if isinstance(value, int | float) else None


class Clock:
    """The seconds of a run, which a resumed solve goes on counting."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """At the start of a solve."""
        self._began, self._known, self._least = time.perf_counter(), False, 0.0

    def after(self, seconds: float) -> None:
        """At the start of a solve that goes on: what was written is no later than this."""
        self._least = seconds

    def at(self, iterate: Iterate) -> float:
        """Seconds since the very beginning of the run."""
        if not self._known:
            # The first step of this solve began when its hooks had started, at a time that the records tell; there the
            # clock goes on from where the last step before it began.
            told = iterate.history[-1].get("seconds", 0.0) if iterate.history else 0.0
            self._began -= max(told, self._least)
            self._known = True
        return time.perf_counter() - self._began
