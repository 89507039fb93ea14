"""Clouds: what plane a state is seen in, the snapshots of it, and its law over the stages.

This is below the public doors: it does not check its arguments.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mfoc import tree
from mfoc.drawing.scales import LARGEST, clipped, finite, say, whole_ticks
from mfoc.errors import InvalidType, InvalidValue
from mfoc.figures import COLORS, INK, new_figure, of_class, tidy
from mfoc.printing import by_identity

_POINTS = 1500  # of a cloud that are drawn
_CLASSES = 10  # that are told apart by colour and marker; of more, or of numbers, the colour is a scale
_COORDINATES = 4  # of a state that have a panel each; of wider ones the law is seen as root mean squares
_LEAVES = 6


@by_identity
class View(NamedTuple):
    """Points of a cloud in a plane, at some stages.

    Attributes:
        points: for each stage ``[N, 2]``.
        labels: of the two axes.
        shared: whether all stages are seen in one plane, so that their axes are the same.
    """

    points: list[Tensor]
    labels: tuple[str, str]
    shared: bool


def flat(state: Tensor) -> Tensor:
    """A state as a matrix ``[N, d]``, in double precision on the CPU; what no axis can show of it is infinite."""
    here = state.detach().cpu()
    here = torch.view_as_real(here.resolve_conj()) if here.is_complex() else here
    here = here.reshape(len(here), -1).double()
    large = here.abs() > LARGEST
    return torch.where(large, here.sign() * math.inf, here) if bool(large.any()) else here


def _whole(cloud: Tensor) -> Tensor:
    """The particles that are finite."""
    good = cloud.isfinite().all(1)
    return cloud if bool(good.all()) else cloud[good]


def view(states: Sequence[Tensor]) -> View:
    """A plane for states.

    Their own coordinates where there are two, principal components of all of them together, or of each where they are
    not equally wide; a scalar state over the share of particles below it.
    """
    clouds = [flat(state) for state in states]
    widths = {cloud.shape[1] for cloud in clouds}
    if widths == {1}:
        return View([_ranked(cloud) for cloud in clouds], ("state x", "share of particles below"), True)
    if widths == {2}:
        return View(clouds, ("$x_1$", "$x_2$"), True)
    if len(widths) == 1:
        plane = _plane(torch.cat(clouds))
        return View([(cloud - plane[0]) @ plane[1] for cloud in clouds], _components(""), True)
    points: list[Tensor] = []
    for cloud in clouds:
        centre, axes = _plane(cloud)
        points.append(_turned((cloud - centre) @ axes, points[-1] if points else None))
    return View(points, _components(", own scale"), False)


def _components(note: str) -> tuple[str, str]:
    return f"1st component{note}", "2nd component"


def _ranked(cloud: Tensor) -> Tensor:
    """A scalar state beside the share of particles below it ``[N, 2]``."""
    share = (cloud[:, 0].argsort().argsort().double() + 0.5) / len(cloud)
    return torch.stack([cloud[:, 0], share], 1)


def _plane(cloud: Tensor) -> tuple[Tensor, Tensor]:
    """The mean ``[d]`` and the two first principal axes ``[d, 2]`` of what is finite of a cloud."""
    width = cloud.shape[1]
    whole = _whole(some(cloud, 4000))
    whole = whole if len(whole) else torch.zeros(1, width, dtype=cloud.dtype)
    centre = whole.mean(0)
    axes = torch.linalg.svd(whole - centre, full_matrices=False)[2][:2].mT
    return centre, torch.nn.functional.pad(axes, (0, 2 - axes.shape[1]))


def some(rows: Tensor, most: int) -> Tensor:
    """At most so many of some rows, drawn once and for all: every second one may be of one class."""
    if len(rows) <= most:
        return rows
    picked = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:most]
    return rows[picked.sort().values]


def _turned(points: Tensor, before: Tensor | None) -> Tensor:
    """Components have no sign: the picture turned towards the one before."""
    if before is None:
        return points
    both = before.isfinite().all(1) & points.isfinite().all(1)
    left, _, right = torch.linalg.svd(points[both].mT @ before[both])
    turned: Tensor = points @ left @ right
    return turned


def spread_over(count: int, most: int) -> list[int]:
    """At most so many of the stages 0 .. count, the first and the last among them, evenly spread."""
    parts = min(most - 1, count)
    return sorted({round(k * count / parts) for k in range(parts + 1)}) if parts else [0]


def snapshots(axes: Sequence[Any], seen: View, stages: Sequence[int], last: int, labels: Tensor | None) -> None:
    """The cloud at some stages, a panel each; equal axes where they are seen in one plane."""
    several = labels is not None and len(torch.unique(labels)) > 1
    limits = bounds_of(torch.cat(seen.points)) if seen.shared else None
    ranked = seen.labels[1].startswith("share")
    for axis, points, t in zip(axes, seen.points, stages, strict=True):
        scatter(axis, points, labels if several else None)
        where = "input " if t == 0 else "output " if t == last else ""
        axis.set_title(f"{where}$x_{{{t}}}$", fontsize=10)
        axis.set_xlabel(seen.labels[0], fontsize=9)
        tidy(axis, "both")
        if ranked:
            axis.set(xlim=limits[0] if limits else None, ylim=(0, 1))
            continue
        framed(axis, limits or bounds_of(points))
        if not seen.shared:
            axis.set(xticks=[], yticks=[])
    for axis in axes[1:] if seen.shared else ():
        axis.tick_params(labelleft=False)
    axes[0].set_ylabel(seen.labels[1], fontsize=9)


def framed(axis: Any, limits: tuple[tuple[float, float], tuple[float, float]]) -> None:
    """A square picture of equal units, with room for all that is in the limits."""
    (left, right), (bottom, top) = limits
    half = max(right - left, top - bottom) / 2
    middle, height = (left + right) / 2, (bottom + top) / 2
    axis.set(xlim=(middle - half, middle + half), ylim=(height - half, height + half))
    axis.set_aspect("equal", adjustable="box")


def bounds_of(points: Tensor) -> tuple[tuple[float, float], tuple[float, float]]:
    """Least and largest of what is finite in each of two columns, with a margin."""
    ends = []
    for column in range(2):
        values = finite([points[:, column].numpy()])
        low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
        margin = 0.06 * (high - low) or 0.5 * max(abs(low), 1e-3)
        ends.append((low - margin, high + margin))
    return ends[0], ends[1]


def scatter(axis: Any, points: Tensor, labels: Tensor | None) -> Any:
    """Points, in one colour or by class; what is not finite is counted in words.

    Returns:
        What carries the colours, where they are a scale, else None.
    """
    whole = points.isfinite().all(1)
    if missing := len(points) - int(whole.sum()):
        note = {"xycoords": "axes fraction", "ha": "left", "va": "top", "fontsize": 8, "color": INK}
        axis.annotate(f"{missing} of {len(points)} not finite", (0.02, 0.98), **note)
    rows = some(whole.nonzero()[:, 0], _POINTS)
    x, y = points[rows].mT
    size = 14.0 if len(rows) <= 300 else 7.0
    shape: dict[str, Any] = {"s": size, "linewidths": 0, "alpha": 0.7}
    if labels is None:
        axis.scatter(x, y, color=COLORS[0], **shape)
        return None
    kinds = torch.unique(labels)
    mine = labels[rows.to(labels.device)].cpu()
    if len(kinds) > _CLASSES:
        return axis.scatter(x, y, c=mine.double(), cmap="cividis", vmin=float(kinds[0]), vmax=float(kinds[-1]), **shape)
    for index, kind in enumerate(kinds.tolist()):
        own = mine == kind
        axis.scatter(x[own], y[own], label=f"{kind:g}", **of_class(index), **shape)
    return None


def legend(figure: Any, axis: Any, labels: Tensor | None) -> None:
    """Names of the classes beside the panels, or the scale of numbers that are told apart by colour."""
    if labels is None:
        return
    kinds = torch.unique(labels)
    if len(kinds) > _CLASSES:
        painted = [part for part in axis.collections if part.get_array() is not None]
        if painted:
            figure.colorbar(painted[0], ax=figure.axes, label="label", shrink=0.8)
        return
    handles, names = axis.get_legend_handles_labels()
    if len(kinds) > 1 and handles:
        figure.legend(handles, names, title="class", loc="outside right center", frameon=False, markerscale=2)


def tensors_of(states: Sequence[Any]) -> list[Tensor] | None:
    """The states where each is a single tensor, else None."""
    return list(states) if all(isinstance(state, Tensor) for state in states) else None


def trajectory(states: Sequence[Any], labels: Tensor | None) -> Any:
    """The cloud at some stages, and below them its law: mean and spread; see ``Trajectory.plot``.

    Raises:
        InvalidType: a state holds no tensor.
        InvalidValue: labels that are not one for each particle.
    """
    last = len(states) - 1
    single = tensors_of(states)
    laws = law_panels(states)
    if not laws:
        raise InvalidType(f"trajectory: {tree.describe(states[0])}; expected states of tensors to draw")
    shown = spread_over(last, 5)
    pictured = single is not None and flat(single[0]).shape[1] > 1
    columns = max(len(shown) if pictured else 1, min(len(laws), 3))
    rows = -(-len(laws) // min(len(laws), 3 if not pictured else columns))
    figure = new_figure(max(6.0, 2.35 * columns), (2.9 if pictured else 0.0) + 2.5 * rows)
    halves = figure.subfigures(2, 1, height_ratios=(2.9, 2.5 * rows)) if pictured else [None, figure]
    if single is not None and pictured:
        top = list(halves[0].subplots(1, len(shown), squeeze=False)[0])
        snapshots(top, view([single[t] for t in shown]), shown, last, labels)
        legend(halves[0], top[-1], labels)
    below = halves[1].subplots(rows, -(-len(laws) // rows), squeeze=False).ravel()
    for axis, (name, clouds) in zip(below, laws, strict=False):
        law(axis, name, clouds, first=axis is below[0])
    for axis in below[len(laws) :]:
        axis.set_visible(False)
    return figure


def law_panels(states: Sequence[Any]) -> list[tuple[str, list[Tensor]]]:
    """What the law is drawn of: a name, and the clouds ``[N, d]`` over the stages; of a few leaves or coordinates."""
    named = [tree.dotted(state) for state in states]
    kept = [name for name, leaf in named[0].items() if isinstance(leaf, Tensor) and all(name in one for one in named)]
    panels: list[tuple[str, list[Tensor]]] = []
    for name in kept[:_LEAVES]:
        clouds = [flat(one[name]) for one in named]
        widths = {cloud.shape[1] for cloud in clouds}
        title = clipped(name, 24) or "state x"
        if len(kept) == 1 and len(widths) == 1 and 1 < clouds[0].shape[1] <= _COORDINATES:
            panels += [
                (f"$x_{{{k + 1}}}$", [cloud[:, k : k + 1] for cloud in clouds]) for k in range(clouds[0].shape[1])
            ]
        else:
            panels.append((title, clouds))
    return panels


def law(axis: Any, name: str, clouds: Sequence[Tensor], *, first: bool = True) -> None:
    """Mean and spread over the stages: of a scalar with bands, of a wider state as root mean squares over its units."""
    tidy(axis, "both")
    stages = range(len(clouds))
    if all(cloud.shape[1] == 1 for cloud in clouds):
        columns = [_whole(cloud)[:, 0] for cloud in clouds]
        mean = [float(column.mean()) if len(column) else math.nan for column in columns]
        ends = [_quantiles(column, (0.05, 0.95, 0.25, 0.75)) for column in columns]
        for k, name_of, shade in ((0, "90% of particles", 0.18), (2, "50% of particles", 0.32)):
            band = {"color": COLORS[0], "alpha": shade, "linewidth": 0, "label": name_of}
            axis.fill_between(stages, [e[k] for e in ends], [e[k + 1] for e in ends], **band)
        axis.plot(stages, mean, "o-", color=INK, markersize=3, linewidth=1.6, label="mean")
        axis.set_ylabel(name)
    else:
        whole = [_whole(cloud) for cloud in clouds]
        middle = [_rms(part.mean(0)) if len(part) else math.nan for part in whole]
        spread = [_rms(part - part.mean(0)) if len(part) else math.nan for part in whole]
        axis.plot(stages, middle, "o-", color=INK, markersize=3.5, linewidth=1.6, label="mean")
        axis.plot(stages, spread, "s--", color=COLORS[1], markersize=3.5, linewidth=1.6, label="spread")
        axis.set_title(name, fontsize=10)
        axis.set_ylabel("RMS per unit", fontsize=9)
        axis.set_ylim(bottom=0)
    axis.set_xlabel("stage t")
    whole_ticks(axis)
    if not any(bool(cloud.isfinite().any()) for cloud in clouds):
        say(axis, "not finite")
    if first:
        axis.legend(frameon=False, fontsize=8)


def _quantiles(column: Tensor, at: tuple[float, ...]) -> list[float]:
    if not len(column):
        return [math.nan] * len(at)
    found: list[float] = torch.quantile(some(column, 100_000), torch.tensor(at, dtype=column.dtype)).tolist()
    return found


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def check_states(states: Sequence[Any], particles: int) -> None:
    """Refuses a trajectory that holds nothing.

    Raises:
        InvalidValue: it has no state, or no particle.
    """
    if not len(states) or not particles:
        raise InvalidValue(
            f"trajectory has {len(states)} states of {particles} particles; expected one of each at least to draw"
        )


def check_labels(labels: Tensor | None, particles: int) -> None:
    """Refuses labels that are not one for each particle.

    Raises:
        InvalidType: they are no tensor.
        InvalidValue: their shape, or a value that is not finite.
    """
    if labels is None:
        return
    if not isinstance(labels, Tensor):
        raise InvalidType(f"labels is {type(labels).__name__}; expected a tensor of classes [N], or None")
    if labels.shape != (particles,) or labels.is_complex():
        raise InvalidValue(f"labels: expected a tensor of {particles} classes, one for each particle")
    if not bool(labels.isfinite().all()):
        raise InvalidValue("labels holds NaN or infinity; expected classes or numbers")
