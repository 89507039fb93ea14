"""What networks and numbers are refused at the door."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

import mfoc
from mfoc import InvalidType, InvalidValue, deprecation
from paradigms.meta.stacked import StackedNetwork, has_aliases


def checked_network(net: Any) -> StackedNetwork:
    """The network on stacked weights.

    A submodule may have several names, and run several times.

    Raises:
        InvalidType: no module.
        InvalidValue: active dropout, lazy parameters, a parameter that two submodules share, nothing to train.
    """
    if not isinstance(net, nn.Module):
        raise InvalidType(f"net is a {type(net).__name__}; expected a torch.nn.Module")
    try:
        mfoc.from_module(nn.Sequential(_Whole(_named_once(net))), _sum)
    except InvalidValue as error:
        raise InvalidValue(f"net: {error}") from error
    return StackedNetwork(net)


def _named_once(net: nn.Module) -> nn.Module:
    """The network, or a copy in which each submodule has one name alone: what is in it, not how it runs."""
    if not has_aliases(net):
        return net
    bare, seen = copy.deepcopy(net), set()
    for part in list(bare.modules()):
        for name, child in list(part._modules.items()):
            if child is not None and child in seen:
                part._modules[name] = None
            seen.add(child)
    return bare


class _Whole(nn.Module):
    """A network as one stage."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net


def _sum(output: Tensor, target: Tensor) -> Tensor:
    return output.sum()


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
