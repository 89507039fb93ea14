"""A law over networks: a network whose weights are random, and what solving for their law gives.

``NetworkPosterior`` is there to draw from, to predict with, and to hand to Pyro.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.utils.parametrizations import _SpectralNorm

import mfoc
from mfoc import InvalidValue, require, tree
from mfoc.checks import check_integer
from mfoc.derivatives import without_fast_path
from mfoc.networks import named_stages
from mfoc.networks.inspection import copied, trainable
from paradigms.bayesian.laws.likelihoods import Gaussian, Likelihood
from paradigms.bayesian.laws.prediction import check_inputs
from paradigms.bayesian.laws.priors import prior_of
from paradigms.bayesian.pyro.guides import name_apart, set_up
from paradigms.bayesian.pyro.networks import pyro_model
from paradigms.bayesian.pyro.trace import Arguments
from paradigms.bayesian.vi.stages import RandomStage, Weights, drawn, first, softplus_inverse

Stages = Sequence[str | Sequence[str]]


@dataclass(frozen=True, eq=False)
class RandomNetwork:
    """A network with a law on its weights, a likelihood and a prior; ``cut`` is the ``stages`` of ``variational``."""

    net: nn.Module
    likelihood: Likelihood
    prior: Any = None
    estimator: str = "weights"
    cut: Stages | None = None

    @cached_property
    def base(self) -> mfoc.Problem:
        """Training one network, as ``mfoc.from_module`` writes it; its terminal cost is not used."""
        try:
            return mfoc.from_module(self.net, lambda output, y: output, stages=self.cut)
        except InvalidValue as error:
            self._refuse_tied(error)
            raise

    def _refuse_tied(self, error: InvalidValue) -> None:
        """Refuses a weight of two stages, each of which has a law of its own, with what can be done here."""
        seen: dict[str, str] = {}
        for names, (stage, _) in zip(self.names, self.parts, strict=True):
            for full in names.values():
                if seen.setdefault(full, stage) != stage:
                    raise InvalidValue(
                        f"parameter {full!r} is used in stages {seen[full]!r} and {stage!r}, and the law of a weight "
                        "is that of one stage: choose stages that keep its uses in one (of an nn.Sequential "
                        "stages=[['0', '1', ...]] makes one of several), or leave stages out"
                    ) from error

    @cached_property
    def evaluated(self) -> RandomNetwork:
        """The network as it predicts, in evaluation mode.

        A spectral norm that was in training mode stays exact: the estimate that it would use is that of other weights.
        """
        if not any(part.training for part in self.net.modules()):
            return self
        net = copied(self.net)
        norms = [part for part in net.modules() if isinstance(part, _SpectralNorm) and part.training]
        net.eval()
        for part in norms:
            part.train()
        made = dataclasses.replace(self, net=net)
        for stage, own in zip(made.stages, self.stages, strict=True):
            stage.quieted(own)
        return made

    @cached_property
    def stages(self) -> list[RandomStage]:
        """The stages with random weights."""
        return [
            RandomStage(partial(self._run, t), module, weights, self.estimator)
            for t, (weights, (_, module)) in enumerate(zip(self.base.controls, self.parts, strict=True))
        ]

    def _run(self, t: int, x: Any, weights: Weights) -> Any:
        return self.base.dynamics(t, x, weights, None)

    @cached_property
    def parts(self) -> list[tuple[str, nn.Module]]:
        """Names and modules of the stages, over the network's own parameters."""
        return named_stages(self.net, self.cut)

    @cached_property
    def names(self) -> list[dict[str, str]]:
        """For each stage, the full name in the network of each of its parameters."""
        full = {id(parameter): name for name, parameter in self.net.named_parameters()}
        return [{key: full[id(p)] for key, p in trainable(module).items()} for _, module in self.parts]

    @cached_property
    def priors(self) -> list[dict[str, Distribution]]:
        """For each stage, the prior of each parameter."""
        return [
            {key: prior_of(self.prior, names[key], value) for key, value in weights.items()}
            for names, weights in zip(self.names, self.base.controls, strict=True)
        ]

    @property
    def learns_noise(self) -> bool:
        """Whether the observation noise is a control: that of one more stage, the last."""
        return isinstance(self.likelihood, Gaussian) and self.likelihood.noise is None

    def controls(self, init_scale: float) -> list[Any]:
        """The initial law: the network's own weights as means, ``init_scale`` as standard deviation."""
        rho = softplus_inverse(init_scale)
        pairs = zip(self.stages, self.base.controls, strict=True)
        means = [stage.flat(weights) if stage.random else None for stage, weights in pairs]
        return [{} if loc is None else {"loc": loc, "scale": torch.full_like(loc, rho)} for loc in means]

    @torch.no_grad()
    def states(self, x: Any) -> list[Any]:
        """The states ``[B, ...]`` of the network at its own weights, from the inputs to the output."""
        return self.states_at(self.base.controls, x)

    def states_at(self, weights: Sequence[Weights], x: Any) -> list[Any]:
        """The same at other weights, those of each stage by name."""
        found = [x]
        with without_fast_path():  # as the stages run
            for t, own in enumerate(weights):
                found.append(self._run(t, found[-1], own))
        return found

    def outputs(self, controls: Any, x: Any, noise: Sequence[Any]) -> Any:
        """The outputs ``[S, B, ...]`` of drawn networks, from normals ``[S, n]`` for the weights of each stage.

        With learned noise, the pair of them and of the noise ``[S, ...]``.
        """
        state: Any = x
        for stage, u, normals in zip(self.stages, controls[: len(self.stages)], noise, strict=True):
            state = stage.at(state, drawn(u, normals)) if stage.random else stage(state, {}, {})
        return observed(state, controls[-1]) if self.learns_noise else state


def observed(x: Tensor, u: Weights) -> tuple[Tensor, Tensor]:
    """The outputs with the noise ``[S, ...]`` of the last stage, when it is learned."""
    noise = F.softplus(u["noise"])
    return x, noise.expand(x.shape[0], *noise.shape)


@dataclass(frozen=True, eq=False)
class NetworkPosterior:
    """q(weights), a Gaussian for each weight; a Pyro guide of ``model``.

    ``Predictive(posterior.model, guide=posterior, num_samples=100)(x)`` and ``SVI(posterior.model, posterior, ...)``
    work as they are.

    Attributes:
        network: the random network.
        controls: the laws of the stages, and of a learned noise.
        size: number of observations N behind the posterior.
        example: one input (a tuple or dict where the network has several) and observation, ``[1, ...]``.
    """

    network: RandomNetwork
    controls: Sequence[Any]
    size: int
    example: tuple[Any, Any]

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
        return self._read("loc", lambda value: value)

    @property
    def scale(self) -> dict[str, Tensor]:
        """Posterior standard deviation of each parameter of the network."""
        return self._read("scale", F.softplus)

    def _read(self, which: str, function: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        return self._by_name(function(u[which].detach()) if which in u else None for u in self.controls)

    def _by_name(self, vectors: Iterable[Any]) -> dict[str, Tensor]:
        """The weights ``[..., n]`` of each stage by their full names; None for a stage that has none."""
        return {
            names[key]: value
            for stage, names, vector in zip(self.network.stages, self.network.names, vectors, strict=False)
            if names
            for key, value in stage.split(vector).items()
        }

    def weights(self, samples: int, *, seed: int = 0) -> dict[str, Tensor]:
        """Draws of the weights, ``{parameter name: [samples, ...]}``."""
        pairs = zip(self.controls, self._normals(samples, seed), strict=False)
        return self._by_name(drawn(u, noise).detach() if u else None for u, noise in pairs)

    def _normals(self, samples: int, seed: int) -> list[Tensor]:
        """Normals ``[samples, n]`` for the weights of each stage."""
        check_integer(1, samples=samples)
        check_integer(0, seed=seed)
        generator, like = torch.Generator().manual_seed(seed), first([u for u in self.controls if u])
        sizes = [stage.size for stage in self.network.stages]
        return [
            torch.randn(samples, n, generator=generator, dtype=like.dtype, device="cpu").to(like.device) for n in sizes
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

    def outputs(self, x: Any, samples: int = 100, *, seed: int = 0) -> Any:
        """The outputs of drawn networks ``[samples, B, ...]``; with learned noise, the pair of them and of the noise.

        The networks are those of ``weights(samples, seed=seed)``, in evaluation mode. ``x`` are inputs ``[B, ...]``; a
        tuple or dict of them where the network has several.
        """
        check_inputs(x)
        noise = self._normals(samples, seed)

        def shared(leaf: Tensor) -> Tensor:
            leaf = leaf.to(noise[0]) if leaf.is_floating_point() else leaf.to(noise[0].device)
            return leaf.expand(samples, *leaf.shape)

        try:
            with torch.no_grad():
                return self.network.evaluated.outputs(self.controls, tree.map(shared, x), noise)
        except (RuntimeError, TypeError, AttributeError, IndexError) as error:
            if isinstance(error, mfoc.MfocError):
                raise
            raise InvalidValue(f"the network cannot be evaluated on x, {tree.describe(x)}: {error}") from error

    @cached_property
    def model(self) -> Any:
        """The network as a Pyro model, ``model(x, y=None)``: weights from the prior, observations at site "obs"."""
        return pyro_model(self)

    @cached_property
    def guide(self) -> Any:
        """The posterior as an ``AutoNormal`` of ``model``."""
        guides, mean = require("pyro", "bayes").infer.autoguide, self.mean
        # Where it is, and not at zero, at which weight norm, for one, is no number.
        start = guides.init_to_value(values={f"net.{name}": value for name, value in mean.items()})
        guide = guides.AutoNormal(self.model, init_loc_fn=start)
        set_up(guide, Arguments(self.example))
        own = dict(guide.named_parameters())
        with torch.no_grad():
            for field, group in (("loc", "locs"), ("scale", "scales")):
                for full, value in self._read(field, lambda value: value).items():
                    own[f"{group}.net.{full}_unconstrained"].copy_(value)
        name_apart(guide)
        return guide

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Samples the weights, as a Pyro guide does."""
        return self.guide(*args, **kwargs)
