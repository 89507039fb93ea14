"""The arguments of a network's forward pass, out of the state that enters its first stage."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from mfoc.errors import InvalidType
from mfoc.tree import Tree, describe

DATA = "A module that is to see the data z says so by an attribute, takes_data = True, and has an argument z"


@dataclass(frozen=True)
class Arguments:
    """What a forward pass takes.

    Attributes:
        required: names without a default, in order.
        optional: names that have one; they keep it unless the state names them.
        positional: those of them that cannot be given by name.
        star: it takes more by position, ``*args``.
        keywords: it takes more by name, ``**kwargs``.
    """

    required: tuple[str, ...]
    optional: tuple[str, ...]
    positional: tuple[str, ...] = ()
    star: bool = False
    keywords: bool = False

    @classmethod
    def of(cls, net: nn.Module, *, without: str = "") -> Arguments:
        """Those of a module, read off its signature; of ``forward(*args)`` there is none that has a name.

        ``without`` is one that is for something else than the state.
        """
        try:
            found = list(inspect.signature(net.forward).parameters.values())
        except (ValueError, TypeError):  # it does not say
            found = []
        kinds = (
            inspect.Parameter.POSITIONAL_ONLY,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            inspect.Parameter.KEYWORD_ONLY,
        )
        named = [part for part in found if part.kind in kinds and part.name != without]
        return cls(
            tuple(part.name for part in named if part.default is part.empty),
            tuple(part.name for part in named if part.default is not part.empty),
            tuple(part.name for part in named if part.kind is part.POSITIONAL_ONLY),
            any(part.kind is part.VAR_POSITIONAL for part in found),
            any(part.kind is part.VAR_KEYWORD for part in found),
        )

    @property
    def several(self) -> bool:
        """Whether more than one may be given."""
        return len(self.required) + len(self.optional) > 1 or self.star or self.keywords

    @property
    def main(self) -> tuple[str, ...]:
        """Those that are always given: the required ones, or the first where none is."""
        return self.required or self.optional[:1]

    @property
    def free(self) -> tuple[str, ...]:
        """Those that may be given or not."""
        return tuple(name for name in self.optional if name not in self.main)

    def given(self, x: Tree) -> tuple[tuple[Tree, ...], dict[str, Tree]]:
        """What the forward pass is called with, by position and by name; see ``named``.

        A tuple is spread over ``*args``, and a dict over ``**kwargs`` where it holds the names that are required.

        Raises:
            InvalidType: there are several required arguments, and the state is neither a tuple nor a dict of them.
        """
        if self.star and isinstance(x, tuple) and len(x) >= len(self.required):
            return tuple(x), {}
        if not self.main:
            spread = self.keywords and isinstance(x, dict) and all(isinstance(key, str) for key in x)
            return ((), dict(x)) if spread else ((x,), {})
        named = self.named(x)
        return tuple(named.pop(name) for name in self.positional if name in named), named

    def call(self, function: Callable[..., Any], x: Tree) -> Any:
        """A function of what the forward pass takes: one argument as it is, several as ``given`` says.

        Raises:
            InvalidType: see ``given``.
        """
        if len(self.required) + len(self.optional) == 1:
            return function(x)
        args, kwargs = self.given(x)
        return function(*args, **kwargs)

    def named(self, x: Tree) -> dict[str, Tree]:
        """The arguments by name: a dict of names is what it says, a tuple is that of the required ones in order.

        Raises:
            InvalidType: there are several required arguments, and the state is neither.
        """
        main = self.main
        known = isinstance(x, dict) and (self.keywords or x.keys() <= {*main, *self.free})
        if known and x.keys() >= set(main) != set():
            return dict(x)
        if len(main) == 1:
            return {main[0]: x}
        if main and isinstance(x, tuple | list) and len(x) == len(main):
            return dict(zip(main, x, strict=True))
        raise InvalidType(
            f"the forward pass needs {', '.join(main)} and the state that enters is {describe(x)}; expected a tuple in "
            f"this order, or a dict by these names. {DATA}"
        )
