"""Versions of what is installed, and which come before others."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import metadata

Version = Callable[[str], str | None]  # of a distribution that is installed, or None


def installed(package: str) -> str | None:
    """The version of a distribution that is installed here, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def numbers(version: str) -> tuple[int, ...]:
    """2.15.0+cu132 as (2, 15, 0); what does not begin with numbers is the least of all."""
    start = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, start[0].split("."))) if start else ()


def below(version: str, bound: str) -> bool:
    """Whether a version is below another; 2.6 is 2.6.0."""
    given, limit = numbers(version), numbers(bound)
    length = max(len(given), len(limit))
    return given + (0,) * (length - len(given)) < limit + (0,) * (length - len(limit))
