"""The tensors of an LQ problem: their names, shapes, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, TypedDict

import torch
from torch import Tensor

from mfoc.errors import InvalidType, InvalidValue

if TYPE_CHECKING:
    from mfoc.lq.linear_quadratic import LinearQuadratic

# Rows and columns of each matrix: n states, m controls, any number k of noises.
_SHAPES = {
    "A": "nn", "B": "nm", "Q": "nn", "R": "mm", "QT": "nn", "Abar": "nn", "Bbar": "nm", "Qbar": "nn", "Rbar": "mm",
    "QbarT": "nn", "S": "nn", "ST": "nn", "cross": "nm", "crossbar": "nm", "sigma": "nk", "noise": "nn",
    "noisebar": "nn", "offset": "", "offsetbar": "",
}  # fmt: skip


TIMELESS = ("QT", "QbarT", "ST", "offset", "offsetbar")  # never have a time axis


_SYMMETRIC = ("Q", "R", "QT", "Qbar", "Rbar", "QbarT", "noise", "noisebar")


MEAN_FIELD = ("Abar", "Bbar", "Qbar", "Rbar", "QbarT", "crossbar", "noisebar", "offsetbar")


class Terms(TypedDict, total=False):
    """The optional terms of a ``LinearQuadratic``, which documents them."""

    Abar: Tensor | None
    Bbar: Tensor | None
    Qbar: Tensor | None
    Rbar: Tensor | None
    QbarT: Tensor | None
    S: Tensor | None
    ST: Tensor | None
    cross: Tensor | None
    crossbar: Tensor | None
    sigma: Tensor | None
    noise: Tensor | None
    noisebar: Tensor | None
    offset: Tensor | None
    offsetbar: Tensor | None
    varying: bool


def broadcast(*shapes: torch.Size) -> torch.Size:
    """The shape that several broadcast to."""
    return torch.Size(torch.broadcast_shapes(*shapes))  # type: ignore[no-untyped-call]


def given_tensors(lq: LinearQuadratic) -> Iterator[tuple[str, Tensor, torch.Size]]:
    """Name, value and leading axes of each tensor that is given."""
    for name, sides in _SHAPES.items():
        x = getattr(lq, name)
        if x is not None:
            own = len(sides) + (lq.varying and name not in TIMELESS)
            yield name, x, x.shape[: x.dim() - own]


def check_agrees(name: str, x: Tensor, reference: Tensor) -> None:
    """Refuses a tensor of another dtype or device than a reference."""
    if x.dtype != reference.dtype or x.device != reference.device:
        raise InvalidValue(
            f"{name} is {x.dtype} on {x.device}; expected {reference.dtype} on {reference.device}, as A is"
        )


def check_tensors(lq: LinearQuadratic) -> None:
    """Refuses tensors that are no LQ problem: their shapes, dtypes, symmetry and batch axes."""
    for name in _SHAPES:
        x = getattr(lq, name)
        if x is None and name not in "ABQR":
            continue
        if not isinstance(x, Tensor):
            raise InvalidType(f"{name} is a {type(x).__name__}; expected a tensor")
        if not x.is_floating_point():
            raise InvalidType(f"{name} has dtype {x.dtype}; expected a floating-point tensor")
    for name, x, _ in given_tensors(lq):
        check_agrees(name, x, lq.A)
        _check_shape(lq, name, x)
        if not x.sum().isfinite() and not x.isfinite().all():  # the sum alone is faster, and may overflow
            raise InvalidValue(f"{name} holds NaN or infinite values; expected finite ones")
        if name in _SYMMETRIC and not _is_symmetric(x):
            raise InvalidValue(f"{name} is not symmetric; expected ({name} + {name}.mT) / 2, which costs the same")
    for name, needed in (("noisebar", "noise"), ("S", "Qbar"), ("ST", "QbarT")):
        if getattr(lq, name) is not None and getattr(lq, needed) is None:
            raise InvalidValue(f"{name} is given without {needed}; expected both")
    reached = torch.Size()
    for name, _, lead in given_tensors(lq):
        try:
            reached = broadcast(reached, lead)
        except RuntimeError:
            raise InvalidValue(
                f"{name} has leading axes {tuple(lead)}; expected axes that broadcast with {tuple(reached)}"
            ) from None


def _check_shape(lq: LinearQuadratic, name: str, x: Tensor) -> None:
    sides = _SHAPES[name]
    if not sides:
        return
    last = {"n": lq.A.shape[-1:], "m": lq.B.shape[-1:]}  # empty for a scalar, which fits nothing
    wanted = [last[side][0] if last.get(side) else side for side in sides]
    timed = lq.varying and name not in TIMELESS
    fits = x.dim() >= 2 + timed and all(w in (size, "k") for w, size in zip(wanted, x.shape[-2:], strict=True))
    if not fits or (timed and x.shape[-3] not in (1, lq.steps)):
        axes = ["...", *([str(lq.steps)] if timed else []), *map(str, wanted)]
        raise InvalidValue(f"{name} has shape {tuple(x.shape)}; expected ({', '.join(axes)})")
    if x.numel() == 0:
        raise InvalidValue(f"{name} is empty, of shape {tuple(x.shape)}; expected at least one problem")


def _is_symmetric(x: Tensor) -> bool:
    """Whether it is, up to rounding."""
    x = x.detach()
    if torch.equal(x, x.mT):
        return True
    return bool((x - x.mT).abs().amax() <= 100 * torch.finfo(x.dtype).eps * x.abs().amax())
