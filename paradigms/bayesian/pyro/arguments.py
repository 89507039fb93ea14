"""What a Pyro model is called with."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

import mfoc
from mfoc import InvalidType, InvalidValue


class Arguments:
    """What a Pyro model is called with, and which part of it holds the observations.

    Args:
        data: a tuple of arguments, a dict of keyword arguments, or a single tensor.

    Attributes:
        named: whether they are keyword arguments.
        values: the arguments, by place or name.
        lengths: the leading axis of those that are tensors.

    Raises:
        InvalidType: something else.
    """

    def __init__(self, data: Any) -> None:
        if isinstance(data, Tensor):
            data = (data,)
        if not isinstance(data, tuple | list | dict):
            raise InvalidType(
                f"data is a {type(data).__name__}; expected the tuple of the model's arguments, or a dict of its "
                "keyword arguments"
            )
        self.named = isinstance(data, dict)
        self.values: dict[Any, Any] = dict(data) if isinstance(data, dict) else dict(enumerate(data))
        self.lengths = {key: len(v) for key, v in self.values.items() if isinstance(v, Tensor) and v.dim() > 0}

    def size(self, given: int | None) -> int:
        """The number of observations N: as given, or the leading axis that all tensors have.

        Raises:
            InvalidValue: N is not known, or zero.
        """
        if given is not None:
            return given
        if len(set(self.lengths.values())) != 1:
            why = f"the arguments have leading axes {self.lengths}" if self.lengths else "no argument is a tensor"
            raise InvalidValue(f"N is missing: {why}; pass size=N, the number of observations")
        size = next(iter(self.lengths.values()))
        if size == 0:
            raise InvalidValue("data is empty; expected at least one observation")
        return size

    def rows(self, size: int) -> dict[Any, Tensor]:
        """The arguments that hold the observations: those with leading axis N."""
        return {key: self.values[key] for key, length in self.lengths.items() if length == size}

    def call(self, function: Callable[..., Any], rows: Mapping[Any, Tensor] | None = None) -> Any:
        """Calls a function with these arguments, some of them replaced."""
        values = {**self.values, **(rows or {})}
        return function(**values) if self.named else function(*values.values())

    def batches(self, size: int, batch_size: int, seed: int) -> mfoc.Population:
        """Rows of the arguments that hold the observations, as the state of a population.

        Raises:
            InvalidValue: no argument can be split into batches.
        """
        rows = self.rows(size)
        if not rows:
            raise InvalidValue("batch_size was given, and no argument of the model is a tensor with leading axis N")
        return mfoc.population(mfoc.Particles(rows), batch_size=batch_size, seed=seed)

    def take(self, rows: Mapping[Any, Tensor]) -> Arguments:
        """The same arguments with other rows."""
        taken = copy.copy(self)
        taken.values = {**self.values, **rows}
        return taken
