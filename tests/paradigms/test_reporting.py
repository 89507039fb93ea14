"""Intervals of means cover as often as they say, from few numbers too."""

import math

import pytest
import torch
from scipy import stats

from paradigms.reporting import Estimate, student_interval
from tests.problems import D, generator


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("n", [2, 3, 4, 17, 400])
def test_it_is_students_interval(n, confidence):
    sample = torch.randn(n, generator=generator(n), dtype=D) + 3
    low, high = stats.t.interval(confidence, n - 1, float(sample.mean()), stats.sem(sample.numpy()))
    found = student_interval(sample, confidence)
    assert found == pytest.approx((float(sample.mean()), low, high), rel=1e-9)
    assert student_interval(sample.half(), confidence).low == pytest.approx(low, abs=0.2)


@pytest.mark.parametrize("n", [2, 4, 9])
def test_it_covers_as_often_as_it_says(n):
    samples = torch.randn(600, n, generator=generator(n), dtype=D) + 3
    found = [student_interval(sample, 0.95) for sample in samples]
    covered = sum(low <= 3 <= high for _, low, high in found)
    # Six hundred intervals of 95 %: between 92 and 98 % of them, but for one in a thousand such tests.
    assert 0.92 < covered / 600 < 0.98


@pytest.mark.parametrize("sample", [[3.0], [3.0, torch.nan], [torch.inf, 1.0]])
def test_of_one_number_or_of_none_nothing_is_known(sample):
    found = student_interval(torch.tensor(sample), 0.95)
    assert (found.low, found.high) == (-math.inf, math.inf)


def test_equal_numbers_have_an_interval_without_length():
    assert student_interval(torch.full((5,), 2.0), 0.95) == Estimate(2.0, 2.0, 2.0)


def test_the_former_name_is_kept():
    with pytest.warns(DeprecationWarning, match="normal_interval is now paradigms.reporting.student_interval"):
        from paradigms.reporting import normal_interval
    assert normal_interval is student_interval
