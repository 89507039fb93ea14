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
from paradigms.bayesian.laws.likelihoods import Gaussian, Likelihood
from paradigms.bayesian.pyro.networks import pyro_model
from paradigms.bayesian.pyro.trace import name_apart, set_up
from paradigms.bayesian.vi.random_network import RandomNetwork
from paradigms.bayesian.vi.stages import drawn, first


@dataclass(frozen=True, eq=False)
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

    def __repr__(self) -> str:
        net, count = type(self.network.net).__name__, sum(stage.size for stage in self.network.stages)
        kind = type(self.likelihood).__name__
        return f"NetworkPosterior({count} weights of {net}, given {self.size} {kind} observations)"

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
