"""What a certificate says, and how it is printed."""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mfoc.certificate.intervals import Measure
from mfoc.checks import check_instance
from mfoc.drawing.names import names_for
from mfoc.printing import html_table, table

_SHOWN = 12  # stages in the printed table; of more, those of the largest residuals


class Principle(enum.Enum):
    """Which conditions a certificate uses; its value says it in words.

    ``HAMILTONIAN``: one control for each stage. Stationarity and the Hessian of J are necessary at every minimum. That
    u_t minimises E H_t is so in continuous time; in discrete time where the reachable sets f_t(x, U) and the costs are
    suitably convex (Halkin 1966). ``DIFFUSION``: the same with Peng's second-order adjoint in H. ``STATIONARITY``: no
    variation of one stage alone exists, or H does not see all of it: stationarity and the Hessian of J alone.
    """

    HAMILTONIAN = "one control for each stage: stationarity, the Hessian of J, and H as a search for lower controls"
    DIFFUSION = (
        "the control enters the diffusion: stationarity, the Hessian of J, and H with Peng's second-order adjoint as a "
        "search for lower controls"
    )
    TIED = (
        "a control shared by stages: stationarity, the Hessian of J, and J itself searched for lower controls; the "
        "maximum principle does not apply"
    )
    WIDE_DIFFUSION = (
        "the control enters the diffusion of a state that is too wide, no single tensor [N, d] or interacting: "
        "stationarity and the Hessian of J; H is not least at an optimum there and is not looked at"
    )


class Standing(enum.Enum):
    """What a certificate concludes."""

    MINIMUM = "minimum"
    SADDLE = "saddle"
    NOT_STATIONARY = "not stationary"
    LOWER_FOUND = "a lower control was found"
    CANNOT_TELL = "cannot tell"
    INFEASIBLE = "infeasible"


@dataclass(frozen=True)
class Verdict:
    """What follows from the measures, in a sentence.

    Attributes:
        standing: the conclusion about the population; ``CANNOT_TELL`` where the intervals straddle.
        sample: the conclusion about J on the particles given, sampling aside.
        sentence: both, with the numbers they rest on.
    """

    standing: Standing
    sample: Standing
    sentence: str

    def __str__(self) -> str:
        return self.sentence


@dataclass(frozen=True)
class StageCertificate:
    """What is certified of one stage (of all stages together, when the control is shared by them).

    Attributes:
        name: the stage.
        parameters: how many numbers its control holds.
        residual: ||E dH/du||, which is ||dJ/du||.
        scale: ||dJ/du|| at a reference control, about as far from the one certified as that is from zero (or 1), or the
            size of the groups' own gradients if that is larger: what the residual is small against.
        gap: E H(u) - min_u E H(u), by the inner minimiser from several starts, so a lower bound of it (of a shared
            control: J's own, J(u) - min J); infinite where H falls without end (a linear layer without weight decay);
            NaN where it is not known or does not apply.
        curvature: smallest eigenvalue of E d2H/du2, by Lanczos: an upper bound of it (of a shared control: that of the
            Hessian of J); NaN where an operation of the problem has no second derivative.
        curvature_error: the residual norm of the eigenpair: some eigenvalue lies within this of ``curvature.value``.
        curvature_bound: the lowest eigenvalue on these particles lies at most this far below it, with the certificate's
            confidence (it grows with the width of the spectrum and falls as the square of the number of products).
        flat: J has neither slope nor curvature in this control: "saturated" where it has a slope elsewhere (a clamp, a
            tanh far out, a minimum of higher order), "unused" where it has none at the reference control either, else
            empty.
        note: what is infinite or missing, and why.
    """

    name: str
    parameters: int
    residual: Measure
    scale: float
    gap: Measure
    curvature: Measure
    curvature_error: float
    curvature_bound: float
    flat: str = ""
    note: str = ""

    def row(self) -> tuple[object, ...]:
        """Its line in the table; the error of the curvature where it matters."""
        matters = self.curvature_error > 0.05 * abs(self.curvature.value)
        error = f"  (± {self.curvature_error:.0e})" if matters else ""
        notes = "; ".join(filter(None, [self.flat, self.note]))
        measures = (self.residual, f"{self.scale:.2g}", self.gap, f"{self.curvature}{error}")
        return self.name, self.parameters, *measures, notes


_HEADER = (
    "stage", "controls", "residual ||E dH/du||", "scale", "gap E H - min E H",
    "curvature min eig E d2H/du2 (conservative)", "",
)  # fmt: skip


@dataclass(frozen=True, repr=False)
class Certificate:
    """The certificate of a control; print it, or draw it with ``plot``.

    Attributes:
        stages: one entry for each stage that has a control.
        value: J.
        particles: how many particles it is measured on.
        confidence: level of the intervals.
        backward_passes: what it cost, in backward passes over the whole horizon.
        stationarity: ||dJ/du|| over all stages, with its interval.
        scale: what that is small against; see ``StageCertificate``.
        hessian: smallest eigenvalue of the Hessian of J over all controls together, by Lanczos.
        hessian_error, hessian_bound: as ``curvature_error`` and ``curvature_bound`` of a stage.
        hessian_note: why it is missing, where it is.
        improvement: by how much J falls at a control that the search found, rolled out; of the population: at
            controls that were found on other particles than those it is judged on. Zero where none is lower.
        where: the stage of that control; empty where none is lower, or where it lies along the direction of the
            lowest eigenvalue.
        principle: which conditions were used.
        interacting: whether the particles interact, so that the intervals are those of a jackknife.
        verdict: the conclusion, in a sentence.
        complete: the particles are all there are, since each has a control, or multipliers, of its own: there is no
            population beyond them, and there are no intervals.
        violation: sqrt(E |c|^2) of what constraints on states lack; zero where there are none. With constraints all but
            J is measured of the augmented Lagrangian.
    """

    stages: list[StageCertificate]
    value: float
    particles: int
    confidence: float
    backward_passes: float
    stationarity: Measure
    scale: float
    hessian: Measure
    hessian_error: float
    hessian_bound: float
    hessian_note: str
    improvement: Measure
    where: str
    principle: Principle
    interacting: bool
    verdict: Verdict
    complete: bool = False
    violation: float = 0.0

    @property
    def residual(self) -> float:
        """||E dH/du|| over all stages, on these particles."""
        return math.hypot(*(stage.residual.value for stage in self.stages))

    @property
    def gap(self) -> float:
        """The sum of the stages' Hamiltonian gaps; NaN where one is not known."""
        return math.fsum(stage.gap.value for stage in self.stages)

    def plot(self, *others: Certificate, names: Sequence[str] = ()) -> Any:
        """A figure of residual, gap and curvature of each stage with their intervals, of others beside this one.

        Args:
            *others: certificates of the same problem.
            names: one for each certificate.

        Raises:
            InvalidType: one of the others is no certificate, or a name is no string.
            InvalidValue: the number of names is another, two are alike, or the certificates have different stages.
            MissingExtra: matplotlib is not installed.
        """
        from mfoc.drawing.intervals import certificates

        check_instance(Certificate, "an mfoc.Certificate", **{f"others[{k}]": one for k, one in enumerate(others)})
        called = names_for(names, [f"certificate {k + 1}" for k in range(1 + len(others))])
        return certificates((self, *others), called if names or others else ())

    def __repr__(self) -> str:
        """The verdict, a table of the stages (of a dozen where there are more), and the totals."""
        order = sorted(range(len(self.stages)), key=lambda k: -self.stages[k].residual.value)[:_SHOWN]
        lines = [str(self.verdict), self._head, table(_HEADER, [self.stages[k].row() for k in sorted(order)])]
        if rest := len(self.stages) - len(order):
            lines.append(f"and {rest} stages with smaller residuals, in .stages")
        return "\n".join([*lines, *self._totals])

    def _repr_html_(self) -> str:
        caption = "; ".join([str(self.verdict), self._head, *self._totals])
        return html_table(_HEADER, [stage.row() for stage in self.stages], caption=caption)

    @property
    def _head(self) -> str:
        level = f"{100 * self.confidence:.0f}%"
        drawn = ", all there are" if self.complete else f" [{level} intervals for the population they are drawn from]"
        missed = f", constraints missed by {self.violation:.2g}" if self.violation else ""
        return (
            f"Certificate on {self.particles} particles, J = {self.value:.6g}{missed}: values on these particles{drawn}"
            f"; {self.backward_passes:.0f} backward passes"
        )

    @property
    def _totals(self) -> list[str]:
        lowest = f"lowest eigenvalue of the Hessian of J (conservative) {self.hessian}"
        if self.hessian_note:
            lowest += f"  ({self.hessian_note})"
        if self.hessian_bound > 0.05 * abs(self.hessian.value):
            lowest += f"  (on these particles not below {self.hessian.value - self.hessian_bound:.2g})"
        return [
            f"total residual {self.stationarity}, scale {self.scale:.2g}; {lowest}",
            f"by: {self.principle.value}"
            + "; particles have controls or multipliers of their own" * self.complete
            + "; particles interact: jackknife intervals" * (self.interacting and not self.complete),
        ]
