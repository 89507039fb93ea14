"""Figures of predictions: what the posterior leaves open, apart from the noise of the data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mfoc.figures import COLORS, INK, look, new_axes, new_figure, style, tidy

_MEAN, _POSTERIOR, _NOISE = COLORS[0], COLORS[0], COLORS[4]
_GROUPS = 50


class Labels(NamedTuple):
    """Words of a figure."""

    title: str
    x: str
    y: str


def draw_band(
    at: Tensor,
    mean: Tensor,
    posterior: Tensor,
    total: Tensor | None,
    points: tuple[Tensor, Tensor] | None,
    labels: Labels,
) -> Any:
    """A function of one variable: its mean, and two standard deviations of the posterior and with the noise.

    Args:
        at: ascending inputs ``[B]``.
        mean: of the prediction ``[B]``.
        posterior: its standard deviation by the posterior alone ``[B]``.
        total: by both ``[B]``; None where the noise is not known.
        points: observations (x, y), or None.
        labels: words.
    """
    figure, (axis,) = new_axes(7.0, 4.2)
    mark = {"marker": "o"} if len(at) == 1 else {}
    inner = {"color": _POSTERIOR, "alpha": 0.3, "linewidth": 0}
    axis.fill_between(at, mean - 2 * posterior, mean + 2 * posterior, label="± 2 sd, of the posterior", **inner)
    if total is not None:  # beside the other band, not over it, and with edges of its own: told apart in grey, too
        for sign, label in ((1, "± 2 sd, with noise of the data"), (-1, None)):
            near, far = mean + 2 * sign * posterior, mean + 2 * sign * total
            axis.fill_between(at, near, far, color=_NOISE, alpha=0.25, linewidth=0, label=label)
            axis.plot(at, far, color=_NOISE, linewidth=0.9, linestyle="--")
    if len(at) == 1:  # of no area
        for spread, color, width in ((total, _NOISE, 2), (posterior, _POSTERIOR, 6)):
            if spread is not None:
                axis.vlines(at, mean - 2 * spread, mean + 2 * spread, color=color, linewidth=width, alpha=0.5)
    axis.plot(at, mean, color=_MEAN, linewidth=1.8, label="predictive mean", **mark)
    if points is not None:
        axis.plot(*points, ".", color=INK, markersize=4, label="observations")
    axis.set(xlabel=labels.x, ylabel=labels.y, title=labels.title)
    axis.legend(frameon=False, loc="best", fontsize=9)
    return figure


def draw_places(mean: Tensor, posterior: Tensor, total: Tensor | None, truth: Tensor | None, labels: Labels) -> Any:
    """Inputs of several variables in the order of their mean: thick bars for the posterior, thin ones with the noise.

    Args:
        mean: of the predictions ``[B]``.
        posterior: standard deviations by the posterior alone ``[B]``.
        total: by both ``[B]``; None where the noise is not known.
        truth: observations at the same inputs ``[B]``, or None.
        labels: words.
    """
    order = mean.argsort()
    places, mean, posterior = range(1, len(mean) + 1), mean[order], posterior[order]
    figure, (axis,) = new_axes(7.0, 4.2, grid="y")
    if total is not None:
        spread = 2 * total[order]
        label = "± 2 sd, with noise of the data"
        axis.vlines(places, mean - spread, mean + spread, color=_NOISE, linewidth=1.2, label=label)
    spread = 2 * posterior
    label = "± 2 sd, of the posterior"
    axis.vlines(places, mean - spread, mean + spread, color=_POSTERIOR, linewidth=4, alpha=0.4, label=label)
    axis.plot(places, mean, ".", color=_MEAN, markersize=5, label="predictive mean")
    if truth is not None:
        axis.plot(places, truth[order], "x", color=INK, markersize=5, label="observations", zorder=4)
    axis.set(xlabel="input, in the order of its mean", ylabel=labels.y, title=labels.title)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend(frameon=False, loc="best", fontsize=9)
    return figure


def draw_classes(at: Tensor | None, probabilities: Tensor, parts: list[Tensor], labels: Labels) -> Any:
    """Entropies of classes, parted; over inputs of one variable beside the probabilities, else in ascending order.

    Args:
        at: inputs ``[B]`` in ascending order, or None.
        probabilities: of classes ``[B, C]``.
        parts: aleatoric and epistemic entropy, in nats ``[B]`` each.
        labels: words.
    """
    limit = math.log(probabilities.shape[1])
    figure = new_figure(7.0, 4.8 if at is not None else 4.0)
    upper, lower = figure.subplots(2, 1, sharex=True) if at is not None else (None, figure.subplots())
    if upper is not None and at is not None:
        tidy(upper, grid="both")
        for k, column in enumerate(probabilities.mT):
            upper.plot(at, column, label=f"class {k}", linewidth=1.8, marker="o" if len(at) == 1 else "", **style(k))
        upper.set(ylabel="probability", ylim=(-0.03, 1.03), title=labels.title)
        upper.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9)
        x, name = at, labels.x
    else:
        order = (parts[0] + parts[1]).argsort()
        groups = order.tensor_split(min(len(order), _GROUPS))  # of many inputs, neighbours are drawn by their mean
        parts = [torch.stack([part[group].mean() for group in groups]) for part in parts]
        x = 100 * (torch.arange(len(groups), device="cpu") + 0.5) / len(groups)
        name = "share of the inputs [%], the surest first"
        lower.set(title=labels.title, xlim=(0, 100))
    tidy(lower, grid="both")
    if len(x) == 1:
        width, (first, second) = 100.0 if at is None else 0.8, (part.tolist() for part in parts)
        lower.bar(x.tolist(), first, width, color=_NOISE, alpha=0.5, hatch="//", label="data (aleatoric)")
        lower.bar(x.tolist(), second, width, first, color=_POSTERIOR, alpha=0.5, label="posterior (epistemic)")
    else:
        lower.fill_between(x, 0, parts[0], color=_NOISE, alpha=0.5, linewidth=0, label="data (aleatoric)")
        both = parts[0] + parts[1]
        lower.fill_between(x, parts[0], both, color=_POSTERIOR, alpha=0.5, linewidth=0, label="posterior (epistemic)")
        lower.plot(x, both, color=INK, linewidth=1.2, label="total")
    if limit > 0:
        lower.axhline(limit, color=INK, linewidth=0.9, linestyle=":", label=f"ln {probabilities.shape[1]}, a guess")
    lower.set(xlabel=name, ylabel="entropy [nats]", ylim=(0, 1.08 * max(limit, 0.05)))
    lower.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9)
    return figure


def draw_calibration(curves: Mapping[str, Any], title: str) -> Any:
    """Accuracy against confidence, and the share of the predictions in each bin.

    Args:
        curves: name -> ``Reliability``.
        title: of the figure.
    """
    figure = new_figure(4.6, 5.8)
    upper, lower = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    upper.plot([0, 1], [0, 1], color="#777777", linewidth=1, linestyle="--", label="calibrated")
    for k, (name, curve) in enumerate(curves.items()):
        drawn, bins = look(name, k), len(curve.counts)
        full = (curve.counts > 0).cpu()
        x, y = curve.confidence.cpu()[full], curve.accuracy.cpu()[full]
        shares = 100 * curve.counts.cpu() / curve.counts.sum().cpu()
        error = f"ECE {curve.ece:.3f}"
        label = f"{name} ({error})" if name else error
        upper.plot(x, y, markersize=5, linewidth=1.5, label=label, clip_on=False, zorder=3, **drawn)
        width = 0.9 / bins / len(curves)
        left = [(m + 0.05) / bins + k * width for m in range(bins)]
        lower.bar(left, shares.tolist(), width=width, align="edge", color=drawn["color"])
    upper.set(ylabel="accuracy", title=title, xlim=(0, 1), ylim=(0, 1))
    upper.set_aspect("equal")
    upper.legend(frameon=False, loc="best", fontsize=9)
    lower.set(xlabel="confidence", ylabel="share of the\npredictions [%]")
    lower.set_yscale("log")
    for axis in (upper, lower):
        tidy(axis, grid="both")
    return figure
