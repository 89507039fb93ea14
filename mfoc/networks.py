"""Networks as control problems: the layers are the stages, the weights are the controls.

A stage is a frozen copy of the user's module, called with the weights of the control; the user's network is never
touched. Buffers are constants: batch norm in training mode uses the statistics of the cloud (an interacting problem)
and does not advance its running averages.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from mfoc import _tree
from mfoc._errors import InvalidType, InvalidValue
from mfoc._staging import named_stages as named_stages  # public here
from mfoc._tree import Tree
from mfoc.checks import check_non_negative
from mfoc.problem import Problem, RunningCost, TerminalCost

Loss = Callable[..., Tensor]

_BOOKKEEPING = frozenset(nn.Module().__dict__)
_HOOKS = [key for key in _BOOKKEEPING if key.endswith("_hooks")]


class Residual(nn.Module):
    """x + step * block(x): one Euler step of a residual network.

    Args:
        block: a module that keeps the shape.
        step: the step size.
    """

    def __init__(self, block: nn.Module, step: float = 1.0) -> None:
        super().__init__()
        self.block, self.step = block, step

    def forward(self, x: Tensor) -> Tensor:
        """``[N, ...]`` to ``[N, ...]``."""
        result: Tensor = x + self.step * self.block(x)
        return result


class MaskedDropout(nn.Module):
    """Dropout whose mask comes from the data, so that the dynamics stay pure: x * z[key] / (1 - p).

    It must be a stage of its own: a layer inside another module is not handed the data.

    Args:
        p: probability that the mask was drawn with (a mask entry is 0 with probability p).
        key: where the mask lies in the data, a dict; the mask has the state's shape ``[N, ...]``.
    """

    def __init__(self, p: float, key: str) -> None:
        super().__init__()
        if not isinstance(p, int | float) or not 0 <= p < 1:
            raise InvalidValue(f"p is {p!r}; expected a probability in [0, 1)")
        self.p, self.key = p, key

    def forward(self, x: Tensor, z: Tree) -> Tensor:
        """``[N, ...]`` and the data to ``[N, ...]``; the identity in evaluation mode."""
        if not self.training:
            return x
        if not isinstance(z, dict) or self.key not in z:
            raise InvalidValue(f"no dropout mask: expected the data to be a dict with key {self.key!r}")
        masked: Tensor = x * z[self.key].to(x.dtype) / (1 - self.p)
        return masked


# Layers whose forward pass is one call on the weights: evaluated directly, which spares the module machinery.
_DIRECT: dict[type[nn.Module], Callable[[Any, Tensor, dict[str, Tensor]], Tensor]] = {
    nn.Linear: lambda layer, x, u: F.linear(x, u["weight"], u.get("bias")),
    nn.Conv1d: lambda layer, x, u: layer._conv_forward(x, u["weight"], u.get("bias")),
    nn.Conv2d: lambda layer, x, u: layer._conv_forward(x, u["weight"], u.get("bias")),
}

# Layers that are affine in their input, whatever their settings. A Sequential of them is, too.
_AFFINE = (
    nn.Linear,
    nn.modules.conv._ConvNd,
    nn.modules.pooling._AvgPoolNd,
    nn.Identity,
    nn.Flatten,
    nn.Unflatten,
)


def _is_affine(module: nn.Module) -> bool:
    if any(module.__dict__[key] for key in _HOOKS):
        return False
    if type(module) is nn.Sequential:
        return all(_is_affine(part) for part in module)
    if isinstance(module, fx.GraphModule):  # a stage cut from a larger module
        steps = [node for node in module.graph.nodes if node.op not in ("placeholder", "output")]
        return all(n.op == "call_module" and _is_affine(module.get_submodule(str(n.target))) for n in steps)
    known = type(module).__module__.startswith("torch.nn.")  # a subclass may have a forward pass of its own
    return known and isinstance(module, _AFFINE)


class _Stage:
    """One stage: a private copy of a module, run with weights given from outside."""

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name = name
        try:
            self.module = copy.deepcopy(module)
        except Exception as error:  # whatever the module's parts raise
            raise InvalidValue(
                f"module {name!r} cannot be copied ({error}); if it uses torch.nn.utils.weight_norm, use "
                "torch.nn.utils.parametrizations.weight_norm"
            ) from error
        _make_pure(self.module)
        self.slots = [
            (key, owner, leaf)
            for prefix, owner in self.module.named_modules()
            for leaf, value in owner._parameters.items()
            if value is not None and value.requires_grad
            for key in [f"{prefix}.{leaf}" if prefix else leaf]
        ]
        trainable = all(p.requires_grad for p in self.module.parameters())
        self.hooked = any(self.module.__dict__[key] for key in _HOOKS)
        self.direct = None if self.hooked or not trainable else _DIRECT.get(type(self.module))
        # Buffers that a training forward pass may advance (spectral norm, counters): it gets copies.
        self.buffers = [
            (owner, key)
            for owner in self.module.modules()
            for key, value in owner._buffers.items()
            if value is not None and self.module.training
        ]
        # The data is a second argument named z; a first one of that name is the state.
        self.takes_data = "z" in list(inspect.signature(self.module.forward).parameters)[1:]

    def controls(self) -> dict[str, Tensor]:
        return {key: owner._parameters[leaf].detach().clone() for key, owner, leaf in self.slots}  # type: ignore[union-attr]

    def __call__(self, x: Tree, u: dict[str, Tensor], z: Tree) -> Tree:
        if self.direct is not None:
            return self.direct(self.module, x, u)
        if not self.slots and not self.buffers:
            return self._run(x, z)
        # What torch.func.functional_call does, without its bookkeeping: the slots of a private copy are lent the
        # control's tensors for the length of the call.
        own = [owner._parameters[leaf] for _, owner, leaf in self.slots]
        kept = [owner._buffers[key] for owner, key in self.buffers]
        try:
            for owner, key in self.buffers:
                owner._buffers[key] = owner._buffers[key].clone()  # type: ignore[union-attr]
            for key, owner, leaf in self.slots:
                owner._parameters[leaf] = u[key]  # type: ignore[assignment]
            return self._run(x, z)
        finally:
            for (_, owner, leaf), value in zip(self.slots, own, strict=True):
                owner._parameters[leaf] = value
            for (owner, key), buffer in zip(self.buffers, kept, strict=True):
                owner._buffers[key] = buffer

    def _run(self, x: Tree, z: Tree) -> Tree:
        forward = self.module if self.hooked else self.module.forward
        return forward(x, z=z) if self.takes_data else forward(x)

    def kind(self) -> Hashable:
        """A fingerprint: stages with the same one compute the same function of (x, u, z). None when not sure."""
        if any(True for _ in self.module.buffers()):
            return None
        parts: list[Hashable] = []
        for prefix, module in self.module.named_modules():
            plain = _plain_attributes(module)
            if plain is None or type(module).__module__.startswith("torch.fx"):
                return None
            shapes = tuple(
                (k, None if v is None else (tuple(v.shape), v.requires_grad)) for k, v in module._parameters.items()
            )
            if any(v is not None and not v.requires_grad for v in module._parameters.values()):
                return None
            parts.append((prefix, type(module), module.training, plain, shapes))
        return tuple(parts)


def _plain_attributes(module: nn.Module) -> Hashable | None:
    """The module's own attributes, or None when one of them cannot be compared."""
    plain = tuple((k, v) for k, v in sorted(module.__dict__.items()) if k not in _BOOKKEEPING)
    try:
        hash(plain)
    except TypeError:
        return None
    uncertain = any(isinstance(value, Tensor) for _, value in plain) or any(module.__dict__[key] for key in _HOOKS)
    return None if uncertain else plain


def _make_pure(module: nn.Module) -> None:
    """Takes from a private copy what writes into its inputs or into itself, and changes no value.

    In training mode batch norm uses the cloud's statistics: without running averages there is none to advance.
    """
    for part in module.modules():
        if getattr(part, "inplace", False) is True:
            part.inplace = False  # type: ignore[assignment]
        if isinstance(part, nn.modules.batchnorm._NormBase | nn.InstanceNorm2d) and part.training:
            part.running_mean = part.running_var = part.num_batches_tracked = None


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
    if not isinstance(net, nn.Module):
        raise InvalidType(f"net is a {type(net).__name__}; expected a torch.nn.Module")
    _refuse_lazy(net)
    _refuse_sharing(net)
    _refuse_randomness(net)
    layers = [_Stage(name, module) for name, module in named_stages(net, stages)]
    kinds = [stage.kind() for stage in layers]

    def dynamics(t: int, x: Tree, u: Tree, z: Tree) -> Tree:
        return layers[t](x, u, z)

    def kind(t: int) -> Hashable:
        return (t,) if kinds[t] is None else kinds[t]

    affine = [_is_affine(stage.module) for stage in layers]
    controls = [stage.controls() for stage in layers]
    if not any(controls):
        raise InvalidValue("net has no parameter that requires grad; there is nothing to train")
    return Problem(
        dynamics, per_sample(loss), controls, running_cost=running_cost, kind=kind, affine=affine.__getitem__
    )


def to_module(net: nn.Module, controls: Tree, *, stages: Sequence[str | Sequence[str]] | None = None) -> nn.Module:
    """The solved network: a copy of ``net`` with the controls as its parameters, an ordinary module.

    Args:
        net: the network given to ``from_module``.
        controls: controls of that problem.
        stages: the ``stages`` given to ``from_module``.

    Returns:
        A new module. Buffers are those of ``net``: to refresh batch-norm averages use
        ``torch.optim.swa_utils.update_bn``.

    Raises:
        InvalidValue: the controls are not of this network.
    """
    solved = copy.deepcopy(net)
    parts = named_stages(solved, stages)
    if not isinstance(controls, list | tuple) or len(controls) != len(parts):
        raise InvalidValue(f"controls do not belong to this network: expected a list of {len(parts)} stages")
    with torch.no_grad():
        for (name, module), weights in zip(parts, controls, strict=True):
            own = {key: value for key, value in module.named_parameters() if value.requires_grad}
            if own.keys() != weights.keys() or any(own[key].shape != weights[key].shape for key in own):
                raise InvalidValue(
                    f"stage {name!r} has parameters {sorted(own)}; the controls hold {sorted(weights)} "
                    "(or the shapes differ): were they solved for this network?"
                )
            for key, value in own.items():
                value.data = weights[key].detach().clone()
    return solved


def weight_decay(coefficient: float) -> RunningCost:
    """The running cost (coefficient / 2) ||u_t||^2: its gradient is that of torch's ``weight_decay=coefficient``.

    Args:
        coefficient: a non-negative number.
    """
    check_non_negative(coefficient=coefficient, finite=False)

    def cost(t: int, x: Tree, u: Tree, z: Tree) -> Tensor:
        leaf = _tree.leaves(x)[0]
        weights = _tree.tensors(u)
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


def _refuse_lazy(net: nn.Module) -> None:
    for name, parameter in net.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise InvalidValue(f"parameter {name!r} is lazy; run the network once on a batch before from_module")


def _refuse_sharing(net: nn.Module) -> None:
    seen: dict[int, str] = {}
    for name, parameter in net.named_parameters(remove_duplicate=False):
        if id(parameter) in seen:
            raise InvalidValue(
                f"parameter {name!r} is shared with {seen[id(parameter)]!r}; a per-stage control cannot be shared. "
                "Give each stage its own copy, or write a Problem with schedule=mfoc.tied"
            )
        seen[id(parameter)] = name


def _random_parts(net: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in net.named_modules():
        if not module.training:
            continue
        probability = getattr(module, "p", 0) if isinstance(module, nn.modules.dropout._DropoutNd) else 0
        probability = getattr(module, "dropout", probability)  # RNNs, multi-head attention
        stochastic = type(module).__name__ in ("StochasticDepth", "DropPath", "FractionalMaxPool2d", "RReLU")
        if stochastic or (isinstance(probability, int | float) and probability > 0):
            yield name, module


def _refuse_randomness(net: nn.Module) -> None:
    for name, module in _random_parts(net):
        raise InvalidValue(
            f"module {name!r} ({type(module).__name__}) is random in training mode and dynamics must be pure: take its "
            "mask from the data with mfoc.networks.MaskedDropout, set its probability to 0, or call .eval() on it"
        )
