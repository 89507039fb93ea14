"""Names of what one figure shows side by side."""

from __future__ import annotations

from collections.abc import Sequence

from mfoc.checks import check_instance
from mfoc.errors import InvalidValue


def names_for(names: Sequence[str], own: Sequence[str]) -> list[str]:
    """The names given; where there are none the own ones, numbered where they are alike.

    Raises:
        InvalidType: a name is no string.
        InvalidValue: another number of names, or two that are alike.
    """
    check_instance(list | tuple, "a list of strings", names=names)
    check_instance(str, "a string", **{f"names[{k}]": name for k, name in enumerate(names)})
    if not names:
        return [name if own.count(name) == 1 else f"{name} {own[:k].count(name) + 1}" for k, name in enumerate(own)]
    if len(names) != len(own):
        raise InvalidValue(f"names has {len(names)} entries for {len(own)} that are drawn")
    if len(set(names)) < len(names):
        raise InvalidValue(f"names has two that are alike: {list(names)}; expected different ones")
    return list(names)
