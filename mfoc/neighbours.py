"""A second package named ``paradigms``: another distribution may bring one, or a folder of the user's.

``paradigms`` is a top-level package of this library beside ``mfoc``. Python imports the first of a name that it finds,
so that of two packages one is hidden, without a word. This finds the other without importing either.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path

from mfoc.errors import NameClash

NAME = "paradigms"
_BROUGHT = rf"^{NAME}(/__init__)?\.py,"  # a line of a RECORD; to read all lines as paths would take seconds


def candidates() -> Iterator[Path]:
    """The packages and modules of that name along ``sys.path``, in the order in which Python finds them."""
    seen = set()
    for entry in sys.path:
        folder = Path(entry or ".")
        for file in (folder / NAME / "__init__.py", folder / f"{NAME}.py"):  # a folder without the first is no rival
            try:
                found, place = file.is_file(), file.resolve()
            except OSError:  # an entry that cannot be read is one that Python passes over, too
                continue
            if found and place not in seen:
                seen.add(place)
                yield place
                break


def is_ours(file: Path) -> bool:
    """Whether it is the package of this library, of whatever version: another copy of ours is no stranger."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return file.name == "__init__.py" and all(f'"{name}"' in text for name in ("Formulation", "available", "load"))


def strangers() -> list[Path]:
    """What has the name and is not ours."""
    return [file for file in candidates() if not is_ours(file)]


def refuse_strangers() -> None:
    """Refuses to go on beside a stranger.

    Raises:
        NameClash: there is one.
    """
    if found := strangers():
        raise NameClash(message(found[0]))


def message(stranger: Path) -> str:
    """What is wrong, and what to do about it.

    Args:
        stranger: the file that Python would import.
    """
    place = stranger.parent if stranger.name == "__init__.py" else stranger
    return (
        f"another package is named {NAME!r}, as one of this library is: {place}; Python imports the first of them and "
        f"hides the other. Rename it, uninstall what brought it, or keep {place.parent} off sys.path"
    )


def sharing() -> list[str]:
    """Other distributions that say they bring a top-level package of that name: files of both may lie in one folder."""
    found = {each.name for each in distributions() if re.search(_BROUGHT, each.read_text("RECORD") or "", re.MULTILINE)}
    return sorted(found - {"mfoc"})
