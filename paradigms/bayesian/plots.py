"""Figures, made without pyplot: each function returns a ``matplotlib.figure.Figure``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mfoc import InvalidType, InvalidValue
from mfoc.checks import check_instance, check_integer, check_tensor
from mfoc.plot import COLORS, new_figure, tidy
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
    figure = new_figure(4.6, 5.4)
    upper, lower = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    upper.plot([0, 1], [0, 1], color="#777777", linewidth=1, linestyle="--", label="calibrated")
    for k, (name, curve) in enumerate(curves.items()):
        color, bins = COLORS[k % len(COLORS)], len(curve.counts)
        full = (curve.counts > 0).cpu()
        x, y = curve.confidence.cpu()[full], curve.accuracy.cpu()[full]
        shares = curve.counts.cpu() / curve.counts.sum().cpu()
        upper.plot(x, y, "o-", color=color, markersize=4, linewidth=1.5, label=f"{name} (ECE {curve.ece:.3f})")
        width = 0.9 / bins / len(curves)
        left = [(m + 0.05) / bins + k * width for m in range(bins)]
        lower.bar(left, shares.tolist(), width=width, align="edge", color=color)
    upper.set(ylabel="accuracy", title=title, xlim=(0, 1), ylim=(0, 1.02))
    upper.legend(frameon=False, loc="upper left")
    lower.set(xlabel="confidence", ylabel="share")
    lower.set_yscale("log")
    for axis in (upper, lower):
        tidy(axis, grid="both")
    return figure


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
    check_tensor("the inputs of the prediction, [B] or [B, 1]", floating=False, x=x)
    if prediction.classes:
        raise InvalidValue("prediction is of classes; a band is for numbers")
    if not isinstance(prediction.mean, Tensor):
        raise InvalidType(f"prediction is of several outputs, and a band is for one: {prediction!r}")
    if x.numel() != len(prediction.mean):
        raise InvalidValue(
            f"x has shape {tuple(x.shape)}; expected one number for each of {len(prediction.mean)} inputs"
        )
    outputs = prediction.mean.numel() // len(prediction.mean)
    check_integer(0, outputs - 1, output=output)
    points = None if data is None else _points(data, output)
    order = x.reshape(-1).argsort()

    def column(values: Tensor) -> Tensor:
        return values.reshape(len(values), -1)[order, output].detach().cpu()

    figure = new_figure(7, 4.2)
    axis = figure.subplots()
    at, mean = x.reshape(-1)[order].cpu(), column(prediction.mean)
    bands = [(prediction.epistemic, "function (epistemic)", {"color": COLORS[0], "alpha": 0.35})]
    if prediction.aleatoric is not None:
        bands.insert(0, (prediction.total, "observation", {"color": COLORS[5], "alpha": 0.3}))
    for variance, what, style in bands:
        spread = 2 * column(variance).sqrt()
        axis.fill_between(at, mean - spread, mean + spread, linewidth=0, label=f"± 2 sd, {what}", **style)
    axis.plot(at, mean, color=COLORS[0], linewidth=1.8, label="predictive mean")
    if points is not None:
        axis.plot(*points, ".", color="#333333", markersize=4, label="observations")
    axis.set(xlabel=x_label, ylabel=y_label, title=title)
    tidy(axis, grid="both")
    axis.legend(frameon=False, loc="best")
    return figure


def _points(data: Any, output: int) -> tuple[Tensor, Tensor]:
    """Observations of one variable and of one output, ``[n]`` each."""
    check_instance(tuple | list, "observations, a pair (x, y) of tensors", data=data)
    if len(data) != 2:
        raise InvalidValue(f"data has {len(data)} parts; expected a pair (x, y)")
    x, y = data
    check_tensor("observations (x, y), tensors [n] or [n, k]", floating=False, **{"data[0]": x, "data[1]": y})
    if not y.dim() or x.numel() != len(y) or y.numel() <= output * len(y):
        raise InvalidValue(f"data has x {tuple(x.shape)} and y {tuple(y.shape)}; expected one x for each y, [n]")
    return x.detach().cpu().reshape(-1), y.detach().cpu().reshape(len(y), -1)[:, output]
