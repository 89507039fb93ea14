"""Regression and classification with infinite kernels.

The Gaussian process that an infinitely wide network is before training, as a prior (kernel "nngp"); and what an
ensemble of such networks becomes when all of it is trained (kernel "ntk"). The equations are those of ``fitted``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from mfoc.analysis.activations import ActivationLike
from mfoc.analysis.gaussian import GaussianMoments
from mfoc.analysis.kernel.fitted import FittedKernel, check_prior, factorise, log_likelihood
from mfoc.analysis.kernel.infinite import InfiniteNetwork, check_inputs
from mfoc.checks import check_choice, check_instance, check_non_negative, check_plain, check_positive
from mfoc.errors import InvalidType, InvalidValue
from mfoc.printing import by_identity

_RIDGES = tuple(10.0 ** (k / 4) for k in range(-40, 5))  # times the mean of the kernel's diagonal


@by_identity
@dataclass(frozen=True, eq=False)
class KernelPredictor:
    """Regression and classification with the kernel of an infinitely wide network; ``fit`` returns what predicts.

    Attributes:
        activation: as those that follow, of the network; see ``infinite_kernels``.
        depth: how many dense layers.
        weight_variance: sw2; 2 suits ReLU.
        bias_variance: sb2.
        residual: whether hidden layers are added to their inputs.
        kernel: "nngp", the network as a prior, or "ntk", the network as it trains.
        ridge: the noise variance ("nngp"), or the weight of |theta - theta_0|^2 / 2 ("ntk").

    Raises:
        InvalidType, InvalidValue: as ``infinite_kernels``; an unknown kernel, a negative ridge.
    """

    activation: ActivationLike | GaussianMoments
    depth: int
    weight_variance: float = 1.0
    bias_variance: float = 0.0
    residual: bool = False
    kernel: Literal["nngp", "ntk"] = "nngp"
    ridge: float = 0.0

    def __post_init__(self) -> None:
        check_choice("nngp", "ntk", kernel=self.kernel)
        check_non_negative(ridge=self.ridge)
        _ = self._network  # refuses what is no network

    def fit(self, x: Tensor, y: Tensor) -> FittedKernel:
        """Takes in training data.

        Args:
            x: inputs ``[N, ...]``.
            y: numbers ``[N]`` or ``[N, k]``, or classes: integers or booleans ``[N]``, which are turned into
                indicators less 1 / k, as in Lee et al. (2018). Numbers are taken as they are: the prior has mean zero.

        Raises:
            InvalidType, InvalidValue: no such data; a kernel that would not fit into memory, or that has no inverse.
        """
        check_inputs(x=x)
        targets, classes = _targets(y, len(x), x.device)
        x = x.detach().clone()
        nngp, ntk = self._network.kernels(x, None)
        factor = factorise(nngp if self.kernel == "nngp" else ntk, self.ridge, x)
        single = y.dim() == 1 and classes is None
        return FittedKernel(self._network, self.kernel, self.ridge, x, targets, classes, single, nngp, ntk, factor)

    def with_best_ridge(
        self,
        x: Tensor,
        y: Tensor,
        *,
        by: Literal["leave_one_out", "likelihood"] = "leave_one_out",
        ridges: Sequence[float] | None = None,
    ) -> KernelPredictor:
        """The same predictor with the ridge that suits the training data best.

        Args:
            x: as for ``fit``.
            y: as for ``fit``.
            by: the mean square error of leave-one-out predictions, or the log marginal likelihood ("nngp" only).
            ridges: those to try; four a decade from 1e-10 to 10 times the mean of the kernel's diagonal when None.

        Raises:
            InvalidType, InvalidValue: as ``fit``; no positive ridges; the likelihood of a kernel that is no prior.
        """
        check_choice("leave_one_out", "likelihood", by=by)
        if by == "likelihood":
            check_prior(self.kernel, "by='likelihood'")
        check_inputs(x=x)
        if ridges is not None:
            check_instance(Sequence, "a list of positive numbers", ridges=ridges)
        targets, _ = _targets(y, len(x), x.device)
        matrix = self._network.kernels(x, None)[("nngp", "ntk").index(self.kernel)]
        tried = [float(matrix.diagonal().mean()) * k for k in _RIDGES] if ridges is None else list(ridges)
        if not tried:
            raise InvalidValue("ridges is empty; expected positive numbers to try")
        for ridge in tried:
            check_positive(ridges=ridge)
        values, vectors = torch.linalg.eigh(matrix)
        along, weights = vectors.mT @ targets, vectors.square()

        def loss(ridge: float) -> float:
            inverse = 1 / (values.clamp(min=0) + ridge)
            alpha = vectors @ (inverse[:, None] * along)
            if by == "leave_one_out":
                return float((alpha / (weights @ inverse)[:, None]).square().mean())
            return -log_likelihood(targets, alpha, -float(inverse.log().sum()))

        return replace(self, ridge=min(tried, key=loss))

    @property
    def _network(self) -> InfiniteNetwork:
        settings = self.depth, self.weight_variance, self.bias_variance, self.residual
        return InfiniteNetwork.of(self.activation, *settings)


def _targets(y: object, n: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Targets [N, k] in float64, and the labels where they are classes."""
    check_plain("a tensor of numbers [N] or [N, k], or of classes [N]", y=y)
    assert isinstance(y, Tensor)
    if y.dim() not in (1, 2) or len(y) != n or not y.numel():
        raise InvalidValue(f"y has shape {tuple(y.shape)} for {n} inputs; expected [{n}], or [{n}, k] of numbers")
    if y.device != device:
        raise InvalidValue(f"y is on {y.device} and x on {device}; expected both on one device")
    if y.is_complex():
        raise InvalidType(f"y is of {y.dtype}; expected real numbers, or classes")
    if y.is_floating_point():
        if not bool(y.isfinite().all()):
            raise InvalidValue("y holds NaN or infinity; expected finite numbers")
        return y.detach().clone().double().reshape(n, -1), None
    if y.dim() != 1:
        raise InvalidValue(f"y holds integers of shape {tuple(y.shape)}; expected classes [{n}], or numbers as floats")
    classes, places = torch.unique(y, return_inverse=True)
    if len(classes) < 2:
        raise InvalidValue(f"y holds one class, {classes.tolist()}; expected two or more, or numbers as floats")
    return torch.nn.functional.one_hot(places).double() - 1 / len(classes), classes
