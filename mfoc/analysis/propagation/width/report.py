"""What the coordinate check found: how each layer's change goes with width, and what would mend it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mfoc.figures import new_axes, style
from mfoc.printing import by_identity, html_table, table

_SHOWN = 14  # layers of a table
_HEADER = ("layer", "", "|h| at the start", "goes as", "|dh|", "goes as", "interval", "verdict")


@by_identity
@dataclass(frozen=True)
class Slope:
    """The power of width by which a size goes, by least squares on logarithms.

    Attributes:
        value: the power; NaN where a size is zero, so that it has no logarithm.
        low, high: Student's interval; infinite where nothing is left to estimate it from.
    """

    value: float
    low: float
    high: float

    def verdict(self, tolerance: float) -> str:
        """The interval against +-tolerance: "grows", "shrinks", "stable" or "cannot tell"."""
        if self.low > tolerance:
            return "grows"
        if self.high < -tolerance:
            return "shrinks"
        return "stable" if -tolerance <= self.low and self.high <= tolerance else "cannot tell"

    def __str__(self) -> str:
        return f"width^{self.value:.2f}"


@by_identity
@dataclass(frozen=True, eq=False)
class LayerWidth:
    """How the output of one layer depends on width.

    Attributes:
        name: of the module; "(net)" is what the whole net returns, where that is the output of no layer.
        kind: its class.
        starts: |h|, the root mean square of its output before the first step ``[seeds, widths]``.
        changes: |dh|, that of the change of its output by all steps ``[seeds, widths]``.
        start_slope, slope: how the two go with width.
        verdict: "grows", "shrinks", "stable" or "cannot tell", of the change; "unchanged" where there is none.
    """

    name: str
    kind: str
    starts: Tensor
    changes: Tensor
    start_slope: Slope
    slope: Slope
    verdict: str

    def row(self) -> tuple[object, ...]:
        """Its line in the table; sizes are means at the largest width."""
        start, change = (float(sizes[:, -1].mean()) for sizes in (self.starts, self.changes))
        known = self.slope.value == self.slope.value
        slope = (str(self.slope), f"[{self.slope.low:+.2f}, {self.slope.high:+.2f}]") if known else ("", "")
        return self.name, self.kind, f"{start:.2g}", self.start_slope, f"{change:.2g}", *slope, self.verdict


@by_identity
@dataclass(frozen=True)
class Mend:
    """By which powers of width a parameter's initial variance and learning rate are to be multiplied to be in muP.

    Attributes:
        name: of the parameter.
        role: "input", "hidden" or "output" (Tensor Programs V, Table 3).
        variance: the power for the initial variance; 0 where it is right as it is.
        rate: the power for the learning rate; None where the kind of optimiser is not known.
    """

    name: str
    role: str
    variance: float
    rate: float | None


@by_identity
@dataclass(frozen=True, repr=False, eq=False)
class WidthCheck:
    """Whether a net trains alike at every width; print it, or ``.plot()`` it.

    Attributes:
        widths: in ascending order.
        steps: optimiser steps before the outputs were compared.
        seeds: initialisations at each width.
        layers: in the order of execution.
        mends: one for each trained parameter that grows with width.
        notes: what else muP asks for.
        tolerance: slopes within +-tolerance are no dependence on width.
        confidence: level of the intervals.
    """

    widths: list[int]
    steps: int
    seeds: int
    layers: list[LayerWidth]
    mends: list[Mend]
    notes: list[str]
    tolerance: float
    confidence: float

    @property
    def standing(self) -> str:
        """One of "alike", "not alike" and "cannot tell"."""
        found = {layer.verdict for layer in self.layers}
        if found & {"grows", "shrinks"} or self._large:
            return "not alike"
        return "cannot tell" if "cannot tell" in found or found == {"unchanged"} else "alike"

    @property
    def verdict(self) -> str:
        """The conclusion, in a sentence."""
        told = []
        for word in ("grows", "shrinks"):
            if layers := [f"{one.name!r} ({one.slope})" for one in self.layers if one.verdict == word]:
                told.append(f"the change {word} with width in {_listed(layers)}")
        if large := [f"{one.name!r} ({one.start_slope})" for one in self._large]:
            told.append(f"before the first step the output grows with width in {_listed(large)}")
        within = f"slopes within ±{self.tolerance:g}"
        if self.standing == "alike":
            return f"alike at every width: no layer's change grows or shrinks ({within})"
        if self.standing == "not alike":
            return f"not alike at every width: {'; '.join(told)}"
        if all(layer.verdict == "unchanged" for layer in self.layers):
            return "cannot tell: no output changed; gradients vanish, or the learning rate is too small"
        unsure = _listed([repr(layer.name) for layer in self.layers if layer.verdict == "cannot tell"])
        return f"cannot tell whether {unsure} is stable ({within}): take more seeds, or more and wider widths"

    @property
    def _large(self) -> list[LayerWidth]:
        return [layer for layer in self.layers if layer.start_slope.verdict(self.tolerance) == "grows"]

    def mend(self) -> str:
        """What to multiply initial variances and learning rates by, a line for each kind of parameter."""
        if not self.mends:
            return "nothing that is trained has a role in muP"
        wrong = [mend for mend in self.mends if mend.variance or mend.rate]
        unknown = any(mend.rate is None for mend in self.mends)
        lines = ["the learning rates of an optimiser of this kind are not known to muP"] * unknown
        if not wrong:
            return "\n".join([*lines, "initial variances and learning rates are those of muP"])
        groups: dict[tuple[str, float, float | None], list[str]] = {}
        for mend in wrong:
            groups.setdefault((mend.role, mend.variance, mend.rate), []).append(mend.name)
        rows = [(role, _power(v), _power(r), _listed(names)) for (role, v, r), names in groups.items()]
        head = ("role", "initial variance", "learning rate", "parameters: multiply by (mup_init_ and mup_groups do it)")
        return "\n".join([*lines, table(head, rows)])

    def __repr__(self) -> str:
        """The verdict, a table of the layers (of the steepest where there are many), and what mends it."""
        lines = [self.verdict, self._head, table(_HEADER, [layer.row() for layer in self._steepest])]
        if rest := len(self.layers) - len(self._steepest):
            lines.append(f"and {rest} layers with smaller slopes, in .layers")
        return "\n".join([*lines, self.mend(), *self.notes])

    def _repr_html_(self) -> str:
        rows = [layer.row() for layer in self._steepest]
        return html_table(_HEADER, rows, caption=f"{self.verdict}; {self._head}") + f"<pre>{self.mend()}</pre>"

    @property
    def _head(self) -> str:
        widths = ", ".join(map(str, self.widths))
        level = f"{100 * self.confidence:.0f}%"
        return f"Widths {widths}; {self.steps} steps; {self.seeds} seeds; {level} intervals; sizes at the largest width"

    @property
    def _steepest(self) -> list[LayerWidth]:
        order = sorted(range(len(self.layers)), key=lambda k: -_steepness(self.layers[k]))[:_SHOWN]
        return [self.layers[k] for k in sorted(order)]

    def plot(self) -> Any:
        """|dh| of each layer against width, on logarithmic axes, the seeds as points: a ``matplotlib`` figure.

        Raises:
            MissingExtra: matplotlib is not installed.
        """
        figure, (axis,) = new_axes(7.5, 4.6)
        for index, layer in enumerate(self._steepest):
            if not bool((layer.changes > 0).all()):
                continue
            label = f"{layer.name}: {layer.verdict} ({layer.slope.value:+.2f})"
            mark = {"marker": "osD^vP*"[index % 7], "markersize": 5, "linewidth": 1.8}
            axis.plot(self.widths, layer.changes.log().mean(0).exp().tolist(), label=label, **mark, **style(index))
            for sizes in layer.changes.tolist():
                axis.plot(self.widths, sizes, ".", markersize=4, alpha=0.4, color=style(index)["color"])
        axis.set(
            xscale="log", yscale="log", xlabel="width", ylabel=f"change of the output |dh| after {self.steps} steps"
        )
        axis.set_xticks(self.widths, [str(width) for width in self.widths])
        axis.minorticks_off()
        axis.set_title(
            f"{self.standing.capitalize()} at every width".replace("Cannot tell at", "Cannot tell if alike at"),
            fontsize=10,
        )
        if axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
        return figure


def _steepness(layer: LayerWidth) -> float:
    steep = max(abs(layer.slope.value), layer.start_slope.value)
    return steep if steep == steep else 0.0


def _power(power: float | None) -> str:
    if power is None:
        return "?"
    return f"width^{power:g}" if power else "as it is"


def _listed(names: Sequence[str], most: int = 4) -> str:
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[: most - 1])} and {len(names) - most + 1} more"
