"""What the benchmarks have in common: sides that take turns, ratios with their spread, and the machine in one line.

Machines are shared and noisy, so a time says little: what is reported is a ratio of thread-CPU times, of sides that
take turns in one process on a fixed number of threads.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

Side = Callable[[], object]

_RECORDS = "MFOC_BENCH_RECORDS"  # a file, to which each ratio is appended as a line of JSON


@dataclass(frozen=True)
class Ratio:
    """How many times one side's time is the other's: of the medians, and the quartiles of the rounds' own ratios."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g} to {self.high:.3g})"


@dataclass(frozen=True)
class Times:
    """Seconds that each side took, round by round."""

    taken: Mapping[str, list[float]]

    def median(self, side: str) -> float:
        """The median of a side, in seconds."""
        return statistics.median(self.taken[side])

    def least(self, side: str) -> float:
        """The 20th percentile of a side, in seconds."""
        taken = sorted(self.taken[side])
        return taken[len(taken) // 5]

    def ratio(self, side: str, to: str) -> Ratio:
        """The time of one side over that of another."""
        each = sorted(a / b for a, b in zip(self.taken[side], self.taken[to], strict=True))
        return Ratio(self.median(side) / self.median(to), each[len(each) // 4], each[(3 * len(each)) // 4])


def clock() -> float:
    """Seconds of this thread's CPU time; of wall time on a GPU, once it has done all that is queued."""
    if torch.device(device()).type != "cuda":
        return time.thread_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def interleaved(
    sides: Mapping[str, Side], *, rounds: int, warmup: int = 2, clock: Callable[[], float] = clock
) -> Times:
    """Runs the sides in turn, in an order that is turned round every other round.

    Args:
        sides: what is timed, by name.
        rounds: how often each is.
        warmup: rounds before, which are not counted.
        clock: seconds; ``time.process_time`` where a side has threads of its own.
    """
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for k in range(warmup + rounds):
        order = list(sides) if k % 2 else list(reversed(sides))
        for name in order:
            began = clock()
            sides[name]()
            if k >= warmup:
                taken[name].append(clock() - began)
    return Times(taken)


def report(name: str, ratio: Ratio, *, of: str, to: str, target: str = "", headline: bool = False) -> None:
    """Prints a ratio in one line, and keeps it where ``make bench`` collects them.

    Args:
        name: what was timed: ``"solve, MLP 784-256-256-10, SGD"``.
        ratio: the ratio.
        of: the side whose time is divided,
        to: and by whose.
        target: what it should be, in words: ``"at most 1.05"``.
        headline: one of the few that the README shows.
    """
    print(f"{name}: {of} / {to} = {ratio}{f', target {target}' if target else ''}", flush=True)
    if path := os.environ.get(_RECORDS):
        line = {"name": name, **asdict(ratio), "of": of, "to": to, "target": target, "headline": headline}
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def quick() -> bool:
    """Whether the short version is asked for: ``make bench-quick``, or ``MFOC_BENCH_QUICK=1``."""
    return bool(os.environ.get("MFOC_BENCH_QUICK"))


def device() -> str:
    """Where the work is to be done: ``make bench-gpu``, or ``MFOC_BENCH_DEVICE=cuda``; the CPU otherwise."""
    return os.environ.get("MFOC_BENCH_DEVICE") or "cpu"


def processor() -> str:
    """The name of the processor."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        if names:
            return names[0]
    if platform.system() == "Darwin":
        asked = subprocess.run(
            ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False
        )
        if asked.stdout.strip():
            return asked.stdout.strip()
    return platform.processor() or platform.machine()


def machine() -> str:
    """The machine, the threads and the versions, in one line."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    threads = f"{torch.get_num_threads()} thread{'s' * (torch.get_num_threads() != 1)}"
    return f"{processor()}{gpu}, {threads}, Python {platform.python_version()}, torch {torch.__version__}"
