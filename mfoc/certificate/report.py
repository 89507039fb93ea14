"""What a certificate says, and how it is printed."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mfoc.certificate.study import Measure
from mfoc.printing import html_table, table

_HEADER = ("stage", "controls", "residual ||E dH/du||", "gap E H - min E H", "curvature min eig E d2H/du2")
_SHOWN = 12  # stages in the printed table; of more, those of the largest residuals


@dataclass(frozen=True)
class StageCertificate:
    """What is certified of one stage (of all stages together, when the control is shared by them).

    Attributes:
        name: the stage.
        parameters: how many numbers its control holds.
        residual: ||E dH/du||.
        gap: E H(u) - min_u E H(u), by the inner minimiser from u, so a lower bound; infinite where H appears to be
            unbounded below (a linear layer without weight decay); NaN where the inner minimiser failed.
        curvature: smallest eigenvalue of E d2H/du2, by Lanczos: an upper bound, within ``curvature_error`` of some
            eigenvalue (more ``lanczos`` products make it smaller).
        curvature_error: the residual norm of the eigenpair.
    """

    name: str
    parameters: int
    residual: Measure
    gap: Measure
    curvature: Measure
    curvature_error: float

    def row(self) -> tuple[object, ...]:
        """Its line in the table; the error of the curvature where it matters."""
        matters = self.curvature_error > 0.05 * abs(self.curvature.value)
        error = f"  (± {self.curvature_error:.0e})" if matters else ""
        return self.name, self.parameters, self.residual, self.gap, f"{self.curvature}{error}"


@dataclass(frozen=True, repr=False)
class Certificate:
    """The certificate of a control; print it, or draw it with ``mfoc.plot.certificate``.

    Attributes:
        stages: one entry for each stage that has a control.
        value: J.
        particles: how many particles it is measured on.
        confidence: level of the intervals.
        backward_passes: what it cost, in backward passes over the whole horizon.
    """

    stages: list[StageCertificate]
    value: float
    particles: int
    confidence: float
    backward_passes: float

    @property
    def residual(self) -> float:
        """||E dH/du|| over all stages."""
        return math.hypot(*(stage.residual.value for stage in self.stages))

    @property
    def gap(self) -> float:
        """The sum of the stages' Hamiltonian gaps."""
        return math.fsum(stage.gap.value for stage in self.stages)

    def __repr__(self) -> str:
        """A table of the stages, of the dozen with the largest residuals where there are more, and the totals."""
        order = sorted(range(len(self.stages)), key=lambda k: -self.stages[k].residual.value)[:_SHOWN]
        lines = [self._head, table(_HEADER, [self.stages[k].row() for k in sorted(order)])]
        if rest := len(self.stages) - len(order):
            lines.append(f"and {rest} stages with smaller residuals, in .stages")
        return "\n".join([*lines, self._totals])

    def _repr_html_(self) -> str:
        return html_table(_HEADER, [stage.row() for stage in self.stages], caption=f"{self._head}; {self._totals}")

    @property
    def _head(self) -> str:
        return (
            f"Pontryagin certificate on {self.particles} particles, J = {self.value:.6g} "
            f"({100 * self.confidence:.0f}% bootstrap intervals; {self.backward_passes:.0f} backward passes)"
        )

    @property
    def _totals(self) -> str:
        return f"total residual {self.residual:.3g}, total gap {self.gap:.3g}"
