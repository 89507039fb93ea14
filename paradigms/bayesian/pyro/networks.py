"""A network with a likelihood and a prior as a Pyro model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from mfoc import InvalidValue, require, tree
from mfoc.checks import check_instance
from mfoc.derivatives import without_fast_path
from mfoc.networks import functional
from mfoc.networks.inspection import copied, refuse_parameter_hooks, refuse_unfit, trainable, unwrapped
from paradigms.bayesian.laws import likelihoods
from paradigms.bayesian.laws.likelihoods import NOISE, Gaussian, Likelihood, likelihood_of
from paradigms.bayesian.laws.priors import prior_of


def as_model(net: nn.Module, *, likelihood: Any, noise: Any = None, prior: Any = None) -> Callable[..., Tensor]:
    """A network with a likelihood and a prior as a Pyro model ``model(inputs, targets=None)``: that of ``log_density``.

    Its latents are named as the network's parameters (and "noise" where the scale is learned), so the particles of the
    density are its posterior samples: ``Predictive(as_model(net, ...), posterior_samples=density.named(x))(inputs)``.

    Args:
        net: the network, used in evaluation mode.
        likelihood: see ``log_density``. Of a function Pyro has the value and no law, so that nothing can be drawn.
        noise: see ``log_density``.
        prior: see ``log_density``.

    Returns:
        A model with the observed site "y"; it returns the network's output.

    Raises:
        InvalidType, InvalidValue: another likelihood or prior.
        MissingExtra: pyro is not installed.
    """
    ppl = require("pyro", "bayes")
    check_instance(nn.Module, "a torch.nn.Module", net=net)
    law = likelihood_of(likelihood, noise)
    refuse_parameter_hooks(unwrapped(net))  # a copy has none
    own = copied(unwrapped(net)).eval()
    refuse_unfit(own)
    function = functional(own)
    free = trainable(function.module)
    priors = {name: of_weights(prior_of(prior, name, p), p.shape) for name, p in free.items()}

    def model(inputs: Tensor, targets: Tensor | None = None) -> Tensor:
        weights = {name: ppl.sample(name, each) for name, each in priors.items()}
        with without_fast_path():  # it has no derivatives
            out: Tensor = function(weights, inputs)
        law.check_output(out)
        scale = None
        if isinstance(law, Gaussian) and law.noise is None:
            scale = ppl.sample(NOISE, ppl.distributions.LogNormal(next(iter(weights.values())).new_zeros(()), 1.0))
        column = isinstance(law, Gaussian) and out.dim() > 1 and out.shape[-1] == 1
        with ppl.plate("data", len(inputs)):
            observe("y", law, out.squeeze(-1) if column else out, targets, scale)
        return out

    return model


def pyro_model(posterior: Any) -> Any:
    """The network of a ``NetworkPosterior`` with its prior and likelihood as a Pyro module ``model(x, y=None)``.

    A batch of y counts for all N observations, as in the objective. A learned noise is a constant, at its solved value.
    Every weight is a site, "net." and its name in the network, whether or not these inputs meet it.
    """
    pyro = require("pyro", "bayes")
    network, likelihood, size = posterior.network, posterior.likelihood, posterior.size
    learned = network.learns_noise

    class BayesianNetwork(pyro.nn.PyroModule):  # type: ignore[misc, name-defined]
        """A network with random weights, which it runs as the posterior does."""

        def __init__(self) -> None:
            super().__init__()
            self.net = _weights(network, {name: value.shape for name, value in posterior.mean.items()})
            if learned:
                # A buffer, not a parameter: Pyro's store has one name for the parameters of all such models.
                self.register_buffer("noise", posterior.observation_noise)

        def forward(self, x: Any, y: Any = None) -> Any:
            """The output; y is observed where it is given."""
            drawn = [{key: self._drawn(full) for key, full in names.items()} for names in network.names]
            output = network.evaluated.states_at(drawn, x)[-1]
            count = len(tree.leaves(x)[0])
            scale = 1.0 if y is None else size / count
            with pyro.poutine.scale(scale=scale), pyro.plate("data", count, dim=-1):
                observe("obs", likelihood, output, y, self.noise if learned else None)
            return output

        def _drawn(self, name: str) -> Tensor:
            """The weight of this name, a sample: anew in each call."""
            *path, leaf = name.split(".")
            found: Tensor = getattr(functools.reduce(getattr, path, self.net), leaf)
            return found

    return BayesianNetwork()


def _weights(network: Any, shapes: Mapping[str, torch.Size]) -> Any:
    """Pyro modules that lie as the parts of a network do, and hold the priors of its weights."""
    pnn = require("pyro", "bayes").nn
    root = pnn.PyroModule()
    for names, priors in zip(network.names, network.priors, strict=True):
        for key, full in names.items():
            *path, leaf = full.split(".")
            owner = root
            for part in path:
                if part not in owner._modules:
                    owner.add_module(part, pnn.PyroModule())
                owner = owner._modules[part]
            setattr(owner, leaf, pnn.PyroSample(of_weights(priors[key], shapes[full])))
    return root


def observe(site: str, likelihood: Likelihood, output: Any, y: Any, learned: Tensor | None) -> None:
    """A site of Pyro for the observations ``[N, ...]``, within their plate; a likelihood of a function is a factor."""
    pyro = require("pyro", "bayes")
    if isinstance(likelihood, likelihoods.OfFunction):
        if y is not None:
            pyro.factor(site, likelihood.log_prob(*tree.map(lambda leaf: leaf[None], (output, y)))[0])
    elif isinstance(likelihood, likelihoods.Categorical):
        if y is not None:
            likelihood.check_labels(output, y)
        pyro.sample(site, pyro.distributions.Categorical(logits=output), obs=y)
    else:
        noise = likelihood.noise.to(output) if learned is None else learned  # type: ignore[union-attr]
        law = pyro.distributions.Normal(output, noise).to_event(output.dim() - 1)
        pyro.sample(site, law, obs=None if y is None else likelihoods.aligned(y, output))


def of_weights(prior: Distribution, shape: torch.Size) -> Any:
    """The prior of a parameter as one event of Pyro."""
    return as_pyro(prior).expand(shape).to_event(len(shape))


def as_pyro(prior: Distribution) -> Any:
    """A distribution of torch as the one of that name in Pyro."""
    if hasattr(prior, "to_event"):
        return prior
    same = getattr(require("pyro", "bayes").distributions, type(prior).__name__, None)
    try:
        return same(**{key: getattr(prior, key) for key in prior.arg_constraints})  # type: ignore[misc]
    except TypeError as error:  # Pyro has none of that name, or it is made of other distributions
        raise InvalidValue(
            f"prior is {prior}, which cannot be made one of Pyro's; use a distribution of pyro.distributions"
        ) from error
