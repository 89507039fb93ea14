"""A network whose weights are random: its stages, the law they start with, and its outputs at draws of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mfoc
from mfoc.networks import named_stages
from mfoc.networks.inspection import trainable
from paradigms.bayesian.laws.likelihoods import Gaussian, Likelihood
from paradigms.bayesian.laws.priors import prior_of
from paradigms.bayesian.vi.stages import RandomStage, Weights, drawn, softplus_inverse

Stages = Sequence[str | Sequence[str]]


@dataclass(frozen=True, eq=False)
class RandomNetwork:
    """A network with a law on its weights, a likelihood and a prior.

    Attributes:
        net: the network.
        likelihood: of an observation given the output.
        prior: see ``variational``.
        estimator: how draws are made while solving; see ``paradigms.bayesian.vi.stages``.
        cut: the ``stages`` of ``mfoc.from_module``.
    """

    net: nn.Module
    likelihood: Likelihood
    prior: Any = None
    estimator: str = "weights"
    cut: Stages | None = None

    @cached_property
    def base(self) -> mfoc.Problem:
        """Training one network, as ``mfoc.from_module`` writes it; its terminal cost is not used."""
        return mfoc.from_module(self.net, lambda output, y: output, stages=self.cut)

    @cached_property
    def stages(self) -> list[RandomStage]:
        """The stages with random weights."""

        def run(t: int, x: Any, w: Weights) -> Any:
            return self.base.dynamics(t, x, w, None)

        return [
            RandomStage(partial(run, t), module, weights, self.estimator)
            for t, (weights, (_, module)) in enumerate(zip(self.base.controls, self._named, strict=True))
        ]

    @cached_property
    def _named(self) -> list[tuple[str, nn.Module]]:
        return named_stages(self.net, self.cut)

    @cached_property
    def names(self) -> list[dict[str, str]]:
        """For each stage, the full name in the network of each of its parameters."""
        full = {id(parameter): name for name, parameter in self.net.named_parameters()}
        return [{key: full[id(p)] for key, p in trainable(module).items()} for _, module in self._named]

    @cached_property
    def priors(self) -> list[dict[str, torch.distributions.Distribution]]:
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
        flat = [
            stage.flat(weights) if stage.random else None
            for stage, weights in zip(self.stages, self.base.controls, strict=True)
        ]
        return [{} if loc is None else {"loc": loc, "scale": torch.full_like(loc, rho)} for loc in flat]

    @torch.no_grad()
    def states(self, x: Any) -> list[Any]:
        """The states ``[B, ...]`` of the network at its own weights, from the inputs to the output."""
        found = [x]
        for t, weights in enumerate(self.base.controls):
            found.append(self.base.dynamics(t, found[-1], weights, None))
        return found

    def outputs(self, controls: Any, x: Tensor, noise: Sequence[Any]) -> Any:
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
