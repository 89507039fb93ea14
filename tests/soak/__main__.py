"""Faults on purpose, and a table of what was lost by them: ``make soak``.

python -m tests.soak                        the short form, which the tests run
python -m tests.soak --long                 100,000 steps, 50 kills, 2,000 flips of each file, ...
python -m tests.soak --only kills flips     some kinds of fault
python -m tests.soak --long --seed 3        other moments and places
"""

from __future__ import annotations

import argparse
import sys
import time

from tests.soak import disks, flips, kills, memory, signals, threads, ways_out
from tests.soak.results import Outcome, Size, table

KINDS = {
    "kills": kills.run,
    "signals": signals.run,
    "ways_out": ways_out.run,
    "flips": flips.run,
    "disks": disks.run,
    "threads": threads.run,
    "memory": memory.run,
}


def timed(kind: str, size: Size) -> Outcome:
    """The outcome of a kind of fault, with the time that it took."""
    began = time.perf_counter()
    outcome = KINDS[kind](size)
    outcome.seconds = time.perf_counter() - began
    return outcome


def main() -> int:
    """0 where nothing was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--long", action="store_true", help="the long form")
    parser.add_argument("--only", nargs="+", metavar="KIND", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seed", type=int, default=0, help="of moments and places (default: 0)")
    asked = parser.parse_args()
    size = Size.long(asked.seed) if asked.long else Size(seed=asked.seed)
    outcomes = []
    for kind in asked.only:
        outcomes.append(timed(kind, size))
        print(table(outcomes[-1:]), flush=True)  # if it is stopped, what was done so far is known
    print(table(outcomes))
    return int(any(outcome.faults for outcome in outcomes) or not all(outcome.trials for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
