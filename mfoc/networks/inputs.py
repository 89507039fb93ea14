"""How a state enters the forward pass of a module."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from mfoc.errors import InvalidType, InvalidValue
from mfoc.tree import Tree

_PLACED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Inputs:
    """The arguments that a state is for a module: one, whatever the state is.

    With ``several`` a state may also be a dict by the names of arguments, all that have no default among them, or a
    tuple of two or more in their order. What has a default and is not in the state keeps it.

    Args:
        module: the module.
        name: what an error calls it.
        takes_data: the argument ``z`` is for the data.
        several: several arguments may be given.

    Raises:
        InvalidValue: the module needs several arguments, and gets one.
    """

    def __init__(self, module: nn.Module, name: str, *, takes_data: bool = False, several: bool = False) -> None:
        try:
            found = list(inspect.signature(module.forward).parameters.values())
        except (ValueError, TypeError):  # it does not say
            found = []
        if takes_data:
            found = [p for p in found if p.name != "z"]
        variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        self.names = [p.name for p in found if p.kind not in variable]
        self.needed = [p.name for p in found if p.kind not in variable and p.default is p.empty]
        self.placed = sum(p.kind in _PLACED for p in found)
        self.one = not several or len(self.names) < 2
        if not several and len(self.needed) > 1:
            called = f"module {name!r}" if name else "net"
            raise InvalidValue(
                f"{called}: its forward pass needs {', '.join(self.needed)}, and a stage is given its state. {_DATA}"
            )

    def __call__(self, x: Tree) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and named arguments."""
        if self.one or (isinstance(x, Tensor) and len(self.needed) < 2):
            return (x,), {}
        if isinstance(x, dict) and x.keys() <= set(self.names) and x.keys() >= set(self.needed):
            return (), dict(x)
        if len(self.needed) < 2:
            return (x,), {}
        if type(x) in (tuple, list) and len(self.needed) <= len(x) <= self.placed:
            return tuple(x), {}
        raise InvalidType(
            f"the forward pass needs {', '.join(self.needed)}; give a state that is a dict of them, or a tuple in this "
            f"order. {_DATA}"
        )


_DATA = "A module that is to see the data z says so by an attribute, takes_data = True, and has an argument z"
