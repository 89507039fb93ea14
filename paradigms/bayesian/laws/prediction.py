"""The posterior predictive law at some inputs, from draws."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from mfoc import InvalidValue
from paradigms.bayesian.laws.likelihoods import Likelihood


@runtime_checkable
class Drawable(Protocol):
    """A law over networks with a likelihood: ``NetworkPosterior``, or an ensemble."""

    @property
    def likelihood(self) -> Likelihood:
        """Of an observation given an output."""

    def outputs(self, x: Tensor, samples: int = 100, *, seed: int = 0) -> Any:
        """Outputs of drawn networks ``[samples, B, ...]``."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """The posterior predictive law at B inputs, from S draws.

    Attributes:
        mean: its mean ``[B, ...]``; for classes, the probabilities ``[B, C]``.
        epistemic: what more data would remove. For numbers the variance of the draws' means ``[B, ...]``; for classes
            the mutual information of label and weights, in nats ``[B]`` (Houlsby et al. 2011, arXiv:1112.5745, eq. 2).
        aleatoric: what it would not. For numbers the mean of the draws' variances (the two sum to the predictive
            variance, by the law of total variance); for classes the mean entropy of the draws, in nats ``[B]``. None
            for a likelihood given as a function.
        log_probs: y -> log p(y | draw) ``[S, B]``.
        classes: whether ``mean`` holds the probabilities of classes.
    """

    mean: Tensor
    epistemic: Tensor
    aleatoric: Tensor | None
    log_probs: Callable[[Any], Tensor]
    classes: bool

    @property
    def total(self) -> Tensor:
        """Epistemic and aleatoric part together: the predictive variance, or entropy."""
        if self.aleatoric is None:
            raise InvalidValue("the likelihood is a function, which does not say what the spread of an observation is")
        return self.epistemic + self.aleatoric

    def __repr__(self) -> str:
        what, unit = ("classes", "nats") if self.classes else ("numbers", "variance")
        parts = {"epistemic": self.epistemic, "aleatoric": self.aleatoric}
        means = [f"{name} {float(part.mean()):.3g}" for name, part in parts.items() if part is not None]
        return f"Prediction(mean of {what} {tuple(self.mean.shape)}, {' and '.join(means)} {unit} on average)"

    def log_prob(self, y: Any) -> Tensor:
        """The log of the density of y averaged over the draws, log mean_s p(y | draw s) ``[B]``."""
        each = self.log_probs(y)
        return each.logsumexp(0) - math.log(len(each))


def of_classes(probabilities: Tensor, log_probs: Callable[[Any], Tensor]) -> Prediction:
    """The prediction of classes from the probabilities of each draw ``[S, B, C]``."""
    mean = probabilities.mean(0)
    aleatoric = _entropy(probabilities).mean(0)
    return Prediction(mean, (_entropy(mean) - aleatoric).clamp_min(0), aleatoric, log_probs, True)


def of_numbers(means: Tensor, variances: Tensor | None, log_probs: Callable[[Any], Tensor]) -> Prediction:
    """The prediction of numbers from the mean and, where it is known, the variance of each draw ``[S, B, ...]``."""
    epistemic = means.var(0, correction=1 if len(means) > 1 else 0)
    return Prediction(means.mean(0), epistemic, None if variances is None else variances.mean(0), log_probs, False)


def _entropy(probabilities: Tensor) -> Tensor:
    found: Tensor = -torch.special.xlogy(probabilities, probabilities).sum(-1)
    return found
