"""Networks as control problems, and solutions as networks: the layers are the stages, the weights are the controls.

A stage is a frozen copy of the user's module, called with the weights of the control; the user's network is never
touched. Buffers are constants: batch norm in training mode uses the statistics of the cloud, over all ranks (an
interacting problem) and does not advance its running averages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mfoc import tree
from mfoc.bounds import region
from mfoc.bounds.region import Bounds
from mfoc.checks import check_flag, check_instance, check_non_negative
from mfoc.errors import InvalidValue
from mfoc.networks.inspection import is_affine, mixes, refuse_unfit, unwrapped
from mfoc.networks.losses import Loss, per_sample
from mfoc.networks.readout import read_out, refresh
from mfoc.networks.references import refuse_reaching
from mfoc.networks.stages import Named, Stage, named_stages, shared_names
from mfoc.problem import Problem, RunningCost, controls_of, per_stage
from mfoc.tree import Tree


@dataclass(frozen=True, eq=False)
class _Shared:
    """The schedule of controls ``{name: tensor}`` of a whole network: each stage has those of its own parameters.

    ``names[t]`` is {the name in stage t: the name in the network}.
    """

    names: tuple[dict[str, str], ...]

    def __call__(self, controls: Mapping[str, Tensor], t: int) -> dict[str, Tensor]:
        return {own: controls[full] for own, full in self.names[t].items()}

    def once(self, cost: RunningCost) -> RunningCost:
        """A running cost that sees each weight at the first stage that has it: what is shared is not counted twice."""
        seen: set[str] = set()
        first = []
        for names in self.names:
            first.append({own for own, full in names.items() if full not in seen})
            seen |= set(names.values())
        return lambda t, x, u, z: cost(t, x, {own: u[own] for own in u if own in first[t]}, z)


@dataclass(frozen=True, eq=False, repr=False)
class NetworkProblem(Problem[Any]):
    """Training a network, as ``from_module`` writes it.

    Attributes:
        net: the network that it was made from.
        cut: the ``stages`` it was given.
        names: of the stages.
    """

    net: nn.Module | None = None
    cut: Sequence[str | Sequence[str]] | None = None
    names: tuple[str, ...] = ()

    def readout(self, solution: Any, population: Any = None) -> nn.Module:
        """The solved network: a copy of the network with the controls as its parameters, an ordinary module.

        What a forward pass in training mode advances, and solving does not, agrees with the weights: the running
        averages of batch and instance norm are estimated in one pass over the population, as by
        ``torch.optim.swa_utils.update_bn``, so that ``.eval()`` is the network that was solved for; spectral norm is
        set to the norm of its weight. Nothing is estimated in evaluation mode.

        Args:
            solution: a solution or iterate of this problem, or controls.
            population: what averages are estimated on, anything that ``mfoc.population`` takes; what the solution was
                found on when None.

        Returns:
            A new module, in the mode of the network.

        Raises:
            InvalidType: no controls.
            InvalidValue: controls of another problem, or a population that the network cannot run on.
        """
        assert self.net is not None
        solved, parts = read_out(self.net, self.cut, controls_of(solution))
        source = getattr(solution, "population", None) if population is None else population
        refresh(solved, parts, source)
        return solved


def from_module(
    net: nn.Module,
    loss: Loss | nn.Module,
    *,
    stages: Sequence[str | Sequence[str]] | None = None,
    running_cost: RunningCost | None = None,
    bounds: Bounds = None,
    tied: bool = False,
) -> NetworkProblem:
    """Training a network as a control problem: x_(t+1) = layer_t(x_t; u_t), Phi = loss.

    Args:
        net: any module. An ``nn.Sequential`` has a stage for each layer (nested ones are unrolled); another module is
            one stage, or has several where ``stages`` names submodules at which its forward pass is cut. It is copied,
            never changed; its training mode is kept. One that is compiled, or in ``nn.DataParallel``, is unwrapped.
        loss: ``loss(output, z) -> [N]``, or a torch loss (``F.cross_entropy``, ``nn.MSELoss()``), with which J on a
            cloud is the number that torch gives, ignored targets and class weights included; see ``per_sample``. It
            gets the output as the network returns it: a tensor, tuple, dict, named tuple or dataclass of tensors.
        stages: names of submodules in the order they run; a stage ends with the named module, operations after the
            last one belong to the last stage. Where more than one value is used after a cut the state is a dict of
            them. For an ``nn.Sequential`` a stage may be a list of consecutive names.
        running_cost: ``L(t, x, u, z) -> [N]``, for example ``mfoc.weight_decay(1e-4)``.
        bounds: where weights may lie, as ``mfoc.Box(-1, 1)``, ``{"weight": mfoc.L1(1e-4)}`` for sparse ones, or a rule
            ``(name, leaf) -> set or None``; see ``mfoc.Problem``. Weights outside start from the nearest ones inside.
        tied: weights may be used in several stages (an embedding and the head it is tied to): the controls are then
            one dict {parameter name: tensor} of the whole network, of which each stage takes its own. A running cost
            sees a weight at the first stage that has it.

    Returns:
        A per-stage problem whose controls are a list of dicts {parameter name: tensor}; a layer without parameters
        has an empty one. Parameters that do not require grad, and buffers, are constants. With batch norm in training
        mode each batch of particles is a population of its own, ``interacting="batch"``: the batch size is part of the
        problem. ``problem.readout(solution)`` is the solved network.

        The state that enters a network of several inputs is a dict by the names of its arguments, or a tuple in their
        order. The data z (targets, masks) reach a module only where it says so, by an attribute ``takes_data = True``.

    Raises:
        InvalidType: ``net`` is not a module, or ``loss`` not a function.
        InvalidValue: a parameter in two stages without ``tied``, complex or lazy parameters, dropout in training mode,
            TorchScript, a module that cannot be copied, unknown or unordered stages, nothing to train.
    """
    check_instance(nn.Module, "a torch.nn.Module", net=net)
    check_flag(tied=tied)
    net = unwrapped(net)
    refuse_unfit(net)
    parts = named_stages(net, stages)
    names = shared_names(net, parts)
    if not tied:
        _refuse_shared(parts, names)
    for name, module in parts:
        refuse_reaching(net, name, module)
    layers = [Stage(name, module, whole=module is net) for name, module in parts]
    kind = [stage.kind() or (t,) for t, stage in enumerate(layers)].__getitem__
    affine = [is_affine(stage.module) for stage in layers].__getitem__

    direct = [stage.direct for stage in layers]

    def dynamics(t: int, x: Tree, u: Tree, z: Tree) -> Tree:
        own = direct[t]
        return layers[t](x, u, z) if own is None else own(x, u)

    controls: Any = [stage.controls() for stage in layers]
    if not any(controls):
        raise InvalidValue("net has no parameter that requires grad; there is nothing to train")
    shared = _Shared(names) if tied else None
    if shared is not None:
        controls = {full: u[own] for u, found in zip(controls, names, strict=True) for own, full in found.items()}
        running_cost = None if running_cost is None else shared.once(running_cost)
    if bounds is not None:
        controls = region(bounds, controls, per_stage=not tied).project(controls)
    # Training with batch norm on minibatches is to normalise each batch by itself.
    interacting = "batch" if any(mixes(part) for part in net.modules()) else None
    return NetworkProblem(
        dynamics,
        per_sample(loss),
        controls,
        running_cost=running_cost,
        horizon=len(layers),
        schedule=per_stage if shared is None else shared,
        kind=kind,
        affine=affine,
        interacting=interacting,
        bounds=bounds,
        net=net,
        cut=stages,
        names=tuple(name for name, _ in parts),
    )


def _refuse_shared(parts: Named, names: Sequence[Mapping[str, str]]) -> None:
    """Refuses a parameter that is used in two stages."""
    seen: dict[str, str] = {}
    for (stage, _), own in zip(parts, names, strict=True):
        for full in own.values():
            if seen.setdefault(full, stage) != stage:
                raise InvalidValue(
                    f"parameter {full!r} is used in stages {seen[full]!r} and {stage!r}; a per-stage control cannot be "
                    "shared: pass tied=True, which makes one control of it, or choose stages that keep its uses in one"
                )


def to_module(
    net: nn.Module,
    controls: Any,
    *,
    stages: Sequence[str | Sequence[str]] | None = None,
    population: Any = None,
) -> nn.Module:
    """The solved network: a copy of ``net`` with the controls as its parameters, an ordinary module.

    As ``problem.readout(solution)``, for whom has the controls and not the problem: see there what agrees with the
    weights. A solution knows its stages and its population; for an iterate, or controls, give them.

    Args:
        net: the network given to ``from_module``.
        controls: controls of that problem, or a solution or iterate that has them.
        stages: the ``stages`` given to ``from_module``.
        population: what running averages are estimated on; what a solution was found on when None. Without one the
            averages are those of ``net``, and a warning says so.

    Returns:
        A new module, in the mode of ``net``.

    Raises:
        InvalidType: no network, or no controls.
        InvalidValue: the controls are not of this network.
    """
    check_instance(nn.Module, "the network that was solved, a torch.nn.Module", net=net)
    known = getattr(controls, "problem", None)
    if stages is None and isinstance(known, NetworkProblem):
        stages = known.cut
    solved, parts = read_out(unwrapped(net), stages, controls_of(controls))
    refresh(solved, parts, getattr(controls, "population", None) if population is None else population)
    return solved


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
