"""Bounds on the information of a noisy activity: around the exact value, however it is found."""

import math
from dataclasses import astuple
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate

from mfoc.analysis.information import KDE, Bounds, gaussian_information, kde
from mfoc.errors import InvalidType, InvalidValue
from tests.problems import D, normal

NOISE = 0.1


def exact(activity, noise):
    """H(T) - H(T|X) of a mixture of Gaussians on the line, by quadrature."""
    centres = activity.flatten().numpy()

    def integrand(t):
        density = np.exp(-((t - centres) ** 2) / (2 * noise)).mean() / math.sqrt(2 * math.pi * noise)
        return -density * math.log(density) if density > 0 else 0.0

    reach = 10 * math.sqrt(noise)
    grid = np.linspace(centres.min() - reach, centres.max() + reach, 20)
    whole = sum(integrate.quad(integrand, a, b)[0] for a, b in pairwise(grid))
    return whole - math.log(2 * math.pi * math.e * noise) / 2


def exact_about_labels(activity, labels, noise):
    inside = sum(
        float((labels == c).double().mean()) * exact(activity[labels == c], noise) for c in labels.unique().tolist()
    )
    return exact(activity, noise) - inside


def plain(activity, factor, noise):
    """The sum over pairs as it is written."""
    rows = activity.tolist()
    total = 0.0
    for a in rows:
        total -= math.log(
            sum(math.exp(-sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) / (factor * noise)) for b in rows)
            / len(rows)
        )
    return total / len(rows)


points = st.lists(st.floats(-4, 4), min_size=2, max_size=8).map(lambda found: torch.tensor(found, dtype=D)[:, None])


@settings(max_examples=25)
@given(points, st.floats(0.05, 2.0))
def test_the_bounds_hold_the_exact_information_of_any_mixture(activity, noise):
    bounds = KDE(noise).about_input(activity)
    value = exact(activity, noise)
    assert bounds.lower <= value + 1e-7
    assert value <= bounds.upper + 1e-7
    assert bounds.upper <= math.log(len(activity)) + 1e-12


@settings(max_examples=15)
@given(points, st.floats(0.05, 2.0), st.integers(2, 3))
def test_the_bounds_hold_the_exact_information_about_labels(activity, noise, classes):
    labels = torch.arange(len(activity)) % classes
    bounds = KDE(noise).about_labels(activity, labels)
    value = exact_about_labels(activity, labels, noise)
    assert bounds.lower <= value + 1e-7
    assert value <= bounds.upper + 1e-7


def test_the_bounds_are_the_sums_over_pairs():
    activity = normal(9, 3)
    bounds = KDE(NOISE).about_input(activity)
    assert bounds.lower == pytest.approx(plain(activity, 8, NOISE), rel=1e-12)
    assert bounds.upper == pytest.approx(plain(activity, 2, NOISE), rel=1e-12)


def test_the_bounds_about_labels_pair_the_least_entropy_with_the_largest_conditional_one():
    labels = torch.arange(12) % 2
    activity = normal(12, 2) + 3 * labels[:, None]
    parts = [activity[labels == c] for c in (0, 1)]
    lower = plain(activity, 8, NOISE) - sum(plain(part, 2, NOISE) for part in parts) / 2
    upper = plain(activity, 2, NOISE) - sum(plain(part, 8, NOISE) for part in parts) / 2
    bounds = KDE(NOISE).about_labels(activity, labels)
    assert 0 < lower < math.log(2) < upper  # H(Y) cuts the upper one
    assert astuple(bounds) == pytest.approx((lower, math.log(2)))
    blurred = plain(activity, 2, 40) - sum(plain(part, 8, 40) for part in parts) / 2
    assert KDE(40.0).about_labels(activity, labels).upper == pytest.approx(blurred, rel=1e-10)
    assert blurred < plain(activity, 2, 40)  # nothing cuts it


def test_blocks_of_rows_change_nothing(monkeypatch):
    activity, labels = normal(50, 2), torch.arange(50) % 3
    whole = astuple(KDE(NOISE).about_labels(activity, labels))
    monkeypatch.setattr(kde, "_PAIRS", 70)
    assert astuple(KDE(NOISE).about_labels(activity, labels)) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("dimension", [1, 3])
def test_a_gaussian_channel_lies_between_the_bounds_which_tend_to_their_own_limits(dimension):
    """X standard normal: at s noise the bounds are, for N to infinity, (ln(1 + c / s) + 1 / (1 + s / c)) / 2."""
    bounds = KDE(NOISE).about_input(normal(3000, dimension, seed=4))
    truth = gaussian_information(torch.eye(dimension, dtype=D), NOISE)
    assert truth == pytest.approx(dimension * math.log(11) / 2)
    assert bounds.lower < truth < bounds.upper

    def limit(s):
        return dimension * (math.log(1 + 1 / s) + 1 / (1 + s)) / 2

    assert bounds.upper == pytest.approx(limit(NOISE), rel=0.05)
    assert bounds.lower == pytest.approx(limit(4 * NOISE), rel=0.05)


def test_far_clusters_are_told_exactly():
    activity = torch.tensor([[0.0, 0], [0, 0], [100, 0], [100, 0]], dtype=D)
    half = math.log(2)
    assert astuple(KDE(NOISE).about_input(activity)) == pytest.approx((half, half))
    assert astuple(KDE(NOISE).about_labels(activity, torch.tensor([5, 5, -2, -2]))) == pytest.approx((half, half))
    assert astuple(KDE(NOISE).about_labels(activity, torch.tensor([0, 1, 0, 1]))) == pytest.approx((0, 0), abs=1e-12)


def test_no_more_than_the_samples_can_show():
    """However little noise, N inputs show ln N: the bounds say nothing of the law they were drawn from."""
    bounds = KDE(1e-9).about_input(normal(40, 2))
    assert astuple(bounds) == pytest.approx((math.log(40), math.log(40)))


def test_a_layer_that_is_scaled_up_seems_to_know_more():
    activity = normal(60, 2)
    small, large = KDE(NOISE).about_input(activity), KDE(NOISE).about_input(10 * activity)
    assert large.lower > small.upper
    assert astuple(KDE(100 * NOISE).about_input(10 * activity)) == pytest.approx(astuple(small), rel=1e-10)


def test_where_it_lies_how_it_is_turned_and_the_order_of_samples_do_not_matter():
    activity, labels = normal(30, 3), torch.arange(30) % 3
    turn = torch.linalg.qr(normal(3, 3, seed=1)).Q
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    moved = (activity @ turn + 5)[order]
    wanted = astuple(KDE(NOISE).about_labels(activity, labels))
    assert astuple(KDE(NOISE).about_labels(moved, labels[order])) == pytest.approx(wanted, rel=1e-10)


def test_one_label_says_nothing():
    assert KDE(NOISE).about_labels(normal(10, 2), torch.zeros(10, dtype=torch.long)) == Bounds(0, 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_types_are_computed_in_float32(dtype):
    activity = normal(40, 2).to(dtype)
    wanted = astuple(KDE(NOISE).about_input(activity.double()))
    assert astuple(KDE(NOISE).about_input(activity)) == pytest.approx(wanted, rel=1e-4)


def test_near_neighbours_far_from_zero_are_not_lost_to_rounding():
    activity = (1000 + 0.1 * normal(40, 2)).float()
    wanted = astuple(KDE(1e-3).about_input(activity.double()))
    assert astuple(KDE(1e-3).about_input(activity)) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, D])
@pytest.mark.parametrize(("noise", "told"), [(1e-320, math.log(40)), (1e-60, math.log(40)), (1e300, 0.0)])
def test_noise_that_the_type_cannot_hold_is_as_little_or_as_much_as_it_is(noise, told, dtype):
    assert astuple(KDE(noise).about_input(normal(40, 2).to(dtype))) == pytest.approx((told, told), abs=1e-5)


@pytest.mark.parametrize("noise", [0, -1.0, math.nan, math.inf])
def test_noise_that_is_none_is_refused(noise):
    with pytest.raises(InvalidValue, match="noise"):
        KDE(noise)


@pytest.mark.parametrize(
    ("activity", "kind", "says"),
    [
        (torch.zeros(1, 3), InvalidValue, "two samples"),
        (torch.zeros(0, 3), InvalidValue, "two samples"),
        (torch.tensor(1.0), InvalidValue, "two samples"),
        (torch.zeros(4, 0), InvalidValue, "two samples"),
        (torch.tensor([[1.0], [math.nan]]), InvalidValue, "NaN"),
        (torch.ones(4, 2, dtype=torch.long), InvalidType, "floating-point"),
        ([[1.0]], InvalidType, "tensor of activities"),
    ],
    ids=["one", "none", "number", "no units", "nan", "integers", "list"],
)
def test_activity_that_says_nothing_is_refused(activity, kind, says):
    with pytest.raises(kind, match=says):
        KDE().about_input(activity)


@pytest.mark.parametrize(
    ("labels", "kind", "says"),
    [
        (torch.zeros(4), InvalidType, "bucketize"),
        (torch.zeros(3, dtype=torch.long), InvalidValue, r"\(4,\)"),
        (torch.zeros(4, 1, dtype=torch.long), InvalidValue, r"\(4,\)"),
        ([0, 1, 0, 1], InvalidType, "classes"),
    ],
    ids=["continuous", "too few", "matrix", "list"],
)
def test_labels_that_do_not_fit_are_refused(labels, kind, says):
    with pytest.raises(kind, match=says):
        KDE().about_labels(normal(4, 2), labels)
