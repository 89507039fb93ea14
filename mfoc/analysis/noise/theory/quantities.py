"""Numbers, tensors and symmetric matrices as they come in: checked at the door, and of one dtype inside."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mfoc.checks import check_number, check_plain, kind_of
from mfoc.errors import InvalidType, InvalidValue

_SLACK = 64  # roundings, relative to the largest entry, by which a matrix may miss its kind


def as_tensors(**values: float | Tensor) -> list[Tensor]:
    """Numbers and floating-point tensors as tensors of one dtype, on one device.

    Numbers follow the tensors beside them; where there is none, they are float64 on the CPU.

    Raises:
        InvalidType: neither a number nor a floating-point tensor.
        InvalidValue: empty, not finite, or of several dtypes or devices.
    """
    given = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    for name, value in values.items():
        if isinstance(value, Tensor):
            _check_tensor(name, value)
        elif isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidType(f"{name} is {kind_of(value)}; expected a number or a floating-point tensor")
        else:
            named: dict[str, Any] = {name: value}
            check_number(**named)
    _check_alike(given)
    like = next(iter(given.values()), torch.zeros((), dtype=torch.float64, device="cpu"))
    return [given[name].detach() if name in given else like.new_tensor(value) for name, value in values.items()]


def as_broadcast(**values: float | Tensor) -> list[Tensor]:
    """As ``as_tensors``, expanded to one shape.

    Raises:
        InvalidType, InvalidValue: as ``as_tensors``; the shapes do not broadcast.
    """
    found = as_tensors(**values)
    try:
        shape = torch.broadcast_shapes(*(each.shape for each in found))  # type: ignore[no-untyped-call]
    except RuntimeError:
        shapes = ", ".join(f"{name} {tuple(each.shape)}" for name, each in zip(values, found, strict=True))
        raise InvalidValue(f"shapes do not broadcast: {shapes}; expected one shape, or numbers") from None
    return [each.expand(shape) for each in found]


def as_matrices(**values: float | Tensor) -> list[Tensor]:
    """Symmetric matrices ``[d, d]`` of one size; where all are numbers or 0-d tensors, ``[1, 1]``.

    Raises:
        InvalidType, InvalidValue: as ``as_tensors``; a matrix that is not square or not symmetric, several sizes; half
            precision, in which eigenvalues mean little.
    """
    found = as_tensors(**values)
    for name, each in zip(values, found, strict=True):
        check_eigenvalues_known(name, each)
        if each.dim() not in (0, 2) or (each.dim() == 2 and each.shape[0] != each.shape[1]):
            raise InvalidValue(f"{name} has shape {tuple(each.shape)}; expected a symmetric matrix [d, d], or a number")
        if each.dim() == 2 and float((each - each.mT).abs().max()) > rounding(each):
            raise InvalidValue(f"{name} is not symmetric; expected ({name} + {name}.mT) / 2")
    if len({each.shape for each in found}) > 1:
        shapes = ", ".join(f"{name} {tuple(each.shape)}" for name, each in zip(values, found, strict=True))
        raise InvalidValue(f"shapes differ: {shapes}; expected matrices [d, d] of one size (c * torch.eye(d) for c)")
    return [(each + each.mT) / 2 if each.dim() else each.reshape(1, 1) for each in found]


def as_given(result: Tensor, *values: float | Tensor) -> Tensor | float:
    """A result in the kind of what it was made of: a float where there were only numbers, else a tensor."""
    return result if any(isinstance(value, Tensor) for value in values) else float(result)


def check_semidefinite(eigenvalues: Tensor, name: str) -> None:
    """Refuses a symmetric matrix with a negative eigenvalue, given all of them ``[..., d]``.

    Raises:
        InvalidValue: one is negative by more than rounding.
    """
    least = float(eigenvalues.min())
    if least < -rounding(eigenvalues):
        raise InvalidValue(f"{name} has the eigenvalue {least:.3g}; expected a positive semidefinite matrix")


def check_eigenvalues_known(name: str, matrix: Tensor) -> None:
    """Refuses half precision, for which torch has no eigenvalues.

    Raises:
        InvalidValue: it is float16, bfloat16 or smaller.
    """
    if matrix.dtype.itemsize < 4:
        raise InvalidValue(f"{name} is {matrix.dtype}; its eigenvalues are taken: expected {name}.float() or .double()")


def rounding(x: Tensor) -> float:
    """What rounding may make of an entry of this tensor that is zero."""
    return _SLACK * torch.finfo(x.dtype).eps * float(x.abs().max())


def _check_tensor(name: str, value: Tensor) -> None:
    check_plain("a number or a floating-point tensor", **{name: value})
    if not value.is_floating_point():
        raise InvalidType(f"{name} is a {value.dtype} tensor; expected a floating-point one, such as {name}.double()")
    if not value.numel():
        raise InvalidValue(f"{name} is empty, shape {tuple(value.shape)}; expected at least one number")
    if not bool(value.isfinite().all()):
        raise InvalidValue(f"{name} holds NaN or infinity; expected finite numbers")


def _check_alike(given: dict[str, Tensor]) -> None:
    if len({(value.dtype, value.device) for value in given.values()}) > 1:
        kinds = ", ".join(f"{name} {value.dtype} on {value.device}" for name, value in given.items())
        raise InvalidValue(f"mixed tensors: {kinds}; expected one dtype and one device, such as x.to(y)")
