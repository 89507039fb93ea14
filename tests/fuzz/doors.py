"""The public callables of mfoc and of the paradigms, each with the names of its parameters."""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any, is_typeddict

from tests.fuzz.exclusions import METHODS, MODULES, NAMES, RESULTS

ROOTS = ("mfoc", "paradigms", "paradigms.adversarial", "paradigms.bayesian", "paradigms.meta")
SPECIAL = ("__call__", "__getitem__")  # of the methods with such names, those that users call


@dataclass(frozen=True)
class Door:
    """One public callable.

    Attributes:
        name: as in "mfoc.solve" or "mfoc.Particles.to".
        owner: the class whose instance it is called on; None for functions and constructors.
        call: the function, the class, or the name of the method.
        parameters: what it takes, by name.
    """

    name: str
    owner: type | None
    call: Any
    parameters: dict[str, inspect.Parameter]


def doors() -> list[Door]:
    """Every door, sorted by name."""
    found: dict[int, Door] = {}
    excluded = {id(item) for name, item in _public() if name in NAMES}
    for name, item in _public():
        if id(item) in found or id(item) in excluded:
            continue
        if not isinstance(item, type):
            found[id(item)] = _door(name, None, item)
            continue
        if not (_is_result(item) or _is_abstract(item)):
            found[id(item)] = _door(name, None, item)
        if not _is_abstract(item):
            found |= {id(member): door for member, door in _methods(name, item) if id(member) not in found}
    return sorted(found.values(), key=lambda door: door.name)


def _public() -> Iterator[tuple[str, Any]]:
    modules = [import_module(root) for root in ROOTS]
    seen: set[str] = set()
    while modules:
        module = modules.pop(0)
        if module.__name__ in seen or module.__name__ in MODULES:
            continue
        seen.add(module.__name__)
        for key in getattr(module, "__all__", None) or [key for key in vars(module) if not key.startswith("_")]:
            item = getattr(module, key)
            if isinstance(item, ModuleType):
                named = hasattr(module, "__all__") or hasattr(item, "__path__")
                if named and item.__name__.startswith(f"{module.__name__}."):
                    modules.append(item)
            elif _is_ours(module, item):
                yield f"{module.__name__}.{key}", item


def _is_ours(module: ModuleType, item: Any) -> bool:
    home = getattr(item, "__module__", None) or ""
    inside = home == module.__name__ or home.startswith(f"{module.__name__}.") or hasattr(module, "__all__")
    if not (callable(item) and inside and home.split(".")[0] in ("mfoc", "paradigms")):
        return False
    if isinstance(item, type):
        return not issubclass(item, BaseException | enum.Enum)
    return inspect.isfunction(item)


def _is_abstract(item: type) -> bool:
    return getattr(item, "_is_protocol", False) or inspect.isabstract(item) or is_typeddict(item)


def _is_result(item: type) -> bool:
    """Whether nobody makes one: named tuples are what functions return."""
    return item.__name__ in RESULTS or hasattr(item, "_fields")


def _methods(name: str, item: type) -> Iterator[tuple[Any, Door]]:
    for key in dir(item):
        member = inspect.getattr_static(item, key)
        plain = member.__func__ if isinstance(member, classmethod | staticmethod) else member
        home = getattr(plain, "__module__", "") or ""
        if not inspect.isfunction(plain) or home.split(".")[0] not in ("mfoc", "paradigms"):
            continue
        if (key.startswith("_") and key not in SPECIAL) or key in METHODS or f"{item.__name__}.{key}" in METHODS:
            continue
        if isinstance(member, classmethod | staticmethod):
            yield plain, _door(f"{name}.{key}", None, getattr(item, key))
        else:
            yield plain, _door(f"{name}.{key}", item, key)


def _door(name: str, owner: type | None, call: Any) -> Door:
    function: Callable[..., Any] = getattr(owner, call) if owner is not None else call
    parameters = dict(inspect.signature(function).parameters)
    if owner is not None:
        parameters.pop(next(iter(parameters)))
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return Door(name, owner, call, {key: part for key, part in parameters.items() if part.kind not in kinds})
