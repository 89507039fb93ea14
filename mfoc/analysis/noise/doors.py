"""Networks and problems as costs of single samples, and what they are refused for."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mfoc import tree
from mfoc.analysis.kernel.doors import GRADIENTS, check_outputs, private_copy
from mfoc.analysis.kernel.taps import plainly
from mfoc.checks import check_instance, check_plain, kind_of
from mfoc.derivatives import gradients
from mfoc.errors import InvalidType, InvalidValue
from mfoc.interacting import coupling
from mfoc.networks.inspection import trainable
from mfoc.networks.losses import Loss, per_sample
from mfoc.particles import Particles
from mfoc.pontryagin import rollout
from mfoc.problem import Problem, controls_for
from mfoc.tree import Tree

Cost = Callable[[Tree, Particles], Tensor]

_FEW = 3  # samples by which a loss is looked at


def of_problem(problem: Problem[Any], controls: Any, cloud: Particles) -> tuple[Tree, Cost]:
    """The controls of a problem, and what each particle costs.

    Raises:
        InvalidType, InvalidValue: the problem does not fit the particles, or they interact.
    """
    controls = problem.controls if controls is None else controls_for(problem, controls)
    problem.validate(cloud, controls)
    found = coupling(problem, cloud, controls=controls)
    if found or problem.interacting is not None:
        where = found.elsewhere or "the problem uses the population's law"
        raise InvalidValue(
            f"{where}: the particles interact, so that {GRADIENTS.alone} does not exist. Where it is batch norm, call "
            ".eval() on the network before mfoc.from_module"
        )

    def cost(u: Tree, particles: Particles) -> Tensor:
        return rollout(problem, u, particles).cost

    return controls, cost


def of_network(net: nn.Module, loss: Loss | nn.Module, cloud: Particles) -> tuple[dict[str, Tensor], Cost]:
    """The trained parameters of a network, by name, and the loss of each sample.

    Raises:
        InvalidType, InvalidValue: see ``mfoc.analysis.kernel.doors``; a loss that does not fit.
    """
    check_instance(nn.Module, "a torch.nn.Module or an mfoc.Problem", net=net)
    per_sample(loss)  # says what is no loss
    for name, part in net.named_modules():
        if isinstance(part, torch.jit.ScriptModule | nn.DataParallel):
            raise InvalidValue(
                f"module {name!r} ({type(part).__name__}) cannot be given its parameters by "
                "torch.func.functional_call; give the plain module that it was made of (.module of a DataParallel)"
            )
    private = private_copy(net, GRADIENTS)
    check_plain("a tensor of samples [N, ...]", x=cloud.state)
    check_outputs(private, cloud.state, GRADIENTS)
    free = trainable(private)
    constants = {name: p.detach() for name, p in private.named_parameters() if name not in free}
    constants |= dict(private.named_buffers())

    def outputs(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        found: Tensor = functional_call(private, {**constants, **parameters}, (x,))
        return found

    each = _each(loss, free, outputs, cloud)

    def cost(parameters: dict[str, Tensor], particles: Particles) -> Tensor:
        return each(outputs(parameters, particles.state), particles.data)

    _check_same(private, free, each, cost, cloud[:_FEW])
    return {name: p.detach() for name, p in free.items()}, cost


def _each(
    loss: Loss | nn.Module, free: dict[str, Any], outputs: Callable[..., Tensor], cloud: Particles
) -> Callable[[Tensor, Any], Tensor]:
    """The loss of each sample ``[n]``, whose mean over the cloud is what torch gives.

    Where targets are ignored or classes have weights, torch's mean is over weights. A sample's loss is then its
    weighted sum divided by the mean weight of the cloud, a constant: so it does not depend on the chunk it comes in.
    """
    plain = per_sample(loss, weigh=False)
    few = cloud[_spread(cloud)]
    with plainly(), torch.no_grad():
        out = outputs(free, few.state)
        given = f"the output {list(out.shape)} and targets {tree.describe(few.data)}"
        found = _tried(plain, out, few.data, given)
    if found.dim() == 0:  # a loss of the user's that is a mean already
        plain = _alone(loss, out, few.data, found, given)
    elif found.shape != (len(few),):
        raise InvalidValue(
            f"loss returned shape {tuple(found.shape)} on {given}; expected a loss for each sample [{len(few)}], or "
            "their mean"
        )
    else:
        _check_apart(plain, out, few.data, found, given)
    factor = 1.0
    weighed = per_sample(loss)
    if weighed is not plain and found.dim():
        with plainly(), torch.no_grad():
            out = torch.cat([outputs(free, part) for part in cloud.state.split(256)])
            up, down = weighed(out, cloud.data).sum(), plain(out, cloud.data).sum()
        factor = float(up / down) if bool((up / down).isfinite()) else 1.0  # what is not finite is refused by sample
    if factor == 1.0:
        return plain
    return lambda out, z: plain(out, z) * factor


def _spread(cloud: Particles) -> Tensor:
    """Places of a few samples far apart: data may be sorted by class, and a loss look at the classes of its batch."""
    places = torch.linspace(0, len(cloud) - 1, min(_FEW, len(cloud)), dtype=torch.float64, device="cpu")
    return places.round().long().to(tree.leaves(cloud.state)[0].device)


def _tried(plain: Callable[..., Tensor], out: Tensor, z: Any, given: str) -> Tensor:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*target size.*")  # torch's word for a broadcast
            found = plain(out, z)
    except (InvalidType, InvalidValue):
        raise
    except Exception as error:  # whatever a loss raises
        raise InvalidValue(f"loss cannot be evaluated on {given}: {error}") from error
    if not isinstance(found, Tensor):
        raise InvalidType(f"loss returned {kind_of(found)}; expected a tensor")
    if not bool(found.isfinite().all()):
        raise InvalidValue(f"loss is not finite on {given}")
    return found


def _check_apart(plain: Callable[..., Tensor], out: Tensor, z: Any, found: Tensor, given: str) -> None:
    """Refuses a loss whose number for a sample is another without the rest of the batch."""
    for i, together in enumerate(found):
        row = None if z is None else tree.map(lambda leaf: leaf[i : i + 1], z)  # noqa: B023
        alone = _tried(plain, out[i : i + 1], row, given)
        if alone.shape != (1,) or not torch.isclose(alone[0], together, rtol=torch.finfo(out.dtype).eps ** 0.5):
            raise InvalidValue(
                f"loss is {found.tolist()} on {given}, and {alone.tolist()} on sample {i} alone; expected a loss for "
                "each sample, a function of that sample"
            )


def _alone(loss: Any, out: Tensor, z: Any, mean: Tensor, given: str) -> Callable[[Tensor, Any], Tensor]:
    """A loss that is a mean over samples, sample by sample."""

    def each(out: Tensor, z: Any) -> Tensor:
        rows = [tree.map(lambda leaf: leaf[i : i + 1], z) if z is not None else None for i in range(len(out))]  # noqa: B023
        return torch.stack([loss(out[i : i + 1], row).reshape(()) for i, row in enumerate(rows)])

    apart = _tried(each, out, z, f"{given}, sample by sample").mean()
    if not torch.isclose(apart, mean, rtol=torch.finfo(out.dtype).eps ** 0.5):
        raise InvalidValue(
            f"loss is {float(mean):.6g} on {given}, and the mean over the samples one by one {float(apart):.6g}; "
            "expected a mean over samples: give a loss that returns one for each"
        )
    return each


def _check_same(
    private: nn.Module, free: dict[str, Any], each: Callable[..., Tensor], cost: Cost, few: Particles
) -> None:
    """Refuses a network that computes something else when it is given its parameters from outside."""
    leaves = list(free.values())
    with plainly():
        value = each(private(few.state), few.data)
        if not value.requires_grad:
            raise InvalidValue("loss does not depend on the outputs of net, or not in a way that can be differentiated")
        plain = gradients(value, leaves)
        other = {name: p.detach().clone().requires_grad_() for name, p in free.items()}
        seen = gradients(cost(other, few), list(other.values()))
    size = sum(float(slope.norm()) for slope in plain)
    gap = sum(float((a - b).norm()) for a, b in zip(plain, seen, strict=True))
    if gap > 1e2 * torch.finfo(value.dtype).eps * size:
        raise InvalidValue(
            "net computes something else when torch.func.functional_call gives it its parameters, as modules of "
            "TorchScript or with weights kept outside of parameters do; give a plain module"
        )
