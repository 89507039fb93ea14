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
from paradigms.bayesian import _pyro
from paradigms.bayesian._arguments import Arguments

NOISE = "noise"  # name of a learned noise scale
Likelihood = Callable[[Tensor, Tensor], Tensor]


def _plainly(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


def _unchecked(function: Callable[..., Any], *args: Any) -> Any:
    with _pyro.quietly():
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


def from_pyro(model: Callable[..., Any], data: Any, size: int | None) -> Source:
    """A Pyro model with its data; see ``log_density``."""
    arguments = Arguments(data)
    trace = _pyro.prototype(model, arguments)
    example, params = _pyro.unconstrained(trace), _pyro.parameters(trace)
    shapes = {name: leaf.shape for name, leaf in example.items()}

    def joint(x: Tensor, rows: Mapping[Any, Tensor] | None = None) -> _pyro.Joint:
        return _pyro.evaluate(model, arguments, split(x, shapes), rows=rows, params=params)

    def one(x: Tensor) -> Tensor:
        found = joint(x)
        return found.observed + found.prior + found.volume

    def values(x: Tensor) -> dict[str, Tensor]:
        return joint(x).values

    def constrain(x: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            found: dict[str, Tensor] = _unchecked(torch.func.vmap(values), x)
        return found

    if size is None:
        return Source(one, shapes, flat(example), constrain=constrain, around=_unchecked)
    rows = arguments.rows(size)
    if not rows:
        raise InvalidValue(f"size is {size}; no argument of the model has as many rows to take a batch of")
    if size > 1:
        part = _pyro.prototype(model, arguments.take({key: value[:1] for key, value in rows.items()}))
        _pyro.check_batch(trace, part, instead="leave size out")

    def on_batch(x: Tensor, index: Tensor) -> Tensor:
        found = joint(x, {key: value[index] for key, value in rows.items()})
        return size / len(index) * found.observed + found.prior + found.volume

    return Source(one, shapes, flat(example), constrain=constrain, size=size, on_batch=on_batch, around=_unchecked)


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
    fit = likelihood_of(likelihood, noise)
    _check_targets(net, inputs, targets, likelihood)
    shapes = {name: leaf.shape for name, leaf in example.items()}
    total = len(inputs)

    def joint(x: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
        parameters = split(x, shapes)
        spread = parameters.pop(NOISE) if learned else None
        out = torch.func.functional_call(net, parameters, (_cast(xs, x),))
        fitted = fit(out, _cast(ys, x), spread).sum() * (total / len(xs))
        weights = sum(_log_prob(law, leaf).sum() for leaf in parameters.values())
        return fitted + weights + (0 if spread is None else _normal(spread, 0.0, 1.0))

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
        _unchecked if type(law).__module__.startswith("pyro") else _unvalidated,
    )


def _check_targets(net: nn.Module, inputs: Tensor, targets: Tensor, likelihood: Any) -> None:
    """Refuses observations that no output of the network explains."""
    if likelihood == "gaussian" and not targets.isfinite().all():
        raise InvalidValue("the targets hold NaN or infinite values")
    if likelihood == "categorical" and not targets.is_floating_point():
        try:
            with torch.no_grad():
                classes = net(_cast(inputs[:1], next(net.parameters()))).shape[-1]
        except RuntimeError as error:
            raise InvalidValue(f"the network cannot take inputs of shape {tuple(inputs.shape)}: {error}") from error
        if int(targets.min()) < 0 or int(targets.max()) >= classes:
            raise InvalidValue(
                f"the targets hold labels from {int(targets.min())} to {int(targets.max())}; the network has {classes} "
                "classes"
            )


def _cast(leaf: Tensor, like: Tensor) -> Tensor:
    return leaf.to(like.dtype) if leaf.is_floating_point() else leaf


def weight_law(prior: Any) -> torch.distributions.Distribution:
    """The law of each weight.

    Raises:
        InvalidType: not a distribution.
        InvalidValue: not one of real scalars.
    """
    if prior is None:
        return torch.distributions.Normal(0.0, 1.0)
    law: torch.distributions.Distribution = prior
    if not isinstance(law, torch.distributions.Distribution):
        raise InvalidType(
            f"prior is a {type(prior).__name__}; expected a torch or Pyro distribution such as Normal(0, 1)"
        )
    if prior.event_shape or prior.batch_shape or prior.support is not torch.distributions.constraints.real:
        raise InvalidValue(
            f"prior is {prior}; expected a distribution of one real number, shared by all weights, such as Normal(0, 1)"
        )
    return law


def _log_prob(law: torch.distributions.Distribution, x: Tensor) -> Tensor:
    if type(law) is torch.distributions.Normal and isinstance(law.loc, Tensor):
        return _normal(x, float(law.loc), float(law.scale))
    value: Tensor = law.log_prob(x)
    return value


def _normal(x: Tensor, loc: Any, scale: Any) -> Tensor:
    log_scale = scale.log() if isinstance(scale, Tensor) else math.log(scale)
    value: Tensor = -0.5 * ((x - loc) / scale).square() - log_scale - 0.5 * math.log(2 * math.pi)
    return value


def likelihood_of(likelihood: Any, noise: float | None) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """Log likelihoods ``[N]`` of (output, target, log of the learned scale or None)."""
    if likelihood == "gaussian":
        check_positive(noise=noise, finite=False, optional=True)

        def gaussian(out: Tensor, y: Tensor, log_scale: Tensor | None) -> Tensor:
            out = out.squeeze(-1) if out.dim() == y.dim() + 1 and out.shape[-1] == 1 else out
            if out.shape != y.shape:
                raise InvalidValue(
                    f"the network returns {tuple(out.shape)} and the targets are {tuple(y.shape)}; "
                    "expected equal shapes"
                )
            scale = noise if log_scale is None else log_scale.exp()
            return _normal(y, out, scale).flatten(1).sum(1) if y.dim() > 1 else _normal(y, out, scale)

        return gaussian
    if likelihood == "categorical":

        def categorical(out: Tensor, y: Tensor, _: Tensor | None) -> Tensor:
            if y.is_floating_point() or y.dim() != 1 or out.dim() != 2:
                raise InvalidValue(
                    f"categorical needs logits (N, classes) and integer labels (N,); got {tuple(out.shape)} and "
                    f"{tuple(y.shape)} of {y.dtype}"
                )
            return out.log_softmax(1).gather(1, y.unsqueeze(1)).squeeze(1)  # which refuses labels that are no class

        return categorical
    if callable(likelihood):
        return lambda out, y, _: likelihood(out, y)
    raise InvalidValue(
        f"likelihood is {likelihood!r}; expected 'gaussian', 'categorical' or a function (output, target)"
    )


def _unvalidated(function: Callable[..., Any], *args: Any) -> Any:
    """Calls a function with torch's checks of distributions off; the flag is restored."""
    kept = torch.distributions.Distribution._validate_args
    torch.distributions.Distribution.set_default_validate_args(False)
    try:
        return function(*args)
    finally:
        torch.distributions.Distribution.set_default_validate_args(kept)


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
        return gibbs if law is None else gibbs + _log_prob(law, x).sum()

    return Source(one, shapes, flat(example), around=_unvalidated)
