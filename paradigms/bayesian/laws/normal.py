"""Normal densities, and distributions called without their checks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def normal_log_prob(x: Tensor, loc: Any, scale: Any) -> Tensor:
    """Log density of N(loc, scale^2), by entry."""
    log_scale = scale.log() if isinstance(scale, Tensor) else math.log(scale)
    value: Tensor = -0.5 * ((x - loc) / scale).square() - log_scale - HALF_LOG_2PI
    return value


def unvalidated(function: Callable[..., Any], *args: Any) -> Any:
    """Calls a function with torch's checks of distributions off, which no ``vmap`` can run; the flag is restored."""
    kept = torch.distributions.Distribution._validate_args
    torch.distributions.Distribution.set_default_validate_args(False)
    try:
        return function(*args)
    finally:
        torch.distributions.Distribution.set_default_validate_args(kept)
