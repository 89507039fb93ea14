"""How installed paradigms are found."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from mfoc import InvalidValue

_GROUP = "mfoc.paradigms"


def available() -> list[str]:
    """The names of the installed paradigms: entry points of the group "mfoc.paradigms"."""
    return sorted({point.name for point in entry_points(group=_GROUP)})


def load(name: str) -> Any:
    """Imports an installed paradigm.

    Args:
        name: one of ``available()``.

    Returns:
        What its entry point names: a module of functions that return formulations.

    Raises:
        InvalidValue: no such paradigm is installed.
    """
    for point in entry_points(group=_GROUP):
        if point.name == name:
            return point.load()
    raise InvalidValue(f"no paradigm {name!r} is installed; available: {', '.join(available()) or 'none'}")
