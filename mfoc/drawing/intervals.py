"""Measures with intervals, stage by stage: those of certificates, and a few beside one another.

This is below the public doors: it does not check its arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mfoc.drawing.scales import Array, finite, log_with_zero, named_ticks, say, signed_ticks, wrapped
from mfoc.errors import InvalidValue
from mfoc.figures import COLORS, INK, look, new_figure, sized, tidy

PANELS = {
    "residual": "stationarity residual  ‖E ∂H/∂u‖",
    "gap": "Hamiltonian gap  E H(u) − min E H",
    "curvature": "curvature  $\\lambda_{\\min}$(E ∂²H/∂u²)",
}
_MARKERS = "osD^vP*"


def certificates(found: Sequence[Any], names: Sequence[str]) -> Any:
    """Residual, gap and curvature of each stage with their intervals; see ``mfoc.plot.certificate``.

    Raises:
        InvalidValue: the certificates have different stages.
    """
    labels = [stage.name for stage in found[0].stages]
    if any([stage.name for stage in other.stages] != labels for other in found):
        raise InvalidValue("certificates have different stages; expected certificates of one problem")
    figure = new_figure(min(14.0, max(9.6, 3 + 1.05 * len(labels))), 3.9)
    panels = list(figure.subplots(1, 3))
    looks = of_certificates(names or [""] * len(found))
    stages_on(panels, found, looks)
    level = "all particles there are" if found[0].complete else f"bars: {100 * found[0].confidence:.0f}% intervals"
    verdict = f": {found[0].verdict.standing.value}" if len(found) == 1 else ""
    note = level if found[0].complete else f"{level} for the population"
    sizes = [measure for one in found for stage in one.stages for measure in (stage.residual, stage.gap)]
    if any(measure.low <= 0 < measure.value < np.inf for measure in sizes):
        note += "; an arrow: down to zero"
    figure.suptitle(f"Certificate{verdict} ({note})", fontsize=11)
    if names:
        handles = [panels[0].plot([], [], linestyle="", **one)[0] for one in looks]
        figure.legend(handles, [wrapped(n, 60) for n in names], loc="outside lower center", ncols=min(len(names), 4),
                      frameon=False)  # fmt: skip
    return figure


def of_certificates(names: Sequence[str]) -> list[dict[str, Any]]:
    """Colour and marker of each: that of the solver it is named after, and none twice."""
    looks: list[dict[str, Any]] = []
    for index, name in enumerate(names):
        one = look(name, index)
        if any(one["color"] == other["color"] for other in looks):
            free = [color for color in COLORS if all(color != other["color"] for other in looks)]
            one = {"color": (free or COLORS)[index % len(free or COLORS)], "marker": _MARKERS[index % len(_MARKERS)]}
        looks.append(one)
    return looks


def stages_on(
    panels: Sequence[Any],
    found: Sequence[Any],
    looks: Sequence[dict[str, Any]],
    fields: Sequence[str] = tuple(PANELS),
) -> None:
    """Residual, gap and curvature (or some of them) of the stages of some certificates, an axis each."""
    labels = [stage.name for stage in found[0].stages]
    for panel, field in zip(panels, fields, strict=True):
        panel.set_title(PANELS[field], fontsize=10)
        panel.set_xlabel("stage", fontsize=9)
        panel.set_xlim(-0.6, len(labels) - 0.4)
        named_ticks(panel, labels)
        tidy(panel)
        parts = [_ends([getattr(stage, field) for stage in one.stages]) for one in found]
        _scaled(panel, field, parts)
        for index, (ends, one) in enumerate(zip(parts, looks, strict=True)):
            shift = 0.16 * (index - (len(found) - 1) / 2) if len(found) <= 5 else 0.6 * (index / (len(found) - 1) - 0.5)
            bars(panel, np.arange(len(labels), dtype=np.float64) + shift, ends, one)


def _ends(measures: Sequence[Any]) -> Array:
    """Value, low and high of each ``[n, 3]``."""
    return np.array([(one.value, one.low, one.high) for one in measures], dtype=float).reshape(len(measures), 3)


def _scaled(panel: Any, field: str, parts: Sequence[Array]) -> None:
    """A scale and limits that hold every value and every finite end, but that zero is no place on a logarithm."""
    values, ends = finite([part[:, 0] for part in parts]), finite(parts)
    if field == "curvature":
        sizes = np.abs(values[values != 0])
        panel.axhline(0, color=INK, linewidth=0.8)
        if not sizes.size:  # flat, or not measured
            panel.set_ylim(-1, 1)
            return
        threshold = max(float(sizes.min()), 1e-3 * float(sizes.max()))
        panel.set_yscale("symlog", linthresh=threshold, linscale=1)
        if ends.size:
            low, high = min(float(ends.min()), 0.0), max(float(ends.max()), 0.0)
            panel.set_ylim(low * 2.2 if low < 0 else -0.4 * threshold, high * 2.2 if high > 0 else 0.4 * threshold)
        signed_ticks(panel, threshold)
        return
    positive = values[values > 0]
    if not positive.size:
        if values.size:  # zero, all of it
            panel.set_ylim(-0.05, 1)
        return
    # Down to where the values are, and a decade: an interval that reaches zero ends there in an arrow.
    above = ends[ends > 0]
    panel.set_yscale("log")
    least, most = float(positive.min()), float(above.max())
    room = max(4.0, (most / least) ** 0.12)  # below the least value, so that an arrow there is seen
    panel.set_ylim(max(least / room, float(above.min()) / 2), most * 3)
    if (values == 0).any():
        log_with_zero(panel, finite([positive, above, np.zeros(1)]))
        panel.set_ylim(top=float(above.max()) * 3)


def bars(axis: Any, places: Array, ends: Array, one: dict[str, Any]) -> None:
    """Values with their intervals, clipped to the axes by an arrow that says so; ∞ and what is missing in words."""
    bottom, top = axis.get_ylim()
    value, low, high = ends.T
    shown = np.isfinite(value)
    low, high = np.where(np.isnan(low), value, low), np.where(np.isnan(high), value, high)
    kept_low, kept_high = np.clip(low, bottom, top), np.clip(high, bottom, top)
    color = one["color"]
    axis.vlines(places[shown], kept_low[shown], kept_high[shown], color=color, linewidth=2, alpha=0.55)
    for cut, at, arrow in ((low < bottom, bottom, 7), (high > top, top, 6)):  # carets that point out of the axes
        where = places[shown & cut]
        if not len(where):  # an empty line has an extent, at the corner of the figure, which spoils the layout
            continue
        axis.plot(where, np.full(len(where), at), marker=arrow, linestyle="", color=color, markersize=6, clip_on=False)
    size = 5.0 if len(places) <= 60 else 2.5
    axis.plot(places[shown], value[shown], linestyle="", markersize=size * sized(one["marker"]), **one)
    text = {"xycoords": ("data", "axes fraction"), "ha": "center", "color": color}
    for place in places[np.isposinf(value)]:
        axis.annotate("∞", (place, 0.97), va="top", **text)
    if len(places) and not shown.any() and np.isposinf(value).any():
        axis.set_yticks([])
        say(axis, "∞: H falls without end")
    elif len(places) and not shown.any():
        axis.set_yticks([])
        say(axis, "not measured")
    else:
        for place in places[np.isnan(value)]:
            axis.annotate("–", (place, 0.02), va="bottom", **text)
