"""Figures. Each function returns a ``matplotlib.figure.Figure``, made without pyplot, so no global state is touched."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mfoc import tree
from mfoc.certificate import Certificate, Measure
from mfoc.checks import check_flag, check_instance, check_tensor, kind_of
from mfoc.errors import InvalidType, InvalidValue, require
from mfoc.figures import COLORS as COLORS
from mfoc.figures import INK
from mfoc.figures import new_figure as new_figure
from mfoc.figures import tidy as tidy
from mfoc.pontryagin import Trajectory

_PANELS = {
    "residual": "stationarity residual  ‖E ∂H/∂u‖",
    "gap": "Hamiltonian gap  E H(u) − min E H",
    "curvature": "curvature  $\\lambda_{\\min}$(E ∂²H/∂u²)",
}


def curves(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    x_label: str = "wall time [s]",
    y_label: str = "objective J",
    title: str = "",
    log: bool = True,
) -> Any:
    """Several curves on one pair of axes, such as the objective against time for several solvers.

    Args:
        series: name -> (x, y).
        x_label: with its unit.
        y_label: with its unit.
        title: title of the figure.
        log: logarithmic y axis, where all values are positive.

    Raises:
        InvalidType: no curves.
        InvalidValue: x and y of different lengths.
    """
    check_instance(Mapping, "a dict, name -> (x, y)", series=series)
    check_flag(log=log)
    if not series:
        raise InvalidValue("series is empty; expected at least one curve")
    for name, pair in series.items():
        check_instance(tuple | list, "a pair (x, y) of numbers", **{f"series[{name!r}]": pair})
        if len(pair) != 2:
            raise InvalidValue(f"series[{name!r}] has {len(pair)} parts; expected a pair (x, y) of numbers")
        x, y = pair
        check_instance(Sequence | Tensor, "numbers, a list or a tensor", **{f"series[{name!r}]": x})
        check_instance(Sequence | Tensor, "numbers, a list or a tensor", **{f"series[{name!r}]": y})
        if len(x) != len(y):
            raise InvalidValue(f"series[{name!r}] has {len(x)} x and {len(y)} y values; they must agree")
    log = log and all(min(y, default=1) > 0 for _, y in series.values())  # a logarithm shows no negative J
    figure = new_figure(7, 4.2)
    axis = figure.subplots()
    for (name, (x, y)), color in zip(series.items(), _colors(len(series)), strict=True):
        axis.plot(x, y, color=color, linewidth=1.8, label=name)
    axis.set(xlabel=x_label, ylabel=y_label, title=title)
    if log:
        axis.set_yscale("log")
    tidy(axis)
    axis.legend(frameon=False)
    return figure


def certificate(*certificates: Certificate, names: Sequence[str] = ()) -> Any:
    """Residual, gap and curvature of each stage with their intervals, one colour per certificate.

    Args:
        *certificates: certificates of the same problem.
        names: one name for each.

    Raises:
        InvalidType: something that is not a certificate.
        InvalidValue: the number of names differs from the number of certificates.
    """
    if not certificates or not all(isinstance(c, Certificate) for c in certificates):
        raise InvalidType("certificates: expected one or more mfoc.Certificate")
    if names and len(names) != len(certificates):
        raise InvalidValue(f"names has {len(names)} entries for {len(certificates)} certificates")
    labels = [stage.name for stage in certificates[0].stages]
    if any([stage.name for stage in other.stages] != labels for other in certificates):
        raise InvalidValue("certificates have different stages; expected certificates of one problem")
    figure = new_figure(min(14.0, max(9.0, 3 + 1.05 * len(labels))), 3.6)
    panels = figure.subplots(1, 3)
    for panel, (field, title) in zip(panels, _PANELS.items(), strict=True):
        for index, (one, color) in enumerate(zip(certificates, _colors(len(certificates)), strict=True)):
            shift = 0.12 * (index - (len(certificates) - 1) / 2)
            _intervals(panel, [getattr(stage, field) for stage in one.stages], shift, color)
        panel.set_title(title, fontsize=10)
        every = -(-len(labels) // 10)
        panel.set_xticks(range(0, len(labels), every), labels[::every])
        panel.set_xlim(-0.6, len(labels) - 0.4)
        panel.set_xlabel("stage")
        tidy(panel)
        if field == "curvature":
            panel.axhline(0, color=INK, linewidth=0.8)
            smallest = [abs(s.curvature.value) for c in certificates for s in c.stages if s.curvature.value != 0]
            top = max(smallest, default=1.0)
            panel.set_yscale("symlog", linthresh=max(min(smallest, default=1.0), 1e-3 * top))
        else:
            panel.set_yscale("log")
    level = f"bars: {100 * certificates[0].confidence:.0f}% intervals for the population"
    figure.suptitle(f"Certificate ({level})", fontsize=11)
    if names:
        handles = [panels[0].plot([], [], "o", color=c)[0] for c in _colors(len(names))]
        figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False)
    return figure


def _intervals(axis: Any, measures: list[Measure], shift: float, color: str) -> None:
    for stage, measure in enumerate(measures):
        if math.isinf(measure.value):
            above = {"xycoords": ("data", "axes fraction"), "ha": "center", "va": "top"}
            axis.annotate("∞", (stage + shift, 0.97), color=color, **above)
            continue
        axis.plot([stage + shift] * 2, [measure.low, measure.high], color=color, linewidth=2, alpha=0.5)
        axis.plot([stage + shift], [measure.value], "o", color=color, markersize=4)


def cloud(trajectory: Trajectory, labels: Tensor | None = None, *, stages: Sequence[int] | None = None) -> Any:
    """The state cloud as it is pushed through the stages, each seen in its own two first principal components.

    Args:
        trajectory: what ``rollout`` returned; states are single tensors ``[N, ...]``.
        labels: classes ``[N]`` for the colours.
        stages: which states to show; at most six, evenly spread, when None.

    Raises:
        InvalidType: states that are not single tensors.
    """
    if not isinstance(trajectory, Trajectory):
        raise InvalidType(f"trajectory is {kind_of(trajectory)}; expected what mfoc.rollout returns")
    states = trajectory.states
    if not all(isinstance(state, Tensor) for state in states):
        raise InvalidType(f"trajectory: cloud draws states that are single tensors; got {tree.describe(states[0])}")
    last = len(states) - 1
    count = min(5, last)
    if stages is not None:
        check_instance(Sequence, f"stages from 0 to {last}", stages=stages)
    shown = sorted({round(k * last / count) for k in range(count + 1)}) if stages is None else list(stages)
    if not shown or not all(isinstance(t, int) and 0 <= t <= last for t in shown):
        raise InvalidValue(f"stages is {stages}; expected stages from 0 to {last}")
    check_instance(Tensor | None, "a tensor of classes", labels=labels)
    if labels is not None and labels.shape != (len(states[0]),):
        raise InvalidValue(f"labels: expected a tensor of {len(states[0])} classes, one for each particle")
    figure = new_figure(2.5 * len(shown), 2.9)
    axes = figure.subplots(1, len(shown), squeeze=False)[0]
    previous: Tensor | None = None
    for axis, t in zip(axes, shown, strict=True):
        points = principal_components(states[t]).cpu()
        if previous is not None:  # components have no sign: turn each picture towards the one before
            left, _, right = torch.linalg.svd(points.mT @ previous)
            points = points @ left @ right
        previous = points
        if labels is None:
            axis.scatter(points[:, 0], points[:, 1], s=5, color=COLORS[0], alpha=0.6, linewidths=0)
        else:
            classes = labels.cpu()
            for value in torch.unique(classes).tolist():
                mine = points[classes == value]
                color = require("matplotlib", "plot").colormaps["tab10"](value % 10)
                axis.scatter(mine[:, 0], mine[:, 1], s=5, color=color, alpha=0.7, linewidths=0, label=str(value))
        axis.set_title(("input " if t == 0 else "output " if t == last else "") + f"$x_{{{t}}}$", fontsize=10)
        axis.set(xticks=[], yticks=[], xlabel="first component")
        axis.set_aspect("equal", adjustable="datalim")
    axes[0].set_ylabel("second component")
    if labels is not None:
        handles, names = axes[-1].get_legend_handles_labels()
        figure.legend(handles, names, title="class", loc="outside right center", frameon=False, markerscale=2.5)
    return figure


def principal_components(state: Tensor) -> Tensor:
    """The two first principal components of a cloud ``[N, ...]``: ``[N, 2]`` (one column is zero if there is one).

    Raises:
        InvalidType, InvalidValue: no tensor of finite real numbers.
    """
    check_tensor("a cloud [N, ...]", floating=False, state=state)
    if not state.dim():
        raise InvalidValue("state is a scalar; expected a cloud [N, ...]")
    flat = state.detach().flatten(1) if state.dim() > 1 else state.detach()[:, None]
    centred = flat.double() - flat.double().mean(0)
    left, scale, _ = torch.linalg.svd(centred, full_matrices=False)
    scores = left[:, :2] * scale[:2]
    return scores if scores.shape[1] == 2 else torch.nn.functional.pad(scores, (0, 2 - scores.shape[1]))


def _colors(count: int) -> list[str]:
    return [COLORS[k % len(COLORS)] for k in range(count)]
