"""What an initialisation did, and how it is printed."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from mfoc.figures import COLORS, INK, new_axes
from mfoc.printing import table

_SHOWN = 12
_NEAR = 0.05


@dataclass(frozen=True, eq=False)
class InitialisedBlock:
    """A block after initialisation.

    Attributes:
        name: the layer or the module.
        q: the mean square of what comes out of it.
        chi: the mean-square gain of a perturbation; NaN of what reads the data, or was left as it is.
        note: what was done, or could not be.
    """

    name: str
    q: float
    chi: float
    note: str = ""


@dataclass(frozen=True, repr=False, eq=False)
class Initialisation:
    """What ``critical_init_`` did; print it, or ``.plot()`` it.

    Attributes:
        blocks: in the order of the run.
        q_star: the length that the network is kept at.
        asked: the one that was asked for.
        how: by theory or by tuning.
        measured: whether q and chi are measured on the input, or theory's.
        notes: what else there is to know.
    """

    blocks: tuple[InitialisedBlock, ...]
    q_star: float
    asked: float
    how: str
    measured: bool
    notes: tuple[str, ...] = ()

    def noting(self, note: str) -> Initialisation:
        """The same with one more note."""
        return replace(self, notes=(*self.notes, note))

    @property
    def chi(self) -> tuple[float, float]:
        """The smallest and the largest gain of a block; NaN without any."""
        known = [block.chi for block in self.blocks if not math.isnan(block.chi)]
        return (min(known), max(known)) if known else (math.nan, math.nan)

    @property
    def critical(self) -> bool:
        """Whether every gain is within 5 % of one."""
        return all(abs(block.chi - 1) <= _NEAR for block in self.blocks if not math.isnan(block.chi))

    @property
    def verdict(self) -> str:
        """The whole in a sentence."""
        known = [block for block in self.blocks if not math.isnan(block.chi)]
        if not known:
            return f"nothing to tune: {len(self.blocks)} block{'s' * (len(self.blocks) != 1)}, {self.how}"
        low, high = self.chi
        seen = "measured" if self.measured else "predicted"
        spread = f"{low:.3g}" if f"{low:.3g}" == f"{high:.3g}" else f"{low:.3g} to {high:.3g}"
        said = (
            f"chi {spread} {seen} over {len(known)} block{'s' * (len(known) != 1)}, q* = {self.q_star:.3g}, {self.how}"
        )
        if self.critical:
            return f"critical: {said}"
        worst = max(known, key=lambda block: abs(math.log(block.chi)) if block.chi > 0 else math.inf)
        return f"as near to critical as was found: {said}; furthest is {worst.name!r} with chi {worst.chi:.3g}"

    def __str__(self) -> str:
        """The verdict, what else there is to know, and a table of the blocks (of a dozen where there are more)."""
        moved = []
        if abs(self.q_star / self.asked - 1) > 0.01:
            moved = [f"q* = {self.asked:g} was asked for; it does not last in this network, or is set by its norms"]
        order = sorted(range(len(self.blocks)), key=lambda k: -_off(self.blocks[k].chi))[:_SHOWN]
        rows = [(b.name, f"{b.q:.3g}", f"{b.chi:.3g}", b.note) for b in (self.blocks[k] for k in sorted(order))]
        rest = len(self.blocks) - len(order)
        more = [f"and {rest} blocks whose chi is nearer to 1, in .blocks"] if rest else []
        return "\n".join([self.verdict, *moved, *self.notes, table(("block", "q", "chi", ""), rows), *more])

    __repr__ = __str__

    def plot(self) -> Any:
        """Gain and length of each block, in the order of the run: a ``matplotlib.figure.Figure``.

        Raises:
            MissingExtra: matplotlib is not installed.
        """
        figure, (gains, lengths) = new_axes(9.0, 3.4, 2)
        numbers = range(1, len(self.blocks) + 1)
        gains.axhspan(1 - _NEAR, 1 + _NEAR, color="#e6e6e6", zorder=0, label=f"within {100 * _NEAR:g} % of critical")
        gains.axhline(1, color=INK, linewidth=0.8)
        seen = "measured" if self.measured else "by theory"
        gains.plot(numbers, [b.chi for b in self.blocks], color=COLORS[0], marker="o", label=f"$\\chi$ {seen}")
        known = [b.chi for b in self.blocks if math.isfinite(b.chi)]
        gains.set(xlabel="block", ylabel="gain $\\chi$ of a small change, squared")
        gains.set_ylim(min([0.8, *(0.95 * chi for chi in known)]), max([1.2, *(1.05 * chi for chi in known)]))
        lengths.plot(numbers, [b.q for b in self.blocks], color=COLORS[2], marker="s", label=f"q {seen}")
        lengths.axhline(self.q_star, color=INK, linewidth=1, linestyle=":", label=f"q* = {self.q_star:.3g}")
        lengths.set(xlabel="block", ylabel="mean square q of the outputs")
        most = max([self.q_star, *(b.q for b in self.blocks if math.isfinite(b.q))])
        lengths.set_ylim(0, 1.3 * most if 0 < most < math.inf else 1)
        for axis in (gains, lengths):
            axis.set_xlim(0.5, len(self.blocks) + 0.5)
            axis.xaxis.get_major_locator().set_params(integer=True)
            axis.legend(frameon=False, fontsize=8)
        figure.suptitle(self.verdict.partition(":")[0], fontsize=10)
        return figure


def _off(chi: float) -> float:
    return -1.0 if math.isnan(chi) else abs(chi - 1)
