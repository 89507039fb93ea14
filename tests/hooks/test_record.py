"""A record is read as a table, as rows, and as three lists."""

from functools import partial

import numpy as np
import pytest
import torch

import mfoc
from mfoc import hooks
from tests.problems import mlp

PROBLEM, CLOUD = mlp()
ADAM = mfoc.Gradient(partial(torch.optim.Adam, lr=1e-2))


def recorded(function, steps=4):
    record = hooks.Record(function)
    for step in range(1, steps + 1):
        record(mfoc.Iterate(step, [], {}))
    record.seconds = [0.5 * step for step in record.steps]
    return record


def test_numbers_under_names_are_columns():
    record = recorded(lambda it: {"loss": -it.step / 8, "right": torch.tensor(it.step), "step": np.float32(2.5)}, 2)
    assert record.rows == list(record) == [
        {"step": 1, "seconds": 0.5, "loss": -1 / 8, "right": 1, "value.step": 2.5},
        {"step": 2, "seconds": 1.0, "loss": -2 / 8, "right": 2, "value.step": 2.5},
    ]  # fmt: skip
    assert str(record).splitlines() == [
        "step  seconds    loss  right  value.step",
        "   1    0.500  -0.125      1         2.5",
        "   2    1.000   -0.25      2         2.5",
    ]


def test_a_long_record_prints_its_ends():
    lines = str(recorded(lambda it: it.step**2, 1000)).splitlines()
    assert [line.split()[0] for line in lines] == [
        "step", "1", "2", "3", "4", "5", "6", "...", "995", "996", "997", "998", "999", "1000",
    ]  # fmt: skip
    assert len({len(line) for line in lines}) == 1


def test_whatever_was_said_a_row_is_a_short_line():
    said = iter([torch.randn(500), None, "a\nb", {"x": [1.0] * 900}, -(10**5000)])
    text = str(recorded(lambda it: next(said), 5))
    assert len(text.splitlines()) == 6
    assert max(map(len, text.splitlines())) < 120
    assert "float32[500]" in text


def test_an_empty_one_is_no_missing_one():
    record = hooks.Record(lambda it: 0.0)
    assert (len(record), record.rows, bool(record), repr(record)) == (0, [], True, "Record(no rows)")
    mfoc.solve(PROBLEM, ADAM, CLOUD, steps=3, hooks=list(filter(None, [record])))
    assert (len(record), repr(record)) == (3, "Record(3 rows, steps 1 to 3)")


def test_a_function_that_fails_leaves_no_half_row():
    record = hooks.Record(lambda it: 1 / (3 - it.step))
    with pytest.raises(ZeroDivisionError):
        mfoc.solve(PROBLEM, ADAM, CLOUD, steps=5, hooks=[record])
    assert [row["step"] for row in record] == [1, 2]
