"""Figures, made without pyplot: each function returns a ``matplotlib.figure.Figure``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mfoc import InvalidType, InvalidValue
from mfoc.checks import check_instance
from paradigms.bayesian.laws.drawing import draw_calibration
from paradigms.bayesian.laws.prediction import Prediction
from paradigms.bayesian.metrics import Reliability


def calibration(curves: Mapping[str, Reliability], *, title: str = "") -> Any:
    """Reliability diagrams: accuracy against confidence, and how many predictions lie in each bin.

    Args:
        curves: name -> what ``reliability(prediction, y)`` returned.
        title: title of the figure.

    Raises:
        InvalidType: no curves, or something else.
    """
    if not isinstance(curves, Mapping) or not all(isinstance(c, Reliability) for c in curves.values()) or not curves:
        raise InvalidType("curves: expected a dict, name -> what reliability(prediction, y) returned")
    return draw_calibration(curves, title)


def band(
    x: Tensor,
    prediction: Prediction,
    *,
    data: tuple[Tensor, Tensor] | None = None,
    output: int = 0,
    title: str = "",
    x_label: str = "x",
    y_label: str = "y",
) -> Any:
    """The predictive mean of a function of one variable with bands of two standard deviations.

    Args:
        x: the inputs of the prediction ``[B]`` or ``[B, 1]``.
        prediction: of numbers, with an aleatoric part or without.
        data: observations (x, y) to draw as points.
        output: which output, when there are several.
        title: title of the figure.
        x_label: with its unit.
        y_label: with its unit.

    Raises:
        InvalidType: a prediction of several outputs.
        InvalidValue: classes, or inputs of more than one variable.
    """
    check_instance(Prediction, "what predict(...) returns", prediction=prediction)
    if prediction.classes:
        raise InvalidValue("prediction is of classes; a band is for numbers")
    check_instance(Tensor, "the inputs of the prediction, [B] or [B, 1]", x=x)
    return prediction.plot(x, data=data, output=output, title=title, x_label=x_label, y_label=y_label)
