"""Results that hold tensors: printed in a line, and compared without an error.

``==`` on tensors is a tensor, so that named tuples and dataclasses of tensors can be neither compared nor looked up in
a list; and their printed form is pages of numbers.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

from torch import Tensor

Class = TypeVar("Class", bound=type)


def by_identity(cls: Class) -> Class:
    """Class decorator for named tuples and dataclasses: ``==`` is ``is``, and tensors are printed by their shape.

    Fields that are None are not printed.
    """
    names = [field.name for field in fields(cls)] if is_dataclass(cls) else getattr(cls, "_fields", ())

    def show(self: Any) -> str:
        held = {name: getattr(self, name) for name in names}
        shown = [f"{name}={short(value)}" for name, value in held.items() if value is not None]
        return f"{type(self).__name__}({', '.join(shown)})"

    methods = {"__eq__": _same, "__ne__": _other, "__hash__": object.__hash__, "__repr__": show}
    for name, method in methods.items():
        setattr(cls, name, method)
    return cls


def short(value: Any, most: int = 3) -> str:
    """A value in a few words: a tensor by its dtype and shape, a container by its first and last entries.

    Args:
        value: anything; what is neither a tensor nor a list, tuple or dict is printed as it prints itself.
        most: the longest container that is printed whole.
    """
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, dict):
        form, entries = "{{{}}}", [f"{key!r}: {short(entry, most)}" for key, entry in value.items()]
    elif type(value) in (list, tuple):
        form, entries = "[{}]" if type(value) is list else "({})", [short(entry, most) for entry in value]
    else:
        return repr(value)
    if len(entries) > most:
        entries[1:-1] = [f"... {len(entries) - 2} more ..."]
    return form.format(", ".join(entries))


def _same(self: object, other: object) -> bool:
    # Never NotImplemented: Python would go on to compare a tuple's entries.
    return self is other


def _other(self: object, other: object) -> bool:
    return self is not other
