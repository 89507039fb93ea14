"""Results that hold tensors: printed in a line, and compared without an error.

``==`` on tensors is a tensor, so that named tuples and dataclasses of tensors can be neither compared nor looked up in
a list; and their printed form is pages of numbers.

This is below the public doors: it does not check its arguments.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from html import escape
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from mfoc import tree

Class = TypeVar("Class", bound=type)


def by_identity(cls: Class) -> Class:
    """Class decorator for named tuples and dataclasses: ``==`` is ``is``, and tensors are printed by their shape.

    Fields that are None are not printed. A ``__repr__`` of the class's own stays.
    """
    names = [field.name for field in fields(cls)] if is_dataclass(cls) else getattr(cls, "_fields", ())

    def show(self: Any) -> str:
        held = {name: getattr(self, name) for name in names}
        shown = [f"{name}={short(value)}" for name, value in held.items() if value is not None]
        return f"{type(self).__name__}({', '.join(shown)})"

    own = cls.__repr__.__module__ == cls.__module__ and not hasattr(cls.__repr__, "__wrapped__")  # as dataclass's has
    methods: dict[str, Any] = {"__hash__": object.__hash__, **({} if own else {"__repr__": show})}
    # Never NotImplemented: Python would go on to compare a tuple's entries.
    methods |= {"__eq__": lambda self, other: self is other, "__ne__": lambda self, other: self is not other}
    for name, method in methods.items():
        setattr(cls, name, method)
    return cls


def short(value: Any, most: int = 3, *, digits: int | None = None) -> str:
    """A value in a few words: a tensor by its dtype and shape, a container by its first and last entries.

    Args:
        value: anything; what is neither a tensor nor a list, tuple or dict is printed as it prints itself.
        most: the longest container that is printed whole.
        digits: of a float; all of them when None.
    """
    if isinstance(value, Tensor | np.ndarray):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, float) and digits is not None:
        return f"{value:.{digits}g}"
    if isinstance(value, int) and value.bit_length() > 1023:  # hundreds of digits, and of thousands Python prints none
        return f"an int of {value.bit_length()} bits"
    if isinstance(value, dict):
        form, entries = "{{{}}}", [f"{key!r}: {short(entry, most)}" for key, entry in value.items()]
    elif type(value) in (list, tuple):
        form, entries = "[{}]" if type(value) is list else "({})", [short(entry, most) for entry in value]
    elif isinstance(value, tuple) and type(value).__repr__.__module__ == "collections":  # a plain named tuple
        named = zip(value._fields, value, strict=True)  # type: ignore[attr-defined]
        form, entries = f"{type(value).__name__}({{}})", [f"{name}={short(entry, most)}" for name, entry in named]
    else:
        return repr(value)
    if len(entries) > most:
        entries[1:-1] = [f"... {len(entries) - 2} more ..."]
    return form.format(", ".join(entries))


def sizes(values: tree.Tree) -> str:
    """How much a tree holds, in words: ``"67 numbers in 6 tensors, float32 on cpu"``."""
    found = [leaf for leaf in tree.leaves(values) if isinstance(leaf, Tensor)]
    if not found:
        return "nothing"
    count = sum(leaf.numel() for leaf in found)
    kinds = sorted({f"{str(leaf.dtype).removeprefix('torch.')} on {leaf.device}" for leaf in found})
    tensors = "" if len(found) == 1 else f" in {len(found)} tensors"
    return f"{count:,} number{'s' * (count != 1)}{tensors}, {', '.join(kinds)}"


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Aligned columns: text to the left, numbers to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    right = [all(map(_is_number, column)) for column in zip(*cells, strict=True)] or [False] * len(header)

    def line(row: Sequence[str]) -> str:
        placed = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)]
        return "  ".join(placed).rstrip()

    return "\n".join(map(line, [list(header), *cells]))


def _is_number(cell: str) -> bool:
    """Whether a cell goes to the right: a number, whatever its sign, or the gap between numbers."""
    return cell.lstrip("+-")[:1].isdigit() or cell.lstrip("+-") in ("nan", "inf", "...")


def html_table(header: Sequence[str], rows: Iterable[Sequence[Any]], *, caption: str = "") -> str:
    """An HTML table, for notebooks."""
    cells = "".join(f"<th>{escape(name)}</th>" for name in header)
    lines = [f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows]
    above = f"<caption style='text-align:left'>{escape(caption)}</caption>" if caption else ""
    return f"<table>{above}<tr>{cells}</tr>{''.join(lines)}</table>"
