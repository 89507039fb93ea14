"""Figures of kernels: two of them side by side, and what a fitted one predicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mfoc.figures import COLORS, INK, new_axes, new_figure


def draw_kernels(kernels: Mapping[str, Tensor]) -> Any:
    """Matrices as images, each with the scale of its numbers; dark is small, in grey too.

    Args:
        kernels: name -> ``[N1, N2]``.
    """
    figure = new_figure(4.4 * len(kernels), 3.8)
    for axis, (name, kernel) in zip(figure.subplots(1, len(kernels), squeeze=False)[0], kernels.items(), strict=True):
        shown = axis.imshow(kernel.detach().cpu().double().numpy(), cmap="cividis", interpolation="nearest")
        figure.colorbar(shown, ax=axis, shrink=0.85, label="kernel")
        axis.set(xlabel="input of the second set", ylabel="input of the first set")
        axis.set_title(name, fontsize=10, loc="left")
        for locator in (axis.xaxis.get_major_locator(), axis.yaxis.get_major_locator()):
            locator.set_params(integer=True)
    return figure


def draw_process(x: Tensor, y: Tensor, at: Tensor, mean: Tensor, deviation: Tensor, title: str) -> Any:
    """A function of one variable by its mean and two standard deviations, and the points that were fitted.

    Args:
        x: of the points ``[N]``.
        y: of the points ``[N]``.
        at: ascending ``[M]``.
        mean: there.
        deviation: standard deviation there.
        title: above the figure.
    """
    figure, (axis,) = new_axes(6.8, 4.0)
    band = {"color": COLORS[0], "alpha": 0.25, "linewidth": 0}
    axis.fill_between(at, mean - 2 * deviation, mean + 2 * deviation, label="± 2 sd", **band)
    axis.plot(at, mean, color=COLORS[0], linewidth=1.8, label="mean")
    axis.plot(x, y, "o", color=INK, markersize=4, label="fitted", zorder=3)
    axis.set(xlabel="x", ylabel="output")
    axis.set_title(title, fontsize=10, loc="left")
    axis.legend(frameon=False, fontsize=9)
    return figure


def draw_left_out(targets: Tensor, found: Tensor, title: str) -> Any:
    """What each point is predicted to be when it is left out, against what it is, on equal axes.

    Args:
        targets: ``[N, k]``.
        found: ``[N, k]``.
        title: above the figure.
    """
    figure, (axis,) = new_axes(4.6, 4.6)
    both = torch.cat([targets, found])
    low, high = float(both.min()), float(both.max())
    margin = 0.06 * (high - low) or 0.5
    ends = (low - margin, high + margin)
    axis.plot(ends, ends, color="#999999", linewidth=1, linestyle="--", label="as it is")
    several = targets.shape[1] > 1
    for k, (one, other) in enumerate(zip(targets.mT, found.mT, strict=True)):
        label = f"output {k}" if several else "left out"
        marker = "osD^vP*"[k % 7]
        axis.plot(one, other, marker, color=COLORS[k % len(COLORS)], markersize=4, alpha=0.8, label=label)
    axis.set(xlim=ends, ylim=ends, xlabel="target", ylabel="predicted when left out")
    axis.set_aspect("equal")
    axis.set_title(title, fontsize=10, loc="left")
    axis.legend(frameon=False, fontsize=9)
    return figure


def draw_margins(margins: Tensor, title: str) -> Any:
    """By how much the right class is ahead of the best other one: below zero the label is wrong.

    Args:
        margins: ``[N]``.
        title: above the figure.
    """
    figure, (axis,) = new_axes(6.4, 3.8)
    low, high = min(float(margins.min()), 0.0), max(float(margins.max()), 0.0)
    edges = torch.linspace(low, high if high > low else low + 1, 31, dtype=torch.float64, device="cpu").tolist()
    wrong, right = margins[margins <= 0], margins[margins > 0]
    for part, color, hatch, name in ((right, COLORS[0], "", "right"), (wrong, COLORS[1], "///", "wrong")):
        axis.hist(part.numpy(), bins=edges, color=color, alpha=0.6, hatch=hatch, label=f"{name}: {len(part)}")
    axis.axvline(0, color=INK, linewidth=1, linestyle=":")
    axis.set(xlabel="mean of the right class less the best other, left out", ylabel="points")
    axis.set_title(title, fontsize=10, loc="left")
    axis.legend(frameon=False, fontsize=9)
    return figure
