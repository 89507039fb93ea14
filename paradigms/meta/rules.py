"""Learned update rules: feedback policies from slopes and weights to directions."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mfoc import InvalidValue
from mfoc.checks import check_instance, check_positive
from mfoc.networks.inspection import shared_parameters, trainable, training_norms
from paradigms.meta.formulations import MetaFormulation, build
from paradigms.meta.losses import Loss
from paradigms.meta.objective import Rule
from paradigms.meta.stacked import StackedNetwork, Weights


def learned_update(
    net: nn.Module,
    loss: Loss | nn.Module,
    tasks: Any,
    *,
    rule: nn.Module,
    inner_steps: int,
    inner_lr: float = 1.0,
    first_order: bool = False,
    step_losses: Sequence[float] | None = None,
) -> MetaFormulation:
    """A learned update rule: a feedback policy (slope, weight) -> direction with weights of its own in the control.

    Andrychowicz et al. (2016), arXiv:1606.04474, with a rule that has no memory. It includes preconditioners P.

    Args beside those of ``maml``:
        rule: ``rule(slope, weight) -> direction``, called once for each parameter with tensors ``[tasks, ...]``; it
            must keep their shape and treat tasks alike (``Coordinatewise`` does). An ``nn.ModuleDict`` has a rule for
            each parameter, by its name with "." written as "_".
        inner_lr: what directions are multiplied by.

    Returns:
        A formulation; controls are {"phi": weights, "rule": the rule's weights}, the readout is the network.
    """
    check_instance(nn.Module, "a torch.nn.Module rule(slope, weight)", rule=rule)
    check_positive(inner_lr=inner_lr)
    if any(shared_parameters(rule)):
        raise InvalidValue("rule shares parameters between its parts; give each part its own copy")
    if any(training_norms(rule)):
        raise InvalidValue(
            "rule has batch norm in training mode, which mixes tasks; call .eval() on it, or use LayerNorm"
        )
    own = copy.deepcopy(rule)
    weights = {name: p.detach().clone() for name, p in trainable(own).items()}
    if not weights:
        raise InvalidValue("rule has no parameter that requires grad; there is nothing to learn in it")

    def direction(slopes: Weights, phi: Weights, u: Any) -> Weights:
        return {name: _apply(own, u["rule"], name, slope, phi[name]) for name, slope in slopes.items()}

    made, model = Rule(lambda k, u: inner_lr, direction), StackedNetwork(net)
    return build(model, loss, tasks, made, inner_steps, first_order, step_losses, extra={"rule": weights})


def _apply(rule: nn.Module, weights: Weights, name: str, slope: Tensor, value: Tensor) -> Tensor:
    part, prefix = rule, ""
    if isinstance(rule, nn.ModuleDict):
        prefix = name.replace(".", "_")
        if prefix not in rule:
            raise InvalidValue(f"rule has no entry {prefix!r}; it has {sorted(rule)}")
        part, prefix = rule[prefix], prefix + "."
    own = {key.removeprefix(prefix): leaf for key, leaf in weights.items() if key.startswith(prefix)}
    out: Tensor = torch.func.functional_call(part, own, (slope, value))
    if out.shape != slope.shape:
        raise InvalidValue(f"rule returned shape {tuple(out.shape)} for slopes of {name!r} {tuple(slope.shape)}")
    return out


class Coordinatewise(nn.Module):
    """An update rule that treats each weight alone: net([slope, weight]) -> direction (Andrychowicz et al. 2016).

    Args:
        net: a module from features ``[..., 2]`` to ``[..., 1]``.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, slope: Tensor, weight: Tensor) -> Tensor:
        """Slopes and weights of one shape to directions of that shape."""
        out: Tensor = self.net(torch.stack([slope, weight], -1))
        return out.squeeze(-1)
