"""Variational inference on the weights of a network, as a control problem.

The control of a stage is the law of its weights; a particle is one draw of the whole network, rolled out on the inputs
of the batch; the stage's share of tau KL(q || prior) is its running cost.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mfoc
from mfoc import InvalidType, InvalidValue
from mfoc.networks import named_stages
from mfoc.networks.inspection import trainable, training_norms
from paradigms.bayesian.laws.likelihoods import Categorical, Gaussian, Likelihood
from paradigms.bayesian.laws.priors import divergence, prior_of
from paradigms.bayesian.vi.stages import RandomStage, Weights, drawn, first, softplus_inverse

Stages = Sequence[str | Sequence[str]]


@dataclass(frozen=True)
class RandomNetwork:
    """A network with a law on its weights, a likelihood and a prior.

    Attributes:
        net: the network.
        likelihood: of an observation given the output.
        prior: see ``variational``.
        estimator: how draws are made while solving; see ``paradigms.bayesian.layers``.
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
        return _observed(state, controls[-1]) if self.learns_noise else state


def _observed(x: Tensor, u: Weights) -> tuple[Tensor, Tensor]:
    noise = F.softplus(u["noise"])
    return x, noise.expand(x.shape[0], *noise.shape)


def problem_of(network: RandomNetwork, controls: list[Any], tau: float, exact: bool) -> mfoc.Problem:
    """Least over laws: E[mean negative log likelihood] + tau KL(q || prior).

    Args:
        network: the random network.
        controls: the initial laws; with learned noise one more, of the noise.
        tau: the temperature.
        exact: closed forms of the KL where they are known.
    """
    stages = network.stages
    penalties = [
        divergence(priors, stage.split, u["loc"], exact) if priors else None
        for priors, stage, u in zip(network.priors, stages, controls, strict=False)
    ]
    for stage, names, penalty in zip(stages, network.names, penalties, strict=True):
        if penalty is not None and penalty[1] and stage.estimator == "local":
            raise InvalidValue(
                f"estimator='local' draws no weights, and the KL of {sorted(names.values())} needs them: use a normal "
                "prior with kl='exact', or estimator='flipout'"
            )

    def dynamics(t: int, x: Any, u: Any, z: Any) -> Any:
        return _observed(x, u) if t == len(stages) else stages[t](x, u, z["noise"][t])

    def running_cost(t: int, x: Any, u: Any, z: Any) -> Tensor:
        leaf = first(x)
        penalty = penalties[t] if t < len(stages) else None
        if penalty is None:
            return leaf.new_zeros(len(leaf))
        measure, looks = penalty
        draw = drawn(u, z["noise"][t]["weights"]) if looks else None
        return (tau * measure(u["loc"], F.softplus(u["scale"]), draw)).expand(len(leaf))

    def terminal_cost(x: Any, z: Any) -> Tensor:
        return network.likelihood.cost(x, z["y"])

    def affine(t: int) -> bool:
        return t < len(stages) and network.base.affine is not None and network.base.affine(t)

    return mfoc.Problem(dynamics, terminal_cost, controls, running_cost=running_cost, affine=affine)


def with_noise(network: RandomNetwork, controls: list[Any], x: Tensor, y: Tensor) -> list[Any]:
    """The controls with one more stage for a learned noise, which starts at the size of the initial residuals."""
    if not network.learns_noise:
        return controls
    with torch.no_grad():
        size = (y - network.states(x)[-1]).square().mean(0).sqrt().clamp_min(1e-3)
        return [*controls, {"noise": size + torch.log(-torch.expm1(-size))}]


def check_data(network: RandomNetwork, batch: mfoc.Particles, observations: Tensor | None = None) -> None:
    """Refuses data that do not fit the network and the likelihood.

    Args:
        network: the random network.
        batch: the first batch.
        observations: those of all batches, where they lie in memory.

    Raises:
        InvalidType, InvalidValue: says what does not fit.
    """
    if not isinstance(batch.state, Tensor):
        raise InvalidType("data: the state must be one tensor, the inputs [N, ...]")
    if batch.data is None:
        raise InvalidValue("data holds inputs only; expected a pair (x, y), inputs and observations")
    for name, _ in training_norms(network.net, instance=False):
        raise InvalidValue(
            f"module {name!r} is batch norm in training mode, whose draws have no averages to predict with; call "
            ".eval() on it, or use a layer or group norm"
        )
    dataclasses.replace(network.base, terminal_cost=lambda x, z: _one_each(x)).validate(batch)
    with torch.no_grad():
        output = network.states(batch.state)[-1]
        network.likelihood.check(output, batch.data)
        if observations is not None and isinstance(network.likelihood, Gaussian | Categorical):
            shape = len(observations), *output.shape[1:]  # what is asked of outputs
            network.likelihood.check(output[:1].expand(shape), observations)


def check_finite(problem: mfoc.Problem, particles: mfoc.Particles) -> None:
    """Refuses a log density that is NaN or infinite at the first draws.

    Raises:
        InvalidValue: says where.
    """
    with torch.no_grad():
        cost = mfoc.rollout(problem, problem.controls, particles).cost
    if not cost.isfinite().all():
        raise InvalidValue(
            f"the log density is {float(cost[~cost.isfinite()][0])} at draws of the initial law; check the likelihood "
            "and the prior (improper? outside the support?), and the data"
        )


def _one_each(x: Any) -> Tensor:
    leaf = first(x)
    return torch.zeros(len(leaf), dtype=leaf.dtype, device=leaf.device)
