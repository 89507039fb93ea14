"""Intervals about the population: they hold its values as often as they say."""

import math

import pytest
import torch
from scipy.stats import f as fisher
from scipy.stats import t as student

from mfoc import InvalidType, InvalidValue
from mfoc.certificate.intervals import (
    Measure,
    _f_quantiles,
    eigenvalue_interval,
    fold_of_group,
    gap_interval,
    residual_interval,
)
from tests.certificate.quadratics import D, Population, certificates, covered
from tests.problems import normal


def equal(groups: int) -> torch.Tensor:
    return torch.full((groups,), 1 / groups, dtype=D)


def ends(measure: Measure) -> list[float]:
    return [measure.estimate, measure.low, measure.high, measure.value]


def residual(g: torch.Tensor, **options: float) -> Measure:
    return residual_interval(g @ g.mT, equal(len(g)), **options)


def gap(full: torch.Tensor, crossed: torch.Tensor, **options: float) -> Measure:
    return gap_interval(full, crossed, fold_of_group(len(full), max(len(crossed), 2)), equal(len(full)), **options)


def coverage(population: Population, particles: int, distance: float, samples: int, **options: int) -> list[float]:
    u = population.control(distance, particles)
    found = certificates(population, particles, u, samples, **options)
    truth = population.truth(u)
    return [100 * sum(covered(row[i], truth[i]) for row in found) / samples for i in range(3)]


# Coverage. A sound 95 % shows 90.5 to 99 of 200 samples, except once in several hundred.


@pytest.mark.parametrize(("particles", "d"), [(100, 1), (5, 1), (5, 10)])
@pytest.mark.parametrize("distance", [0.0, 4.0])
def test_the_intervals_cover_at_the_optimum_and_away_from_it(particles: int, d: int, distance: float) -> None:
    residuals, gaps, lowest = coverage(Population(d, curvature="chi2"), particles, distance, 200)
    assert 90.5 <= residuals <= 99
    assert 90.5 <= gaps <= 99
    assert lowest >= 90  # the law of the curvature is skewed, and of 5 particles


@pytest.mark.slow
@pytest.mark.parametrize(("particles", "d"), [(100, 1), (5, 1), (100, 10), (5, 10), (400, 3)])
@pytest.mark.parametrize("distance", [0.0, 4.0, 10.0])
@pytest.mark.parametrize(("curvature", "law"), [("constant", "gauss"), ("wishart", "gauss"), ("constant", "chi2")])
def test_the_intervals_cover_for_other_laws(curvature: str, law: str, particles: int, d: int, distance: float) -> None:
    residuals, gaps, lowest = coverage(Population(d, law, curvature), particles, distance, 400)
    assert 90.5 <= residuals <= 98.7
    assert 90.5 <= gaps <= 98.7
    assert lowest >= 91


@pytest.mark.parametrize("d", [1, 10])
def test_a_control_fitted_to_the_particles_is_not_called_stationary(d: int) -> None:
    population, samples, particles = Population(d), 200, 20
    found = certificates(population, particles, None, samples)
    centres = population.draw(samples, particles)[1].mean(1)
    truths = [population.truth(c) for c in centres]
    for i in range(2):
        held = [covered(row[i], true[i]) for row, true in zip(found, truths, strict=True)]
        assert 90.5 <= 100 * sum(held) / samples <= 99
        assert all(row[i].value < 1e-6 and row[i].high > 0 for row in found)


@pytest.mark.parametrize("particles", [2, 3])
def test_two_or_three_particles_give_wide_intervals_that_cover(particles: int) -> None:
    for d in (1, 4):
        residuals, gaps, lowest = coverage(Population(d), particles, 3.0, 200)
        assert min(residuals, gaps, lowest) >= 90.5


def test_estimates_are_without_the_bias_of_the_sample() -> None:
    population, particles, samples = Population(10), 20, 300
    u = population.control(6.0, particles)
    found = certificates(population, particles, u, samples)
    truth = population.truth(u)[1]
    plain, value = (torch.tensor([getattr(row[1], name) for row in found]).mean() for name in ("value", "estimate"))
    bias = 10 / (2 * particles)  # d / 2N for centres of unit variance, on the curvature's scale
    assert plain - truth > 0.7 * bias
    assert abs(value - truth) < 0.25 * bias


# Closed forms.


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
@pytest.mark.parametrize("groups", [2, 3, 20])
@pytest.mark.parametrize("mean", [0.0, 0.3, -5.0])
def test_in_one_dimension_they_are_students_interval(mean: float, groups: int, confidence: float) -> None:
    g = normal(groups, 1, seed=3) + mean
    centre = float(g.mean().abs())
    spread = student.ppf(0.5 + confidence / 2, groups - 1) * float(g.std()) / math.sqrt(groups)
    low, high = max(centre - spread, 0.0), centre + spread
    found = residual(g, confidence=confidence, dimension=1)
    assert [found.low, found.high, found.value] == pytest.approx([low, high, centre], rel=2e-3, abs=1e-6)
    assert residual(g, confidence=confidence).high == pytest.approx(high, rel=2e-3)  # the Gram matrix shows it
    # The gap at u = 0 of 1/2 (u - c)^2, c = -g: half its square.
    full = -(g.mean() ** 2) / 2 + g[:, 0] * g.mean()
    fold = fold_of_group(groups)
    out = torch.stack([g[fold != j].mean() for j in range(int(fold.max()) + 1)])[:, None]
    found = gap(full, -(out**2) / 2 + out * g[:, 0], confidence=confidence, dimension=1)
    expected = [low**2 / 2, high**2 / 2, centre**2 / 2]
    assert [found.low, found.high, found.value] == pytest.approx(expected, rel=4e-3, abs=1e-6)
    spread_of_mean = eigenvalue_interval(float(g.mean()), g[:, 0], g[:, 0], 0.0, equal(groups), confidence, dimension=1)
    assert ends(spread_of_mean) == pytest.approx(
        [float(g.mean()), float(g.mean()) - spread, float(g.mean()) + spread, float(g.mean())]
    )
    assert not spread_of_mean.conservative


@pytest.mark.parametrize("nu", [1.0, 2.5, 10.0, 300.0])
@pytest.mark.parametrize("freedom", [1, 4, 19, 4000])
def test_quantiles_of_f_are_those_of_scipy(nu: float, freedom: int) -> None:
    levels = (0.005, 0.025, 0.5, 0.95, 0.99)
    assert _f_quantiles(levels, nu, freedom) == pytest.approx(fisher.ppf(levels, nu, nu * freedom), rel=5e-3)


def test_far_from_stationary_only_the_variance_along_the_mean_counts() -> None:
    g = normal(20, 6, seed=4) * torch.tensor([0.1, 1, 1, 1, 1, 1], dtype=D)
    g[:, 0] += 1e4
    found = residual(g)
    spread = student.ppf(0.975, 19) * float(g[:, 0].std()) / math.sqrt(20)
    assert (found.high - found.low) / 2 == pytest.approx(spread, rel=1e-2)


# Equivariance and extremes.


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_the_unit_of_the_cost_does_not_matter(scale: float) -> None:
    g, full, crossed = normal(7, 4, seed=5), normal(7, seed=6).abs(), normal(3, 7, seed=7)
    one, other = residual(g), residual(g * scale)
    assert ends(other) == pytest.approx([end * scale for end in ends(one)], rel=1e-9)
    one, other = gap(full, crossed), gap(full * scale, crossed * scale)
    assert ends(other) == pytest.approx([end * scale for end in ends(one)], rel=1e-9)
    weights = equal(7)
    one = eigenvalue_interval(-1.0, full, crossed[0], 0.1, weights)
    other = eigenvalue_interval(-scale, full * scale, crossed[0] * scale, 0.1 * scale, weights)
    assert ends(other) == pytest.approx([end * scale for end in ends(one)], rel=1e-9)


def test_an_order_of_groups_and_single_precision_do_not_matter() -> None:
    g = normal(6, 3, seed=8)
    weights = torch.arange(1.0, 7.0)
    order = torch.tensor([3, 1, 0, 5, 4, 2])
    one = residual_interval(g @ g.mT, weights)
    other = residual_interval(g[order] @ g[order].mT, weights[order])
    single = residual_interval((g @ g.mT).float(), weights)
    assert ends(other) == pytest.approx(ends(one))
    assert ends(single) == pytest.approx(ends(one), rel=1e-5)


def test_identical_particles_have_the_exact_value_without_width() -> None:
    g = torch.full((5, 3), 1.1, dtype=D)
    assert ends(residual(g)) == pytest.approx([1.1 * math.sqrt(3)] * 4)
    assert residual(g).low == residual(g).high
    same = torch.full((5,), 0.7, dtype=D)
    assert ends(gap(same, same.expand(5, 5))) == pytest.approx([0.7] * 4)
    assert ends(eigenvalue_interval(0.7, same, same, 0.0, equal(5))) == pytest.approx([0.7] * 4)
    zero = torch.zeros(5, dtype=D)
    assert ends(residual(torch.zeros(5, 3, dtype=D))) == ends(gap(zero, zero.expand(5, 5))) == [0.0] * 4


def test_one_particle_says_nothing_of_the_population() -> None:
    one = torch.ones(1, dtype=D)
    assert ends(residual(torch.ones(1, 4, dtype=D))) == [2.0, 0.0, math.inf, 2.0]
    assert ends(gap(one, one[None])) == [1.0, 0.0, math.inf, 1.0]
    assert ends(eigenvalue_interval(1.0, one, one, 0.0, one)) == [1.0, -math.inf, math.inf, 1.0]


@pytest.mark.parametrize("d", [2, 10])
def test_two_groups_are_wide_but_finite_and_never_without_width(d: int) -> None:
    found = residual(normal(2, d, seed=9))
    assert found.low == 0 < found.high < math.inf


def test_what_is_not_finite_is_not_made_finite() -> None:
    full, crossed, weights = normal(5, seed=1).abs(), normal(5, 5, seed=2), equal(5)
    nan, inf = torch.full((5,), math.nan, dtype=D), torch.full((5,), math.inf, dtype=D)
    assert all(map(math.isnan, ends(residual(nan[:, None]))))
    assert all(map(math.isnan, ends(gap(nan, crossed))))
    assert all(map(math.isnan, ends(eigenvalue_interval(math.nan, full, crossed[0], 0.0, weights))))
    assert ends(gap(inf, crossed)) == [math.inf] * 4
    without_fold = crossed.clone()
    without_fold[2] = math.inf  # no minimiser without fold 2
    found = gap(full, without_fold)
    assert (found.low, found.high) == (0.0, math.inf)
    assert math.isfinite(found.estimate)
    assert eigenvalue_interval(1.0, full, nan, 0.0, weights).high == math.inf


def test_the_error_of_the_eigenvalue_moves_the_lower_end_only() -> None:
    full, crossed, weights = normal(5, seed=1), normal(5, seed=2) + 1, equal(5)
    sharp, blunt = (eigenvalue_interval(float(full.mean()), full, crossed, e, weights) for e in (0.0, 0.5))
    assert blunt.low == pytest.approx(sharp.low - 0.5)
    assert blunt.high == sharp.high
    assert sharp.conservative


def test_the_estimate_lies_in_its_interval() -> None:
    for seed in range(30):
        for groups in (2, 3, 5, 20):
            g = normal(groups, 3, seed=seed) + seed / 20
            found = [residual(g, dimension=3), residual(g), gap(g[:, 0], normal(min(groups, 5), groups, seed=seed))]
            assert all(0 <= m.low <= m.estimate <= m.high for m in found)


def test_what_does_not_fit_is_refused() -> None:
    weights = equal(4)
    with pytest.raises(InvalidValue, match=r"gram is of shape \[3, 3\]; expected \[4, 4\]"):
        residual_interval(torch.eye(3), weights)
    with pytest.raises(InvalidValue, match="weights"):
        residual_interval(torch.eye(2), torch.tensor([1.0, 0.0]))
    with pytest.raises(InvalidValue, match="confidence"):
        residual_interval(torch.eye(4), weights, confidence=95.0)
    with pytest.raises(InvalidType, match="dimension"):
        residual_interval(torch.eye(4), weights, dimension=2.5)  # type: ignore[arg-type]
    with pytest.raises(InvalidValue, match="folds"):
        gap_interval(torch.ones(4), torch.ones(2, 4), torch.tensor([0, 2, 0, 2]), weights)
    with pytest.raises(InvalidValue, match="crossed"):
        gap_interval(torch.ones(4), torch.ones(3, 4), torch.tensor([0, 1, 0, 1]), weights)
    with pytest.raises(InvalidValue, match="folds"):
        fold_of_group(4, 1)


def test_the_lowest_of_many_equal_eigenvalues_is_below_the_upper_end():
    """Vectors that are chosen without a fold vary together: their values are no independent draws."""
    dimension, groups, cases = 10, 20, 400
    draws = torch.randn(cases, groups, dimension, dimension, generator=torch.Generator().manual_seed(0), dtype=D)
    matrices, folds = (draws + draws.mT) / 2, fold_of_group(groups)
    lowest, vectors = torch.linalg.eigh(matrices.mean(1))
    crossed = torch.empty(cases, groups, dtype=D)
    for fold in range(int(folds.max()) + 1):
        own = folds == fold
        w = torch.linalg.eigh(matrices[:, ~own].mean(1))[1][:, :, 0]
        crossed[:, own] = torch.einsum("si,skij,sj->sk", w, matrices[:, own], w)
    full = torch.einsum("si,skij,sj->sk", vectors[:, :, 0], matrices, vectors[:, :, 0])
    weights = torch.full((groups,), 1 / groups, dtype=D)
    found = [eigenvalue_interval(*one, 0.0, weights) for one in zip(lowest[:, 0], full, crossed, strict=True)]
    assert sum(one.low <= 0 <= one.high for one in found) >= 0.94 * cases
