"""The figure of an information plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mfoc.analysis.information.bounds import Bounds
from mfoc.figures import COLORS, INK, new_axes

Path = Sequence[tuple[Bounds, Bounds]]  # about the input, about the labels; one for each moment


def draw(paths: Mapping[str, Path], input_limit: float, label_limit: float, title: str) -> Any:
    """Paths of layers through the plane, inside the limits ln N and H(Y)."""
    figure, (axis,) = new_axes(7.2, 4.6)
    axis.axvline(input_limit, color=INK, linestyle=":", linewidth=1)
    axis.axhline(label_limit, color=INK, linestyle=":", linewidth=1)
    axis.annotate(
        "ln N", (input_limit, 1), xytext=(3, 2), xycoords=("data", "axes fraction"), textcoords="offset points",
        color=INK, fontsize=9,
    )  # fmt: skip
    axis.annotate("H(Y)", (0, label_limit), xytext=(2, 3), textcoords="offset points", color=INK, fontsize=9)
    for index, (name, path) in enumerate(paths.items()):
        _draw_path(axis, path, COLORS[index % len(COLORS)], "osD^vP*"[index % 7], name)
    axis.set(
        xlabel="I(X;T) [nats]",
        ylabel="I(T;Y) [nats]",
        title=title,
        xlim=(-0.03 * input_limit, 1.08 * input_limit),
        ylim=(-0.05 * label_limit - 1e-3, 1.12 * label_limit + 1e-3),
    )
    moving = any(len(path) > 1 for path in paths.values())
    figure.legend(
        title="layer\n(open: first)" if moving else "layer", frameon=False, fontsize=9, loc="outside right upper"
    )
    return figure


def _draw_path(axis: Any, path: Path, color: str, marker: str, name: str) -> None:
    x, y = [about.middle for about, _ in path], [about.middle for _, about in path]
    axis.plot(x, y, color=color, linewidth=1.4, alpha=0.8, marker=".", markersize=4)
    if len(path) > 1:
        axis.plot(x[0], y[0], marker, color=color, markerfacecolor="white", markersize=7, zorder=3)
    axis.plot(x[-1], y[-1], marker, color=color, markersize=8, label=name, zorder=4)
    about_input, about_labels = path[-1]
    axis.plot([about_input.lower, about_input.upper], [y[-1], y[-1]], color=color, linewidth=0.9, alpha=0.6)
    axis.plot([x[-1], x[-1]], [about_labels.lower, about_labels.upper], color=color, linewidth=0.9, alpha=0.6)
