"""What every figure begins with: an empty canvas, the look of its axes, colours. matplotlib is imported when asked."""

from __future__ import annotations

from typing import Any

from mfoc.errors import require

# Okabe & Ito's palette: told apart by readers who do not see all colours.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
INK = "#333333"
_LINES = ("-", "--", ":", "-.")


def new_figure(width: float, height: float) -> Any:
    """An empty figure of that size, in inches, that needs no display."""
    figure = require("matplotlib.figure", "plot").Figure(figsize=(width, height), layout="constrained", dpi=120)
    require("matplotlib.backends.backend_agg", "plot").FigureCanvasAgg(figure)
    return figure


def tidy(axis: Any, grid: str = "y") -> None:
    """The look of mfoc's axes: no frame at the top and right, a faint grid ("x", "y" or "both") behind the data."""
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    axis.grid(True, axis=grid, color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)


def new_axes(width: float, height: float, columns: int = 1, *, grid: str = "both") -> tuple[Any, list[Any]]:
    """An empty figure, as of ``new_figure``, and its axes in a row, tidied."""
    figure = new_figure(width, height)
    axes = list(figure.subplots(1, columns, squeeze=False)[0])
    for axis in axes:
        tidy(axis, grid)
    return figure, axes


def style(index: int) -> dict[str, Any]:
    """Colour and dashes of the line with that index: no two of the first 28 are alike."""
    return {"color": COLORS[index % len(COLORS)], "linestyle": _LINES[index // len(COLORS) % len(_LINES)]}
