"""The solution for a network: a law over networks, to draw from, to predict with, and to hand to Pyro."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mfoc
from mfoc import require
from mfoc.checks import check_integer
from paradigms.bayesian._pyro import name_apart, set_up
from paradigms.bayesian.layers import drawn, first
from paradigms.bayesian.likelihoods import Categorical, Custom, Gaussian, Likelihood
from paradigms.bayesian.networks import RandomNetwork


@dataclass(frozen=True)
class NetworkPosterior:
    """q(weights), a Gaussian for each weight; a Pyro guide of ``model``.

    ``Predictive(posterior.model, guide=posterior, num_samples=100)(x)`` and ``SVI(posterior.model, posterior, ...)``
    work as they are.

    Attributes:
        network: the random network.
        controls: the laws of the stages, and of a learned noise.
        size: number of observations N behind the posterior.
        example: one input and observation, ``[1, ...]``.
    """

    network: RandomNetwork
    controls: Sequence[Any]
    size: int
    example: tuple[Tensor, Any]

    @property
    def likelihood(self) -> Likelihood:
        """Of an observation given an output."""
        return self.network.likelihood

    @property
    def observation_noise(self) -> Tensor | None:
        """The standard deviation of a Gaussian likelihood, known or learned."""
        if self.network.learns_noise:
            return F.softplus(self.controls[-1]["noise"]).detach()
        return self.likelihood.noise if isinstance(self.likelihood, Gaussian) else None

    @property
    def mean(self) -> dict[str, Tensor]:
        """Posterior mean of each parameter of the network."""
        return self._named("loc", lambda value: value)

    @property
    def scale(self) -> dict[str, Tensor]:
        """Posterior standard deviation of each parameter of the network."""
        return self._named("scale", F.softplus)

    def _named(self, which: str, function: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        stages = zip(self.network.stages, self.network.names, self.controls, strict=False)
        return {
            names[key]: value
            for stage, names, u in stages
            if names
            for key, value in stage.split(function(u[which].detach())).items()
        }

    def weights(self, samples: int, *, seed: int = 0) -> dict[str, Tensor]:
        """Draws of the weights, ``{parameter name: [samples, ...]}``."""
        check_integer(1, samples=samples)
        return {
            names[key]: value
            for stage, names, u, noise in self._drawn(samples, seed)
            if names
            for key, value in stage.split(drawn(u, noise).detach()).items()
        }

    def _drawn(self, samples: int, seed: int) -> list[tuple[Any, dict[str, str], Any, Tensor]]:
        """Each stage with the names of its weights, its law, and normals ``[samples, n]``."""
        generator = torch.Generator().manual_seed(seed)
        network = self.network
        like = first([u for u in self.controls if u])
        return [
            (stage, names, u, torch.randn(samples, stage.size, generator=generator, dtype=like.dtype).to(like.device))
            for stage, names, u in zip(network.stages, network.names, self.controls, strict=False)
        ]

    def samples(self, samples: int, *, seed: int = 0) -> dict[str, Tensor]:
        """The same draws by the sites of ``model``, for ``Predictive(model, posterior_samples=...)``."""
        return {f"net.{name}": value for name, value in self.weights(samples, seed=seed).items()}

    def draw(self, *, seed: int = 0) -> nn.Module:
        """A network drawn from the posterior, in evaluation mode."""
        return self._module({name: value[0] for name, value in self.weights(1, seed=seed).items()})

    def at_mean(self) -> nn.Module:
        """The network at the posterior mean, in evaluation mode."""
        return self._module(self.mean)

    def _module(self, values: dict[str, Tensor]) -> nn.Module:
        controls = [{key: values[full] for key, full in names.items()} for names in self.network.names]
        return mfoc.to_module(self.network.net, controls, stages=self.network.cut).eval()

    def outputs(self, x: Tensor, samples: int = 100, *, seed: int = 0) -> Any:
        """The outputs of drawn networks ``[samples, B, ...]``; with learned noise, the pair of them and of the noise.

        The networks are those of ``weights(samples, seed=seed)``.
        """
        check_integer(1, samples=samples)
        noise = [normals for *_, normals in self._drawn(samples, seed)]
        with torch.no_grad():
            x = x.to(noise[0]) if x.is_floating_point() else x.to(noise[0].device)
            return self.network.outputs(self.controls, x.expand(samples, *x.shape), noise)

    @cached_property
    def model(self) -> Any:
        """The network as a Pyro model, ``model(x, y=None)``: weights from the prior, observations at site "obs"."""
        return pyro_model(self)

    @cached_property
    def guide(self) -> Any:
        """The posterior as an ``AutoNormal`` of ``model``."""
        guide = require("pyro", "bayes").infer.autoguide.AutoNormal(self.model)
        set_up(guide, self.example)
        own = dict(guide.named_parameters())
        with torch.no_grad():
            for field, group in (("loc", "locs"), ("scale", "scales")):
                for full, value in self._named(field, lambda value: value).items():
                    own[f"{group}.net.{full}_unconstrained"].copy_(value)
        name_apart(guide)
        return guide

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Samples the weights, as a Pyro guide does."""
        return self.guide(*args, **kwargs)


def pyro_model(posterior: NetworkPosterior) -> Any:
    """The network with its prior and likelihood as a Pyro module ``model(x, y=None)``.

    A batch of y counts for all N observations, as in the objective. A learned noise is a constant, at its solved value.
    """
    pyro = require("pyro", "bayes")
    dist, pnn = pyro.distributions, pyro.nn
    lifted = posterior.at_mean()
    pnn.module.to_pyro_module_(lifted)
    modules = dict(lifted.named_modules())
    for names, priors in zip(posterior.network.names, posterior.network.priors, strict=True):
        for key, full in names.items():
            owner, _, leaf = full.rpartition(".")
            shape = posterior.mean[full].shape
            prior = as_pyro(priors[key], dist).expand(shape).to_event(len(shape))
            setattr(modules[owner], leaf, pnn.PyroSample(prior))
    likelihood, size = posterior.likelihood, posterior.size
    learned = posterior.network.learns_noise

    class BayesianNetwork(pnn.PyroModule):  # type: ignore[misc, name-defined]
        """A network with random weights."""

        def __init__(self) -> None:
            super().__init__()
            self.net = lifted
            if learned:
                # A buffer, not a parameter: Pyro's store has one name for the parameters of all such models.
                self.register_buffer("noise", posterior.observation_noise)

        def forward(self, x: Tensor, y: Any = None) -> Any:
            """The output; y is observed where it is given."""
            output = self.net(x)
            scale = 1.0 if y is None else size / len(x)
            with pyro.poutine.scale(scale=scale), pyro.plate("data", len(x), dim=-1):
                _observe(pyro, dist, likelihood, output, y, self.noise if learned else None)
            return output

    return BayesianNetwork()


def _observe(pyro: Any, dist: Any, likelihood: Likelihood, output: Any, y: Any, learned: Tensor | None) -> None:
    if isinstance(likelihood, Categorical):
        pyro.sample("obs", dist.Categorical(logits=output), obs=y)
    elif isinstance(likelihood, Custom):
        if y is not None:
            stacked = torch.utils._pytree.tree_map(lambda leaf: leaf.unsqueeze(0), (output, y))
            pyro.factor("obs", likelihood.log_prob(*stacked)[0])
    else:
        noise = learned if learned is not None else likelihood.noise.to(output)  # type: ignore[union-attr]
        pyro.sample("obs", dist.Normal(output, noise).to_event(output.dim() - 1), obs=y)


def as_pyro(prior: torch.distributions.Distribution, dist: Any) -> Any:
    """A distribution of torch as the one of that name in Pyro."""
    if hasattr(prior, "to_event"):
        return prior
    same = getattr(dist, type(prior).__name__)
    return same(**{key: getattr(prior, key) for key in prior.arg_constraints})
