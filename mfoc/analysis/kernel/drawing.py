"""Figures of kernels, made without pyplot, so that no global state is touched."""

from __future__ import annotations

from typing import Any

from mfoc.errors import require


def axes(x_label: str, y_label: str) -> tuple[Any, Any]:
    """An empty figure that needs no display, and its axes."""
    figure = require("matplotlib.figure", "plot").Figure(figsize=(6.4, 4.0), layout="constrained", dpi=120)
    require("matplotlib.backends.backend_agg", "plot").FigureCanvasAgg(figure)
    axis = figure.subplots()
    axis.set(xlabel=x_label, ylabel=y_label)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    axis.grid(True, color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    return figure, axis


def finish(figure: Any, axis: Any) -> Any:
    """The figure, with a legend."""
    axis.legend(frameon=False)
    return figure
