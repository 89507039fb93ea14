"""Trials: a door, and which of its arguments is replaced by what."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from tests.fuzz.doors import Door
from tests.fuzz.exclusions import DOCUMENTED, MUTABLE, RANDOM
from tests.fuzz.good import INSTANCES, is_own, maker
from tests.fuzz.hostile import hostile
from tests.fuzz.judge import Outcome, judged

# What arguments are made of, and are called once they are inside.
_KNOWN = """
    state dynamics running_cost terminal_cost controls stage stages source population net points density paradigm labels
    x1 x2 trajectory kernels bottleneck correlation outputs cloud horizon plan data
    particles kernel starts x parameters
"""
KNOWN = set(_KNOWN.split())


@dataclass(frozen=True)
class Trial:
    """One call: ``changes`` are (parameter, name of the hostile value)."""

    door: Door
    changes: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        return f"{self.door.name}({', '.join(f'{parameter}={value}' for parameter, value in self.changes)})"


def missing(door: Door) -> list[str]:
    """The parameters that need an argument and have no good one."""
    needed = [name for name, part in door.parameters.items() if part.default is part.empty]
    found = [name for name in needed if maker(door.name, name) is None]
    if door.owner is not None and door.owner.__name__ not in INSTANCES:
        found.append(f"an instance of {door.owner.__name__}")
    return found


def run(trial: Trial) -> Outcome:
    """Runs one trial, with a known state of the generators."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        arguments = _good(trial.door)
        for parameter, value in trial.changes:
            arguments[parameter] = hostile(maker(trial.door.name, parameter))[value]()
        target = _target(trial.door)
        outcome = judged(
            lambda: _call(target, trial.door, arguments),
            arguments,
            mutable=trial.door.name.endswith(MUTABLE),
            random=trial.door.name.endswith(RANDOM),
            unknown=trial.door.name.endswith(tuple(DOCUMENTED)),
        )
    if trial.door.call == "__getitem__" and outcome.note.startswith(("KeyError", "IndexError")):
        return Outcome("refused", outcome.note)  # as of a dict
    if outcome.kind == "refused" and trial.changes and not _names(outcome.note, trial):
        return Outcome("unnamed", outcome.note[:300])
    return outcome


def _good(door: Door) -> dict[str, Any]:
    found = {}
    for name, part in door.parameters.items():
        make = maker(door.name, name)
        if part.default is part.empty or is_own(door.name, name):
            assert make is not None, f"no good {name} of {door.name}"
            found[name] = make()
    return found


def _target(door: Door) -> Any:
    return door.call if door.owner is None else getattr(INSTANCES[door.owner.__name__](), door.call)


def _call(target: Any, door: Door, arguments: dict[str, Any]) -> Any:
    given = [(part.kind is part.POSITIONAL_ONLY, name) for name, part in door.parameters.items() if name in arguments]
    positional = [arguments[name] for first, name in given if first]
    return target(*positional, **{name: arguments[name] for first, name in given if not first})


def _names(message: str, trial: Trial) -> bool:
    """Whether an error names a parameter of the door."""
    words = set(re.findall(r"\w+", message))
    return bool(words & (set(trial.door.parameters) | KNOWN))


def trials(door: Door, count: int, seed: int = 0) -> Iterator[Trial]:
    """Seeded trials of a door: each parameter in turn, now and then two at once; all single ones if there are few."""
    rng = random.Random(int(hashlib.sha256(f"{door.name} {seed}".encode()).hexdigest(), 16))
    singles = [(name, value) for name in door.parameters for value in hostile(maker(door.name, name))]
    rng.shuffle(singles)
    for k in range(count if singles else 0):
        if k < len(singles):
            yield Trial(door, (singles[k],))
        else:
            yield Trial(door, tuple(dict(rng.sample(singles, 2)).items()))
