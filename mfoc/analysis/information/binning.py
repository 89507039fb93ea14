"""Information by binning: every unit's activity is told only up to the bin that it lies in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mfoc.analysis.information.bounds import Bounds, checked_activity, checked_labels, entropy
from mfoc.checks import check_choice, check_integer, check_plain
from mfoc.errors import InvalidType, InvalidValue


@dataclass(frozen=True, eq=False)
class Binned:
    """Information of the binned activity (Shwartz-Ziv & Tishby 2017, arXiv:1703.00810), all units together.

    A deterministic network maps each input to one vector of bins, so that I(X;T) is the entropy of these vectors: a
    property of the bins. Without them it is infinite for a continuous input, and the constant ln N for N distinct
    ones that no layer merges (Saxe et al. 2018, "On the information bottleneck theory of deep learning"). Bins that are
    spaced over the observed activity move with it; give edges to compare moments of a training.

    Attributes:
        bins: how many, 2 or more; or edges ``[bins + 1]``, ascending. What lies outside of the edges is counted in the
            outermost bins.
        spacing: how many bins are laid over the observed activity of all units of a layer: "width", equally wide from
            the least to the largest, or "mass", with equally many numbers in each (fewer bins, where many numbers are
            equal).

    Raises:
        InvalidType, InvalidValue: no such number, no such word, edges that do not ascend.
    """

    bins: int | Tensor = 30
    spacing: str = "width"

    def __post_init__(self) -> None:
        check_choice("width", "mass", spacing=self.spacing)
        if not isinstance(self.bins, Tensor):
            check_integer(2, bins=self.bins)
            return
        check_plain("edges, floating-point numbers", bins=self.bins)
        if not self.bins.is_floating_point():
            raise InvalidType(f"bins is a tensor of {self.bins.dtype}; expected edges, floating-point numbers")
        if self.bins.dim() != 1 or len(self.bins) < 3 or not bool(self.bins.isfinite().all()):
            raise InvalidValue(
                f"bins has shape {tuple(self.bins.shape)}; expected three finite edges or more, [bins + 1]"
            )
        if not bool((self.bins.diff() > 0).all()):
            raise InvalidValue("bins holds edges that do not ascend; expected each above the one before")

    def __repr__(self) -> str:
        if isinstance(self.bins, Tensor):
            return f"Binned({len(self.bins) - 1} bins from {float(self.bins[0]):.4g} to {float(self.bins[-1]):.4g})"
        return f"Binned({self.bins} bins of equal {self.spacing})"

    @property
    def caveat(self) -> str:
        """What the numbers are of."""
        return "in a deterministic network I(X;T) is infinite or constant: what is told is the bins"

    def about_input(self, activity: Tensor) -> Bounds:
        """I(X;T) = H(T), T the vector of bins ``[N, k]``: at most ln N.

        Raises:
            InvalidType, InvalidValue: no finite activity of two samples or more.
        """
        found = entropy(self._cells(checked_activity(activity)))
        return Bounds(found, found)

    def about_labels(self, activity: Tensor, labels: Tensor) -> Bounds:
        """I(T;Y) = H(T) + H(Y) - H(T, Y), T the vector of bins: the plug-in estimate, biased upwards.

        Raises:
            InvalidType, InvalidValue: no finite activity of two samples or more, no class for each.
        """
        rows = checked_activity(activity)
        cells, classes = self._cells(rows), checked_labels(labels, len(rows)).to(rows.device)
        joint = torch.unique(cells * (int(classes.max()) + 1) + classes, return_inverse=True)[1]
        found = max(0.0, entropy(cells) + entropy(classes) - entropy(joint))
        return Bounds(found, found)

    def _cells(self, rows: Tensor) -> Tensor:
        """The number of the cell that each sample lies in ``[N]``: the same where all bins are."""
        by_mass = self.spacing == "mass" and not isinstance(self.bins, Tensor)
        codes = torch.bucketize(rows.contiguous(), self._edges(rows), right=not by_mass)
        found: Tensor = torch.unique(codes, dim=0, return_inverse=True)[1]
        return found

    def _edges(self, rows: Tensor) -> Tensor:
        """The inner edges; a number that is equal to one lies above it, in bins of equal mass below.

        There the edges are numbers that were seen, often zeros of rectifiers: they are to be apart from what is above.
        """
        if isinstance(self.bins, Tensor):
            return self.bins[1:-1].to(rows).contiguous()
        if self.spacing == "width":
            low, high = (float(end) for end in rows.aminmax())
            # In float64: the edges of twice as many bins then contain these, to the bit.
            places = torch.arange(1, self.bins, dtype=torch.float64, device="cpu") / self.bins
            return (low * (1 - places) + high * places).to(rows)  # high - low may be infinite
        ordered = rows.flatten().sort().values
        places = torch.arange(1, self.bins, device=rows.device) * len(ordered) // self.bins - 1
        edges: Tensor = torch.unique(ordered[places.clamp_min(0)])
        return edges
