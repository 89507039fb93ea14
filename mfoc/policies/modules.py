"""Policies as modules: linear in features, solved, and how many arguments one takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from mfoc.checks import check_callable, check_integer, check_plain, check_signature
from mfoc.errors import InvalidType, InvalidValue
from mfoc.tree import Tree


class Policy(nn.Module):
    """A solved policy u = pi(t, x), as ``policy_of`` returns it.

    Attributes:
        networks: the policy's module with the solved parameters: one, or one for each stage.
        stages: how many stages the problem has.
    """

    def __init__(self, networks: list[nn.Module], stages: int) -> None:
        super().__init__()
        self.networks, self.stages = nn.ModuleList(networks), stages

    def forward(self, t: int, x: Tree) -> Tree:
        """The control ``[N, ...]`` at stage t of states x ``[N, ...]``."""
        check_integer(0, self.stages - 1, t=t)
        network = self.networks[t if len(self.networks) > 1 else 0]
        return network(t / self.stages, x) if takes_time(network) else network(x)


def linear_policy(features: Callable[..., Tensor], weight: Tensor) -> nn.Module:
    """A policy that is linear in its parameters: u = W phi(t, x), for ``feedback``.

    Args:
        features: ``phi(x) -> [N, k]`` or ``phi(t, x) -> [N, k]``, t in [0, 1) as in ``feedback``. ``mfoc.mean`` may be
            used: ``lambda x: torch.cat([x, mfoc.mean(x).expand_as(x)], -1)``.
        weight: the W that is begun with ``[m, k]``; its device and dtype are the policy's.

    Returns:
        A module with the one parameter ``weight``.

    Raises:
        InvalidType: features cannot be called or is a module, or the weight is no floating-point tensor.
        InvalidValue: the weight is no matrix, or not finite.
    """
    return _Linear(features, weight)


class _Linear(nn.Module):
    """See ``linear_policy``."""

    def __init__(self, features: Callable[..., Tensor], weight: Tensor) -> None:
        super().__init__()
        check_callable("a function phi(x) or phi(t, x)", features=features)
        if isinstance(features, nn.Module):
            raise InvalidType(
                "features is a module; a policy whose features are trained is nn.Sequential(features, nn.Linear(k, m)) "
                "and one whose features are fixed is linear_policy(lambda x: features(x), weight)"
            )
        check_plain("a floating-point tensor [m, k]", weight=weight)
        if not weight.is_floating_point():
            raise InvalidType(f"weight is a {weight.dtype} tensor; expected a floating-point tensor [m, k]")
        if not bool(weight.isfinite().all()):
            raise InvalidValue("weight holds NaN or infinity; expected finite numbers to begin with")
        if weight.dim() != 2:
            raise InvalidValue(f"weight has shape {tuple(weight.shape)}; expected [m, k], m controls and k features")
        self.timed = takes_time(features, "features")
        self.features = features
        self.weight = nn.Parameter(weight.detach().clone())

    def forward(self, t: float, x: Tree) -> Tensor:
        """States ``[N, ...]`` to controls ``[N, m]``."""
        phi = self.features(t, x) if self.timed else self.features(x)
        if phi.dim() != 2 or phi.shape[1] != self.weight.shape[1]:
            k = self.weight.shape[1]
            raise InvalidValue(f"features returned {tuple(phi.shape)}; expected [N, {k}]: weight has {k} columns")
        return phi @ self.weight.mT


class Timed(nn.Module):
    """A module of time and state as one of a single argument, which is what a stage runs."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, timed: tuple[float, Tree]) -> Tree:
        """The module at a time and states."""
        return self.net(*timed)


def takes_time(function: Any, name: str = "policy") -> bool:
    """Whether it is called with (t, x), by how many arguments it needs.

    Raises:
        InvalidType: it needs none or more than two, or two in another order.
    """
    call = function.forward if isinstance(function, nn.Module) else function
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parts = [part for part in inspect.signature(call).parameters.values() if part.kind in kinds]
    needed = sum(part.default is part.empty for part in parts)
    if needed not in (1, 2):
        raise InvalidType(f"{name} needs {needed} arguments; expected {name}(x) or {name}(t, x)")
    check_signature(("t", "x") if needed == 2 else ("x",), **{name: function})
    return needed == 2
