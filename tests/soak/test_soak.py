"""The short form of ``make soak``: whatever ends a run, nothing is lost."""

import random
import sys

import pytest

from tests.soak.__main__ import KINDS, timed
from tests.soak.flips import DAMAGE
from tests.soak.results import Outcome, Size, table

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="signals, limits and /proc as Linux has them")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_lost(kind, record_property):
    outcome = timed(kind, Size())
    record_property("table", table([outcome]))
    assert outcome.trials > 0
    assert outcome.faults == []


def test_a_fault_is_told():
    outcome = Outcome("flips", trials=3)
    outcome.expect(True, "not this")
    outcome.expect(False, "loaded with other values")
    assert outcome.faults == ["loaded with other values"]
    assert "flips: loaded with other values\n3 trials, 1 faults" in table([outcome])


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_done_and_can_be_done_again(kind):
    content = random.Random(1).randbytes(3_000)
    damaged = [DAMAGE[kind](content, random.Random(seed)) for seed in (0, 0, 1)]
    assert content != damaged[0] == damaged[1] != damaged[2] != content
