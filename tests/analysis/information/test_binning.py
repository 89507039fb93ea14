"""Information by binning, against counting by hand."""

import math
from collections import Counter
from dataclasses import astuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mfoc.analysis.information import Binned, Bounds
from mfoc.errors import InvalidType, InvalidValue
from tests.problems import D, normal


def entropy(things):
    return -sum(n / len(things) * math.log(n / len(things)) for n in Counter(things).values())


def cells(activity, edges):
    """The vector of bins of each sample, by comparing with every inner edge."""
    return [tuple(sum(value >= edge for edge in edges) for value in row) for row in activity.tolist()]


activities = st.integers(0, 10_000).map(lambda seed: normal(24, 2, seed=seed))


@given(activities, st.integers(2, 40))
def test_as_counted_by_hand(activity, bins):
    low, high = float(activity.min()), float(activity.max())
    found = cells(activity, [low + (high - low) * k / bins for k in range(1, bins)])
    labels = [k % 3 for k in range(24)]
    joint = list(zip(found, labels, strict=True))
    wanted = entropy(found) + entropy(labels) - entropy(joint)
    assert astuple(Binned(bins).about_input(activity)) == pytest.approx((entropy(found),) * 2)
    assert astuple(Binned(bins).about_labels(activity, torch.tensor(labels))) == pytest.approx((wanted,) * 2, abs=1e-12)


@given(activities, st.integers(2, 12), st.sampled_from([2, 3, 5]))
def test_finer_bins_never_tell_less(activity, bins, factor):
    coarse, fine = Binned(bins), Binned(bins * factor)
    labels = torch.arange(24) % 2
    assert fine.about_input(activity).lower >= coarse.about_input(activity).lower - 1e-12
    assert fine.about_labels(activity, labels).lower >= coarse.about_labels(activity, labels).lower - 1e-12


@given(activities, st.integers(2, 40), st.sampled_from(["width", "mass"]))
def test_labels_are_told_no_better_than_inputs_or_than_there_is_to_tell(activity, bins, spacing):
    labels = torch.arange(24) % 4
    found = Binned(bins, spacing)
    told = found.about_labels(activity, labels).upper
    assert told <= min(found.about_input(activity).lower, math.log(4)) + 1e-12
    assert found.about_input(activity).upper <= math.log(24) + 1e-12


def test_the_information_of_a_layer_that_tells_all_inputs_apart_is_that_of_its_bins():
    """The identity: nothing is lost, and yet the number is whatever the bins make of it."""
    x = (torch.arange(1200, dtype=D)[:, None] + 0.5) / 1200
    for bins in (2, 30, 100):
        edges = torch.linspace(0, 1, bins + 1, dtype=D)
        assert Binned(edges).about_input(x).lower == pytest.approx(math.log(bins), rel=1e-12)


def test_bins_of_equal_mass_are_equally_full():
    skewed = torch.exp(3 * normal(600, 1))
    assert Binned(6, "mass").about_input(skewed).lower == pytest.approx(math.log(6), abs=1e-4)
    assert Binned(6, "width").about_input(skewed).lower < 0.2


def test_many_equal_numbers_leave_fewer_bins_of_equal_mass():
    rectified = torch.tensor([0.0] * 6 + [1, 2, 3, 4, 5, 6])  # the zeros of a rectifier stay apart
    assert Binned(4, "mass").about_input(rectified).lower == pytest.approx(entropy("aabc"))


def test_a_constant_layer_tells_nothing():
    for spacing in ("width", "mass"):
        assert Binned(30, spacing).about_input(torch.full((8, 3), 0.7)) == Bounds(0, 0)


@pytest.mark.parametrize("dtype", [torch.float32, D])
def test_a_range_that_is_no_number_of_the_type_is_binned(dtype):
    end = torch.finfo(dtype).max
    spread = torch.tensor([-end, -end / 4, end / 4, end], dtype=dtype)
    assert Binned(4).about_input(spread).lower == pytest.approx(math.log(4))


def test_edges_that_are_part_of_others_are_taken_as_they_are(recwarn):
    edges = torch.linspace(-1, 1, 21, dtype=D)[::2]
    activity = normal(30, 2)
    assert Binned(edges).about_input(activity) == Binned(edges.clone()).about_input(activity)
    assert not recwarn


def test_what_lies_outside_of_the_edges_is_counted_at_the_ends():
    edges = torch.tensor([-1.0, 0.0, 1.0])
    assert Binned(edges).about_input(torch.tensor([-5.0, -0.5, 0.5, 7.0])).lower == pytest.approx(math.log(2))


def test_units_are_binned_together():
    corners = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]])
    parity = torch.tensor([0, 1, 1, 0])
    assert Binned(2).about_labels(corners, parity).lower == pytest.approx(math.log(2))
    assert Binned(2).about_labels(corners[:, :1], parity).lower == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("bins", "kind", "says"),
    [
        (1, InvalidValue, "bins"),
        (2.5, InvalidType, "bins"),
        (True, InvalidType, "bins"),
        (torch.tensor([0.0, 1.0]), InvalidValue, "three"),
        (torch.tensor([0.0, 1.0, 1.0]), InvalidValue, "ascend"),
        (torch.tensor([0.0, math.nan, 1.0]), InvalidValue, "finite"),
        (torch.tensor([0, 1, 2]), InvalidType, "edges"),
    ],
    ids=["one", "fraction", "flag", "one bin", "equal edges", "nan", "integers"],
)
def test_bins_that_are_none_are_refused(bins, kind, says):
    with pytest.raises(kind, match=says):
        Binned(bins)


def test_an_unknown_spacing_is_refused():
    with pytest.raises(InvalidValue, match="width"):
        Binned(30, "log")
