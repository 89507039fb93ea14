"""Networks as control problems: the layers are the stages, the weights are the controls.

A stage is a frozen copy of the user's module, called with the weights of the control; the user's network is never
touched. Buffers are constants: batch norm in training mode uses the statistics of the cloud (an interacting problem)
and does not advance its running averages.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from torch import nn

from mfoc.checks import check_instance
from mfoc.errors import InvalidValue
from mfoc.networks.costs import Loss, per_sample
from mfoc.networks.cutting import named_stages
from mfoc.networks.inspection import is_affine, refuse_lazy, refuse_randomness, refuse_sharing
from mfoc.networks.stage import Stage
from mfoc.problem import Problem, RunningCost
from mfoc.tree import Tree


def from_module(
    net: nn.Module,
    loss: Loss | nn.Module,
    *,
    stages: Sequence[str | Sequence[str]] | None = None,
    running_cost: RunningCost | None = None,
) -> Problem:
    """Training a network as a control problem: x_(t+1) = layer_t(x_t; u_t), Phi = loss.

    Args:
        net: an ``nn.Sequential`` (nested ones are unrolled: each layer is a stage), or any module that symbolic tracing
            can read when ``stages`` names the children at which its forward pass is cut. It is copied, never changed;
            its training mode is kept.
        loss: ``loss(output, z) -> [N]``; a torch loss (``F.cross_entropy``, ``nn.MSELoss()``) is called with
            ``reduction="none"`` and averaged over all but the particles.
        stages: names of submodules in the order they run; a stage ends with the named module, operations after the
            last one belong to the last stage. For an ``nn.Sequential`` a stage may be a list of consecutive names.
        running_cost: ``L(t, x, u, z) -> [N]``, for example ``mfoc.weight_decay(1e-4)``.

    Returns:
        A per-stage problem whose controls are a list of dicts {parameter name: tensor}; a layer without parameters
        has an empty one. Parameters that do not require grad are constants.

    Raises:
        InvalidType: ``net`` is not a module, or ``loss`` not a function.
        InvalidValue: shared parameters, dropout in training mode, unknown or unordered stages, nothing to train.
    """
    check_instance(nn.Module, "a torch.nn.Module", net=net)
    refuse_lazy(net)
    refuse_sharing(net)
    refuse_randomness(net)
    layers = [Stage(name, module) for name, module in named_stages(net, stages)]
    kinds = [stage.kind() for stage in layers]

    def dynamics(t: int, x: Tree, u: Tree, z: Tree) -> Tree:
        return layers[t](x, u, z)

    def kind(t: int) -> Hashable:
        return (t,) if kinds[t] is None else kinds[t]

    affine = [is_affine(stage.module) for stage in layers]
    controls = [stage.controls() for stage in layers]
    if not any(controls):
        raise InvalidValue("net has no parameter that requires grad; there is nothing to train")
    return Problem(
        dynamics, per_sample(loss), controls, running_cost=running_cost, kind=kind, affine=affine.__getitem__
    )
