"""What functions and objects of the user's hold: what of it tells one from another, and what changes by itself.

A counter that a function adds to when it is called, or a value that a method stores, is no setting: it is another one
after a run, of the very same thing.
"""

from __future__ import annotations

import dis
import functools
import inspect
import sys
import sysconfig
import types
from collections.abc import Iterator
from typing import Any

from torch import nn

_LIBRARIES = {"torch", "mfoc", "paradigms", "numpy"}
_MAKERS = {"__init__", "__post_init__", "__new__", "__setstate__"}  # methods that store what an object is made of
_INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")} - {None})


def of_function(function: types.FunctionType) -> dict[str, Any]:
    """What a function works with, by name: what it closes over, its defaults, and the global variables of its module.

    Global variables only of code that is not of a library. Without what it changes itself, or a function that it calls.
    """
    code = function.__code__
    held = dict(zip(code.co_freevars, map(_contents, function.__closure__ or ()), strict=True))
    if not of_library(function.__module__, code.co_filename):
        names = sorted(_named(code, "LOAD_GLOBAL", "LOAD_NAME"))
        held |= {name: function.__globals__[name] for name in names if _is_own(function, name)}
    changed = _named(code, "STORE_DEREF", "STORE_GLOBAL", "DELETE_GLOBAL")
    for one in held.values():
        if isinstance(one, types.FunctionType):
            changed |= _named(one.__code__, "STORE_DEREF", "STORE_GLOBAL", "DELETE_GLOBAL")
    held = {name: one for name, one in held.items() if name not in changed}
    held |= {f"default {place}": one for place, one in enumerate(function.__defaults__ or ())}
    held |= function.__kwdefaults__ or {}
    inner = getattr(function, "__wrapped__", None)
    if isinstance(inner, types.FunctionType) and not any(one is inner for one in held.values()):
        held["wrapped"] = inner
    return {name: one for name, one in held.items() if one is not function}


def of_object(value: object) -> dict[str, Any]:
    """What an object was made with, by name: its attributes, without those that its methods store."""
    own = getattr(value, "__dict__", None)
    if not isinstance(own, dict):
        return {}
    kind: Any = type(value)
    changed = _changed_by(kind)
    if isinstance(value, nn.Module):
        hidden = {name for name in own if name.startswith("_")}  # torch's own
        changed = changed | hidden | (set() if _asks_for_mode(kind) else {"training"})
    return {name: one for name, one in sorted(own.items()) if isinstance(name, str) and name not in changed}


def constants(code: types.CodeType) -> list[float]:
    """The numbers that are not whole in a function's code."""
    return [one for part in _codes(code) for one in part.co_consts if isinstance(one, float)]


def of_library(module: str | None, file: str = "") -> bool:
    """Whether code is of a library: what it keeps in global variables or on its objects is its own affair."""
    root = (module or "").partition(".")[0]
    return root in _LIBRARIES or root in sys.stdlib_module_names or file.startswith(_INSTALLED)


def _is_own(function: types.FunctionType, name: str) -> bool:
    """Whether a name is a global variable of a function's module; of functions only those that are written there."""
    if name not in function.__globals__:
        return False
    one = function.__globals__[name]
    return not isinstance(one, types.FunctionType) or one.__globals__ is function.__globals__


def _contents(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not yet filled
        return None


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """The code of a function and of those that are written in it."""
    yield code
    for one in code.co_consts:
        if isinstance(one, types.CodeType):
            yield from _codes(one)


@functools.lru_cache(maxsize=1024)
def _named(code: types.CodeType, *operations: str) -> frozenset[str]:
    """The names that code loads or stores, by these operations."""
    return frozenset(str(step.argval) for step in _steps(code) if step.opname in operations)


def _steps(code: types.CodeType) -> Iterator[dis.Instruction]:
    return (step for part in _codes(code) for step in dis.get_instructions(part))


def _methods(kind: type) -> dict[str, types.FunctionType]:
    """The methods of a class and of those that it is made of, without torch's own; also what is behind properties."""
    found = {}
    for base in kind.__mro__:
        if base is object or (base.__module__.partition(".")[0] == "torch" and base is not kind):
            continue
        for name, member in vars(base).items():
            plain = getattr(member, "__func__", getattr(member, "fget", member))
            if isinstance(plain, types.FunctionType):
                found[f"{base.__qualname__}.{name}"] = plain
    return found


@functools.lru_cache(maxsize=256)
def _changed_by(kind: type) -> frozenset[str]:
    """The attributes that methods of a class store after it was made, or when they are first read."""
    if of_library(kind.__module__, _file_of(kind)):
        return frozenset()
    found: set[str] = set()
    for name, method in _methods(kind).items():
        if name.rpartition(".")[2] not in _MAKERS:
            found |= _named(method.__code__, "STORE_ATTR", "DELETE_ATTR")
    cached = inspect.getmembers_static(kind, lambda one: isinstance(one, functools.cached_property))
    return frozenset(found | {name for name, _ in cached})


@functools.lru_cache(maxsize=256)
def _asks_for_mode(kind: type) -> bool:
    """Whether a module does something else in training mode: whether its own code asks."""
    return any("training" in part.co_names for method in _methods(kind).values() for part in _codes(method.__code__))


def _file_of(kind: type) -> str:
    return str(getattr(sys.modules.get(kind.__module__), "__file__", None) or "")
