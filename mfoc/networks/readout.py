"""Reading a solution out as a network: weights put in place, running averages estimated on the population."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mfoc.errors import InvalidValue
from mfoc.networks.cutting import named_stages
from mfoc.networks.inspection import trainable, training_norms
from mfoc.problem import controls_of


def to_module(net: nn.Module, controls: Any, *, stages: Sequence[str | Sequence[str]] | None = None) -> nn.Module:
    """The solved network: a copy of ``net`` with the controls as its parameters, an ordinary module.

    Args:
        net: the network given to ``from_module``.
        controls: controls of that problem, or a solution or iterate that has them.
        stages: the ``stages`` given to ``from_module``.

    Returns:
        A new module. Buffers are those of ``net``: ``refresh_averages`` estimates those of batch norm.

    Raises:
        InvalidType: no controls.
        InvalidValue: the controls are not of this network.
    """
    solved, controls = copy.deepcopy(net), controls_of(controls)
    parts = named_stages(solved, stages)
    if not isinstance(controls, list | tuple) or len(controls) != len(parts):
        raise InvalidValue(f"controls do not belong to this network: expected a list of {len(parts)} stages")
    for (name, module), weights in zip(parts, controls, strict=True):
        own = trainable(module)
        if own.keys() != weights.keys() or any(own[key].shape != weights[key].shape for key in own):
            raise InvalidValue(
                f"stage {name!r} has parameters {sorted(own)}; the controls hold {sorted(weights)} "
                "(or the shapes differ): were they solved for this network?"
            )
        place(module, weights)
    return solved


def place(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Gives the parameters of a module copies of these values, by name; those that are not named stay.

    Raises:
        InvalidValue: a name or a shape that is not the module's.
    """
    own = dict(module.named_parameters())
    for name, value in weights.items():
        if name not in own or own[name].shape != value.shape:
            raise InvalidValue(f"weights of {name!r} {tuple(value.shape)} do not belong to this network")
        own[name].data = value.detach().clone()


@torch.no_grad()
def refresh_averages(net: nn.Module, batches: Iterable[Any]) -> None:
    """Estimates the running averages of the normalisation layers in training mode, in one pass of a population.

    The averages are those over the batches, each weighed alike, as ``torch.optim.swa_utils.update_bn`` takes them;
    layers in evaluation mode keep theirs, and every layer keeps its mode.

    Args:
        net: a network of one's own: its buffers are written into.
        batches: the inputs ``[N, ...]``, batch by batch; read only where there are averages to estimate.
    """
    norms = [norm for _, norm in training_norms(net) if norm.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average of all batches
    for x in batches:
        net(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
