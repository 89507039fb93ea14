"""Figures of noise scales and of the top of a spectrum."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from mfoc.figures import COLORS, INK, new_axes, style
from mfoc.statistics import Interval


class AScale(Interval, Protocol):
    """A noise scale, in samples, with its interval."""

    @property
    def status(self) -> str:
        """Whether it is resolved."""


def draw_scales(scales: Mapping[str, AScale], title: str) -> Any:
    """What a batch buys: the best step by batch size, over the best without noise, 1 / (1 + scale / B).

    Args:
        scales: by name.
        title: above the figure.
    """
    figure, (axis,) = new_axes(6.8, 4.2)
    known = [n for s in scales.values() for n in (s.value, s.low, s.high) if 0 < n < math.inf]
    low, high = (min(known) / 30, max(known) * 30) if known else (1.0, 1e4)
    sizes = torch.logspace(math.log10(low), math.log10(high), 200, dtype=torch.float64, device="cpu")
    for index, (name, scale) in enumerate(scales.items()):
        _scale(axis, name, scale, sizes, index)
    axis.axhline(50, color=INK, linewidth=0.8, linestyle=":")
    axis.annotate(
        "batch = scale", (1, 50), xytext=(-2, 3), xycoords=("axes fraction", "data"), textcoords="offset points",
        ha="right", fontsize=8, color=INK,
    )  # fmt: skip
    axis.set(xscale="log", xlabel="batch size [samples]", ylabel="best step, of that without noise [%]", ylim=(-2, 102))
    axis.set_xlim(low, high)
    axis.set_title(title, fontsize=9.5, loc="left")
    axis.legend(frameon=False, fontsize=9, loc="upper left")
    return figure


def _scale(axis: Any, name: str, scale: AScale, sizes: Tensor, index: int) -> None:
    drawn = style(index)
    line = {"color": drawn["color"], "linewidth": 1.8}

    def share(value: float) -> list[float]:
        return (100 / (1 + value / sizes)).tolist()

    if scale.status == "resolved":
        band = {"color": drawn["color"], "alpha": 0.15, "linewidth": 0}
        axis.fill_between(sizes.tolist(), share(scale.high), share(scale.low), **band)
        label = f"{name} = {scale.value:.3g} [{scale.low:.3g}, {scale.high:.3g}]"
        axis.plot(sizes.tolist(), share(scale.value), label=label, **line)
        axis.plot([scale.value], [50], "os"[index % 2], color=drawn["color"], markersize=7, zorder=3)
    elif scale.status == "unresolved" and scale.low > 0:
        axis.fill_between(sizes.tolist(), 0, share(scale.low), color=drawn["color"], alpha=0.1, linewidth=0)
        axis.plot(sizes.tolist(), share(scale.low), linestyle="--", label=f"{name}: {scale.low:.3g} or more", **line)
    else:
        axis.plot([], [], linestyle=":", label=f"{name}: {scale}", **line)


def draw_spectrum(values: Tensor, errors: Tensor, threshold: float, title: str) -> Any:
    """The largest eigenvalues with their errors, and where gradient descent is unstable.

    Args:
        values: descending ``[top]``.
        errors: of each ``[top]``.
        threshold: 2 (1 + momentum) / lr; NaN without a rate.
        title: above the figure.
    """
    figure, (axis,) = new_axes(6.4, 4.0)
    places, found = list(range(1, len(values) + 1)), values.detach().cpu().double()
    axis.vlines(places, [0.0] * len(places), found.tolist(), color=COLORS[0], linewidth=1, alpha=0.4)
    axis.errorbar(
        places, found.tolist(), yerr=errors.detach().cpu().double().tolist(), color=COLORS[0], marker="o", linestyle="",
        capsize=3, label="eigenvalue of the Hessian",
    )  # fmt: skip
    if math.isfinite(threshold):
        label = f"unstable above {threshold:.4g}"
        axis.axhline(threshold, color=COLORS[1], linewidth=1.4, linestyle="--", label=label)
    axis.axhline(0, color=INK, linewidth=0.8)
    axis.set(xlabel="place, the largest first", ylabel="eigenvalue", xlim=(0.5, len(places) + 0.5))
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_title(title, fontsize=9.5, loc="left")
    axis.legend(frameon=False, fontsize=9)
    return figure
