"""Langevin samplers: ULA, its Metropolis correction MALA, and SGLD with minibatches.

The law of a cloud that follows dX = grad log p(X) dt + sqrt(2) dW is the gradient flow of KL(rho || p) in the space of
laws with the Wasserstein distance (Jordan, Kinderlehrer & Otto 1998, thm. 5.1). The scheme of that paper takes implicit
steps, each a minimisation over laws; these methods take explicit ones, by particles.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mfoc import InvalidValue
from mfoc.checks import check_choice, check_integer
from paradigms.bayesian.density.density import LogDensity
from paradigms.bayesian.samplers.runs import Sampler, State, Steps, as_density, sampler


@dataclass(frozen=True)
class ULA:
    """The unadjusted Langevin algorithm: x + h grad log p(x) + sqrt(2 h) xi (Roberts & Tweedie 1996)."""

    def start(self, density: LogDensity, x: Tensor) -> State:
        """See ``Flow``."""
        return x

    def draw(self, density: LogDensity, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        """See ``Flow``."""
        return {"noise": density.normals(n, generator)}

    def step(self, density: LogDensity, t: int, state: State, h: Tensor, z: Mapping[str, Tensor]) -> State:
        """See ``Flow``."""
        return state + h * density.score(state, z.get("index")) + (2 * h).sqrt() * z["noise"]


@dataclass(frozen=True)
class SGLD(ULA):
    """Stochastic gradient Langevin dynamics: ULA with the log likelihood of a batch, times N / B.

    Welling & Teh (2011), eq. (4); their epsilon_t is 2 h. Each particle has batches of its own, drawn with replacement,
    so particles stay independent.

    Attributes:
        batch_size: observations in a batch B.
    """

    batch_size: int

    def __post_init__(self) -> None:
        check_integer(1, batch_size=self.batch_size)

    def draw(self, density: LogDensity, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        """See ``Flow``; "index" holds the observations of each particle."""
        assert density.size is not None
        index = torch.randint(density.size, (n, self.batch_size), generator=generator, device="cpu")
        return {"index": index.to(density.like.device), **super().draw(density, n, generator)}


@dataclass(frozen=True)
class MALA(ULA):
    """Metropolis-adjusted Langevin: a step of ULA is a proposal, accepted with the probability that keeps p exactly.

    Roberts & Tweedie (1996), sec. 1.4: log alpha = log p(y) - log p(x) + log q(x | y) - log q(y | x) with
    q(y | x) = N(x + h grad log p(x), 2 h). The state carries log p and its gradient, so a step evaluates them once. A
    proposal whose log density is not finite is refused. Gradients in h pass through the accepted move; that the
    decision itself depends on h they do not see.
    """

    def start(self, density: LogDensity, x: Tensor) -> State:
        """See ``Flow``."""
        value, score = density.value_and_score(x)
        return {"x": x, "value": value, "score": score}

    def draw(self, density: LogDensity, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        """See ``Flow``; "level" is the logarithm of a uniform number."""
        noise = super().draw(density, n, generator)
        uniform = torch.rand(n, generator=generator, dtype=density.like.dtype, device="cpu").to(density.like.device)
        return {**noise, "level": (1 - uniform).log()}  # in (0, 1], so that a sure move is never refused

    def step(self, density: LogDensity, t: int, state: State, h: Tensor, z: Mapping[str, Tensor]) -> State:
        """See ``Flow``."""
        x, value, score = state["x"], state["value"], state["score"]
        y = x + h * score + (2 * h).sqrt() * z["noise"]
        value_y, score_y = density.value_and_score(y)
        back = ((x - y - h * score_y).square() / (4 * h)).sum(1)
        ratio = value_y - value - back + 0.5 * z["noise"].square().sum(1)
        accepted = (z["level"] <= ratio) & value_y.isfinite()
        chosen = accepted[:, None]
        return {
            "x": torch.where(chosen, y, x),
            "value": torch.where(accepted, value_y, value),
            "score": torch.where(chosen, score_y, score),
        }


def langevin(
    target: Any,
    *,
    step: Steps,
    steps: int = 100,
    particles: int | Tensor = 64,
    method: str = "ula",
    batch_size: int | None = None,
    init: str | None = None,
    seed: int = 0,
) -> Sampler:
    """Langevin dynamics towards a target by particles.

    Args:
        target: a ``LogDensity``, or a function of ``[n, d]`` when ``particles`` are given as a tensor.
        step: the step size h: a number, a tensor ``[d]`` (diagonal preconditioning), or a schedule: a sequence of
            numbers, or a function of the step such as ``lambda t: a * (b + t) ** -0.55``.
        steps: the horizon T.
        particles: how many, or where they start ``[n, d]``.
        method: "ula", "mala" or "sgld".
        batch_size: observations in a batch, for "sgld".
        init: where that many particles start: "prior", draws of it (of a Pyro model, a network, or a problem with one);
            "uniform", on (-2, 2) in each unconstrained coordinate, as Stan does; or ``target.initial(n, seed)`` when
            None, which is the prior for a network and uniform for the others.
        seed: of the noise and the starting points.

    Raises:
        InvalidType, InvalidValue: wrong arguments, or a log density that is not finite at the start.
    """
    check_choice("ula", "mala", "sgld", method=method)
    if (batch_size is not None) != (method == "sgld"):
        raise InvalidValue("batch_size goes with method='sgld'")
    density, flow = as_density(target, particles), MALA() if method == "mala" else ULA()
    if batch_size is not None:  # the method is "sgld"
        if density.size is None:
            raise InvalidValue(
                "this log density has no minibatch version, which 'sgld' needs; see log_density(size=...)"
            )
        check_integer(1, density.size, batch_size=batch_size)
        flow = SGLD(batch_size)
    return sampler(density, flow, step, steps, particles, seed, init)
