"""Likelihoods: what an observation is worth given the output of a network.

Outputs carry an axis of draws in front: ``[S, B, ...]``, S networks on B inputs; so do observations, ``[S, B, ...]`` or
``[1, B, ...]``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mfoc import InvalidType, InvalidValue
from mfoc.checks import check_positive
from mfoc.networks import per_sample
from paradigms.bayesian.laws.normal import cast, normal_log_prob


@dataclass(frozen=True)
class Gaussian:
    """y ~ N(output, noise^2), independent over the axes of y.

    Attributes:
        noise: the standard deviation, broadcast against the output ``[...]``; None when it is learned: then outputs
            are pairs (mean ``[S, B, ...]``, noise ``[S, ...]``).
    """

    noise: Tensor | None = None

    def split(self, output: Any) -> tuple[Tensor, Tensor]:
        """The mean ``[S, B, ...]`` and the noise, broadcast against it."""
        if self.noise is None:
            return output[0], output[1].unsqueeze(1)
        return output, self.noise.to(output)

    def cost(self, output: Any, y: Tensor) -> Tensor:
        """The mean negative log likelihood over the observations, for each draw ``[S]``."""
        mean, noise = self.split(output)
        axes = tuple(range(1, mean.dim()))
        entries = mean[0, 0].numel()
        if noise.numel() == 1:
            precision = 0.5 / (mean.shape[1] * noise.square())
            constant = entries * (noise.log() + 0.5 * math.log(2 * math.pi))
            fitted: Tensor = (y - mean).square().sum(axes) * precision.reshape(-1) + constant.reshape(-1)
            return fitted
        total: Tensor = ((y - mean) / noise).square().sum(axes) * (0.5 / mean.shape[1])
        logs = (noise.log().expand(mean.shape)).sum(axes) / mean.shape[1]
        return total + logs + entries * 0.5 * math.log(2 * math.pi)

    def log_prob(self, output: Any, y: Tensor) -> Tensor:
        """The log density of y given the output ``[S, B]``."""
        mean, noise = self.split(output)
        each = -0.5 * ((y - mean) / noise).square() - noise.log() - 0.5 * math.log(2 * math.pi)
        return each.flatten(2).sum(2) if each.dim() > 2 else each

    def check(self, output: Any, y: Any) -> None:
        """Refuses observations that do not fit the outputs ``[B, ...]``."""
        if not isinstance(y, Tensor) or not y.is_floating_point():
            raise InvalidType(f"y is {_describe(y)}; a Gaussian likelihood needs a floating-point tensor")
        if y.shape != output.shape:
            raise InvalidValue(
                f"y has shape {tuple(y.shape)} and the network's output {tuple(output.shape)}; they must agree "
                "(y.unsqueeze(1) makes [N] into [N, 1])"
            )
        if not y.isfinite().all():
            bad = (~y.isfinite()).reshape(len(y), -1).any(1)
            raise InvalidValue(f"y holds NaN or infinite values, first at observation {int(bad.nonzero()[0])}")
        if self.noise is not None:
            noise = torch.as_tensor(self.noise)
            if not noise.isfinite().all() or not (noise > 0).all():
                raise InvalidValue("noise must be positive and finite")
            try:
                fits = (
                    torch.broadcast_shapes(  # type: ignore[no-untyped-call]
                        noise.shape, output.shape[1:]
                    )
                    == output.shape[1:]
                )
            except RuntimeError:
                fits = False
            if not fits:
                raise InvalidValue(
                    f"noise has shape {tuple(noise.shape)}; expected a number or the shape of an output, "
                    f"{tuple(output.shape[1:])}"
                )


@dataclass(frozen=True)
class Categorical:
    """y ~ softmax(output): class labels ``[B]`` and logits ``[S, B, C]``."""

    def cost(self, output: Tensor, y: Tensor) -> Tensor:
        """The mean negative log likelihood over the observations, for each draw ``[S]``."""
        return -self.log_prob(output, y).mean(1)

    def log_prob(self, output: Tensor, y: Tensor) -> Tensor:
        """The log density of y given the output ``[S, B]``."""
        s, b = output.shape[:2]
        labels = y.expand(s, b).reshape(-1)
        return -F.cross_entropy(output.flatten(0, 1), labels, reduction="none").view(s, b)

    def check(self, output: Any, y: Any) -> None:
        """Refuses labels that do not fit the logits ``[B, C]``."""
        if not isinstance(y, Tensor) or y.dtype != torch.int64 or y.dim() != 1:
            raise InvalidType(f"y is {_describe(y)}; a categorical likelihood needs integer labels [N] (torch.int64)")
        if output.dim() != 2:
            raise InvalidValue(f"the network's output has shape {tuple(output.shape)}; expected logits [N, classes]")
        if int(y.min()) < 0 or int(y.max()) >= output.shape[1]:
            raise InvalidValue(
                f"y holds labels from {int(y.min())} to {int(y.max())}; the network has {output.shape[1]} classes"
            )


@dataclass(frozen=True)
class Custom:
    """A likelihood given by its negative log: ``function(output, y) -> [B]``, constants included."""

    function: Callable[..., Tensor]

    def cost(self, output: Any, y: Any) -> Tensor:
        """The mean negative log likelihood over the observations, for each draw ``[S]``."""
        return -self.log_prob(output, y).mean(1)

    def log_prob(self, output: Any, y: Any) -> Tensor:
        """The log density of y given the output ``[S, B]``."""
        loss = per_sample(self.function)
        s, b = torch.utils._pytree.tree_leaves(output)[0].shape[:2]

        def merged(leaf: Tensor) -> Tensor:
            return leaf.expand(s, *leaf.shape[1:]).flatten(0, 1)

        both = torch.utils._pytree.tree_map(merged, (output, y))
        return -loss(*both).view(s, b)

    def check(self, output: Any, y: Any) -> None:
        """Refuses a function that is not one number for each observation."""
        found = per_sample(self.function)(output, y)
        n = len(torch.utils._pytree.tree_leaves(output)[0])
        if not isinstance(found, Tensor) or found.shape != (n,):
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise InvalidValue(f"likelihood returned {shape}; expected the negative log of each observation, ({n},)")


Likelihood = Gaussian | Categorical | Custom


def likelihood_of(what: Any, noise: Any) -> Likelihood:
    """The likelihood that an argument names.

    Args:
        what: "gaussian", "categorical" or a function (output, y) -> ``[N]``.
        noise: the known standard deviation of a Gaussian; None when it is to be learned.

    Raises:
        InvalidType, InvalidValue: neither, or a noise where there is none.
    """
    if what == "gaussian":
        if noise is None:
            return Gaussian()
        if isinstance(noise, bool) or not isinstance(noise, int | float | Tensor):
            raise InvalidType(f"noise is a {type(noise).__name__}; expected a positive number, a tensor or None")
        return Gaussian(torch.as_tensor(noise, dtype=None if isinstance(noise, Tensor) else torch.float64))
    if noise is not None:
        raise InvalidValue(f"noise was given with likelihood={what!r}; only a Gaussian has one")
    if what == "categorical":
        return Categorical()
    if callable(what) and not isinstance(what, type):
        return Custom(what)
    raise InvalidValue(
        f"likelihood is {what!r}; expected 'gaussian', 'categorical' or a function (output, y) -> the negative log "
        "likelihood of each observation, [N]"
    )


def _describe(y: Any) -> str:
    return f"a {y.dtype} tensor {tuple(y.shape)}" if isinstance(y, Tensor) else f"a {type(y).__name__}"


def check_targets(net: nn.Module, inputs: Tensor, targets: Tensor, likelihood: Any) -> None:
    """Refuses observations that no output of the network explains."""
    if likelihood == "gaussian" and not targets.isfinite().all():
        raise InvalidValue("the targets hold NaN or infinite values")
    if likelihood == "categorical" and not targets.is_floating_point():
        try:
            with torch.no_grad():
                classes = net(cast(inputs[:1], next(net.parameters()))).shape[-1]
        except RuntimeError as error:
            raise InvalidValue(f"the network cannot take inputs of shape {tuple(inputs.shape)}: {error}") from error
        if int(targets.min()) < 0 or int(targets.max()) >= classes:
            raise InvalidValue(
                f"the targets hold labels from {int(targets.min())} to {int(targets.max())}; the network has {classes} "
                "classes"
            )


def log_likelihood_of(likelihood: Any, noise: float | None) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """Log likelihoods ``[N]`` of (output, target, log of the learned scale or None)."""
    if likelihood == "gaussian":
        check_positive(noise=noise, finite=False, optional=True)

        def gaussian(out: Tensor, y: Tensor, log_scale: Tensor | None) -> Tensor:
            out = out.squeeze(-1) if out.dim() == y.dim() + 1 and out.shape[-1] == 1 else out
            if out.shape != y.shape:
                raise InvalidValue(
                    f"the network returns {tuple(out.shape)} and the targets are {tuple(y.shape)}; "
                    "expected equal shapes"
                )
            scale = noise if log_scale is None else log_scale.exp()
            return normal_log_prob(y, out, scale).flatten(1).sum(1) if y.dim() > 1 else normal_log_prob(y, out, scale)

        return gaussian
    if likelihood == "categorical":

        def categorical(out: Tensor, y: Tensor, _: Tensor | None) -> Tensor:
            if y.is_floating_point() or y.dim() != 1 or out.dim() != 2:
                raise InvalidValue(
                    f"categorical needs logits (N, classes) and integer labels (N,); got {tuple(out.shape)} and "
                    f"{tuple(y.shape)} of {y.dtype}"
                )
            return out.log_softmax(1).gather(1, y.unsqueeze(1)).squeeze(1)  # which refuses labels that are no class

        return categorical
    if callable(likelihood):
        return lambda out, y, _: likelihood(out, y)
    raise InvalidValue(
        f"likelihood is {likelihood!r}; expected 'gaussian', 'categorical' or a function (output, target)"
    )
