"""Prints where a step of each solver waits for the device, and where numbers are sent to it.

python -m tests.devices
"""

from __future__ import annotations

import sys
from collections import Counter

from tests.devices import paper
from tests.devices.waits import SOLVERS, solve, step


def main() -> int:
    """0, or 1 where a device on paper cannot be had."""
    if not paper.AVAILABLE:
        print("a device on paper needs torch 2.10 and later")
        return 1
    for name, counted in SOLVERS.items():
        for made in counted.problems:
            stages, log = step(counted.solver, made)
            most = counted.most(stages)
            print(f"{name}, {made.__name__}: {len(log.waits)} waits a step (at most {most}), {len(log.copies)} copies")
            for place, times in Counter([*log.waits, *log.copies]).most_common():
                print(f"    {times} x {place}")
    early, late = Counter(solve(42)), Counter(solve(42 + 64))
    print(f"solve, Gradient(SGD), mlp: {early.total()} waits in 42 steps, {(late - early).total()} in 64 more")
    for place, times in early.most_common():
        print(f"    {times} x {place}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
