"""How good predictions are: likelihood, calibration, error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mfoc import InvalidType, InvalidValue
from mfoc.checks import check_integer, check_plain, check_tensor, kind_of
from paradigms.bayesian.laws.drawing import draw_calibration
from paradigms.bayesian.laws.likelihoods import aligned
from paradigms.bayesian.laws.prediction import Prediction


@dataclass(frozen=True, eq=False)
class Reliability:
    """Confidence against accuracy in bins of equal width; print it, or ``.plot()`` it.

    Attributes:
        confidence: mean probability of the predicted class in each bin ``[bins]``; NaN in an empty one.
        accuracy: the share that is right ``[bins]``; NaN in an empty one.
        counts: observations in each bin ``[bins]``.
    """

    confidence: Tensor
    accuracy: Tensor
    counts: Tensor

    @property
    def ece(self) -> float:
        """The expected calibration error: sum_m (n_m / n) |accuracy_m - confidence_m|."""
        gaps = (self.accuracy - self.confidence).abs().nan_to_num(0.0)
        return float((gaps * self.counts).sum() / self.counts.sum())

    def plot(self, title: str = "") -> Any:
        """Accuracy against confidence, a ``matplotlib.figure.Figure``; several: ``calibration``.

        Args:
            title: of the figure.

        Raises:
            MissingExtra: matplotlib is not installed.
        """
        return draw_calibration({"": self}, title)

    def __repr__(self) -> str:
        return f"Reliability(ECE {self.ece:.4f} of {int(self.counts.sum())} observations in {len(self.counts)} bins)"


def nll(prediction: Prediction | Tensor, y: Any) -> float:
    """The mean negative log of the predictive density of the observations, in nats.

    Args:
        prediction: a prediction, or the probabilities of classes ``[N, C]``.
        y: observations ``[N, ...]``.
    """
    if isinstance(prediction, Prediction):
        return float(-prediction.log_prob(y).mean())
    probabilities = _probabilities(prediction, y)
    return float(-probabilities.gather(1, y.unsqueeze(1)).log().mean())


def reliability(prediction: Prediction | Tensor, y: Tensor, *, bins: int = 15) -> Reliability:
    """Confidence against accuracy (Guo et al. 2017, arXiv:1706.04599, sec. 2): bin m holds ((m-1)/M, m/M].

    Args:
        prediction: a prediction of classes, or their probabilities ``[N, C]``.
        y: labels ``[N]``.
        bins: M.

    Raises:
        InvalidType, InvalidValue: not classes, labels that do not fit, or a bad count.
    """
    check_integer(1, bins=bins)
    confidence, label = _probabilities(prediction, y).double().max(1)
    right = (label == y).double()
    index = (confidence * bins).ceil().long().clamp(1, bins) - 1
    zeros = confidence.new_zeros(bins)
    counts = zeros.index_add(0, index, torch.ones_like(confidence))
    return Reliability(
        zeros.index_add(0, index, confidence) / counts, zeros.index_add(0, index, right) / counts, counts.long()
    )


def ece(prediction: Prediction | Tensor, y: Tensor, *, bins: int = 15) -> float:
    """The expected calibration error; see ``reliability``."""
    return reliability(prediction, y, bins=bins).ece


def accuracy(prediction: Prediction | Tensor, y: Tensor) -> float:
    """The share of labels that the most probable class gets right."""
    return float((_probabilities(prediction, y).argmax(1) == y).double().mean())


def rmse(prediction: Prediction | Tensor, y: Tensor) -> float:
    """The root of the mean squared error of the predictive mean.

    Raises:
        InvalidValue: classes, or shapes that do not agree.
    """
    if isinstance(prediction, Prediction) and prediction.classes:
        raise InvalidValue("prediction is of classes; rmse is for numbers")
    mean = prediction.mean if isinstance(prediction, Prediction) else prediction
    if isinstance(prediction, Prediction) and not isinstance(mean, Tensor):
        raise InvalidType(f"prediction is of several outputs; give one of them, as prediction.mean[0]: {prediction!r}")
    if not isinstance(mean, Tensor) or not isinstance(y, Tensor):
        raise InvalidType(f"expected tensors; prediction is {kind_of(prediction)} and y {kind_of(y)}")
    check_tensor("a Prediction, or numbers [N, ...]", floating=False, prediction=mean)
    check_tensor("observations [N, ...]", floating=False, y=y)
    return float((mean - aligned(y, mean)).double().square().mean().sqrt())


def _probabilities(prediction: Prediction | Tensor, y: Any) -> Tensor:
    if isinstance(prediction, Prediction) and not prediction.classes:
        raise InvalidValue("prediction is of numbers; calibration and accuracy are for classes")
    found = prediction.mean if isinstance(prediction, Prediction) else prediction
    check_tensor("a Prediction, or the probabilities of classes [N, C]", prediction=found)
    if found.dim() != 2:
        raise InvalidValue(f"prediction has shape {tuple(found.shape)}; expected the probabilities of classes [N, C]")
    check_plain(f"{len(found)} integer labels (torch.int64)", y=y)
    if y.dtype != torch.int64:
        raise InvalidType(f"y has dtype {y.dtype}; expected {len(found)} integer labels (torch.int64)")
    if y.shape != (len(found),):
        raise InvalidValue(f"y has shape {tuple(y.shape)}; expected {len(found)} integer labels (torch.int64)")
    if not bool((found >= 0).all()) or not torch.allclose(found.sum(1), torch.ones_like(found[:, 0]), atol=1e-3):
        raise InvalidValue("prediction: rows must be probabilities that sum to 1 (logits.softmax(1)?)")
    return found
