"""The posterior of a network's weights as a log density."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from mfoc import InvalidType, InvalidValue, tree
from mfoc.networks.inspection import trainable
from paradigms.bayesian.density.density import LogDensity, flat, split, vectorised
from paradigms.bayesian.laws.likelihoods import NOISE, Gaussian, likelihood_of
from paradigms.bayesian.laws.normal import normal_log_prob
from paradigms.bayesian.laws.priors import law_of, log_prob_of, placed


def of_network(net: nn.Module, data: Any, likelihood: Any, noise: Any, prior: Any) -> LogDensity:
    """A network with a likelihood and a prior; see ``log_density``."""
    inputs, targets = _pair(data)
    net, total, fit = copy.deepcopy(net).eval(), len(inputs), likelihood_of(likelihood, noise)
    example = {name: p.detach() for name, p in trainable(net).items()}
    if not example:
        raise InvalidValue("net has no parameter that requires grad; there is nothing to sample")
    laws = {name: law_of(prior, name, leaf) for name, leaf in example.items()}
    log_priors = {name: log_prob_of(placed(law, name, example[name])) for name, law in laws.items()}
    like = next(iter(example.values()))
    _check_targets(net, cast(inputs, like), cast(targets, like), fit)
    learned = isinstance(fit, Gaussian) and fit.noise is None
    if learned:
        if NOISE in example:
            raise InvalidValue(f"net has a parameter named {NOISE!r}, the name of the learned scale; pass noise=")
        example = {**example, NOISE: like.new_zeros(())}
    vector, shapes = flat(example), {name: leaf.shape for name, leaf in example.items()}

    def joint(x: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
        parameters = split(x, shapes)
        spread = parameters.pop(NOISE) if learned else None
        out = torch.func.functional_call(net, parameters, (cast(xs, x),))
        output = tree.map(lambda leaf: leaf[None], out)
        if spread is not None:
            output = output, spread.exp().view(1, *[1] * (out.dim() - 1))
        fitted = fit.log_prob(output, cast(ys, x)[None]).sum() * (total / len(xs))
        weights = sum(log_priors[name](leaf).sum() for name, leaf in parameters.items())
        return fitted + weights + (0 if spread is None else normal_log_prob(spread, 0.0, 1.0))

    def draw(n: int, seed: int) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            points = [law.expand(shapes[name]).sample((n,)).reshape(n, -1) for name, law in laws.items()]
            if learned:
                next(reversed(laws.values())).sample((n,))  # so that a seed starts where it always has
                points.append(torch.randn(n, 1))
        return torch.cat([point.to(vector) for point in points], dim=1)

    def constrain(x: Tensor) -> dict[str, Tensor]:
        named = split(x, shapes)
        return {**named, NOISE: named[NOISE].exp()} if learned else named

    return vectorised(
        lambda x: joint(x, inputs, targets),
        shapes,
        vector,
        on_batch=lambda x, index: joint(x, inputs[index], targets[index]),
        draw=draw,
        constrain=constrain,
        size=total,
    )


def cast(leaf: Tensor, like: Tensor) -> Tensor:
    """A tensor in the float dtype of another; integers stay."""
    return leaf.to(like.dtype) if leaf.is_floating_point() else leaf


def _pair(data: Any) -> tuple[Tensor, Tensor]:
    if not isinstance(data, tuple | list) or len(data) != 2 or not all(isinstance(part, Tensor) for part in data):
        raise InvalidType("data must be a pair of tensors (inputs, targets) for a network")
    inputs, targets = data
    if len(inputs) != len(targets) or len(inputs) == 0:
        raise InvalidValue(
            f"data holds {len(inputs)} inputs and {len(targets)} targets; expected as many, at least one"
        )
    return inputs, targets


def _check_targets(net: nn.Module, inputs: Tensor, targets: Tensor, likelihood: Any) -> None:
    """Refuses observations that no output of the network explains."""
    with torch.no_grad():
        try:
            output = net(inputs)
        except RuntimeError as error:
            raise InvalidValue(f"the network cannot take inputs of shape {tuple(inputs.shape)}: {error}") from error
        likelihood.check(output, targets)
