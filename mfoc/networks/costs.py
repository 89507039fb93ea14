"""Costs of a network: losses as terminal costs, weight decay as a running cost."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mfoc import tree
from mfoc.checks import check_non_negative
from mfoc.errors import InvalidType, InvalidValue
from mfoc.problem import RunningCost, TerminalCost
from mfoc.tree import Tree

Loss = Callable[..., Tensor]


def weight_decay(coefficient: float) -> RunningCost:
    """The running cost (coefficient / 2) ||u_t||^2: its gradient is that of torch's ``weight_decay=coefficient``.

    Args:
        coefficient: a non-negative number.
    """
    check_non_negative(coefficient=coefficient, finite=False)

    def cost(t: int, x: Tree, u: Tree, z: Tree) -> Tensor:
        leaf = tree.leaves(x)[0]
        weights = tree.tensors(u)
        if not weights:
            return torch.zeros(len(leaf), device=leaf.device, dtype=_float_like(leaf))
        return (coefficient / 2 * sum(w.square().sum() for w in weights)).expand(len(leaf))  # type: ignore[union-attr]

    return cost


def _float_like(leaf: Tensor) -> torch.dtype:
    return leaf.dtype if leaf.is_floating_point() else torch.get_default_dtype()


def per_sample(loss: Loss | nn.Module) -> TerminalCost:
    """A loss as a terminal cost ``[N]``.

    Args:
        loss: a function (output, target); if it has a ``reduction`` it is set to "none" and the result averaged over
            every axis but the particles. Class weights are applied without renormalisation.
    """
    if isinstance(loss, nn.Module) and hasattr(loss, "reduction"):
        loss = copy.deepcopy(loss)
        loss.reduction = "none"  # type: ignore[assignment]
        return lambda x, z: _average(loss(x, z), x, z)
    if isinstance(loss, type):
        raise InvalidType(f"loss is the class {loss.__name__}; make an instance, {loss.__name__}()")
    if not callable(loss):
        raise InvalidType(f"loss is a {type(loss).__name__}; expected a function loss(output, z) -> [N]")
    try:
        reducible = "reduction" in inspect.signature(loss).parameters
    except (ValueError, TypeError):
        reducible = False
    return (lambda x, z: _average(loss(x, z, reduction="none"), x, z)) if reducible else loss


def _average(cost: Tensor, x: Tree, z: Tree) -> Tensor:
    """Means over all but the particles; a loss larger than the output comes from shapes that were broadcast."""
    if isinstance(x, Tensor) and isinstance(z, Tensor) and cost.numel() > x.numel():
        raise InvalidValue(
            f"loss: the output {tuple(x.shape)} and the data {tuple(z.shape)} were broadcast to {tuple(cost.shape)}; "
            "give the data the output's shape"
        )
    return cost.flatten(1).mean(1) if cost.dim() > 1 else cost
