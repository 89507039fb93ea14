"""Phase diagrams: fixed points and depth scales over a grid of variances."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from mfoc import tree
from mfoc.analysis.activations import ActivationLike
from mfoc.analysis.gaussian import GaussianMoments
from mfoc.analysis.propagation.theory.critical import critical_line
from mfoc.analysis.propagation.theory.grids import lengths
from mfoc.analysis.propagation.theory.points import Points
from mfoc.analysis.propagation.theory.signal import CRITICAL, Phase, depth_scale
from mfoc.analysis.propagation.theory.tables import length_table
from mfoc.checks import check_choice, check_integer, check_plain, kind_of
from mfoc.errors import InvalidType, InvalidValue
from mfoc.printing import by_identity

Grid: TypeAlias = "Tensor | Sequence[float]"

NO_PHASE = 2  # where the fixed point is too far out: there SignalPropagation raises
_NAMES: dict[int, Phase] = {-1: "ordered", 0: "critical", 1: "chaotic"}
_AT_ONCE = 2**17  # points
_LINE = 512  # points of the critical line


@by_identity
@dataclass(frozen=True, eq=False)
class PhaseDiagram:
    """What ``SignalPropagation`` says at every point of a grid of variances; tensors [A, B], float64.

    Attributes:
        activation: its name.
        weight_variances: sigma_w^2, [A].
        bias_variances: sigma_b^2, [B].
        q_star: variance of the pre-activations that iterating from q = 1 reaches; inf where it diverges, NaN where it
            is beyond 1e9, which SignalPropagation refuses.
        chi_1: sigma_w^2 E phi'^2 there.
        chi_q: the slope of the length map there.
        c_star: the stable fixed point of the correlation map.
        chi_c: the slope of the correlation map there.
        xi_q: depth scale of lengths, in layers; NaN without a fixed point.
        xi_c: depth scale of correlations, in layers: how deep a signal can be told; inf at criticality.
        codes: of the phases, int8: -1 ordered, 0 critical, 1 chaotic, 2 none (q* is NaN).
        critical_line: points (sigma_w^2, sigma_b^2) within the grid with chi_1 = 1 at q*, in ascending q*; a row of
            NaN between pieces, [points, 2].
    """

    activation: str
    weight_variances: Tensor
    bias_variances: Tensor
    q_star: Tensor
    chi_1: Tensor
    chi_q: Tensor
    c_star: Tensor
    chi_c: Tensor
    xi_q: Tensor
    xi_c: Tensor
    codes: Tensor
    critical_line: Tensor

    def phase(self, row: int, column: int) -> Phase:
        """The phase at weight_variances[row] and bias_variances[column].

        Raises:
            InvalidType: row or column is no integer.
            InvalidValue: it is out of range; there is no phase.
        """
        check_integer(0, len(self.weight_variances) - 1, row=row)
        check_integer(0, len(self.bias_variances) - 1, column=column)
        code = int(self.codes[row, column])
        if code == NO_PHASE:
            raise InvalidValue(f"there is no phase at row {row}, column {column}: the fixed point is beyond 1e9")
        return _NAMES[code]

    def share(self, phase: Phase) -> float:
        """The share of the grid's points in that phase.

        Raises:
            InvalidType, InvalidValue: an unknown phase.
        """
        codes = {name: code for code, name in _NAMES.items()}
        check_choice("ordered", "critical", "chaotic", phase=phase)
        return float((self.codes == codes[phase]).double().mean())

    def plot(self) -> Any:
        """The diagram as the field draws it: phases, the critical line, contours of the depth scale xi_c.

        Raises:
            InvalidValue: a grid of fewer than two values a side.
            MissingExtra: matplotlib is not installed.
        """
        from mfoc.analysis.propagation.theory.drawing import draw

        return draw(self)

    @property
    def notes(self) -> list[str]:
        """What is unusual here, a sentence each."""
        diverging, missing = int(self.q_star.isinf().sum()), int(self.q_star.isnan().sum())
        said = []
        if diverging:
            least = float(self.weight_variances[self.q_star.isinf().any(1)][0])
            said.append(f"the variance diverges with depth at {diverging} points, from sigma_w^2 = {least:.6g} on")
        if missing:
            said.append(f"the fixed point is beyond 1e9 at {missing} points")
        return said

    def __str__(self) -> str:
        a, b = self.weight_variances, self.bias_variances
        shares = ", ".join(f"{name} {100 * self.share(name):.1f} %" for name in _NAMES.values())
        line = self.critical_line[~self.critical_line.isnan().any(1)]
        ends = [f"({float(w):.6g}, {float(v):.6g})" for w, v in line[[0, -1]]] if len(line) else []
        where = "none within the grid" if not ends else ends[0] if len(line) == 1 else f"from {ends[0]} to {ends[1]}"
        notes = "".join(f"\n  {note}" for note in self.notes)
        return (
            f"{self.activation}: {shares}\n"
            f"  of {len(a)} x {len(b)} points, sigma_w^2 {float(a[0]):.6g} to {float(a[-1]):.6g}, "
            f"sigma_b^2 {float(b[0]):.6g} to {float(b[-1]):.6g}\n"
            f"  critical line: {where}{notes}"
        )

    __repr__ = __str__


def phase_diagram(activation: ActivationLike, weight_variances: Grid, bias_variances: Grid) -> PhaseDiagram:
    """Fixed points, phases and depth scales over a grid (Poole et al. 2016, fig. 1; Schoenholz et al. 2017, fig. 2).

    Moments are tabulated once an activation, by Chebyshev polynomials, and both fixed points found by Newton's method
    on all points at once; the least certain ones are checked against the moments themselves.

    Args:
        activation: a name, a function of a tensor, or a module.
        weight_variances: sigma_w^2, above zero, ascending, [A].
        bias_variances: sigma_b^2, from zero on, ascending, [B].

    Raises:
        InvalidType: an argument of the wrong type.
        InvalidValue: a grid that is empty, not of one axis, not ascending, or holds what is no variance; no activation.
    """
    weights = _grid("weight_variances", weight_variances, positive=True)
    biases = _grid("bias_variances", bias_variances, positive=False)
    moments = GaussianMoments.of(activation)
    rows = max(1, _AT_ONCE // len(biases))
    parts = [Points.of(moments, part, biases.expand(len(part), -1)) for part in torch.split(weights, rows)]
    q, chi_1, chi_q, lost, chi_c = (torch.cat([getattr(part, name) for part in parts]) for name in Points.__slots__)
    codes = torch.where(chi_1.isnan(), NO_PHASE, (chi_1 - 1).sign() * ((chi_1 - 1).abs() > CRITICAL)).to(torch.int8)
    xi_q = torch.where(q.isfinite(), depth_scale(chi_q), math.nan)
    xi_c = torch.where((codes == 0) & (lost == 0), math.inf, depth_scale(chi_c))
    line = _critical_line(moments, weights, biases, float(q[q.isfinite()].max()) if bool(q.isfinite().any()) else 1.0)
    name = moments.activation.name
    return PhaseDiagram(name, weights, biases, q, chi_1, chi_q, 1 - lost, chi_c, xi_q, xi_c, codes, line)


def _grid(name: str, values: Grid, *, positive: bool) -> Tensor:
    expected = f"{'positive' if positive else 'non-negative'} finite numbers in ascending order"
    if not isinstance(values, Tensor):
        if isinstance(values, str | bytes) or not hasattr(values, "__len__"):
            raise InvalidType(f"{name} is {kind_of(values)}; expected a tensor [n] or a sequence of {expected}")
        try:
            values = tree.tensor_of(values, torch.float64)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InvalidType(f"{name} does not make a tensor ({error}); expected {expected}") from error
    check_plain(f"a tensor [n] of {expected}", **{name: values})
    if values.is_complex() or values.dtype == torch.bool:
        raise InvalidType(f"{name} is of {values.dtype}; expected {expected}")
    if values.dim() != 1 or not len(values):
        raise InvalidValue(f"{name} has shape {list(values.shape)}; expected one axis with at least one entry")
    grid = values.detach().to("cpu", torch.float64).clone()
    if not bool(grid.isfinite().all()) or bool((grid <= 0 if positive else grid < 0).any()):
        off = next(v for v in grid.tolist() if not math.isfinite(v) or v < 0 or (positive and v == 0))
        raise InvalidValue(f"{name} holds {off:g}; expected {expected}")
    if bool((grid.diff() <= 0).any()):
        raise InvalidValue(f"{name} is not in ascending order, or holds a number twice; expected {expected}")
    return grid


def _critical_line(moments: GaussianMoments, weights: Tensor, biases: Tensor, largest: float) -> Tensor:
    """Where chi_1 = 1 at the variance that q = 1 leads to, within the grid: [points, 2].

    Args:
        moments: of the activation.
        weights: of the grid, [A].
        biases: of the grid, [B].
        largest: of the grid's finite q*.
    """
    if moments.homogeneous:
        at, bias = critical_line(moments.activation, bias_variance=0.0)
        inside = float(weights[0]) <= at <= float(weights[-1]) and float(biases[0]) == 0
        return torch.tensor([[at, bias]] if inside else [], dtype=torch.float64, device="cpu").reshape(-1, 2)
    table = length_table(moments)
    top = math.sqrt(min(table.farthest, 1.05 * largest + 1e-3))
    q = torch.linspace(0, top, _LINE, dtype=torch.float64, device="cpu").square()
    second, slopes, growth = table(q)
    w = 1 / slopes
    b = q - w * second
    b[(b < 0) & (b > -1e-14 * q)] = 0.0
    inside = (w >= weights[0]) & (w <= weights[-1]) & (b >= biases[0]) & (b <= biases[-1]) & (w * growth < 1 + 1e-6)
    kept = inside.nonzero()[:, 0]
    if not len(kept):
        return torch.zeros(0, 2, dtype=torch.float64, device="cpu")
    reached = lengths(table, w[kept], b[kept, None]).q[:, 0]
    kept = kept[(reached - q[kept]).abs() <= 1e-4 * q[kept].clamp(min=1e-3)]
    rows = []
    for index, place in enumerate(kept.tolist()):
        if index and place != int(kept[index - 1]) + 1:
            rows.append([math.nan, math.nan])
        rows.append([float(w[place]), float(b[place])])
    return torch.tensor(rows, dtype=torch.float64, device="cpu").reshape(-1, 2)
