"""What a kind of fault came to, and all of them as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Size:
    """How much is tried.

    Attributes:
        kills: processes that are killed.
        signals: of each of SIGINT and SIGTERM.
        flips: of each checkpoint file.
        fillings: of a disk.
        threads: rounds of solves in several threads.
        ends: of each way out of a solve.
        steps: of the solve whose memory is watched.
        solves: one after another, whose memory is watched.
        seed: of the moments and places.
    """

    kills: int = 6
    signals: int = 3
    flips: int = 200
    fillings: int = 4
    threads: int = 2
    ends: int = 1
    steps: int = 3_000
    solves: int = 30
    seed: int = 0

    @classmethod
    def long(cls, seed: int = 0) -> Size:
        """The size of ``make soak``."""
        return cls(50, 30, 2_000, 40, 40, 10, 100_000, 500, seed)


@dataclass
class Outcome:
    """What a kind of fault came to.

    Attributes:
        kind: of fault.
        trials: how many there were.
        faults: what was wrong, a line each; none is right.
        figures: what was counted or measured, by name.
        seconds: how long it took.
    """

    kind: str
    trials: int = 0
    faults: list[str] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    def expect(self, right: bool, otherwise: str) -> None:
        """Writes down a fault, where there is one."""
        if not right:
            self.faults.append(otherwise)

    def count(self, name: str) -> None:
        """One more of these."""
        self.figures[name] = self.figures.get(name, 0) + 1


def table(outcomes: Sequence[Outcome]) -> str:
    """All of them, and what was wrong below."""
    rows = [["fault", "trials", "faults", "seconds", "figures"], ["---"] * 5]
    for each in outcomes:
        figures = ", ".join(f"{name} {value:.4g}" for name, value in each.figures.items())
        rows.append([each.kind, f"{each.trials}", f"{len(each.faults)}", f"{each.seconds:.0f}", figures])
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines += [f"{each.kind}: {fault}" for each in outcomes for fault in each.faults]
    trials, faults = sum(each.trials for each in outcomes), sum(len(each.faults) for each in outcomes)
    return "\n".join([*lines, f"{trials} trials, {faults} faults"])
