"""What the demo says, in 80 columns."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from mfoc.certificate import Certificate
from mfoc.certificate.report import Standing
from mfoc.demo.comparison import CONFIDENCE, Winner, lowest, most_accurate
from mfoc.demo.race import Lap
from mfoc.printing import table

_STANDINGS = {
    Standing.MINIMUM: "stands at a minimum, to second order",
    Standing.SADDLE: "stands at a saddle",
    Standing.NOT_STATIONARY: "has not arrived at a stationary point yet",
    Standing.LOWER_FOUND: "stands at a stationary point that is not the minimum",
    Standing.CANNOT_TELL: "may be at a minimum or not: these images cannot tell",
    Standing.INFEASIBLE: "does not meet its constraints",
}


def by_solver(laps: Sequence[Lap]) -> dict[str, list[Lap]]:
    """The laps of each solver in the order of the seeds; the lowest mean J first."""
    found: dict[str, list[Lap]] = {}
    for lap in laps:
        found.setdefault(lap.contestant.name, []).append(lap)
    return dict(sorted(found.items(), key=lambda entry: _mean([lap.loss for lap in entry[1]])))


def results(laps: Sequence[Lap]) -> str:
    """The table: a line for each solver."""
    seeds = {lap.seed for lap in laps}
    rows = []
    for name, mine in by_solver(laps).items():
        steps = f"{_mean([lap.solution.last.step for lap in mine]):.0f}"
        passes = f"{_mean([lap.passes for lap in mine]):.3g}"
        loss, residual = _range([lap.loss for lap in mine], 3), _range([lap.residual for lap in mine], 2)
        right = _range([lap.accuracy for lap in mine], 1, lambda share, digits: f"{100 * share:.{digits}f}")
        rows.append((name, f"{_mean([lap.seconds[-1] for lap in mine]):.2f}", steps, passes, loss, residual, right))
    header = "solver", "sec.", "steps", "passes", "J", "residual", "accuracy %"
    return (
        f"{table(header, rows)}\n{len(seeds)} seeds: means, and of J, residual and accuracy the least and the largest"
    )


LEGEND = (
    "J and the residual ||E dH/du|| are over all training images, accuracy over all test images. A pass is forward "
    "and backward over the training images; through H of one stage it counts by its share of the stages. "
    "MSA (L-BFGS) minimises H with nothing to keep states and costates feasible, which Li et al. (2018) report to "
    "diverge; E-MSA penalises the infeasibility."
)


def winners(laps: Sequence[Lap]) -> str:
    """Who won, by J and by accuracy, and how far that can be said."""
    solvers = by_solver(laps)
    first = lowest({name: [_scored(lap) for lap in mine] for name, mine in solvers.items()})
    second = most_accurate({name: [lap.right for lap in mine] for name, mine in solvers.items()})
    seeds = len({lap.seed for lap in laps})
    return (
        f"Lowest J: {first.name} ({first.mean:.3g} in the mean), {_against(first, len(solvers))}.\n"
        f"Most accurate: {second.name} ({100 * second.mean:.1f} % in the mean), {_against(second, len(solvers))}.\n"
        f"Tied: a paired t test over the seeds (of log J, of accuracy; there a sign test on the images has to agree) "
        f"does not tell the two apart, at {100 * CONFIDENCE:.0f} % for all pairs together; a J above that of the "
        f"initial guess has lost. {seeds} seeds are few: it "
        f"sees large differences only, and the seconds are those of this machine."
    )


def reading(name: str, seed: int, seconds: float, before: Certificate, after: Certificate) -> str:
    """A certificate, read out in a sentence."""
    standing = after.verdict.standing
    if standing is Standing.CANNOT_TELL:
        standing = after.verdict.sample
    slope, curved = after.stationarity, after.hessian
    fall = before.stationarity.value / slope.value if slope.value > 0 else math.inf
    against = "below" if fall >= 1 else "above"
    share = slope.value / after.scale if after.scale > 0 else 0.0
    return (
        f"Certificate: after {seconds:.2g} s {name} (seed {seed}) {_STANDINGS[standing]}: its residual is "
        f"{slope.value:.2g}, {max(fall, 1 / fall):.2g} times {against} that of the initial guess and {100 * share:.2g} "
        f"% of its scale (0.1 % counts as zero), and the lowest curvature of J is {curved.value:.2g} "
        f"[{curved.low:.2g}, {curved.high:.2g}]."
    )


def _scored(lap: Lap) -> float:
    """J; infinite where it rose: what diverges scatters so widely that a t test would call it tied with anybody."""
    return lap.loss if lap.loss <= lap.values[0] else math.inf


def _against(winner: Winner, count: int) -> str:
    if not winner.tied:
        return "ahead of all others"
    if len(winner.tied) == count - 1:
        return "tied with all others"
    return f"tied with {', '.join(winner.tied)}"


def _range(values: Sequence[float], digits: int, form: Callable[[float, int], str] | None = None) -> str:
    shown = [(form or _short)(value, digits) for value in (min(values), max(values))]
    return shown[0] if shown[0] == shown[1] else f"{shown[0]}..{shown[1]}"


def _short(value: float, digits: int) -> str:
    """A number in few characters: 4.1e4, not 4.1e+04."""
    digits = digits if 1e-4 <= value < 1e5 else 2
    return f"{value:#.{digits}g}".rstrip(".").replace("e+0", "e").replace("e-0", "e-")


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
