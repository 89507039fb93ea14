"""The tensors of an LQ problem: their names and shapes, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypedDict

import torch
from torch import Tensor

from mfoc import tree
from mfoc.checks import check_integer, check_plain, kind_of
from mfoc.errors import InvalidType, InvalidValue
from mfoc.lq.conditions import check_covariance, check_finite, is_symmetric
from mfoc.printing import by_identity

# Rows and columns of each matrix: n states, m controls, any number k of noises.
_SHAPES = {
    "A": "nn", "B": "nm", "Q": "nn", "R": "mm", "QT": "nn", "Abar": "nn", "Bbar": "nm", "Qbar": "nn", "Rbar": "mm",
    "QbarT": "nn", "S": "nn", "ST": "nn", "cross": "nm", "crossbar": "nm", "sigma": "nk", "noise": "nn",
    "noisebar": "nn", "offset": "", "offsetbar": "",
}  # fmt: skip
_SYMMETRIC = ("Q", "R", "QT", "Qbar", "Rbar", "QbarT", "noise", "noisebar")
_MEAN_FIELD = ("Abar", "Bbar", "Qbar", "Rbar", "QbarT", "crossbar", "noisebar", "offsetbar")
TIMELESS = ("QT", "QbarT", "ST", "offset", "offsetbar")  # never have a time axis


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


@by_identity
@dataclass(frozen=True, eq=False)
class Coefficients:
    """All that a ``LinearQuadratic`` is made of; it documents them, and what is refused."""

    A: Tensor
    B: Tensor
    Q: Tensor
    R: Tensor
    steps: int
    dt: float | None = None
    QT: Tensor | None = None
    Abar: Tensor | None = None
    Bbar: Tensor | None = None
    Qbar: Tensor | None = None
    Rbar: Tensor | None = None
    QbarT: Tensor | None = None
    S: Tensor | None = None
    ST: Tensor | None = None
    cross: Tensor | None = None
    crossbar: Tensor | None = None
    sigma: Tensor | None = None
    noise: Tensor | None = None
    noisebar: Tensor | None = None
    offset: Tensor | None = None
    offsetbar: Tensor | None = None
    varying: bool = False
    sampled: bool = field(default=False, kw_only=True)  # by ``discretise``, which keeps J and not the game

    def __post_init__(self) -> None:
        check_integer(1, steps=self.steps)
        if self.varying and self.dt is not None:
            raise InvalidValue("varying is True in continuous time; expected constant matrices")
        if self.sigma is not None and self.noise is not None:
            raise InvalidValue("sigma and noise are both given; expected one of them (noise = sigma sigma')")
        for name in _SHAPES:
            x = getattr(self, name)
            if x is None and name not in "ABQR":
                continue
            if not isinstance(x, Tensor):
                raise InvalidType(f"{name} is {kind_of(x)}; expected a tensor")
            check_plain("a matrix", **{name: x})
            if not x.is_floating_point():
                raise InvalidType(f"{name} has dtype {x.dtype}; expected a floating-point tensor")
            if torch.finfo(x.dtype).bits < 32:
                raise InvalidType(f"{name} has dtype {x.dtype}, too short to factorise; expected {name}.float()")
            object.__setattr__(self, name, tree.plain(x))
        for name, x, _ in self.given():
            self._check_tensor(name, x)
        for name, needed in (("noisebar", "noise"), ("S", "Qbar"), ("ST", "QbarT")):
            if getattr(self, name) is not None and getattr(self, needed) is None:
                raise InvalidValue(f"{name} is given without {needed}; expected both")
        if self.noise is not None:
            check_covariance("noise", self.noise)
            if self.noisebar is not None:
                check_covariance("noise + noisebar", self.noise + self.noisebar)
        reached = torch.Size()
        for name, _, lead in self.given():
            try:
                reached = broadcast(reached, lead)
            except RuntimeError:
                raise InvalidValue(
                    f"{name} has leading axes {tuple(lead)}; expected axes that broadcast with {tuple(reached)}"
                ) from None

    @property
    def mean_field(self) -> bool:
        """Whether the mean moves or costs otherwise than a deviation from it, so that Pi differs from P."""
        return any(getattr(self, name) is not None for name in _MEAN_FIELD)

    @cached_property
    def batch(self) -> torch.Size:
        """The leading axes of the batch of problems."""
        return broadcast(*(lead for _, _, lead in self.given()))

    def given(self) -> Iterator[tuple[str, Tensor, torch.Size]]:
        """Name, value and leading axes of each tensor that is given."""
        for name, sides in _SHAPES.items():
            x = getattr(self, name)
            if x is not None:
                own = len(sides) + (self.varying and name not in TIMELESS)
                yield name, x, x.shape[: x.dim() - own]

    def check_agrees(self, name: str, x: Tensor) -> None:
        """Refuses a tensor of another dtype or device than A."""
        A = self.A
        if x.dtype != A.dtype or x.device != A.device:
            raise InvalidValue(f"{name} is {x.dtype} on {x.device}; expected {A.dtype} on {A.device}, as A is")

    def _check_tensor(self, name: str, x: Tensor) -> None:
        self.check_agrees(name, x)
        self._check_shape(name, x)
        check_finite(name, x)
        if name in _SYMMETRIC and not is_symmetric(x):
            raise InvalidValue(f"{name} is not symmetric; expected ({name} + {name}.mT) / 2, which costs the same")

    def _check_shape(self, name: str, x: Tensor) -> None:
        sides = _SHAPES[name]
        if not sides:
            return
        last = {"n": self.A.shape[-1:], "m": self.B.shape[-1:]}  # empty for a scalar, which fits nothing
        wanted = [last[side][0] if last.get(side) else side for side in sides]
        timed = self.varying and name not in TIMELESS
        fits = x.dim() >= 2 + timed and all(w in (size, "k") for w, size in zip(wanted, x.shape[-2:], strict=True))
        if not fits or (timed and x.shape[-3] not in (1, self.steps)):
            axes = ["...", *([str(self.steps)] if timed else []), *map(str, wanted)]
            raise InvalidValue(f"{name} has shape {tuple(x.shape)}; expected ({', '.join(axes)})")
        if x.numel() == 0:
            raise InvalidValue(f"{name} is empty, of shape {tuple(x.shape)}; expected at least one problem")


def broadcast(*shapes: torch.Size) -> torch.Size:
    """The shape that several broadcast to."""
    return torch.Size(torch.broadcast_shapes(*shapes))  # type: ignore[no-untyped-call]
