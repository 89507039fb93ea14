"""SVAG beside SGD: the weights, the chain on a quadratic in closed form, and the verdict both ways."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mfoc
from mfoc.analysis.noise import svag_training, svag_weights, valid_sde
from mfoc.errors import InvalidType, InvalidValue
from tests.analysis.noise.cases import Location, normal, quadratic


@given(l=st.integers(1, 10_000))
def test_weights_keep_the_mean_and_multiply_the_covariance_by_l(l):  # noqa: E741
    one, other = svag_weights(l)
    assert one + other == pytest.approx(1)
    assert one**2 + other**2 == pytest.approx(l)


def test_l_of_one_is_sgd():
    assert svag_weights(1) == (1, 0)


def chain(start: float, h: float, noise: float, lr: float, steps: int, factor: int) -> float:
    """E h u^2 / 2 after SVAG on h u^2 / 2, the gradient of one batch of variance ``noise``: mean and variance."""
    mean, variance = start, 0.0
    for _ in range(steps * factor):
        mean *= 1 - lr * h / factor
        variance = (1 - lr * h / factor) ** 2 * variance + (lr / factor) ** 2 * factor * noise
    return h / 2 * (mean**2 + variance)


def data(n: int = 64):
    """Of mean zero and variance one exactly, so that the loss is (u^2 + 1) / 2."""
    x = normal(n, 1)
    x = (x - x.mean()) / x.std(correction=0)
    return x, torch.ones_like(x)


START = torch.tensor([1.0], dtype=torch.float64)


@pytest.mark.parametrize("lr", [0.3, 1.5])
@pytest.mark.parametrize("factor", [1, 2, 4])
def test_losses_are_those_of_the_chain_in_closed_form(lr, factor):
    train = svag_training(Location(START), quadratic, data(), lr=lr, steps=6, batch_size=2, seeds=80)
    losses = train(factor)[:, 0] - 0.5
    expected = chain(1.0, 1.0, 0.5, lr, 6, factor)
    assert abs(float(losses.mean()) - expected) < 4 * float(losses.std()) / math.sqrt(80)


def test_places_along_the_training_are_at_the_same_times():
    train = svag_training(Location(START), quadratic, data(), lr=0.1, steps=6, batch_size=64, seeds=2, points=3)
    for factor in (1, 3):
        expected = [chain(1.0, 1.0, 0.0, 0.1, steps, factor) for steps in (2, 4, 6)]
        assert torch.allclose(train(factor).mean(0) - 0.5, torch.tensor(expected).double(), atol=0.1)
    assert torch.equal(train(2), train(2))


def test_places_that_do_not_divide_the_steps_are_at_the_same_times_too():
    """Without noise a loss is known exactly: that after 2, 3 and 5 steps of SGD, or 16, 24 and 40 of SVAG."""
    x = torch.zeros(4, 1, dtype=torch.float64)
    train = svag_training(Location(START), quadratic, (x, torch.ones_like(x)), lr=0.01, steps=5, seeds=2, points=3)
    for factor in (1, 8):
        expected = [chain(1.0, 1.0, 0.0, 0.01, steps, factor) for steps in (2, 3, 5)]
        assert train(factor)[0].tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_steps_are_not_lost_to_rounding(dtype):
    """In half precision 1 - 0.001 is 1, or is rounded by a third: without noise the loss must fall all the same."""
    x = torch.zeros(4, 1, dtype=dtype)
    train = svag_training(Location(START.to(dtype)), quadratic, (x, torch.ones_like(x)), lr=0.004, steps=50, seeds=2)
    for factor in (1, 4):
        expected = chain(1.0, 1.0, 0.0, 0.004, 50, factor)
        assert float(train(factor)[0, 0]) == pytest.approx(expected, rel=0.02)


def test_a_small_step_is_what_its_equation_says():
    found = valid_sde(Location(START), quadratic, data(), lr=0.05, steps=20, batch_size=4, l=(1, 2), seeds=24)
    assert found.standing == "valid"
    assert found.verdict.startswith(
        "SGD at lr = 0.05 and batches of 4 is what its SDE says, within 10 % of the loss at l = 2"
    )


def test_a_step_near_two_over_the_curvature_is_not():
    """At stationarity the loss above 1/2 is lr noise / (2 (2 - lr)) at l = 1, and lr noise / 4 in the equation."""
    found = valid_sde(Location(START), quadratic, data(), lr=1.9, steps=40, batch_size=1, l=(1, 4), seeds=24)
    assert found.standing == "not valid"
    assert "is not what its SDE says" in found.verdict
    assert float(found.gaps[0, 0]) > 1


def test_a_training_that_diverges_at_l_of_one_alone_is_not():
    def train(factor):
        return torch.full((8,), math.inf if factor == 1 else 1.0)

    found = valid_sde(train)
    assert found.standing == "not valid"
    assert "8 of 8 trainings diverge, by SVAG at l = 2, 4 0 of 8, 0 of 8" in found.verdict
    assert valid_sde(lambda factor: torch.full((3,), math.nan)).standing == "cannot tell"


@pytest.mark.parametrize("here", range(7))
@pytest.mark.parametrize("there", [0, 2, 9])
def test_as_many_trainings_diverge_but_for_chance(here, there):
    """By Fisher's exact test; one of 16 that diverges says nothing."""
    scipy_stats = pytest.importorskip("scipy.stats")
    counts = {1: (here, 6), 2: (there, 9)}
    tails = [
        scipy_stats.fisher_exact([[here, 6 - here], [there, 9 - there]], side).pvalue for side in ("less", "greater")
    ]

    def train(l):  # noqa: E741
        bad, size = counts[l]
        return [math.inf] * bad + [1.0] * (size - bad)

    found = valid_sde(train, l=(1, 2))
    if here + there:
        assert found.diverged == (here, there)
        assert found.standing == ("not valid" if 2 * min(tails) <= 0.05 else "cannot tell")
    else:
        assert found.standing == "valid"


def losses_of(means, spread, seed, count=12):
    generator = torch.Generator().manual_seed(seed)
    return lambda factor: means[factor] + spread * torch.randn(count, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("gap", "wrong"), [(0.1, "valid"), (-0.1, "valid"), (0.1, "not valid"), (-0.1, "not valid")])
def test_on_the_border_neither_is_said_more_often_than_allowed(gap, wrong):
    """With a true gap of just the margin either is wrong: each in one of forty at most (half of 5 %), of 400."""
    means = {1: 1 + gap, 2: 1.0}
    found = [valid_sde(losses_of(means, 0.1, seed), l=(1, 2)).standing for seed in range(400)]
    assert found.count(wrong) <= 22


def test_several_comparisons_hold_together():
    means = {1: 1.1, 2: 1.0, 4: 1.0, 8: 1.0}
    found = [valid_sde(losses_of(means, 0.1, seed), l=(1, 2, 4, 8)).standing for seed in range(300)]
    assert found.count("not valid") <= 25


def test_each_of_several_intervals_is_at_the_level_that_bonferroni_leaves():
    means = {1: 1.1, 2: 1.0, 4: 1.0, 8: 1.0}
    several = valid_sde(losses_of(means, 0.1, 0), l=(1, 2, 4, 8), confidence=0.94)
    alone = valid_sde(losses_of(means, 0.1, 0), l=(1, 2), confidence=0.98)
    assert float(several.low[0, 0]) == pytest.approx(float(alone.low[0, 0]))


def test_few_seeds_of_a_wide_spread_cannot_tell():
    found = valid_sde(losses_of({1: 1.0, 2: 1.0, 4: 1.0}, 0.5, 0, count=4))
    assert found.standing == "cannot tell"
    assert "take more seeds than 4" in found.verdict


def test_the_interval_is_welchs():
    scipy_stats = pytest.importorskip("scipy.stats")
    one, other = normal(9, seed=1) * 0.3, 50 + normal(14, seed=2)  # a ratio near one, whose delta method is exact
    found = valid_sde(lambda factor: (50 + one) if factor == 1 else other, l=(1, 2))
    expected = scipy_stats.ttest_ind(50 + one, other, equal_var=False).confidence_interval(0.95)
    assert float(found.low[0, 0]) == pytest.approx(float(expected.low) / float(other.mean()), rel=0.03)
    assert float(found.high[0, 0]) == pytest.approx(float(expected.high) / float(other.mean()), rel=0.03)


def test_a_problem_is_trained_alike():
    x, h = data()
    problem = mfoc.Problem(lambda t, x, u, z: u - x, quadratic, [START], running_cost=None)
    own = svag_training(Location(START), quadratic, (x, h), lr=0.5, steps=3, batch_size=4, seeds=3)
    other = svag_training(problem, None, (x, h), lr=0.5, steps=3, batch_size=4, seeds=3)
    assert torch.allclose(own(2), other(2))
    assert torch.equal(problem.controls[0], START)


def test_losses_may_come_seed_by_seed():
    """As a loop over seeds appends them: numbers, or tensors of the losses at some places."""
    losses = {f: 1 + 0.1 * torch.rand(5, 3, generator=torch.Generator().manual_seed(f)) for f in (1, 2)}
    whole = valid_sde(lambda f: losses[f], l=(1, 2))
    rows = valid_sde(lambda f: list(losses[f].clone().requires_grad_()), l=(1, 2))
    assert torch.equal(rows.gaps, whole.gaps)
    numbers = valid_sde(lambda f: losses[f][:, 0].tolist(), l=(1, 2))
    assert torch.equal(numbers.gaps[:, 0], whole.gaps[:, 0])
    with pytest.raises(InvalidType, match=r"returned a list; expected losses \[S\] or \[S, K\]"):
        valid_sde(lambda f: [torch.ones(2), torch.ones(3)], l=(1, 2))


def test_losses_that_are_nothing_are_not_compared():
    assert "the mean is not told from zero" in valid_sde(lambda f: torch.zeros(4)).verdict


def test_it_prints_and_draws():
    found = valid_sde(losses_of({1: 1.0, 2: 1.0, 4: 1.0}, 0.01, 0))
    assert "l = 4: loss" in str(found)
    assert found.plot().axes[0].get_title().startswith("valid")


@pytest.mark.parametrize(
    ("train", "settings", "kind", "match"),
    [
        (3, {}, InvalidType, r"net is an int; expected .* or a function train\(l\)"),
        (lambda f, seed: torch.ones(3), {}, InvalidType, r"it is called as train\(l\)"),
        (lambda f: "low", {}, InvalidType, "returned a str"),
        (lambda f: torch.ones(3) * 1j, {}, InvalidType, "complex"),
        (lambda f: 1.0, {}, InvalidValue, "two seeds or more"),
        (lambda f: torch.ones(1), {}, InvalidValue, "two seeds or more"),
        (lambda f: torch.ones(3, f), {}, InvalidValue, "the same for every l"),
        (lambda f: torch.ones(3), {"l": (2, 4)}, InvalidValue, "expected 1, which is SGD"),
        (lambda f: torch.ones(3), {"l": (1,)}, InvalidValue, "at least one above"),
        (lambda f: torch.ones(3), {"l": 2}, InvalidType, "a sequence of integers"),
        (lambda f: torch.ones(3), {"margin": 0.0}, InvalidValue, "margin"),
    ],
    ids=[
        "no function",
        "two arguments",
        "no tensor",
        "complex",
        "a number",
        "one seed",
        "other places",
        "no 1",
        "nothing beside",
        "no sequence",
        "no margin",
    ],
)
def test_comparisons_are_refused(train, settings, kind, match):
    with pytest.raises(kind, match=match):
        valid_sde(train, **settings)


@pytest.mark.parametrize(
    "setting", [{"lr": 0.0}, {"steps": 0}, {"batch_size": 0}, {"seeds": 1}, {"points": 4}], ids=str
)
def test_trainings_are_refused(setting):
    given = {"lr": 0.1, "steps": 3, "batch_size": 2} | setting
    with pytest.raises(InvalidValue):
        svag_training(Location(START), quadratic, data(), **given)


def test_a_training_function_may_return_a_list():
    given = [1.0, 1.1, 0.9]
    assert torch.equal(valid_sde(lambda factor: given).losses[0], torch.tensor(given, dtype=torch.float64)[:, None])


@pytest.mark.parametrize(
    "setting",
    [{"loss": quadratic}, {"lr": 0.1}, {"steps": 3}, {"batch_size": 2}, {"seeds": 4}, {"points": 2}, {"seed": 1}],
    ids=lambda setting: next(iter(setting)),
)
def test_a_training_function_has_settings_of_its_own(setting):
    with pytest.raises(InvalidValue, match=f"{next(iter(setting))} would do nothing"):
        valid_sde(lambda factor: torch.ones(3), **setting)


@pytest.mark.parametrize("missing", ["lr", "steps"])
def test_a_network_needs_a_step_and_their_number(missing):
    given = {"lr": 0.1, "steps": 3}
    del given[missing]
    with pytest.raises(InvalidType, match=f"{missing} is None"):
        valid_sde(Location(START), quadratic, data(), **given)


def test_both_doors_are_one():
    """The verdict on a network is that on its training function."""
    own = valid_sde(Location(START), quadratic, data(), lr=0.3, steps=4, batch_size=2, seeds=4)
    other = valid_sde(svag_training(Location(START), quadratic, data(), lr=0.3, steps=4, batch_size=2, seeds=4))
    assert torch.equal(own.low, other.low)
    assert own.standing == other.standing


def test_the_batch_size_is_that_of_the_data_or_32():
    dataset = torch.utils.data.TensorDataset(*data())
    for source, expected in (
        (torch.utils.data.DataLoader(dataset, batch_size=3), 3),
        (mfoc.population(dataset, batch_size=5), 5),
        (dataset, 32),
    ):
        found = valid_sde(Location(START), quadratic, source, lr=0.1, steps=2, l=(1, 2), seeds=2)
        given = valid_sde(Location(START), quadratic, source, lr=0.1, steps=2, l=(1, 2), seeds=2, batch_size=expected)
        assert found.batch_size == expected
        assert torch.equal(found.losses[1], given.losses[1])
