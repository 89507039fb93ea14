"""The long mode: ``python -m tests.fuzz --seconds 600 --seed 3 [--only mfoc.hjb]``.

Prints what was wrong and, for each, what repeats it: ``python -m tests.fuzz --repeat "mfoc.solve(steps=NaN)"``.
"""

from __future__ import annotations

import argparse
import collections
import logging
import re
import time

import torch

from tests.fuzz.doors import Door, doors
from tests.fuzz.good import warm_up
from tests.fuzz.judge import Outcome
from tests.fuzz.trials import Trial, missing, run, trials

KINDS = ("result", "refused", "raw", "silent", "hang", "unnamed", "mutated", "state")


def main() -> int:
    parser = argparse.ArgumentParser("python -m tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="a regular expression of the names' beginnings")
    parser.add_argument("--repeat", help="one line of the table")
    asked = parser.parse_args()
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    warm_up()
    known = [door for door in doors() if not missing(door)]
    if asked.repeat:
        trial = parsed(asked.repeat, known)
        print(trial, run(trial))
        return 0
    chosen = [door for door in known if re.match(asked.only, door.name)]
    found, counts = search(chosen, asked.seconds, asked.seed)
    print()
    for trial, outcome in sorted(found.items(), key=lambda item: (item[1].kind, item[0])):
        print(f"{outcome.kind:8s} {trial}  {outcome.note}")
    print(f"{sum(counts.values())} calls of {len(chosen)} callables: " + ", ".join(f"{counts[k]} {k}" for k in KINDS))
    return int(bool(found))


def search(chosen: list[Door], seconds: float, seed: int) -> tuple[dict[str, Outcome], collections.Counter[str]]:
    """Trials of each door in turn until the time is over: what was wrong, and how many of each kind there were."""
    found: dict[str, Outcome] = {}
    counts: collections.Counter[str] = collections.Counter()
    end = time.monotonic() + seconds
    sources = [trials(door, 10_000, seed) for door in chosen]
    while sources and time.monotonic() < end:
        for source in list(sources):
            trial = next(source, None)
            if trial is None:
                sources.remove(source)
                continue
            if time.monotonic() > end:
                break
            outcome = run(trial)
            counts[outcome.kind] += 1
            if not outcome.fine:
                found[str(trial)] = outcome
                print(".", end="", flush=True)
    return found, counts


def parsed(line: str, known: list[Door]) -> Trial:
    """The trial that a line of the table names."""
    name, _, rest = line.partition("(")
    door = next(door for door in known if door.name == name)
    parts = re.split(rf", (?=(?:{'|'.join(door.parameters)})=)", rest.rstrip()[:-1])
    changes = tuple((part.partition("=")[0], part.partition("=")[2]) for part in parts if part)
    return Trial(door, changes)


if __name__ == "__main__":
    raise SystemExit(main())
