"""A cloud that moves: frames of its way through the stages, written as a GIF.

This is below the public doors: it does not check its arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mfoc.drawing.clouds import View, bounds_of, flat, framed, some, view
from mfoc.drawing.scales import wrapped
from mfoc.errors import InvalidType, InvalidValue, StorageError, require
from mfoc.figures import INK, new_figure, of_class, tidy

_POINTS = 250  # particles that move: a picture of more is a blot, and a larger file
_STAY = 2.5  # seconds that the last picture stays


@dataclass(frozen=True, eq=False)
class Scene:
    """One panel.

    Attributes:
        title: of the panel.
        seen: the points of each stage.
        rows: the particles that are drawn.
        groups: rows of each class, all of them in one where there are no classes.
        arrows: of each class -p on average, at each stage ``[G, 2]``, the longest of length 1; or None.
    """

    title: str
    seen: View
    rows: Tensor
    groups: list[Tensor]
    arrows: list[Tensor] | None

    def at(self, share: float) -> tuple[int, Tensor]:
        """The stage, and the points of all particles, after that share of the way."""
        stages = len(self.seen.points) - 1
        t = min(int(share * stages), max(stages - 1, 0))
        here = self.seen.points[t]
        there = self.seen.points[min(t + 1, stages)]
        part = share * stages - t
        return (t if part < 1 else stages), here + part * (there - here)


def scene(
    title: str,
    states: Sequence[Tensor],
    labels: Tensor | None,
    costates: Sequence[Any] | None,
) -> Scene:
    """What one panel shows.

    Raises:
        InvalidType, InvalidValue: costates that do not go with the states, or no particle stays finite.
    """
    seen = view(states)
    if not seen.shared:  # each stage on its own scale, so that one picture holds all
        seen = View([_unit(points) for points in seen.points], seen.labels, False)
    good = torch.stack([points.isfinite().all(1) for points in seen.points]).all(0).nonzero()[:, 0]
    if not len(good):
        raise InvalidValue("no particle stays finite at all stages; there is nothing to move")
    rows = some(good, _POINTS)
    groups = [rows]
    if labels is not None:
        own = labels.detach().cpu()[rows]
        kinds = torch.unique(own)
        if len(kinds) > 10:
            raise InvalidValue(f"labels holds {len(kinds)} classes; at most 10 are told apart in an animation")
        groups = [rows[own == kind] for kind in kinds]
    return Scene(title, seen, rows, groups, None if costates is None else _arrows(states, costates, groups))


def _unit(points: Tensor) -> Tensor:
    whole = points[points.isfinite().all(1)]
    size = float(whole.square().mean().sqrt()) if len(whole) else 0.0
    return points / (size or 1.0)


def _arrows(states: Sequence[Tensor], costates: Sequence[Any], groups: Sequence[Tensor]) -> list[Tensor]:
    if not all(isinstance(p, Tensor) for p in costates):
        raise InvalidType("costates holds something that is no tensor; expected what mfoc.costates returned")
    if [p.shape for p in costates] != [x.shape for x in states]:
        raise InvalidValue("costates are shaped otherwise than the states; expected those of this trajectory")
    found = [-flat(p) for p in costates]
    if found[0].shape[1] != 2:
        raise InvalidValue(f"costates of {found[0].shape[1]} numbers; arrows are drawn of states of two")
    means = torch.stack([torch.stack([p[rows].nanmean(0) for rows in groups]) for p in found]).nan_to_num(0, 0, 0)
    means[-1] = 0  # at the end there is nothing to go for
    return list(means / (float(means.norm(dim=2).max()) or 1.0))


def write(
    scenes: Sequence[Scene],
    path: Path,
    decorate: Callable[[str, Any], object] | None,
    *,
    frames: int,
    fps: int,
    dpi: int,
) -> Path:
    """Writes the GIF, by Pillow, and returns its path.

    Raises:
        StorageError: the file cannot be written.
    """
    image = require("PIL.Image", "plot")
    with _writable(path):  # known before anything is drawn
        path.parent.mkdir(parents=True, exist_ok=True)
    figure = new_figure(3.2 * len(scenes), 3.5)
    figure.set_dpi(dpi)
    axes = list(figure.subplots(1, len(scenes), squeeze=False)[0])
    moves = [_panel(axis, one) for axis, one in zip(axes, scenes, strict=True)]
    for axis, one in zip(axes, scenes, strict=True):
        if decorate is not None:
            decorate(one.title, axis)
    pictures = []
    for share in np.linspace(0, 1, frames):
        for move in moves:
            move(float(share))
        figure.canvas.draw()
        pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3]
        pictures.append(image.fromarray(pixels.copy()))
    # One palette for all pictures, of the first and the last: it does not flicker, and the file is small.
    both = image.new("RGB", (pictures[0].width, 2 * pictures[0].height))
    both.paste(pictures[0], (0, 0))
    both.paste(pictures[-1], (0, pictures[0].height))
    palette = both.quantize(128, dither=0)
    indexed = [picture.quantize(palette=palette, dither=0) for picture in pictures]
    stay = [round(1000 / fps)] * (frames - 1) + [round(1000 * _STAY)]
    with _writable(path):
        indexed[0].save(path, save_all=True, append_images=indexed[1:], duration=stay, loop=0, optimize=True)
    return path


@contextmanager
def _writable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"path is {str(path)!r}, which cannot be written ({error.strerror or error}); expected a file in a folder "
            "of yours",
            errno=error.errno,
            path=path,
        ) from error


def _panel(axis: Any, one: Scene) -> Any:
    """Draws what stays, and returns a function that moves the rest to a share of the way."""
    tidy(axis, "both")
    framed(axis, bounds_of(torch.cat([points[one.rows] for points in one.seen.points])))
    axis.set_xlabel(one.seen.labels[0], fontsize=9)
    axis.set_ylabel(one.seen.labels[1], fontsize=9)
    if not one.seen.shared:
        axis.set(xticks=[], yticks=[])
    if one.title:
        axis.set_title(wrapped(one.title, 26), fontsize=11)
    dots = [
        axis.plot([], [], linestyle="", markersize=4, alpha=0.75, markeredgewidth=0, **of_class(k))[0]
        for k in range(len(one.groups))
    ]
    clock = axis.annotate("", (0.03, 0.97), xycoords="axes fraction", va="top", fontsize=9, color=INK)
    last = len(one.seen.points) - 1
    quiver = None
    if one.arrows is not None:
        zero = np.zeros(len(one.groups))
        shape = {"width": 0.014, "color": INK, "angles": "xy", "scale_units": "width", "scale": 3.5}
        axis.update_datalim(list(zip(axis.get_xlim(), axis.get_ylim(), strict=True)))  # which angles are measured by
        quiver = axis.quiver(zero, zero, zero + 1, zero, zorder=3, **shape)

    def move(share: float) -> None:
        t, points = one.at(share)
        for dot, rows in zip(dots, one.groups, strict=True):
            dot.set_data(points[rows, 0].numpy(), points[rows, 1].numpy())
        clock.set_text(f"stage {t} of {last}")
        if quiver is not None and one.arrows is not None:
            p = one.arrows[t]
            p = p.masked_fill(p.eq(0).all(1, keepdim=True), math.nan)  # of no direction
            quiver.set_offsets(torch.stack([points[rows].mean(0) for rows in one.groups]).numpy())
            quiver.set_UVC(p[:, 0].numpy(), p[:, 1].numpy())
            quiver.set_visible(bool(p.isfinite().any()))

    return move
