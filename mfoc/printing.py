"""How objects that hold tensors are compared and printed: by identity, and in a few telling lines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, TypeVar

from torch import Tensor

from mfoc import tree

Kind = TypeVar("Kind", bound=type)


def by_identity(kind: Kind) -> Kind:
    """A class decorator: two objects are equal if they are one, as tensors have no single truth to compare by."""
    for name in ("__eq__", "__ne__", "__hash__"):
        setattr(kind, name, getattr(object, name))
    return kind


def sizes(values: tree.Tree) -> str:
    """How much a tree holds, in words: ``"67 numbers in 6 tensors, float32 on cpu"``."""
    found = [leaf for leaf in tree.leaves(values) if isinstance(leaf, Tensor)]
    if not found:
        return "nothing"
    count = sum(leaf.numel() for leaf in found)
    kinds = sorted({f"{str(leaf.dtype).removeprefix('torch.')} on {leaf.device}" for leaf in found})
    tensors = "" if len(found) == 1 else f" in {len(found)} tensors"
    return f"{count:,} number{'s' * (count != 1)}{tensors}, {', '.join(kinds)}"


def shapes(values: tree.Tree, most: int = 3) -> str:
    """The shapes of the first leaves of a tree, in words."""
    found = tree.leaves(values)
    return tree.describe(values) if len(found) <= most else f"{tree.describe(found[:most])[:-1]}, ...]"


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Aligned columns: text to the left, numbers to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    right = [all(cell[:1].isdigit() for cell in column) for column in zip(*cells, strict=True)] or [False] * len(header)

    def line(row: Sequence[str]) -> str:
        placed = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)]
        return "  ".join(placed).rstrip()

    return "\n".join(map(line, [list(header), *cells]))


def html_table(header: Sequence[str], rows: Iterable[Sequence[Any]], *, caption: str = "") -> str:
    """An HTML table, for notebooks."""
    cells = "".join(f"<th>{escape(name)}</th>" for name in header)
    lines = [f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows]
    above = f"<caption style='text-align:left'>{escape(caption)}</caption>" if caption else ""
    return f"<table>{above}<tr>{cells}</tr>{''.join(lines)}</table>"
