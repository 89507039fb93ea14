"""Names of the past: they still work, and say once what has taken their place.

This is for authors of libraries: it does not check its arguments.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, TypeVar

from mfoc.errors import InvalidType

Renamed = TypeVar("Renamed", bound=Callable[..., Any])


class _Door(ModuleType):
    """A module that has moved: its names are looked up where they live now."""

    def __init__(self, name: str, homes: Sequence[str], names: Mapping[str, str]) -> None:
        super().__init__(name, f"Moved to {', '.join(homes)}.")
        self.__spec__ = ModuleSpec(name, None)
        self._homes, self._names = homes, names

    def __getattr__(self, name: str) -> Any:
        if name == "__all__":  # for ``import *``
            return [public for public in dir(self) if not public.startswith("_")]
        if name.startswith("_"):
            raise AttributeError(name)
        new = self._names.get(name, name)
        for home in map(import_module, self._homes):
            if hasattr(home, new):
                warn(f"{self.__name__}.{name} has moved to {home.__name__}.{new}")
                return getattr(home, new)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")

    def __dir__(self) -> list[str]:
        return sorted({name for home in map(import_module, self._homes) for name in dir(home)})


def warn(message: str, *, stacklevel: int = 2) -> None:
    """A ``DeprecationWarning`` where the caller of the deprecated name stands."""
    warnings.warn(message, DeprecationWarning, stacklevel=stacklevel + 1)


def moved(modules: Mapping[str, Sequence[str]], names: Mapping[str, str] | None = None) -> None:
    """Keeps modules importable under the names they had.

    Args:
        modules: old dotted name -> the modules that hold its names now.
        names: old dotted name of a member -> its new name, for those that were renamed, too.
    """
    for old, homes in modules.items():
        own = {key.removeprefix(f"{old}."): new for key, new in (names or {}).items() if key.startswith(f"{old}.")}
        sys.modules[old] = _Door(old, homes, own)


def aliases(module: str, names: Mapping[str, str] | None = None) -> Callable[[str], Any]:
    """The ``__getattr__`` of a module some of whose names, or of a package some of whose modules, live elsewhere.

    Args:
        module: its dotted name.
        names: old name -> dotted name of what it is now.
    """

    def look_up(name: str) -> Any:
        own = f"{module}.{name}"
        if isinstance(sys.modules.get(own), _Door):
            return sys.modules[own]
        if any(isinstance(sys.modules[key], _Door) for key in list(sys.modules) if key.startswith(f"{own}.")):
            return import_module(own)  # a package that nobody has imported yet, with modules that have moved
        if names is None or name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warn(f"{module}.{name} is now {names[name]}")
        home, _, new = names[name].rpartition(".")
        return getattr(import_module(home), new)

    return look_up


def renamed(**names: str) -> Callable[[Renamed], Renamed]:
    """Keeps old names of keyword arguments, and of a class's attributes: ``@renamed(old="new")``.

    Args:
        **names: old name -> new name.
    """

    def keep(function: Renamed) -> Renamed:
        run = function.__init__ if isinstance(function, type) else function  # type: ignore[misc]

        @functools.wraps(run)
        def call(*args: Any, **kwargs: Any) -> Any:
            for old, new in names.items():
                if old in kwargs:
                    if kwargs.get(new) is not None:
                        raise InvalidType(f"{old} is the old name of {new}; both were given")
                    warn(f"{old}= is now {new}=")
                    kwargs[new] = kwargs.pop(old)
            return run(*args, **kwargs)

        if not isinstance(function, type):
            return call  # type: ignore[return-value]
        function.__init__ = call  # type: ignore[misc]
        function.__setstate__ = _reader(names)  # type: ignore[attr-defined]
        for old, new in names.items():
            setattr(function, old, _former(old, new))
        return function

    return keep


def _reader(names: Mapping[str, str]) -> Callable[[Any, dict[str, Any]], None]:
    """Reads what was pickled under the old names, too."""

    def read(self: Any, state: dict[str, Any]) -> None:
        self.__dict__.update({names.get(name, name): value for name, value in state.items()})

    return read


def _former(old: str, new: str) -> property:
    def get(self: Any) -> Any:
        warn(f".{old} is now .{new}")
        return getattr(self, new)

    return property(get, doc=f"Now ``{new}``.")
