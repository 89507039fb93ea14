"""What networks and numbers are refused at the door."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import nn

from mfoc import InvalidType, InvalidValue, deprecation
from mfoc.checks import check_instance
from mfoc.networks.inspection import refuse_lazy, refuse_randomness, refuse_sharing, trainable
from paradigms.meta.stacked import StackedNetwork


def checked_network(net: Any) -> StackedNetwork:
    """The network on stacked weights.

    A submodule may have several names, and run several times.

    Raises:
        InvalidType: no module.
        InvalidValue: active dropout, lazy parameters, a parameter that two submodules share, nothing to train.
    """
    check_instance(nn.Module, "a torch.nn.Module", net=net)
    refuse_lazy(net)
    refuse_sharing(net, aliases=False)
    refuse_randomness(net)
    if not trainable(net):
        raise InvalidValue("net has no parameter that requires grad; there is nothing to train")
    return StackedNetwork(net)


def check_step_weights(weights: Any, steps: int) -> list[float] | None:
    """Weights of the multi-step loss."""
    if weights is None:
        return None
    if not isinstance(weights, Iterable):
        raise InvalidType(f"step_losses is a {type(weights).__name__}; expected {steps} weights, or None")
    found = list(weights)
    bad = [w for w in found if isinstance(w, bool) or not isinstance(w, int | float) or not 0 <= w < math.inf]
    if bad or len(found) != steps or not any(found):
        raise InvalidValue(f"step_losses is {weights!r}; expected {steps} non-negative weights, not all zero")
    return found


__getattr__ = deprecation.aliases("paradigms.meta.checks", {"check_flag": "mfoc.checks.check_flag"})
