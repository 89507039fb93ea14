"""The look of the figures that results of analyses draw: without pyplot, so no global state is touched."""

from __future__ import annotations

from typing import Any

from mfoc.errors import require

# Okabe & Ito's palette: told apart by readers who do not see all colours.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", ":", "-.")


def new_axes(width: float, height: float, columns: int = 1) -> tuple[Any, list[Any]]:
    """An empty figure of that size, in inches, that needs no display, and its axes in a row.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    figure = require("matplotlib.figure", "plot").Figure(figsize=(width, height), layout="constrained", dpi=120)
    require("matplotlib.backends.backend_agg", "plot").FigureCanvasAgg(figure)
    axes = list(figure.subplots(1, columns, squeeze=False)[0])
    for axis in axes:
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
        axis.grid(True, color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
    return figure, axes


def style(index: int) -> dict[str, Any]:
    """Colour and dashes of the line with that index: no two of the first 28 are alike."""
    return {"color": COLORS[index % len(COLORS)], "linestyle": LINES[index // len(COLORS) % len(LINES)]}
