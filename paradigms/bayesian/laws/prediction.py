"""Laws over networks, and the predictive law at some inputs, from draws of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from mfoc import InvalidType, InvalidValue, tree
from mfoc.checks import check_instance, check_integer, check_plain, kind_of
from mfoc.networks import FunctionalModule, functional
from mfoc.networks.arguments import Arguments
from mfoc.networks.inspection import copied, trainable, unwrapped
from mfoc.vectorisation import Mapper
from paradigms.bayesian.laws.drawing import Labels
from paradigms.bayesian.laws.figure import of_prediction
from paradigms.bayesian.laws.likelihoods import NOISE, Gaussian, Likelihood, likelihood_of


@runtime_checkable
class Drawable(Protocol):
    """A law over networks with a likelihood: ``NetworkPosterior``, or an ensemble."""

    @property
    def likelihood(self) -> Likelihood:
        """Of an observation given an output."""

    def outputs(self, x: Tensor, samples: int = 100, *, seed: int = 0) -> Any:
        """Outputs of drawn networks ``[samples, B, ...]``."""


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Networks that differ in their weights, with a likelihood; make one with ``ensemble``, give it to ``predict``.

    Attributes:
        net: the network, in evaluation mode.
        weights: parameter name -> values ``[n, ...]``.
        likelihood: of an observation given an output.
        noise: each network's own scale of a Gaussian likelihood ``[n, ...]``, or None.
    """

    net: nn.Module
    weights: dict[str, Tensor]
    likelihood: Likelihood
    noise: Tensor | None = None

    def __repr__(self) -> str:
        return f"Ensemble({len(self)} of {type(self.net).__name__}, {type(self.likelihood).__name__} observations)"

    def __len__(self) -> int:
        return len(next(iter(self.weights.values())))

    def outputs(self, x: Any, samples: int = 100, *, seed: int = 0) -> Any:
        """Outputs ``[S, B, ...]`` of all networks, or of ``samples`` of them, drawn without replacement, if fewer.

        Raises:
            InvalidType, InvalidValue: no count, no seed, inputs that are no tensors.
        """
        check_integer(1, samples=samples)
        check_integer(0, seed=seed)
        check_inputs(x)
        chosen = slice(None)
        if samples < len(self):
            order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed), device="cpu")
            chosen = order[:samples].to(next(iter(self.weights.values())).device)  # type: ignore[assignment]
        some = {name: value[chosen] for name, value in self.weights.items()}
        with torch.no_grad():
            x = _cast(x, next(iter(some.values())))
            arguments = Arguments.of(self.net)
            try:
                found = self._mapper(lambda weights: arguments.call(partial(self._function, weights), x), some)
            except RuntimeError as error:
                raise InvalidValue(f"net cannot be evaluated on x, {tree.describe(x)}: {error}") from error
        if self.noise is None:
            return found
        scale = self.noise[chosen]
        axes = found.dim() - 1 - scale.dim()  # those of an observation that the scale does not have
        return found, scale.view(*scale.shape, *[1] * axes)

    @cached_property
    def _function(self) -> FunctionalModule:
        return functional(self.net)

    @cached_property
    def _mapper(self) -> Mapper:
        return Mapper("net", "draw")


def ensemble(net: nn.Module, draws: Mapping[str, Tensor], *, likelihood: Any, noise: Any = None) -> Ensemble:
    """An ensemble from draws of a network's weights.

    Args:
        net: the network the draws are of; it is copied.
        draws: parameter name -> values ``[n, ...]``: the readout of ``langevin``, ``svgd`` or ``follmer`` on
            ``log_density(net, ...)``, or what NUTS found there.
        likelihood: as given to ``log_density``.
        noise: as given to ``log_density``; when a Gaussian's was learned it is among the draws, as "noise".

    Raises:
        InvalidType, InvalidValue: draws that are not of this network, or no likelihood.
    """
    check_instance(nn.Module, "a torch.nn.Module", net=net)
    net = unwrapped(net)  # whose names log_density has
    if not isinstance(draws, Mapping) or not all(isinstance(value, Tensor) for value in draws.values()):
        raise InvalidType(f"draws is {kind_of(draws)}; expected a dict from parameter names to tensors [n, ...]")
    made = likelihood_of(likelihood, noise)
    learned = isinstance(made, Gaussian) and made.noise is None
    own = trainable(net)
    wanted = {*own, *([NOISE] if learned else [])}
    if wanted != draws.keys():
        raise InvalidValue(f"draws holds {sorted(draws)}; this network and likelihood need {sorted(wanted)}")
    lengths = {len(value) for value in draws.values()}
    for name, parameter in own.items():
        if draws[name].shape[1:] != parameter.shape or len(lengths) != 1:
            raise InvalidValue(
                f"draws of {name!r} have shape {tuple(draws[name].shape)}; expected (n, {tuple(parameter.shape)}) with "
                "one n for all"
            )
    if lengths == {0}:
        raise InvalidValue("draws holds no draw; expected values [n, ...] with n of at least 1")
    scale = draws[NOISE].detach().clone() if learned else None
    weights = {name: draws[name].detach().clone() for name in own}
    return Ensemble(copied(net).eval(), weights, made, scale)


@dataclass(frozen=True, eq=False)
class Prediction:
    """The posterior predictive law at B inputs, from S draws; print it, or ``.plot()`` it.

    Attributes:
        mean: its mean ``[B, ...]``; for classes, the probabilities ``[B, C]``. Where a likelihood given as a function
            takes a tree of outputs, as (mean, log variance), the mean of each of its leaves, and so is ``epistemic``.
        epistemic: what more data would remove. For numbers the variance of the draws' means ``[B, ...]``; for classes
            the mutual information of label and weights, in nats ``[B]`` (Houlsby et al. 2011, arXiv:1112.5745, eq. 2).
        aleatoric: what it would not. For numbers the mean of the draws' variances (the two sum to the predictive
            variance, by the law of total variance); for classes the mean entropy of the draws, in nats ``[B]``. None
            for a likelihood given as a function.
        log_probs: y -> log p(y | draw) ``[S, B]``.
        classes: whether ``mean`` holds the probabilities of classes.
    """

    mean: Any
    epistemic: Any
    aleatoric: Tensor | None
    log_probs: Callable[[Any], Tensor]
    classes: bool

    @property
    def total(self) -> Tensor:
        """Epistemic and aleatoric part together: the predictive variance, or entropy."""
        if self.aleatoric is None:
            raise InvalidValue("the likelihood is a function, which does not say what the spread of an observation is")
        total: Tensor = self.epistemic + self.aleatoric
        return total

    def __repr__(self) -> str:
        what, unit = ("classes", "nats") if self.classes else ("numbers", "variance")
        parts = {"epistemic": self.epistemic, "aleatoric": self.aleatoric}
        if not isinstance(self.mean, Tensor):
            return f"Prediction(mean of each output {tree.describe(self.mean)})"
        means = [f"{name} {float(part.mean()):.3g}" for name, part in parts.items() if part is not None]
        return f"Prediction(mean of {what} {tuple(self.mean.shape)}, {' and '.join(means)} {unit} on average)"

    def plot(
        self,
        x: Tensor | None = None,
        *,
        data: Any = None,
        output: int = 0,
        title: str = "",
        x_label: str = "x",
        y_label: str = "y",
    ) -> Any:
        """What is predicted, with what the posterior leaves open apart from the noise of the data.

        Of numbers: the mean with bands of two standard deviations over inputs of one variable, and bars in the order
        of the mean where no x is given. Of classes: their probabilities and entropies over such inputs, and the
        entropies from the surest input to the least sure one where no x is given.

        Args:
            x: inputs of the prediction, of one variable: ``[B]`` or ``[B, 1]``; None where they are of several.
            data: observations of numbers: a pair (x, y) to draw as points; without x those at the inputs ``[B, ...]``.
            output: which output of numbers, where there are several.
            title: of the figure.
            x_label: with its unit.
            y_label: of numbers, with its unit.

        Returns:
            A ``matplotlib.figure.Figure``.

        Raises:
            InvalidType: a prediction of a tree of outputs.
            InvalidValue: inputs of more than one variable, observations that do not fit, or any of classes.
            MissingExtra: matplotlib is not installed.
        """
        return of_prediction(self, x, data, output, Labels(title, x_label, y_label))

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


def tree_of_numbers(outputs: Any, log_probs: Callable[[Any], Tensor]) -> Prediction:
    """The prediction of a tree of outputs ``[S, B, ...]`` whose law only its likelihood knows, leaf by leaf."""

    def each(leaf: Tensor) -> Prediction:
        numbers = leaf if tree.differentiable(leaf) else leaf.to(torch.get_default_dtype())
        return of_numbers(numbers, None, log_probs)

    mean = tree.map(lambda leaf: each(leaf).mean, outputs)
    return Prediction(mean, tree.map(lambda leaf: each(leaf).epistemic, outputs), None, log_probs, False)


def check_inputs(x: Any) -> None:
    """Refuses inputs of a network that are no tree of plain, real tensors.

    Raises:
        InvalidType, InvalidValue: they are none, or empty.
    """
    for name, leaf in tree.named_leaves(x, "x"):
        check_plain("inputs [B, ...], a tensor or a tuple or dict of them", **{name: leaf})
        if leaf.is_complex():
            raise InvalidType(f"{name} has dtype {leaf.dtype}; expected real numbers")
    if not tree.leaves(x):
        raise InvalidValue("x holds no tensor; expected inputs [B, ...]")


def _cast(x: Any, like: Tensor) -> Any:
    """Inputs where the weights are, in their dtype; integers stay integers."""
    return tree.map(lambda leaf: leaf.to(like) if leaf.is_floating_point() else leaf.to(like.device), x)


def _entropy(probabilities: Tensor) -> Tensor:
    found: Tensor = -torch.special.xlogy(probabilities, probabilities).sum(-1)
    return found
