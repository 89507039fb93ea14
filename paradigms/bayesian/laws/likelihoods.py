"""Likelihoods: what an observation is worth given the output of a network.

``likelihood_of`` reads every ``likelihood=`` argument of this package, so all of them mean the same. A function is a
loss: the NEGATIVE log likelihood of each observation, as torch's losses are. ``LogLikelihood(function)`` says the
opposite.

Outputs carry an axis of draws in front: ``[S, B, ...]``, S networks on B inputs; so do observations, ``[S, B, ...]`` or
``[1, B, ...]``. Numbers with or without a last axis of one are the same observations: ``[N]`` fits outputs ``[N, 1]``,
and ``[N, 1]`` fits ``[N]``. Nothing else is broadcast.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mfoc import InvalidType, InvalidValue, tree
from mfoc.checks import check_callable, check_instance, check_plain, check_positive, kind_of
from mfoc.networks import per_sample
from paradigms.bayesian.laws.normal import HALF_LOG_2PI, broadcasts, normal_log_prob, shape_or_type

NOISE = "noise"  # the name of a learned scale among the parameters of a network


@dataclass(frozen=True, eq=False)
class Gaussian:
    """y ~ N(output, noise^2), independent over the axes of y.

    Attributes:
        noise: the standard deviation, broadcast against the output ``[...]``; None when it is learned: then outputs
            are pairs (mean ``[S, B, ...]``, noise ``[S, ...]``).
    """

    noise: Tensor | None = None

    @property
    def _known(self) -> float | None:
        """The noise, where it was given as a number: read anew, as a tensor may change."""
        noise = self.noise
        plain = type(noise) is Tensor and noise.dim() == 0 and noise.device.type == "cpu" and not noise.requires_grad
        return float(noise) if plain and noise is not None else None

    def split(self, output: Any) -> tuple[Tensor, Tensor]:
        """The mean ``[S, B, ...]`` and the noise, broadcast against it."""
        if self.noise is None:
            return output[0], output[1].unsqueeze(1)
        return output, self.noise.to(output)

    def cost(self, output: Any, y: Tensor) -> Tensor:
        """The mean negative log likelihood over the observations, for each draw ``[S]``."""
        known = self._known
        if known is not None:
            axes, b = tuple(range(1, output.dim())), output.shape[1]
            constant = math.prod(output.shape[2:]) * (math.log(known) + HALF_LOG_2PI)
            residual = aligned(y, output, lead=1) - output
            off: Tensor = residual.square().sum(axes) * (0.5 / (b * known**2)) + constant
            return off
        mean, noise = self.split(output)
        y, axes, entries = aligned(y, mean, lead=1), tuple(range(1, mean.dim())), mean[0, 0].numel()
        if noise.numel() == 1:
            precision = 0.5 / (mean.shape[1] * noise.square())
            constant = entries * (noise.log() + HALF_LOG_2PI)
            fitted: Tensor = (y - mean).square().sum(axes) * precision.reshape(-1) + constant.reshape(-1)
            return fitted
        total: Tensor = ((y - mean) / noise).square().sum(axes) * (0.5 / mean.shape[1])
        logs = (noise.log().expand(mean.shape)).sum(axes) / mean.shape[1]
        return total + logs + entries * HALF_LOG_2PI

    def log_prob(self, output: Any, y: Tensor) -> Tensor:
        """The log density of y given the output ``[S, B]``."""
        mean, noise = self.split(output)
        each = normal_log_prob(aligned(y, mean, lead=1), mean, noise)
        return each.flatten(2).sum(2) if each.dim() > 2 else each

    def check_output(self, output: Any) -> None:
        """Refuses outputs that are no numbers ``[B, ...]``, or that the noise does not fit."""
        _check_tensor(output, "Gaussian")
        if self.noise is not None and not broadcasts(self.noise.shape, output.shape[1:]):
            raise InvalidValue(
                f"noise has shape {tuple(self.noise.shape)}; expected a number or the shape of an output, "
                f"{tuple(output.shape[1:])}"
            )

    def check(self, output: Any, y: Any) -> None:
        """Refuses observations that do not fit the outputs ``[B, ...]``."""
        if not isinstance(y, Tensor) or y.is_complex() or y.dtype == torch.bool:
            raise InvalidType(f"y is {_described(y)}; a Gaussian likelihood needs a tensor of real numbers")
        _check_tensor(output, "Gaussian")
        aligned(y, output)
        if not y.isfinite().all():
            bad = (~y.isfinite()).reshape(len(y), -1).any(1)
            raise InvalidValue(f"y holds NaN or infinite values, first at observation {int(bad.nonzero()[0])}")
        self.check_output(output)


@dataclass(frozen=True)
class Categorical:
    """y ~ softmax(output): class labels ``[B]`` and logits ``[S, B, C]``."""

    def cost(self, output: Tensor, y: Tensor) -> Tensor:
        """The mean negative log likelihood over the observations, for each draw ``[S]``."""
        return -self.log_prob(output, y).mean(1)

    def log_prob(self, output: Tensor, y: Tensor) -> Tensor:
        """The log density of y given the output ``[S, B]``."""
        s, b = output.shape[:2]
        labels = y.expand(s, b).reshape(-1).long()
        return -F.cross_entropy(output.flatten(0, 1), labels, reduction="none").view(s, b)

    def check_output(self, output: Any) -> None:
        """Refuses outputs that are no logits ``[B, C]``."""
        _check_tensor(output, "categorical")
        if output.dim() != 2:
            raise InvalidValue(f"the network's output has shape {tuple(output.shape)}; expected logits [N, classes]")

    def check_labels(self, output: Any, y: Any) -> None:
        """Refuses what is no label for each of the logits ``[B, C]``, whatever the labels are."""
        integer = isinstance(y, Tensor) and not (y.is_floating_point() or y.is_complex() or y.dtype == torch.bool)
        if not integer or y.dim() != 1:
            raise InvalidType(f"y is {_described(y)}; a categorical likelihood needs integer labels [N]")
        check_plain("integer labels [N]", y=y)
        self.check_output(output)

    def check(self, output: Any, y: Any) -> None:
        """Refuses labels that do not fit the logits ``[B, C]``."""
        self.check_labels(output, y)
        if int(y.min()) < 0 or int(y.max()) >= output.shape[1]:
            raise InvalidValue(
                f"y holds labels from {int(y.min())} to {int(y.max())}; the network has {output.shape[1]} classes"
            )


@dataclass(frozen=True)
class OfFunction:
    """A likelihood given as a function of (output, y), which gets both as they are."""

    function: Callable[..., Tensor]
    sign: ClassVar[float]

    def __post_init__(self) -> None:
        check_callable("a function (output, y) -> [B]", function=self.function)

    @cached_property
    def _each(self) -> Callable[..., Tensor]:
        return per_sample(self.function, weigh=False)  # what an observation is worth depends on no other

    def cost(self, output: Any, y: Any) -> Tensor:
        """The mean negative log likelihood over the observations, for each draw ``[S]``."""
        return -self.log_prob(output, y).mean(1)

    def log_prob(self, output: Any, y: Any) -> Tensor:
        """The log density of y given the output ``[S, B]``."""
        s, b = tree.leaves(output)[0].shape[:2]

        def merged(leaf: Tensor) -> Tensor:
            return leaf.expand(s, *leaf.shape[1:]).flatten(0, 1)

        return self.sign * self._each(tree.map(merged, output), tree.map(merged, y)).view(s, b)

    def check_output(self, output: Any) -> None:
        """Any output will do."""

    def check(self, output: Any, y: Any) -> None:
        """Refuses a function that is not one number for each observation."""
        leaves = tree.leaves(output)
        if not leaves or not all(isinstance(leaf, Tensor) and leaf.dim() for leaf in leaves):
            raise InvalidType(
                f"the network returns {kind_of(output)} that is not of tensors; expected a tensor [N, ...], or tuples, "
                "lists or dicts of them: leave what is none out, in a module around it that returns tensors alone"
            )
        found, n = shape_or_type(self._each(output, y)), len(leaves[0])
        if found != (n,):
            raise InvalidValue(f"likelihood returned {found}; expected one number for each observation, ({n},)")


class NegativeLogLikelihood(OfFunction):
    """A likelihood given by its negative log: ``function(output, y) -> [B]``, a loss, constants included.

    It is what a bare function means; a torch loss is taken with its ``reduction`` set to "none".
    """

    sign = -1.0


class LogLikelihood(OfFunction):
    """A likelihood given by its log: ``function(output, y) -> [B]``, constants included."""

    sign = 1.0


Likelihood = Gaussian | Categorical | OfFunction


def likelihood_of(what: Any, noise: Any = None) -> Likelihood:
    """The likelihood that an argument names: "gaussian", "categorical", a function (see the module), or one made.

    ``noise`` is the known standard deviation of a Gaussian, a number or a tensor ``[...]`` that broadcasts to an
    output; None when it is to be learned.
    """
    if isinstance(what, str) and what == "gaussian":
        if isinstance(noise, Tensor) and not (noise.isfinite() & (noise > 0)).all():
            raise InvalidValue(f"noise is {noise}; expected positive finite numbers")
        if noise is None or isinstance(noise, Tensor):
            return Gaussian(noise)
        check_positive(noise=noise)
        return Gaussian(torch.tensor(noise, dtype=torch.float64, device="cpu"))
    if noise is not None:
        raise InvalidValue(f"noise was given with likelihood={what!r}; only a Gaussian has one")
    if isinstance(what, str) and what == "categorical":
        return Categorical()
    if isinstance(what, Gaussian | Categorical | OfFunction):
        return what
    expected = (
        "'gaussian', 'categorical' or a function (output, y) -> the negative log likelihood of each observation, [N]"
    )
    if isinstance(what, str):
        raise InvalidValue(f"likelihood is {what!r}; expected {expected}")
    check_instance(Callable, expected, likelihood=what)
    return NegativeLogLikelihood(what)


def says_its_sign(what: Any) -> bool:
    """Whether nobody could take a likelihood for its negative: a bare function says nothing, a torch loss does."""
    if isinstance(what, str | Gaussian | Categorical | OfFunction) or not callable(what):
        return True
    try:
        return hasattr(what, "reduction") or "reduction" in inspect.signature(what).parameters
    except (ValueError, TypeError):
        return isinstance(what, nn.Module)


def aligned(y: Tensor, output: Tensor, lead: int = 0) -> Tensor:
    """Numbers as the output has them, with or without a last axis of one; ``lead`` axes in front may differ."""
    own, wanted = y.shape[lead:], output.shape[lead:]
    if own == wanted:
        return y
    if own == (*wanted, 1):
        return y.squeeze(-1)
    if (*own, 1) == wanted:
        return y.unsqueeze(-1)
    raise InvalidValue(f"y has shape {tuple(own)} and the network's output {tuple(wanted)}; they must agree")


def _check_tensor(output: Any, name: str) -> None:
    if not isinstance(output, Tensor):
        raise InvalidType(
            f"the network returns {kind_of(output)}; a {name} likelihood needs one tensor. Give the likelihood as a "
            "function (output, y) -> the negative log likelihood of each observation, [N]"
        )


def _described(y: Any) -> str:
    return f"a tensor, {tree.describe(y)}" if isinstance(y, Tensor) else kind_of(y)
