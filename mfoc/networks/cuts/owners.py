"""To which stage the parameters outside of the named blocks belong, as far as it can be told without running."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

_DEEP = 4  # methods that call methods


def owners(net: nn.Module, names: Sequence[str]) -> dict[str, set[int]]:
    """The stages of each parameter: that of its block, else the first one whose block its layer stands before.

    The order is that in which the forward passes mention the layers, or else that of registration. A parameter of
    several names (a head that is tied to an embedding) has the stages of all of them.
    """
    first: dict[int, str] = {id(parameter): key for key, parameter in net.named_parameters()}
    found: dict[str, set[int]] = {key: set() for key in first.values()}
    for key, parameter in net.named_parameters(remove_duplicate=False):
        inside = [k for k, name in enumerate(names) if key.startswith(f"{name}.")]
        stage = inside[0] if inside else sum(_before(net, name, key) for name in names)
        found[first[id(parameter)]].add(min(stage, len(names) - 1))
    return found


def _before(net: nn.Module, block: str, parameter: str) -> bool:
    """Whether a block stands before a parameter."""
    left, right = block.split("."), parameter.split(".")
    depth = next(k for k, (a, b) in enumerate(zip(left, right, strict=False)) if a != b)
    around = net.get_submodule(".".join(left[:depth]))
    order = list(dict.fromkeys(_mentioned(around)))
    pair = left[depth], right[depth]
    if not set(pair) <= set(order):
        order = [*around._parameters, *around._modules]
    return order.index(pair[0]) < order.index(pair[1])


def _mentioned(module: nn.Module, method: str = "forward", deep: int = 0) -> Iterator[str]:
    """Attributes in the order in which the source of a method names them."""
    function: Any = getattr(type(module), method, None)
    try:
        source = inspect.getsource(inspect.unwrap(function))
    except (TypeError, OSError):  # it is no function, or made at run time
        return
    for name in re.findall(r"\bself\.(\w+)", source):
        if inspect.isfunction(getattr(type(module), name, None)) and deep < _DEEP and name != method:
            yield from _mentioned(module, name, deep + 1)
        else:
            yield name
