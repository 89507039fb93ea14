"""From measures to a sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mfoc.certificate.intervals import Measure
from mfoc.certificate.report import StageCertificate, Standing, Verdict

FLAT = 1e-3  # curvatures below this share of the largest count as zero at most, where nothing says more


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a verdict rests on.

    Attributes:
        stages: the stages.
        particles: their number.
        stationarity: ||dJ/du||.
        scale: what it is small against.
        hessian: lowest eigenvalue of the Hessian of J, with what Lanczos leaves open on these particles below it.
        unknown: why there is none; else empty.
        below: where the lowest eigenvalue on these particles may be at the least.
        largest: the largest eigenvalue.
        main: the stages that the direction of the lowest eigenvalue moves most.
        improvement: what a lower control gains.
        where: the stage of the lower control; "all" or "shared" where it is of all stages, empty where it lies along
            the direction of the lowest eigenvalue.
        crest: J falls on both sides along that direction.
        tol: the share of the scale at which a residual counts as zero.
        rounding: the share of the largest eigenvalue that is rounding in the lowest.
    """

    stages: Sequence[StageCertificate]
    particles: int
    stationarity: Measure
    scale: float
    hessian: Measure
    unknown: str
    below: float
    largest: float
    main: str
    improvement: Measure
    where: str
    crest: bool
    tol: float
    rounding: float

    def verdict(self) -> Verdict:
        """The conclusion, about the population where the intervals allow one and about the particles given."""
        slope, low = self.stationarity, self.hessian
        standing, why = self._conclude(slope.low, slope.high, low.low, low.high, self.improvement.low)
        sample, seen = self._conclude(slope.value, slope.value, self.below, low.value, self.improvement.value)
        if standing is not Standing.CANNOT_TELL or sample is Standing.CANNOT_TELL:
            return Verdict(standing, sample, why)
        some = "this particle" if self.particles == 1 else f"these {self.particles} particles"
        return Verdict(standing, sample, f"on {some} {seen}; of the population: {why}")

    def _conclude(self, least: float, most: float, low: float, high: float, gain: float) -> tuple[Standing, str]:
        """By where the residual, the lowest eigenvalue and the gain may lie."""
        small = self.tol * self.scale
        if least > small:
            return Standing.NOT_STATIONARY, f"not stationary: {self._moving()}"
        if not most <= small:
            return (
                Standing.CANNOT_TELL,
                f"cannot tell: intervals straddle (residual {_number(self.stationarity.value, least, most)})",
            )
        stationary = f"stationary (residual {_number(self.stationarity.value, least, most)}, scale {self.scale:.2g})"
        slack = self._slack(most)
        if high < -slack or (high < 0 and self.crest):
            return (
                Standing.SADDLE,
                f"{stationary}, but a {self._kind()}: lowest curvature {_number(self.hessian.value, low, high)}",
            )
        if gain > 0:
            place = f" at stage {self.where}" if self.where else " along the direction of lowest curvature"
            found = f"another control{'' if self.where in ('all', 'shared') else place} lowers J by {gain:.2g}"
            return Standing.LOWER_FOUND, f"{stationary}, but not the minimum: {found}"
        if flat := [stage.name for stage in self.stages if stage.flat]:
            kinds = " or ".join(sorted({stage.flat for stage in self.stages if stage.flat}))
            return Standing.CANNOT_TELL, f"cannot tell: {stationary}, but {kinds} at {_listed(flat)}"
        if self.unknown:
            return Standing.CANNOT_TELL, f"cannot tell: first-order {stationary}; {self.unknown}"
        if not low >= -FLAT * self._largest:  # within it, J was rolled out along the direction and fell nowhere
            straddling = f"lowest curvature between {low:.2g} and {high:.2g}"
            return Standing.CANNOT_TELL, f"cannot tell: first-order {stationary}, intervals straddle ({straddling})"
        if low == math.inf:
            return Standing.MINIMUM, f"first-order {stationary}, minimum: bounds leave no direction free"
        strict = "second-order minimum" if low > slack else "second-order minimum with flat directions"
        return (
            Standing.MINIMUM,
            f"first-order {stationary}, {strict} (lowest curvature {_number(self.hessian.value, low, high)})",
        )

    @property
    def _largest(self) -> float:
        return max((abs(number) for number in (self.largest, self.hessian.value) if math.isfinite(number)), default=0.0)

    def _slack(self, residual: float) -> float:
        """Curvatures that count as zero.

        Along a flat direction of a minimum, at a control that is as near to it as its residual tells, they are up to
        about that share of the largest, of either sign. Where the residual is rounding they are rounding, too: a
        curvature of -1 is one, however steep other directions are.
        """
        share = residual / self.scale if self.scale > 0 else 0.0
        return min(FLAT, max(share, self.rounding)) * self._largest

    def _kind(self) -> str:
        kind = "maximum" if self.largest < 0 else "saddle"
        return kind if not self.main else f"{kind} (in {self.main})"

    def _moving(self) -> str:
        """The stages that move most for their scale."""
        share = {s.name: s.residual.value / s.scale if s.scale > 0 else 0.0 for s in self.stages}
        over = sorted((name for name in share if share[name] > self.tol), key=lambda name: -share[name])
        named = over or [max(share, key=lambda name: share[name])]
        return f"{_listed(named)} (residual {self.stationarity.value:.2g}, scale {self.scale:.2g})"


def _listed(names: Sequence[str], most: int = 3) -> str:
    shown = ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
    return shown if names == ["shared"] else f"stage {shown}" if len(names) == 1 else f"stages {shown}"


def _number(value: float, low: float, high: float) -> str:
    """A value with its interval, unless that is the value as printed."""
    shown = f"{value:.2g}"
    return shown if shown == f"{low:.2g}" == f"{high:.2g}" else f"{shown} [{low:.2g}, {high:.2g}]"
