"""A Pyro model with its data as a log density."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mfoc import InvalidValue
from paradigms.bayesian.density.density import LogDensity, flat, split, vectorised
from paradigms.bayesian.pyro.arguments import Arguments
from paradigms.bayesian.pyro.trace import (
    Joint,
    check_batch,
    evaluate,
    parameters,
    prototype,
    quietly,
    unconstrained,
)


def of_model(model: Callable[..., Any], data: Any, size: int | None, traced: bool) -> LogDensity:
    """A Pyro model with its data; see ``log_density``."""
    arguments = Arguments(data)
    trace = prototype(model, arguments)
    example, params = unconstrained(trace), parameters(trace)
    shapes = {name: leaf.shape for name, leaf in example.items()}

    def joint(x: Tensor, rows: Mapping[Any, Tensor] | None = None) -> Joint:
        return evaluate(model, arguments, split(x, shapes), rows=rows, params=params)

    def one(x: Tensor) -> Tensor:
        found = joint(x)
        return found.observed + found.prior + found.volume

    def values(x: Tensor) -> dict[str, Tensor]:
        return joint(x).values

    def constrain(x: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            found: dict[str, Tensor] = _quiet(torch.func.vmap(values), x)
        return found

    make = partial(vectorised, one, shapes, flat(example), constrain=constrain, around=_quiet, traced=traced)

    if size is None:
        return make()
    rows = arguments.rows(size)
    if not rows:
        raise InvalidValue(f"size is {size}; no argument of the model has as many rows to take a batch of")
    if size > 1:
        part = prototype(model, arguments.take({key: value[:1] for key, value in rows.items()}))
        check_batch(trace, part, instead="leave size out")

    def on_batch(x: Tensor, index: Tensor) -> Tensor:
        found = joint(x, {key: value[index] for key, value in rows.items()})
        return size / len(index) * found.observed + found.prior + found.volume

    return make(size=size, on_batch=on_batch)


def _quiet(function: Callable[..., Any], *args: Any) -> Any:
    with quietly():
        return function(*args)
