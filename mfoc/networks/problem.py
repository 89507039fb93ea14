"""Networks as control problems, and solutions as networks: the layers are the stages, the weights are the controls.

A stage is a frozen copy of the user's module, called with the weights of the control; the user's network is never
touched. Buffers are constants: batch norm in training mode uses the statistics of the cloud, over all ranks (an
interacting problem) and does not advance its running averages.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mfoc import tree
from mfoc.bounds import region
from mfoc.bounds.region import Bounds
from mfoc.checks import check_instance, check_non_negative
from mfoc.errors import InvalidType, InvalidValue
from mfoc.networks.inspection import is_affine, mixes, refuse_unfit, trainable, training_norms
from mfoc.networks.losses import Loss, per_sample
from mfoc.networks.stages import Stage, named_stages
from mfoc.problem import Problem, RunningCost, controls_of
from mfoc.tree import Tree


def from_module(
    net: nn.Module,
    loss: Loss | nn.Module,
    *,
    stages: Sequence[str | Sequence[str]] | None = None,
    running_cost: RunningCost | None = None,
    bounds: Bounds = None,
) -> Problem:
    """Training a network as a control problem: x_(t+1) = layer_t(x_t; u_t), Phi = loss.

    Args:
        net: an ``nn.Sequential`` (nested ones are unrolled: each layer is a stage), or any module that symbolic tracing
            can read when ``stages`` names the children at which its forward pass is cut. It is copied, never changed;
            its training mode is kept.
        loss: ``loss(output, z) -> [N]``, or a torch loss (``F.cross_entropy``, ``nn.MSELoss()``), with which J on a
            cloud is the number that torch gives, ignored targets and class weights included; see ``per_sample``.
        stages: names of submodules in the order they run; a stage ends with the named module, operations after the
            last one belong to the last stage. For an ``nn.Sequential`` a stage may be a list of consecutive names.
        running_cost: ``L(t, x, u, z) -> [N]``, for example ``mfoc.weight_decay(1e-4)``.
        bounds: where weights may lie, as ``mfoc.Box(-1, 1)``, ``{"weight": mfoc.L1(1e-4)}`` for sparse ones, or a rule
            ``(name, leaf) -> set or None``; see ``mfoc.Problem``. Weights outside start from the nearest ones inside.

    Returns:
        A per-stage problem whose controls are a list of dicts {parameter name: tensor}; a layer without parameters
        has an empty one. Parameters that do not require grad are constants. With batch norm in training mode each
        batch of particles is a population of its own, ``interacting="batch"``: the batch size is part of the problem.

    Raises:
        InvalidType: ``net`` is not a module, or ``loss`` not a function.
        InvalidValue: shared parameters, dropout in training mode, unknown or unordered stages, nothing to train.
    """
    refuse_unfit(net)
    layers = [Stage(name, module) for name, module in named_stages(net, stages)]
    kind = [stage.kind() or (t,) for t, stage in enumerate(layers)].__getitem__
    affine = [is_affine(stage.module) for stage in layers].__getitem__

    def dynamics(t: int, x: Tree, u: Tree, z: Tree) -> Tree:
        return layers[t](x, u, z)

    controls = [stage.controls() for stage in layers]
    if not any(controls):
        raise InvalidValue("net has no parameter that requires grad; there is nothing to train")
    if bounds is not None:
        controls = region(bounds, controls, per_stage=True).project(controls)
    # Training with batch norm on minibatches is to normalise each batch by itself.
    interacting = "batch" if any(mixes(part) for part in net.modules()) else None
    return Problem(
        dynamics,
        per_sample(loss),
        controls,
        running_cost=running_cost,
        kind=kind,
        affine=affine,
        interacting=interacting,
        bounds=bounds,
    )


def to_module(net: nn.Module, controls: Any, *, stages: Sequence[str | Sequence[str]] | None = None) -> nn.Module:
    """The solved network: a copy of ``net`` with the controls as its parameters, an ordinary module.

    Args:
        net: the network given to ``from_module``.
        controls: controls of that problem, or a solution or iterate that has them.
        stages: the ``stages`` given to ``from_module``.

    Returns:
        A new module. Buffers are those of ``net``: before ``.eval()``, ``mfoc.networks.refresh_averages(solved, [x])``
        estimates the running averages of batch norm, which solving leaves as they were.

    Raises:
        InvalidType: no controls.
        InvalidValue: the controls are not of this network.
    """
    solved, controls = copy.deepcopy(net), controls_of(controls)
    parts = named_stages(solved, stages)
    check_instance(list | tuple, f"controls of this network, a list of {len(parts)} stages", controls=controls)
    if len(controls) != len(parts):
        raise InvalidValue(f"controls do not belong to this network: expected a list of {len(parts)} stages")
    for (name, module), weights in zip(parts, controls, strict=True):
        own = trainable(module)
        held = {key: value.shape for key, value in weights.items()} if isinstance(weights, Mapping) else {}
        if held != {key: value.shape for key, value in own.items()}:
            given = sorted(held) or tree.describe(weights)
            raise InvalidValue(
                f"stage {name!r} has parameters {sorted(own)}; the controls hold {given} "
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

    Raises:
        InvalidType: ``batches`` is one tensor.
    """
    if isinstance(batches, Tensor):
        raise InvalidType("batches is a tensor; expected an iterable of batches, [x] for all inputs at once")
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


def weight_decay(coefficient: float) -> RunningCost:
    """The running cost (coefficient / 2) ||u_t||^2: its gradient is that of torch's ``weight_decay=coefficient``."""
    check_non_negative(coefficient=coefficient, finite=False)

    def cost(t: int, x: Tree, u: Tree, z: Tree) -> Tensor:
        leaf = tree.leaves(x)[0]
        weights = tree.tensors(u)
        if not weights:
            dtype = leaf.dtype if leaf.is_floating_point() else torch.get_default_dtype()
            return torch.zeros(len(leaf), device=leaf.device, dtype=dtype)
        return (coefficient / 2 * sum(w.square().sum() for w in weights)).expand(len(leaf))  # type: ignore[union-attr]

    return cost
