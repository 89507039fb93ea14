"""What every figure begins with: an empty canvas, the look of its axes, colours. matplotlib is imported when asked."""

from __future__ import annotations

from typing import Any

from mfoc.checks import check_instance, check_integer
from mfoc.errors import require

# Okabe & Ito's palette: told apart by readers who do not see all colours.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
INK = "#333333"
_MARKERS = "osD^vP*"
# Ten classes: the palette, and three more that are as far from it as can be; each has a marker of its own.
CLASSES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8A3D00", "#5E4FA2", "#8C8C8C")
_CLASS_MARKERS = "osD^vP*X<p"
_LINES = ("-", "--", ":", "-.")

# What has a colour and a marker of its own, in every figure. Members of one family are shades; markers serve readers
# in grey. Keys are lower case, without what is neither letter nor digit.
_LOOKS: dict[str, tuple[str, str]] = {
    "gradient": ("#0072B2", "o"), "sgd": ("#0072B2", "o"), "adam": ("#56B4E9", "s"), "lbfgs": ("#003F66", "D"),
    "msa": ("#D55E00", "v"), "msadescent": ("#D55E00", "v"), "msalbfgs": ("#8A3D00", "<"), "emsa": ("#009E73", "^"),
    "ddp": ("#CC79A7", "P"), "newtoncg": ("#E69F00", "X"), "ddpnopt": ("#8C5A78", "p"),
    "discretemsa": ("#7A7A7A", "h"), "minimax": ("#A65628", "*"), "hjb": ("#5E4FA2", "d"), "exact": ("#000000", "+"),
    "standard": ("#7A7A7A", "o"), "adversarial": ("#D55E00", "s"), "bayesian": ("#0072B2", "^"),
    "meta": ("#009E73", "D"),
}  # fmt: skip


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


def words(text: str) -> str:
    """A text as it is drawn: mathematics between dollars where it is, else dollars that are dollars.

    matplotlib refuses mathematics that it cannot read when it draws, long after the name was given.
    """
    parser = require("matplotlib.mathtext", "plot").MathTextParser("path")
    try:
        for line in text.split("\n"):
            parser.parse(line)
    except ValueError:
        return text.replace("\\$", "$").replace("$", r"\$")
    return text


def style(index: int) -> dict[str, Any]:
    """Colour and dashes of the line with that index: no two of the first 28 are alike."""
    return {"color": COLORS[index % len(COLORS)], "linestyle": _LINES[index // len(COLORS) % len(_LINES)]}


def look(name: str, index: int = 0) -> dict[str, Any]:
    """Colour and marker of a solver or a paradigm, the same in every figure.

    Args:
        name: as it is shown: "SGD", "E-MSA", "NewtonCG", "adversarial", ...; letters and digits count.
        index: of the line, for a name that has no look of its own.

    Raises:
        InvalidType, InvalidValue: no name, or no index.
    """
    check_instance(str, "a string", name=name)
    check_integer(0, index=index)
    key = "".join(filter(str.isalnum, name.lower()))
    if key not in _LOOKS:
        return {"color": COLORS[index % len(COLORS)], "marker": _MARKERS[index % len(_MARKERS)]}
    color, marker = _LOOKS[key]
    return {"color": color, "marker": marker}


def of_class(index: int) -> dict[str, Any]:
    """Colour and marker of the points of a class: no two of the first ten are alike, in colour or in grey."""
    return {"color": CLASSES[index % len(CLASSES)], "marker": _CLASS_MARKERS[index % len(_CLASS_MARKERS)]}


def sized(marker: str) -> float:
    """By how much a marker is drawn larger than others, so that all look equally large: a star is mostly gaps."""
    return {"*": 1.7, "+": 1.5, "P": 1.2, "X": 1.2, "p": 1.2, "D": 0.9}.get(marker, 1.0)
