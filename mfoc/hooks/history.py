"""The records of a solve, as a checkpoint holds them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def packed(history: Sequence[dict[str, float]]) -> list[list[Any]]:
    """Records as blocks of [names, a column of values each], a block for as long as the names are the same."""
    blocks: list[list[Any]] = []
    for record in history:
        if not blocks or blocks[-1][0] != list(record):
            blocks.append([list(record), []])
        blocks[-1][1].append(list(record.values()))
    return [[[*map(str, names)], [_column(column) for column in zip(*rows, strict=True)]] for names, rows in blocks]


def _column(values: Sequence[Any]) -> Tensor | list[Any]:
    """Values of one type as a tensor, which takes little time and room; others as Python's own, which a file may hold.

    They come back as they were, but for numbers of other libraries, which become Python's.
    """
    kinds = set(map(type, values))
    if kinds == {float} or (kinds == {int} and all(abs(value) < 2**62 for value in values)):
        return torch.tensor(values, dtype=torch.float64 if kinds == {float} else torch.int64, device="cpu")
    return [_plain(value) for value in values]


def _plain(value: Any) -> Any:
    if type(value) in (float, int, bool, str):
        return value
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        return repr(value)


def unpacked(blocks: list[list[Any]]) -> list[dict[str, float]]:
    """The records that were packed."""
    found = []
    for names, columns in blocks:
        rows = zip(*(column.tolist() if isinstance(column, Tensor) else column for column in columns), strict=True)
        found += [dict(zip(names, row, strict=True)) for row in rows]
    return found
