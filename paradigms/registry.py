"""How installed paradigms are found."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from mfoc import InvalidValue
from mfoc.checks import check_instance

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
        InvalidType: no name.
        InvalidValue: no such paradigm is installed.
    """
    check_instance(str, "the name of a paradigm", name=name)
    for point in entry_points(group=_GROUP):
        if point.name == name:
            return point.load()
    raise InvalidValue(f"no paradigm {name!r} is installed; available: {', '.join(available()) or 'none'}")
