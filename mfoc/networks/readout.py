"""Solved networks as ordinary modules: weights put into place, and what goes with them estimated."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mfoc import tree
from mfoc.checks import check_instance
from mfoc.errors import InvalidType, InvalidValue, MfocError
from mfoc.networks.arguments import Arguments
from mfoc.networks.inspection import Norm, copied, is_chain, trainable, training_norms
from mfoc.networks.reparametrised import settle
from mfoc.networks.stages import Named, named_stages, shared_names
from mfoc.particles import Particles
from mfoc.populations import population as population_of


def read_out(net: nn.Module, stages: Sequence[str | Sequence[str]] | None, controls: Any) -> tuple[nn.Module, Named]:
    """A copy of a network with the controls as its parameters, and its stages, over the same parameters."""
    solved = copied(net)
    parts = named_stages(solved, stages)
    if isinstance(controls, Mapping):  # one control for all stages: the network's parameters by name
        own = trainable(solved)
        if controls.keys() != {full for names in shared_names(solved, parts) for full in names.values()}:
            raise InvalidValue(f"controls hold {sorted(controls)}; the network has {sorted(own)}")
        place(solved, controls)
        return solved, parts
    check_instance(list | tuple, f"controls of this network, a list of {len(parts)} stages", controls=controls)
    if len(controls) != len(parts):
        raise InvalidValue(
            f"controls do not belong to this network: {len(controls)} stages were given and it has {len(parts)}; pass "
            "the stages that from_module was given, or read out by problem.readout(controls)"
        )
    for (name, module), weights in zip(parts, controls, strict=True):
        own = trainable(module)
        held = {key: value.shape for key, value in weights.items()} if isinstance(weights, Mapping) else {}
        if held != {key: value.shape for key, value in own.items()}:
            given = sorted(held) or tree.describe(weights)
            raise InvalidValue(
                f"stage {name!r} has parameters {sorted(own)}; the controls hold {given} "
                "(or the shapes differ): were they solved for this network, with these stages?"
            )
        place(module, weights)
    return solved, parts


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


def refresh(solved: nn.Module, parts: Named, source: Any) -> None:
    """Makes what a training forward pass advances agree with the weights of a network of one's own.

    Args:
        solved: the network.
        parts: its stages.
        source: what ``population`` takes; None where there is none.
    """
    settle(solved)
    if not averaging(solved):
        return
    if source is None:
        warnings.warn(
            "the running averages of normalisation layers are not those of the solved weights, so that .eval() is "
            "another network: read out a solution, or pass population=, what they are to be estimated on",
            stacklevel=3,
        )
        return
    # Layer by layer where each is called as it stands, for those that ask for the data; else the network itself.
    chain = [module for _, module in parts] if is_chain(solved) else [solved]
    several = Arguments.of(solved, without="z" if _asks(solved) else "")

    def run(cloud: Particles) -> None:
        x = cloud.state
        for module in chain:
            data = {"z": cloud.data} if _asks(module) else {}
            args, kwargs = several.given(x) if module is solved and several.several else ((x,), {})
            x = module(*args, **kwargs, **data)

    try:
        _average(solved, run, population_of(source).epoch())
    except ValueError as error:  # of batch norm, on one particle
        if isinstance(error, InvalidValue):
            raise
        raise InvalidValue(f"running averages cannot be estimated on this population: {error}") from error


def refresh_averages(net: nn.Module, batches: Iterable[Any]) -> None:
    """Estimates the running averages of the normalisation layers in training mode, in one pass of a population.

    The averages are those over the batches, each weighed alike, as ``torch.optim.swa_utils.update_bn`` takes them;
    layers in evaluation mode keep theirs, and every layer keeps its mode.

    Args:
        net: a network of one's own: its buffers are written into.
        batches: the inputs ``[N, ...]``, batch by batch; read only where there are averages to estimate. Several
            inputs are a tuple in the order of the arguments, or a dict by their names.

    Raises:
        InvalidType: no network, or ``batches`` is one tensor or no iterable.
        InvalidValue: the network cannot be evaluated on a batch.
    """
    check_instance(nn.Module, "a torch.nn.Module", net=net)
    if isinstance(batches, Tensor):
        raise InvalidType("batches is a tensor; expected an iterable of batches, [x] for all inputs at once")
    check_instance(Iterable, "an iterable of batches, [x] for all inputs at once", batches=batches)
    if averaging(net):
        several = Arguments.of(net)
        try:
            _average(net, lambda batch: several.call(net, batch), batches)
        except (TypeError, ValueError, RuntimeError) as error:
            if isinstance(error, MfocError):
                raise
            raise InvalidValue(f"net cannot be evaluated on one of the batches: {error}") from error


def averaging(net: nn.Module) -> list[Norm]:
    """The normalisation layers whose running averages a forward pass would advance."""
    return [norm for _, norm in training_norms(net) if norm.track_running_stats and norm.running_mean is not None]


@torch.no_grad()
def _average(net: nn.Module, run: Callable[[Any], Any], batches: Iterable[Any]) -> None:
    norms = averaging(net)
    momenta = [norm.momentum for norm in norms]
    calls = dict.fromkeys(norms, 0)

    def counted(norm: Any, _args: Any) -> None:
        calls[norm] += 1  # a layer may be called more than once in a pass
        norm.momentum = 1 / calls[norm]  # the plain average; None is that of batch norm only

    handles = [norm.register_forward_pre_hook(counted) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
    try:
        for batch in batches:
            run(batch)
    finally:
        for handle, norm, momentum in zip(handles, norms, momenta, strict=True):
            handle.remove()
            norm.momentum = momentum


def _asks(module: nn.Module) -> bool:
    return getattr(module, "takes_data", False) is True
