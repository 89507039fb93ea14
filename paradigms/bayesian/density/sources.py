"""Densities of one particle: from a Pyro model, a network with a likelihood and a prior, or a control problem."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import mfoc
from mfoc import InvalidType, InvalidValue
from mfoc.checks import check_positive
from paradigms.bayesian.laws.likelihoods import check_targets, log_likelihood_of
from paradigms.bayesian.laws.normal import cast, normal_log_prob, unvalidated
from paradigms.bayesian.laws.priors import log_prob_of, weight_law
from paradigms.bayesian.pyro.trace import quietly

NOISE = "noise"  # name of a learned noise scale
Likelihood = Callable[[Tensor, Tensor], Tensor]


def _plainly(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


def _unchecked(function: Callable[..., Any], *args: Any) -> Any:
    with quietly():
        return function(*args)


@dataclass(frozen=True)
class Source:
    """The log density of one particle, a vector ``[d]``, and what is known about it; see ``LogDensity``.

    Attributes:
        one: ``[d]`` to a scalar.
        on_batch: ``([d], index [B])`` to a scalar, or None.
        around: calls a function of particles in the right surroundings (checks of values off).
    """

    one: Callable[[Tensor], Tensor]
    shapes: dict[str, torch.Size]
    like: Tensor
    draw: Callable[[int, int], Tensor] | None = None
    constrain: Callable[[Tensor], dict[str, Tensor]] | None = None
    size: int | None = None
    on_batch: Callable[[Tensor, Tensor], Tensor] | None = None
    around: Callable[..., Any] = _plainly


def flat(parameters: Mapping[str, Tensor]) -> Tensor:
    """Named tensors as one vector ``[d]``.

    Raises:
        InvalidType: one is not floating point.
        InvalidValue: mixed dtypes or devices.
    """
    first = next(iter(parameters.values()))
    for name, leaf in parameters.items():
        if not leaf.is_floating_point():
            raise InvalidType(f"parameter {name!r} has dtype {leaf.dtype}; expected floating point")
        if leaf.dtype != first.dtype or leaf.device != first.device:
            raise InvalidValue(f"parameter {name!r} is {leaf.dtype} on {leaf.device}; all need one dtype and device")
    return torch.cat([leaf.detach().reshape(-1) for leaf in parameters.values()])


def split(x: Tensor, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Vectors ``[..., d]`` as named tensors ``[..., *shape]``."""
    lead, parts = x.shape[:-1], torch.split(x, [math.prod(shape) for shape in shapes.values()], dim=-1)
    return {name: part.reshape((*lead, *shape)) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


# ---- Pyro models


# ---- networks


def from_net(net: nn.Module, data: Any, likelihood: Any, noise: float | None, prior: Any) -> Source:
    """A network with a likelihood and a prior; see ``log_density``."""
    if not isinstance(data, tuple | list) or len(data) != 2 or not all(isinstance(part, Tensor) for part in data):
        raise InvalidType("data must be a pair of tensors (inputs, targets) for a network")
    inputs, targets = data
    if len(inputs) != len(targets) or len(inputs) == 0:
        raise InvalidValue(
            f"data holds {len(inputs)} inputs and {len(targets)} targets; expected as many, at least one"
        )
    net = copy.deepcopy(net).eval()
    law = weight_law(prior)
    example = {name: p.detach() for name, p in net.named_parameters() if p.requires_grad}
    if not example:
        raise InvalidValue("net has no parameter that requires grad; there is nothing to sample")
    learned = likelihood == "gaussian" and noise is None
    if learned:
        if NOISE in example:
            raise InvalidValue(f"net has a parameter named {NOISE!r}, the name of the learned scale; pass noise=")
        example = {**example, NOISE: next(iter(example.values())).new_zeros(())}
    elif likelihood != "gaussian" and noise is not None:
        raise InvalidValue("noise is the scale of the Gaussian likelihood; leave it out")
    fit = log_likelihood_of(likelihood, noise)
    check_targets(net, inputs, targets, likelihood)
    shapes = {name: leaf.shape for name, leaf in example.items()}
    total = len(inputs)

    def joint(x: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
        parameters = split(x, shapes)
        spread = parameters.pop(NOISE) if learned else None
        out = torch.func.functional_call(net, parameters, (cast(xs, x),))
        fitted = fit(out, cast(ys, x), spread).sum() * (total / len(xs))
        weights = sum(log_prob_of(law, leaf).sum() for leaf in parameters.values())
        return fitted + weights + (0 if spread is None else normal_log_prob(spread, 0.0, 1.0))

    def draw(n: int, seed: int) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            points = [law.expand(shape).sample((n,)).reshape(n, -1) for shape in shapes.values()]
            if learned:
                points[-1] = torch.randn(n, 1)
        return torch.cat([point.to(vector) for point in points], dim=1)

    def constrain(x: Tensor) -> dict[str, Tensor]:
        named = split(x, shapes)
        return {**named, NOISE: named[NOISE].exp()} if learned else named

    vector = flat(example)
    return Source(
        lambda x: joint(x, inputs, targets),
        shapes,
        vector,
        draw,
        constrain,
        total,
        lambda x, index: joint(x, inputs[index], targets[index]),
        _unchecked if type(law).__module__.startswith("pyro") else unvalidated,
    )


# ---- control problems


def from_problem(problem: mfoc.Problem, data: Any, prior: Any, temperature: float) -> Source:
    """The Gibbs law of a problem's controls; see ``log_density``."""
    if not isinstance(data, mfoc.Particles):
        raise InvalidType(f"data is a {type(data).__name__}; a problem needs its mfoc.Particles")
    check_positive(temperature=temperature, finite=False)
    law = None if prior is None else weight_law(prior)
    paths, structure = torch.utils._pytree.tree_flatten_with_path(problem.controls)
    example = {".".join(str(getattr(k, "key", getattr(k, "idx", k))) for k in path): leaf for path, leaf in paths}
    example = {name or "u": leaf for name, leaf in example.items()}
    shapes = {name: leaf.shape for name, leaf in example.items()}
    problem.validate(data)

    def one(x: Tensor) -> Tensor:
        leaves = list(split(x, shapes).values())
        controls = torch.utils._pytree.tree_unflatten(leaves, structure)
        gibbs = -mfoc.rollout(problem, controls, data).cost.sum() / temperature
        return gibbs if law is None else gibbs + log_prob_of(law, x).sum()

    return Source(one, shapes, flat(example), around=unvalidated)
