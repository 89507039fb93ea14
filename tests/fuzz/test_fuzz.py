"""Every public door, with hostile arguments: a result, or an error of ours that names what is wrong. Nothing else.

A short form of ``python -m tests.fuzz``: seeded, a few calls of each door, spread over workers by door.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from importlib import import_module

import pytest
import torch

from tests.fuzz import exclusions
from tests.fuzz.doors import Door, doors
from tests.fuzz.good import warm_up
from tests.fuzz.judge import judged
from tests.fuzz.trials import Trial, missing, run, trials

DOORS = doors()
CALLS, CALLS_OF_SLOW = 8, 2


@pytest.fixture(scope="module", autouse=True)
def _ready() -> Iterator[None]:
    for extra in ("matplotlib", "scipy", "pyro", "torchattacks", "rich", "learn2learn"):
        pytest.importorskip(extra)
    warm_up()
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.name)
def test_hostile_arguments_are_refused_by_name(door: Door) -> None:
    count = CALLS_OF_SLOW if door.name.endswith(exclusions.SLOW) else CALLS
    wrong = {str(trial): outcome for trial in trials(door, count) if not (outcome := run(trial)).fine}
    assert not wrong, "\n".join(f"{outcome.kind}: {trial}  {outcome.note}" for trial, outcome in wrong.items())


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.name)
def test_good_arguments_are_known_and_give_a_result(door: Door) -> None:
    """Without these the fuzzer would refuse at its own mistakes, and find nothing."""
    assert not missing(door)
    outcome = run(Trial(door, ()))
    assert outcome.kind == "result", outcome


def test_the_doors_are_all_of_the_public_names() -> None:
    assert len(DOORS) > 200
    names = {door.name for door in DOORS}
    assert {"mfoc.solve", "mfoc.Problem", "mfoc.Ball", "mfoc.hjb.solve", "paradigms.bayesian.log_density"} <= names


@pytest.mark.parametrize("module", sorted(exclusions.MODULES))
def test_a_module_below_the_doors_says_that_it_does_not_check(module: str) -> None:
    documentation = " ".join((import_module(module).__doc__ or "").split())
    assert exclusions.SENTENCE in documentation


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (lambda: [1.0][3], "raw"),
        (lambda: torch.tensor([1.0, torch.nan]), "silent"),
        (lambda: {"a": [float("inf")]}, "silent"),
        (lambda: torch.manual_seed(1), "state"),
        (lambda: torch.set_default_dtype(torch.float64), "state"),
        (lambda: ARGUMENT.add_(1), "mutated"),
        (lambda: torch.ones(2), "result"),
    ],
)
def test_the_judge_sees_what_is_wrong(call, kind) -> None:
    assert judged(call, {"x": ARGUMENT}, mutable=False, random=False, unknown=False).kind == kind


ARGUMENT = torch.zeros(2)
