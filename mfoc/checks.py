"""Argument checks for solvers and adapters of your own.

Arguments are given as ``name=value``, as in ``check_integer(1, steps=steps)``; the first that does not fit raises an
``InvalidValue`` that names it. Booleans are no numbers here. With ``optional=True`` None is accepted too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from mfoc._errors import InvalidValue


def check_integer(least: int, most: int | None = None, /, *, optional: bool = False, **values: object) -> None:
    """Refuses what is no integer from ``least`` on, up to ``most``: counts and seeds."""
    kinds = {0: "a non-negative integer", 1: "a positive integer"}
    expected = kinds.get(least, f"an integer from {least} on") if most is None else f"an integer from {least} to {most}"
    _check(values, int, lambda value: least <= value and (most is None or value <= most), expected, optional)


def check_positive(*, finite: bool = True, optional: bool = False, **values: object) -> None:
    """Refuses what is no positive number; infinity too, unless ``finite=False``."""
    expected = f"a positive {'finite ' * finite}number"
    _check(values, int | float, lambda value: value > 0 and not (finite and value == math.inf), expected, optional)


def check_non_negative(*, finite: bool = True, optional: bool = False, **values: object) -> None:
    """Refuses what is no number from 0 on; infinity too, unless ``finite=False``."""
    expected = f"a non-negative {'finite ' * finite}number"
    _check(values, int | float, lambda value: value >= 0 and not (finite and value == math.inf), expected, optional)


def check_between(low: float, high: float, /, *, optional: bool = False, **values: object) -> None:
    """Refuses what is no number in the open interval (``low``, ``high``): the level of an interval, say."""
    _check(values, int | float, lambda value: low < value < high, f"a number between {low} and {high}", optional)


def _check(values: dict[str, Any], kind: Any, fits: Callable[[Any], bool], expected: str, optional: bool) -> None:
    for name, value in values.items():
        if optional and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, kind) or not fits(value):
            raise InvalidValue(f"{name} is {value!r}; expected {expected}{' or None' * optional}")
