"""What the laws share: normal densities, distributions without their checks, shapes that fit or do not."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mfoc.switches import Shared

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def normal_log_prob(x: Tensor, loc: Any, scale: Any) -> Tensor:
    """Log density of N(loc, scale^2), by entry."""
    log_scale = scale.log() if isinstance(scale, Tensor) else math.log(scale) if scale > 0 else math.nan
    value: Tensor = -0.5 * ((x - loc) / scale).square() - log_scale - HALF_LOG_2PI
    return value


@Shared
@contextmanager
def unvalidated() -> Iterator[None]:
    """Without torch's checks of distributions, which no ``vmap`` can run; the flag is restored."""
    kept = torch.distributions.Distribution._validate_args
    torch.distributions.Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        torch.distributions.Distribution.set_default_validate_args(kept)


def broadcasts(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether a tensor of one shape can stand for one of another."""
    try:
        return bool(torch.broadcast_shapes(shape, wanted) == wanted)  # type: ignore[no-untyped-call]
    except RuntimeError:
        return False


def shape_or_type(value: Any) -> Any:
    """What a value is, for error messages: its shape, or the name of its type where it is no tensor."""
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
