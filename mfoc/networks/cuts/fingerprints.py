"""Which modules are the same function of the state and the weights."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator
from typing import Any

from torch import Tensor, nn

from mfoc.identity import raw
from mfoc.networks.cuts.hooked import Hooked
from mfoc.networks.cuts.segments import Program, Segment, Step
from mfoc.networks.inspection import BOOKKEEPING, hooked


def fingerprint(module: nn.Module) -> Hashable | None:
    """Modules with the same one compute the same function of the state and of their trainable weights, taken in order.

    The names of a network's modules do not count where it was cut; constants (buffers, parameters that do not require
    grad) do, by their values.

    Returns:
        None where it cannot be told: modules with hooks, attributes that cannot be compared.
    """
    if isinstance(module, Segment):
        return _of_segment(module)
    if isinstance(module, Hooked):
        return None
    found: list[Hashable] = []
    for prefix, part in module.named_modules():
        plain = _plain_attributes(part)
        constants = None if plain is None else _constants(part)
        if plain is None or constants is None:
            return None
        shapes = tuple((k, None if v is None else tuple(v.shape)) for k, v in part._parameters.items())
        found.append((prefix, type(part), part.training, plain, shapes, constants))
    return tuple(found)


def _plain_attributes(module: nn.Module) -> Hashable | None:
    """The module's own attributes, or None when one of them cannot be compared."""
    if hooked(module):
        return None
    return _compared([(k, v) for k, v in sorted(module.__dict__.items()) if k not in BOOKKEEPING])


def _compared(values: Any) -> Hashable | None:
    """Values as something that can be compared, or None."""
    try:
        return tuple(_frozen(value) for value in values)
    except TypeError:
        return None


def _frozen(value: Any) -> Hashable:
    """A value that can be hashed; numbers of different types differ, as 1 and True do.

    Raises:
        TypeError: it cannot be.
    """
    if isinstance(value, Tensor | nn.Module):
        raise TypeError
    if isinstance(value, tuple):
        return (type(value), *(_frozen(item) for item in value))
    hash(value)
    return (type(value), value)


def _constants(module: nn.Module) -> Hashable | None:
    """Buffers, and parameters that are not trained, by value; None where they have none."""
    fixed = [(k, v) for k, v in module._parameters.items() if v is not None and not v.requires_grad]
    held = [(k, v) for k, v in (*module._buffers.items(), *fixed) if v is not None]
    if any(value.is_meta for _, value in held):
        return None
    return tuple((key, *_digest(value)) for key, value in held)


def _digest(value: Tensor) -> tuple[Hashable, ...]:
    text = hashlib.sha256(raw(value).numpy().tobytes())
    return value.dtype, tuple(value.shape), text.hexdigest()


# ---- segments: the names of modules are replaced by the order in which they are met


def _of_segment(segment: Segment) -> Hashable | None:
    if hooked(segment):
        return None
    programs = list(segment._programs.values())  # noqa: SLF001  (public names are the network's)
    called = list(dict.fromkeys(step.target for step in _steps(programs) if step.op in ("call_module", "get_attr")))
    prints = []
    for path in called:
        held = _at(segment, path)
        own = fingerprint(held) if isinstance(held, nn.Module) else _of_tensor(held)
        if own is None:
            return None
        prints.append(own)
    names = {path: f"#{k}" for k, path in enumerate(called)}
    steps = [_of_program(program, names) for program in programs]
    if any(step is None for step in steps):
        return None
    first = segment._first  # noqa: SLF001
    return Segment, segment.training, first, tuple(prints), tuple(steps), _weights(segment, names)


def _steps(programs: list[Program]) -> Iterator[Step]:
    return (step for program in programs for step in program.steps)


def _at(segment: Segment, path: str) -> Any:
    *around, leaf = path.split(".")
    return getattr(segment.get_submodule(".".join(around)), leaf)


def _of_tensor(value: Any) -> Hashable | None:
    if isinstance(value, nn.Parameter) and value.requires_grad:
        return "parameter", tuple(value.shape)
    return _digest(value) if isinstance(value, Tensor) and not value.is_meta else None


def _of_program(program: Program, names: dict[str, str]) -> Hashable | None:
    steps = []
    for step in program.steps:
        target = names[step.target] if step.op in ("call_module", "get_attr") else step.target
        own = _compared([_listed(step.args), _listed(step.kwargs)])
        if own is None:
            return None
        steps.append((step.op, target, own, step.place))
    ends = _compared([_listed(program.result)])
    return None if ends is None else (program.given, program.entering, program.copied, tuple(steps), ends)


def _listed(nest: Any) -> Any:
    """A nest of containers as tuples, which can be compared."""
    if isinstance(nest, dict):
        return ("dict", *((key, _listed(value)) for key, value in nest.items()))
    if isinstance(nest, slice):
        return ("slice", *(_listed(value) for value in (nest.start, nest.stop, nest.step)))
    if isinstance(nest, list | tuple):
        return (type(nest).__name__, *(_listed(value) for value in nest))
    return nest


def _weights(segment: Segment, names: dict[str, str]) -> Hashable:
    """The order of the trainable parameters: each by the place where it is met first, and its name there."""
    order = []
    for key, value in segment.named_parameters():
        if value.requires_grad:
            around = max((path for path in names if key == path or key.startswith(f"{path}.")), key=len)
            order.append((names[around], key.removeprefix(around)))
    return tuple(order)
