"""Figures of signals in depth: the two maps with their fixed points, and what passes through the layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mfoc.figures import COLORS, INK, new_axes, style

if TYPE_CHECKING:
    from mfoc.analysis.propagation.theory.signal import SignalPropagation

_POINTS = 201
_STARTS = (0.0, 0.5, 0.9)
_LARGE = 1e4  # lengths beyond are not drawn
_OVERFLOW = 1e10
_LINE = {"linewidth": 1.8}


def draw_signals(theory: SignalPropagation, depth: int) -> Any:
    """The map of lengths, that of correlations at the length reached, and correlations through the layers."""
    figure, (lengths, correlations, layers) = new_axes(11.5, 3.9, 3)
    _lengths(lengths, theory)
    q = theory.q_star if 0 < theory.q_star < math.inf else 1.0
    c = torch.linspace(-1, 1, _POINTS, dtype=torch.float64, device="cpu")
    _map(correlations, c, theory.correlation_map(c, q), "correlation c of two inputs", "c in the next layer")
    if _settles(theory):
        _fixed(correlations, theory.c_star, stable=True, name="c*")
    correlations.set_aspect("equal")
    reached = f"q* = {q:.3g}, slope $χ_1$ = {theory.chi_1:.3g} at c = 1" if q == theory.q_star else f"q = {q:.3g}"
    correlations.set_title(f"correlation map at {reached}")
    _layers(layers, theory, depth, q)
    for axis in (lengths, correlations, layers):
        axis.title.set_fontsize(9.5)
        axis.legend(fontsize=8, framealpha=0.85, edgecolor="none")
    figure.suptitle(_headline(theory), fontsize=10.5)
    return figure


def _headline(theory: SignalPropagation) -> str:
    given = f"$σ_w^2$ = {theory.weight_variance:.4g}, $σ_b^2$ = {theory.bias_variance:.4g}"
    dropout = f", dropout {theory.dropout:g}" if theory.dropout else ""
    known = _settles(theory) and math.isfinite(theory.xi_c)
    scale = f", correlations settle over $ξ_c$ = {theory.xi_c:.3g} layers" if known else ""
    return f"{theory.moments.activation.name}, {given}{dropout}: {theory.phase}{scale}"


def _settles(theory: SignalPropagation) -> bool:
    """Whether correlations have a fixed point: where lengths shrink to nothing they stay where they are instead."""
    return theory.q_star > 0 and math.isfinite(theory.c_star)


def _lengths(axis: Any, theory: SignalPropagation) -> None:
    known = [point.q for point in theory.fixed_points if point.q < _LARGE]
    top = 2 * max([0.5, *known])
    q = torch.linspace(0, top, _POINTS, dtype=torch.float64, device="cpu")
    _map(axis, q, theory.length_map(q), "variance q of the pre-activations", "q in the next layer")
    for point in theory.fixed_points:
        if point.q < _LARGE:
            _fixed(axis, point.q, stable=point.stable, name="q*" if point.q == theory.q_star else "q")
    end = "no fixed point is reached: q grows" if math.isinf(theory.q_star) else f"q* = {theory.q_star:.3g}"
    axis.set_title(f"length map, {end}")


def _map(axis: Any, x: Tensor, following: Tensor, x_label: str, y_label: str) -> None:
    axis.plot(x.tolist(), x.tolist(), color="#999999", linewidth=1, linestyle="--", label="unchanged")
    axis.plot(x.tolist(), following.tolist(), label="one layer", **style(0), **_LINE)
    axis.set(xlabel=x_label, ylabel=y_label)


def _fixed(axis: Any, value: float, *, stable: bool, name: str) -> None:
    color = COLORS[1]
    label = f"{name} = {value:.3g}" if stable else f"unstable, {value:.3g}"
    axis.plot(
        [value], [value], "o", color=color, markersize=8, markerfacecolor=color if stable else "white",
        label=label, zorder=4, clip_on=False, linestyle="",
    )  # fmt: skip


def _layers(axis: Any, theory: SignalPropagation, depth: int, q: float) -> None:
    for index, (start, course) in enumerate(zip(_STARTS, _courses(theory, depth, q).mT, strict=True)):
        mark = {"marker": "osD"[index], "markersize": 4, "markevery": max(1, depth // 10)}
        axis.plot(range(depth + 1), course.tolist(), label=f"from c = {start:g}", **style(index), **_LINE, **mark)
    if _settles(theory):
        axis.axhline(theory.c_star, color=INK, linewidth=1, linestyle=":", label=f"c* = {theory.c_star:.3g}")
    for count in (1, 6):  # 6 xi_c: as deep as networks were seen to train (Schoenholz et al. 2017)
        if _settles(theory) and count * theory.xi_c <= depth:
            axis.axvline(count * theory.xi_c, color=INK, linewidth=0.8, linestyle="-.")
            name = f"${'' if count == 1 else count}ξ_c$"
            axis.annotate(
                name, (count * theory.xi_c, 0), xytext=(2, 3), xycoords=("data", "axes fraction"),
                textcoords="offset points", fontsize=8, color=INK,
            )  # fmt: skip
    axis.set(xlabel="layer", ylabel="correlation c", ylim=(-0.05, 1.05))
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_title("two inputs through the layers")


def _courses(theory: SignalPropagation, depth: int, q: float) -> Tensor:
    """Correlations by layer from each start ``[depth + 1, starts]``, all of them in one pass; NaN where q overflows."""
    c, length = torch.tensor(_STARTS, dtype=torch.float64, device="cpu"), torch.tensor(q, dtype=torch.float64)
    found = [c]
    for _ in range(depth):
        if float(length) < _OVERFLOW:
            c, length = theory.correlation_map(c, length).clamp(-1, 1), theory.length_map(length)
        else:
            c = torch.full_like(c, math.nan)
        found.append(c)
    return torch.stack(found)


def draw_course(panels: Mapping[str, Tensor], *, linear: str, x_label: str, title: str) -> Any:
    """Quantities by layer, a panel each, on logarithmic axes but for one.

    Args:
        panels: name -> values ``[depth + 1]``.
        linear: the one that is not on a logarithmic axis.
        x_label: of all.
        title: above the figure.
    """
    figure, axes = new_axes(3.6 * len(panels), 3.3, len(panels))
    for index, (axis, (name, values)) in enumerate(zip(axes, panels.items(), strict=True)):
        shown = [value if math.isfinite(value) else math.nan for value in values.tolist()]
        mark = {"marker": "o", "markersize": 4} if sum(map(math.isfinite, shown)) <= 20 else {}
        axis.plot(range(len(shown)), shown, **style(index), **_LINE, **mark)
        axis.set(xlabel=x_label, ylabel=name, xlim=(-0.02 * len(shown), 1.02 * (len(shown) - 1)))
        axis.xaxis.get_major_locator().set_params(integer=True)
        positive = [value for value in shown if value > 0]
        if name == linear:
            axis.set_ylim(min([-0.05, *(value - 0.05 for value in shown if value == value)]), 1.05)
        elif positive:
            axis.set_yscale("log", nonpositive="mask")
            _wide_enough(axis, positive)
        lost = sum(value != value for value in shown)
        if lost:
            axis.set_title(f"not finite in {lost} of {len(shown)}", fontsize=8.5, loc="right", color=INK)
    figure.suptitle(title, fontsize=10)
    return figure


def _wide_enough(axis: Any, values: list[float]) -> None:
    """A decade at least, so that what is nearly constant looks so."""
    low, high = min(values), max(values)
    if high < 10 * low:
        middle = math.sqrt(low) * math.sqrt(high)
        axis.set_ylim(middle / 4, middle * 4)
