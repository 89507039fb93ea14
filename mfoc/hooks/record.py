"""Records of a solve."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mfoc.checks import check_callable, check_integer, check_signature
from mfoc.hooks.numbers import as_number
from mfoc.printing import html_table, short, table
from mfoc.solving import Iterate

_ENDS = 6  # rows printed at either end of a long record


class Record:
    """Records what a function says of the iterate.

    ``print(record)`` is a table, where what is a dict of numbers has a column for each of them; ``record.rows`` are the
    same as a list of dicts, which any library of tables takes, and ``for row in record`` goes through them.

    Args:
        function: ``function(iterate) -> value``.
        every: steps between records.

    Attributes:
        steps: the steps at which it was called.
        seconds: time since the start of the solve at each of them, less the time spent in the function.
        values: what it returned.
    """

    def __init__(self, function: Callable[[Iterate], Any], *, every: int = 1) -> None:
        check_callable("a function of the iterate", function=function)
        check_signature(("iterate",), function=function)
        check_integer(1, every=every)
        self._function, self._every = function, every
        self.steps: list[int] = []
        self.seconds: list[float] = []
        self.values: list[Any] = []
        self._began = time.perf_counter()

    def start(self, steps: int) -> None:
        """Starts the clock, and the record anew."""
        self.steps, self.seconds, self.values = [], [], []
        self._began = time.perf_counter()

    def __call__(self, iterate: Iterate) -> None:
        """Records, when it is time."""
        if iterate.step % self._every == 0:
            called = time.perf_counter()
            self.steps.append(iterate.step)
            self.seconds.append(called - self._began)
            try:
                self.values.append(self._function(iterate))
            except BaseException:  # there are as many of each, whatever happens
                del self.steps[-1], self.seconds[-1]
                raise
            self._began += time.perf_counter() - called

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The records as dicts: "step", "seconds", and "value", or the entries of what is a dict under their names."""
        return list(self)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for step, seconds, value in zip(self.steps, self.seconds, self.values, strict=True):
            yield {"step": step, "seconds": seconds, **_named(value)}

    def __len__(self) -> int:
        return len(self.steps)

    def __bool__(self) -> bool:
        return True  # an empty record is no missing one: filter(None, hooks) must not lose it

    def __str__(self) -> str:
        return table(*self._table()) if self.steps else repr(self)

    def __repr__(self) -> str:
        count = len(self)
        where = "" if not count else f", steps {self.steps[0]} to {self.steps[-1]}"
        return f"Record({count or 'no'} row{'s' * (count != 1)}{where})"

    def _repr_html_(self) -> str:
        return html_table(*self._table())

    def _table(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows to be printed: the first and the last, where there are many."""
        rows = self.rows
        header = list(dict.fromkeys(name for row in rows for name in row)) or ["step", "seconds", "value"]
        if len(rows) > 2 * _ENDS + 1:
            kept: list[dict[str, Any] | None] = [*rows[:_ENDS], None, *rows[-_ENDS:]]
        else:
            kept = [*rows]
        return header, [["..."] * len(header) if row is None else _cells(row, header) for row in kept]


def _named(value: Any) -> dict[str, Any]:
    """A value as entries of a row."""
    if not isinstance(value, Mapping):
        return {"value": value}
    return {f"value.{name}" if name in ("step", "seconds") else str(name): entry for name, entry in value.items()}


def _cells(row: Mapping[str, Any], header: list[str]) -> list[str]:
    return [f"{row[name]:.3f}" if name == "seconds" else _cell(row[name]) if name in row else "" for name in header]


def _cell(value: Any) -> str:
    number = as_number(value)
    return short(value if number is None or isinstance(value, bool) else number, digits=5).replace("\n", " ")
