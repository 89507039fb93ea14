"""Argument checks for solvers and adapters of your own.

Arguments are given as ``name=value``, as in ``check_integer(1, steps=steps)``. The first that does not fit is named in
the error: an ``InvalidType`` where its type is wrong, an ``InvalidValue`` where its value is. Booleans are no numbers
here. With ``optional=True`` None is accepted too.

What is refused here is the values; the module itself does not check its arguments.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mfoc.errors import InvalidType, InvalidValue

_MOST = sys.float_info.max  # which an int may be above
_COUNTS, _SEEDS = 2**31 - 1, 2**64 - 1  # the most that counts and seeds may be


def kind_of(value: object) -> str:
    """What a value is, in words: "a Tensor", "an int"."""
    return with_article(type(value).__name__)


def with_article(name: str) -> str:
    """The name of a class with "a" or "an", as it is said: "an int", "an ndarray", "an SGD", "a NoneType"."""
    spelled = name[:2].isupper() or (name[:1].isupper() and name[1:2].isdigit()) or name.startswith("nd")
    vowel = name[:1].lower() in ("aefhilmnorsx" if spelled else "aeiou")
    return f"{'an' if vowel and not name.lower().startswith(('uni', 'use', 'uint')) else 'a'} {name}"


def check_integer(least: int, most: int | None = None, /, *, optional: bool = False, **values: object) -> None:
    """Refuses what is no integer from ``least`` on, up to ``most``, in 64 bits: counts and seeds.

    Where ``most`` is None, what counts from 1 on is at most 2^31 - 1, of which no machine holds more, one by one; and
    what may be 0, a seed or a place, is at most 2^64 - 1, as torch's seeds are.

    Raises:
        InvalidType: it is no integer.
        InvalidValue: it is out of range.
    """
    kinds = {0: "a non-negative integer", 1: "a positive integer"}
    expected = kinds.get(least, f"an integer from {least} on") if most is None else f"an integer from {least} to {most}"
    largest = most if most is not None else _SEEDS if least <= 0 else _COUNTS
    above = [value for value in values.values() if isinstance(value, int) and value > largest]
    if most is None and above:
        expected += f" of at most {largest}"
    _check(values, int, lambda value: least <= value <= largest, expected, optional)


def check_positive(*, finite: bool = True, optional: bool = False, **values: object) -> None:
    """Refuses what is no positive number; infinity too, unless ``finite=False``.

    Raises:
        InvalidType: it is no number.
        InvalidValue: it is not positive, or not finite.
    """
    expected = f"a positive {'finite ' * finite}number"
    _check(values, int | float, lambda value: value > 0 and _held(value, finite), expected, optional)


def check_non_negative(*, finite: bool = True, optional: bool = False, **values: object) -> None:
    """Refuses what is no number from 0 on; infinity too, unless ``finite=False``.

    Raises:
        InvalidType: it is no number.
        InvalidValue: it is negative, or not finite.
    """
    expected = f"a non-negative {'finite ' * finite}number"
    _check(values, int | float, lambda value: value >= 0 and _held(value, finite), expected, optional)


def check_between(low: float, high: float, /, *, optional: bool = False, **values: object) -> None:
    """Refuses what is no number in the open interval (``low``, ``high``): the level of an interval, say.

    Raises:
        InvalidType: it is no number.
        InvalidValue: it is not in the interval.
    """
    _check(values, int | float, lambda value: low < value < high, f"a number between {low} and {high}", optional)


def check_number(*, optional: bool = False, **values: object) -> None:
    """Refuses what is no finite number.

    Raises:
        InvalidType: it is no number.
        InvalidValue: it is not finite.
    """
    _check(values, int | float, lambda value: abs(value) <= _MOST, "a finite number", optional)


def check_tensor(
    expected: str, /, *, dim: int | None = None, floating: bool = True, optional: bool = False, **values: object
) -> None:
    """Refuses what is no plain tensor of finite numbers: strided, with data, neither nested nor quantised.

    Args:
        expected: what is wanted, as in "points [n, d]".
        dim: how many axes it has; any number when None.
        floating: whether integers and booleans are refused, too.
        optional: accept None.
        **values: name = value.

    Raises:
        InvalidType: it is no tensor, of another kind, or of another dtype.
        InvalidValue: it is empty, has another number of axes, or holds NaN or infinity.
    """
    for name, value in values.items():
        if optional and value is None:
            continue
        check_plain(expected, **{name: value})
        assert isinstance(value, Tensor)
        if value.is_complex() or (floating and not value.is_floating_point()):
            wanted = "a floating-point tensor" if floating else "real numbers"
            raise InvalidType(f"{name} has dtype {value.dtype}; expected {expected}, {wanted}")
        if not value.numel() or (dim is not None and value.dim() != dim):
            raise InvalidValue(f"{name} has shape {tuple(value.shape)}; expected {expected}")
        if value.is_floating_point() and not bool(value.detach().isfinite().all()):
            raise InvalidValue(f"{name} holds NaN or infinity; expected {expected}, finite numbers")


def is_plain(value: object, *, on_meta: bool = False) -> bool:
    """Whether it is a tensor that torch's operations know, neither sparse nor nested nor quantised, with data."""
    if not isinstance(value, Tensor) or value.is_nested or value.layout is not torch.strided:
        return False
    return not value.is_quantized and (on_meta or not value.is_meta)


def check_plain(expected: str, /, **values: object) -> None:
    """Refuses what is no tensor, and tensors that most operations do not know: see ``check_tensor``.

    Args:
        expected: what is wanted, as in "points [n, d]".
        **values: name = value.

    Raises:
        InvalidType: it is none, or sparse, nested, quantised or without data.
    """
    for name, value in values.items():
        if is_plain(value):
            continue
        check_instance(Tensor, expected, **{name: value})
        assert isinstance(value, Tensor)
        kind, cure = _unusual(value)
        raise InvalidType(f"{name} is a {kind} tensor; expected {expected}: {cure}")


def _unusual(x: Tensor) -> tuple[str, str]:
    """The kind of a tensor that is no plain one, and what to do."""
    if x.is_nested:
        return "nested", "pad it to one shape, with torch.nested.to_padded_tensor"
    if x.is_quantized:
        return "quantised", "x.dequantize()"
    if x.layout is not torch.strided:
        kind = str(x.layout).removeprefix("torch.").strip("_")
        return "sparse" if kind.startswith("sparse") else kind, "x.to_dense()"
    return "meta", "one with data"


def check_flag(**values: object) -> None:
    """Refuses what is neither True nor False.

    Raises:
        InvalidType: it is neither.
    """
    for name, value in values.items():
        if not isinstance(value, bool):
            raise InvalidType(f"{name} is {value!r}; expected True or False")


def check_choice(*choices: str, **values: object) -> None:
    """Refuses what is none of a few words.

    Raises:
        InvalidType: it is no string.
        InvalidValue: it is none of them.
    """
    expected = f"expected one of {', '.join(map(repr, choices))}"
    for name, value in values.items():
        if not isinstance(value, str):
            raise InvalidType(f"{name} is {value!r}; {expected}")
        if value not in choices:
            raise InvalidValue(f"{name} is {value!r}; {expected}")


def check_callable(expected: str, /, *, optional: bool = False, **values: object) -> None:
    """Refuses what cannot be called.

    Args:
        expected: what is wanted, as in "a function of the step".
        optional: accept None.
        **values: name = value.

    Raises:
        InvalidType: it cannot be called.
    """
    for name, value in values.items():
        if not callable(value) and not (optional and value is None):
            raise InvalidType(f"{name} is {kind_of(value)}; expected {expected}{' or None' * optional}")


# What else the arguments of a problem's functions are called.
_SYNONYMS = {"time": "t", "stage": "t", "state": "x", "control": "u", "data": "z"}


def check_signature(
    expected: Sequence[str], /, *, synonyms: Mapping[str, str] = _SYNONYMS, optional: bool = False, **functions: Any
) -> None:
    """Refuses a function that takes another number of arguments, or whose own names for them are in another order.

    An order is only known to be wrong where names that are expected change places among themselves, or where t, which
    is never anything but the stage or the time, stands elsewhere. What has no signature to be read passes.

    Args:
        expected: names of the arguments that it is called with, by position.
        synonyms: other names of theirs -> the names in ``expected``.
        optional: accept None.
        **functions: name = function.

    Raises:
        InvalidType: it takes other arguments, or in another order.
    """
    for name, function in functions.items():
        signature = None if optional and function is None else _signature(function)
        if signature is None:
            continue
        call = f"{name}({', '.join(expected)})"
        parts = list(signature.parameters.values())
        given = f"({', '.join(str(part.replace(annotation=part.empty)) for part in parts)})"
        try:
            signature.bind(*expected)
        except TypeError as error:
            raise InvalidType(f"{name} takes {given}; it is called as {call}: {error}") from None
        names = [part.name for part in parts if part.kind in (part.POSITIONAL_ONLY, part.POSITIONAL_OR_KEYWORD)]
        if _out_of_order([_plain(key, synonyms) for key in names[: len(expected)]], list(expected)):
            raise InvalidType(f"{name} takes {given}; it is called as {call}: put its arguments in that order")


def _signature(function: Any) -> inspect.Signature | None:
    """The signature of a function, of a module's forward pass; None when it has none that can be read."""
    forward = getattr(type(function), "forward", None)  # a module's own signature is (*args, **kwargs)
    try:
        return inspect.signature(function.forward if callable(forward) else function)
    except (ValueError, TypeError):
        return None


def _plain(name: str, synonyms: Mapping[str, str]) -> str:
    name = name.strip("_")
    return synonyms.get(name.lower(), name)


def _out_of_order(own: list[str], expected: list[str]) -> bool:
    known = [name for name in own if name in expected]
    if "t" in known and own.index("t") != expected.index("t"):
        return True
    here, there = [own.index(name) for name in known], [expected.index(name) for name in known]
    return here != there and sorted(here) == sorted(there)


def check_instance(kind: Any, expected: str, /, **values: object) -> None:
    """Refuses what is no instance of a class or protocol; the class itself in its place, too.

    Args:
        kind: the class.
        expected: what is wanted, as in "a maximiser such as mfoc.maximisers.PGD(10)".
        **values: name = value.

    Raises:
        InvalidType: it is none.
    """
    for name, value in values.items():
        if isinstance(value, type):
            raise InvalidType(f"{name} is the class {value.__name__}; make an instance. Expected {expected}")
        if not isinstance(value, kind):
            raise InvalidType(f"{name} is {kind_of(value)}; expected {expected}")


def _held(value: float, finite: bool) -> bool:
    """Whether a float holds the number; infinity, too, unless it is to be finite."""
    return value <= _MOST or (value == math.inf and not finite)


def _shown(value: object) -> str:
    """The value as it is written; an integer of thousands of digits is not."""
    return (
        "an integer of thousands of digits" if isinstance(value, int) and value.bit_length() > 10_000 else repr(value)
    )


def _check(values: dict[str, Any], kind: Any, fits: Callable[[Any], bool], expected: str, optional: bool) -> None:
    for name, value in values.items():
        if optional and value is None:
            continue
        message = f"{name} is {_shown(value)}; expected {expected}{' or None' * optional}"
        if isinstance(value, bool) or not isinstance(value, kind):
            raise InvalidType(message)
        if not fits(value):
            raise InvalidValue(message)
