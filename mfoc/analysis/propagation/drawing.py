"""The figure of a diagnosis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mfoc.errors import require
from mfoc.figures import COLORS, INK, new_figure, tidy

if TYPE_CHECKING:
    from mfoc.analysis.propagation.report import Diagnosis

_BLUE, _RED, _GREEN = COLORS[:3]


def draw_diagnosis(found: Diagnosis) -> Any:
    """Gains, activations, correlations and gradients against depth; theory is dashed.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    figure = new_figure(9.5, 6.4)
    (gains, sizes), (alike, slopes) = figure.subplots(2, 2)
    blocks = found.blocks
    gains.axhspan(0.9, 1.1, color="#eeeeee", zorder=0)
    gains.axhline(1, color=INK, linewidth=0.8)
    _line(gains, [b.chi for b in blocks], _BLUE, "χ of a random perturbation")
    _line(gains, [b.chi_backward for b in blocks], _RED, "χ of the gradient that arrives", marker="s")
    _line(gains, [b.chi_theory for b in blocks], INK, "χ by theory", dashed=True)
    _panel(gains, "gain of a block: below 1 vanishes, above 1 explodes", "χ", log=True)
    _line(sizes, [b.q for b in blocks], _BLUE, "measured")
    _line(sizes, [b.q_theory for b in blocks], INK, "by theory", dashed=True)
    _panel(sizes, "size of activations", "q, their mean square", log=True)
    _line(alike, [b.c for b in blocks], _BLUE, "of two inputs")
    _line(alike, [b.tokens for b in blocks], _GREEN, "of two tokens of an input", marker="s")
    _panel(alike, "how alike: at 1 they are told apart no more", "c, mean cosine")
    alike.set_ylim(min([-0.05, *(b.c - 0.05 for b in blocks if math.isfinite(b.c))]), 1.05)
    at_random = math.isnan(found.loss)
    _line(slopes, [b.gradient for b in blocks], _RED, "in the block's parameters")
    _line(slopes, [b.arriving for b in blocks], _GREEN, "at the block's output", marker="s")
    _panel(
        slopes, "gradient, random at the network's output" if at_random else "gradient of the loss", "norm", log=True
    )
    for axis in (alike, slopes):
        axis.set_xlabel("block")
    figure.suptitle(_wrapped(found.verdict), fontsize=10.5)
    return figure


def _line(
    axis: Any, values: Sequence[float], color: str, label: str, *, dashed: bool = False, marker: str = "o"
) -> None:
    if all(not math.isfinite(value) for value in values):
        return
    numbers = range(1, len(values) + 1)
    style = {"linestyle": "--", "linewidth": 1.6} if dashed else {"marker": marker, "markersize": 3.5, "linewidth": 1.1}
    axis.plot(numbers, values, color=color, label=label, alpha=0.75 if dashed else 1.0, **style)


def _panel(axis: Any, title: str, y_label: str, *, log: bool = False) -> None:
    drawn = [value for line in axis.get_lines() for value in line.get_ydata() if math.isfinite(value)]
    if log and any(value > 0 for value in drawn):
        axis.set_yscale("log", nonpositive="mask")
        _plain_decade(axis, [value for value in drawn if value > 0])
    axis.set_title(title, fontsize=10)
    axis.set_ylabel(y_label)
    tidy(axis)
    axis.xaxis.get_major_locator().set_params(integer=True)
    if axis.get_legend_handles_labels()[1]:
        axis.legend(frameon=False, fontsize=8)


def _plain_decade(axis: Any, drawn: list[float]) -> None:
    """Within a decade or so: wide enough for what is nearly constant to look so, with ticks that are plain numbers."""
    low, high = min(drawn), max(drawn)
    if high > 30 * low:
        return
    if high < 4 * low:
        middle = math.sqrt(low * high)
        low, high = min(low, middle / 2), max(high, middle * 2)
    axis.set_ylim(low / 1.15, high * 1.15)
    ticker = require("matplotlib.ticker", "plot")
    axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axis.yaxis.set_minor_formatter(ticker.NullFormatter())


def _wrapped(sentence: str, width: int = 95) -> str:
    lines = [""]
    for word in sentence.split():
        if len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] += f"{word} "
    return "\n".join(line.rstrip() for line in lines)
