"""What may hold tensors compares by identity in all paradigms, so that ``==`` never raises."""

import dataclasses
import importlib
import inspect
import pkgutil
import typing
from collections.abc import Callable

import pytest
from torch import Tensor

import paradigms

for extra in ("pyro", "torchattacks", "learn2learn"):
    pytest.importorskip(extra)


def may_hold_tensors(hint):
    """A function may return tensors, but holds none."""
    if hint is Tensor or hint is typing.Any:
        return True
    return typing.get_origin(hint) is not Callable and any(map(may_hold_tensors, typing.get_args(hint)))


def records():
    """The named tuples and dataclasses of all modules."""
    for info in pkgutil.walk_packages(paradigms.__path__, "paradigms."):
        for cls in vars(importlib.import_module(info.name)).values():
            tuples = inspect.isclass(cls) and issubclass(cls, tuple) and hasattr(cls, "_fields")
            if inspect.isclass(cls) and cls.__module__ == info.name and (tuples or dataclasses.is_dataclass(cls)):
                yield cls


HOLDERS = [cls for cls in records() if any(map(may_hold_tensors, typing.get_type_hints(cls).values()))]
assert {"Joint", "_Flow", "Draws"} <= {cls.__name__ for cls in HOLDERS}


@pytest.mark.parametrize("cls", HOLDERS, ids=lambda cls: cls.__name__)
def test_equality_is_identity(cls):
    assert cls.__eq__ is object.__eq__ or cls.__eq__.__module__ == "mfoc.printing"
