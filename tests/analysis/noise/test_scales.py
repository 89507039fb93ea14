"""Noise scales: exact identities, intervals that cover, and what is said where nothing is known."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mfoc
from mfoc.analysis.noise import NoiseScale, noise_scale
from mfoc.analysis.noise.ratio import signal_to_noise
from mfoc.analysis.noise.samples import Samples, curved_products
from mfoc.errors import InvalidType, InvalidValue
from tests.analysis.noise.cases import Location, classifier, dense_hessian, normal, plain_gradients, quadratic

H = torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.float64)  # curvatures of the quadratic below


def on_quadratic(u: torch.Tensor, n: int, seed: int, **settings):
    """Of f(u) = E sum_j h_j (u - x)_j^2 / 2, x standard normal: G = h u, Sigma = h^2, H = h."""
    x = normal(n, 4, seed=seed)
    return noise_scale(Location(u), quadratic, (x, H.expand(n, 4)), seed=seed, **settings)


def truth(u: torch.Tensor) -> tuple[float, float]:
    """B_simple and B_noise of that quadratic."""
    slope = H * u
    return float((H**2).sum() / slope.square().sum()), float((H**3).sum() / (H * slope**2).sum())


def test_groups_of_one_are_the_formulas_on_single_gradients():
    net, x, y = classifier()
    slopes, n = plain_gradients(net, x, y), len(x)
    sigma, mean = torch.cov(slopes.mT), slopes.mean(0)
    found = noise_scale(net, F.cross_entropy, (x, y), groups=n)
    assert found.simple.noise == pytest.approx(float(sigma.trace()))
    assert found.simple.signal == pytest.approx(float(mean @ mean - sigma.trace() / n))


@pytest.mark.parametrize("groups", [10, 9])
@pytest.mark.parametrize("kept", [None, 10])
def test_a_gradient_meets_the_hessian_of_other_samples_alone(groups, kept):
    """The mean of g_i' H_j g_k over all distinct groups i, j, k, by a plain loop; and of g_i' H_j g_i over i and j."""
    net, x, y = classifier()
    members = len(x) // groups
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[: groups * members].view(groups, -1)
    slopes = [plain_gradients(net, x[rows], y[rows]).mean(0) for rows in order]
    used = [rows if kept is None else rows[:1] for rows in order]
    hessians = [dense_hessian(net, x[rows], y[rows]) for rows in used]
    apart = [slopes[i] @ hessians[j] @ slopes[k] for i, j, k in itertools.permutations(range(groups), 3)]
    own = [slopes[j] @ hessians[k] @ slopes[j] for j, k in itertools.permutations(range(groups), 2)]
    signal, square = (float(torch.stack(each).mean()) for each in (apart, own))
    found = noise_scale(net, F.cross_entropy, (x, y), groups=groups, hessian_samples=kept).curved
    assert found.signal == pytest.approx(signal)
    assert found.noise == pytest.approx(members * (square - signal))


@pytest.mark.slow
def test_intervals_cover_where_curvature_is_seen_on_the_samples_of_the_gradients():
    """Regression on normal features: G = w, H = 1, Sigma = (|w|^2 + 1) 1 + w w'. Of 100, 95 are to cover."""
    net, covered = nn.Linear(20, 1, bias=False).double(), 0
    with torch.no_grad():
        net.weight.fill_(1 / math.sqrt(20))
    for seed in range(100):
        data = normal(320, 20, seed=seed), normal(320, 1, seed=1000 + seed)
        found = noise_scale(net, lambda out, z: (out - z).square()[:, 0] / 2, data, groups=32).curved
        covered += found.low <= 41 <= found.high
    assert covered >= 89


def curved_by_chance(seed: int, **settings):
    """Ten entries of a quadratic with curvature 0 or 2, as the sample has it, and one of 1: Sigma = 2, and 1.

    With G = (1, 0, ...): G'HG = 1 and tr(H Sigma) = 21.
    """
    h = 2.0 * (normal(320, 1, seed=1000 + seed) > 0).double().expand(320, 11).clone()
    h[:, 0] = 1
    u = torch.zeros(11, dtype=torch.float64)
    u[0] = 1
    return noise_scale(Location(u), quadratic, (normal(320, 11, seed=seed), h), groups=32, seed=seed, **settings)


@pytest.mark.slow
def test_intervals_cover_where_few_samples_define_the_curvature():
    """Of 100, 95 are to cover; with the curvature that the noise meets taken for known, some 78 would."""
    found = [curved_by_chance(seed, hessian_samples=32).curved for seed in range(100)]
    assert sum(scale.low <= 21 <= scale.high for scale in found) >= 89


def test_what_the_hessian_of_a_group_adds_is_seen_by_the_gradients_of_the_others():
    """G'H_k G exactly, and tr(H_k Sigma) in the mean over probes, by a plain loop."""
    net, x, y = classifier()
    samples = Samples.of(net, F.cross_entropy, (x, y))
    slopes = plain_gradients(net, x, y)
    groups = [slice(0, 8), slice(8, 16), slice(16, 24)]
    means = torch.stack([slopes[rows].mean(0) for rows in groups])
    found = [curved_products(samples, means, [samples.cloud[r] for r in groups], 8, seed)[1] for seed in range(30)]
    centred = means - means.mean(0)
    for k, rows in enumerate(groups):
        hessian = dense_hessian(net, x[rows], y[rows])
        others = [j for j in range(3) if j != k]
        rest = means[others].mean(0)
        trace = 8 / 2 * sum(centred[j] @ hessian @ centred[j] for j in others)
        cross = 8 * abs(centred[others[0]] @ hessian @ centred[others[1]])  # what a probe is off by, up or down
        assert found[0][0, k] == pytest.approx(float(rest @ hessian @ rest))
        for probe in found[0][1:, k]:
            assert abs(probe - trace) == pytest.approx(float(cross))
        assert torch.cat([each[1:, k] for each in found]).mean() == pytest.approx(float(trace), abs=float(cross) / 3)


def test_signal_and_noise_are_without_bias_for_any_groups():
    u = torch.full((4,), 0.2, dtype=torch.float64)
    simple, curved = truth(u)
    found = [on_quadratic(u, 120, seed, groups=12) for seed in range(150)]
    for scales, expected in (([f.simple for f in found], simple), ([f.curved for f in found], curved)):
        signals, noises = (torch.tensor([getattr(s, name) for s in scales]) for name in ("signal", "noise"))
        assert float(noises.mean() / signals.mean()) == pytest.approx(expected, rel=0.1)
        for sample, mean in ((noises, float(noises.mean())), (signals, float(noises.mean()) / expected)):
            assert abs(float(sample.mean()) - mean) < 4 * float(sample.std()) / math.sqrt(150)


@pytest.mark.parametrize("size", [1.0, 0.1, 0.02], ids=["far below the draws", "within reach", "beyond"])
def test_intervals_cover(size):
    """Each is to hold in 95 % of the repeats: of 120, in 114 with a standard deviation of 2.4."""
    u = torch.full((4,), size, dtype=torch.float64)
    simple, curved = truth(u)
    found = [on_quadratic(u, 320, seed, groups=32) for seed in range(120)]
    assert sum(f.simple.low <= simple <= f.simple.high for f in found) >= 104
    assert sum(f.curved.low <= curved <= f.curved.high for f in found) >= 104
    resolved = sum(f.curved.resolved for f in found)
    assert resolved == 120 if size == 1.0 else resolved < 6 if size == 0.02 else resolved > 0


@pytest.mark.parametrize("rank", [1, 3, 40])
@pytest.mark.parametrize("scale", [10.0, 300.0, 1e4])
def test_intervals_cover_whatever_the_rank_of_the_noise(rank, scale):
    """Means of groups of 25 Gaussian draws, 40 groups, 400 repeats; A is the identity."""
    generator = torch.Generator().manual_seed(rank)
    mean = torch.zeros(40, dtype=torch.float64)
    mean[0] = math.sqrt(rank / scale)
    spread = (torch.arange(40) < rank).double() / 5
    covered = 0
    for _ in range(400):
        means = mean + spread * torch.randn(40, 40, generator=generator, dtype=torch.float64)
        found = signal_to_noise(means @ means.mT, 25, 0.95)
        covered += found.low <= 1 / scale <= found.high
    assert covered >= 0.9 * 400


def test_no_signal_is_seldom_taken_for_one():
    u = torch.zeros(4, dtype=torch.float64)
    found = [on_quadratic(u, 320, seed, groups=16) for seed in range(100)]
    assert sum(f.simple.resolved for f in found) <= 5
    assert sum(f.curved.status == "none" for f in found) <= 5
    one = next(f for f in found if f.curved.status == "unresolved")
    assert one.curved.high == math.inf
    assert "unresolved by 320 draws" in one.verdict
    assert math.isnan(one.lr(32))


def test_fewer_draws_than_the_scale_leave_it_unresolved():
    u = torch.full((4,), 0.03, dtype=torch.float64)
    assert truth(u)[1] == pytest.approx(1111.1, abs=0.1)
    assert not on_quadratic(u, 300, 0).curved.resolved
    found = on_quadratic(u, 60_000, 0).curved
    assert found.resolved
    assert found.low < 1111 < found.high


def test_a_saddle_has_no_scale():
    u, x = torch.full((2,), 3.0, dtype=torch.float64), normal(400, 2)
    h = torch.tensor([1.0, -4.0], dtype=torch.float64).expand(400, 2)
    found = noise_scale(Location(u), quadratic, (x, h))
    assert found.curved.status == "none"
    assert "curves down" in str(found)
    assert math.isnan(found.best_lr)
    assert found.simple.resolved
    assert found.verdict.startswith("B_simple")


def test_samples_that_are_all_alike_have_scale_zero():
    x = torch.zeros(16, 2, dtype=torch.float64)
    found = noise_scale(Location(torch.ones(2).double()), quadratic, (x, torch.ones_like(x)))
    assert found.simple.value == found.curved.value == 0
    assert found.simple.resolved


def test_the_rate_is_the_one_that_lowers_the_loss_most():
    """E f(u - eta g_B) of the quadratic, in closed form, over a grid of rates."""
    u = torch.full((4,), 0.5, dtype=torch.float64)
    found, slope = on_quadratic(u, 20_000, 0), H * u
    rates = torch.linspace(0, 1, 2001, dtype=torch.float64)[:, None]
    for batch_size in (1, 8, 64):
        losses = (H / 2 * (u - rates * slope).square()).sum(1) + rates[:, 0] ** 2 * float((H**3).sum()) / 2 / batch_size
        assert found.lr(batch_size) == pytest.approx(float(rates[losses.argmin()]), rel=0.1)


def test_it_is_the_same_by_seed_and_chunk():
    net, x, y = classifier()
    one = noise_scale(net, F.cross_entropy, (x, y), groups=10)
    other = noise_scale(net, F.cross_entropy, (x, y), groups=10, batch_size=2)
    assert one.curved.signal == pytest.approx(other.curved.signal)
    assert one.simple.value == noise_scale(net, F.cross_entropy, (x, y), groups=10).simple.value
    assert one.simple.signal != noise_scale(net, F.cross_entropy, (x, y), groups=10, seed=1).simple.signal


def test_as_a_hook_it_measures_where_the_solve_stands():
    net, x, y = classifier()
    problem = mfoc.from_module(net, F.cross_entropy)
    hook = NoiseScale(problem, data=(x, y), every=2, groups=10)
    solver = mfoc.Gradient(lambda leaves: torch.optim.SGD(leaves, lr=0.1))
    solution = mfoc.solve(problem, solver, (x, y), steps=4, hooks=[hook])
    assert hook.steps == [2, 4]
    assert hook.values[-1].simple.signal == noise_scale(problem, solution, (x, y), groups=10).simple.signal
    assert hook.values[0].simple.signal != hook.values[1].simple.signal
    assert hook.plot().axes[0].get_xlabel() == "step"
    assert repr(hook) == f"NoiseScale(every 2 steps, measured 2 times, last at step 4: {hook.values[-1].verdict})"


def test_in_a_loop_of_ones_own_it_measures_the_network_as_it_is():
    net, x, y = classifier()
    scale = NoiseScale(net, nn.CrossEntropyLoss(), (x, y), groups=10)
    before = scale.measure(0)
    with torch.no_grad():
        net[2].bias.add_(1.0)
    assert scale.measure(1).simple.signal != before.simple.signal
    assert scale.steps == [0, 1]


@pytest.mark.parametrize(
    ("arguments", "settings", "kind", "match"),
    [
        ((nn.Linear(2, 2),), {}, InvalidValue, "a module needs a loss"),
        ((nn.Linear(2, 2), F.mse_loss), {}, InvalidValue, "data is missing"),
        ((3, F.mse_loss), {}, InvalidType, "net is an int"),
        ((nn.Linear(2, 2), F.mse_loss, (1, 2)), {"drawn": 3}, InvalidType, "drawn is no setting"),
        ((nn.Linear(2, 2), F.mse_loss, (1, 2)), {"every": 0}, InvalidValue, "every is 0"),
    ],
    ids=["no loss", "no data", "no network", "no setting", "never"],
)
def test_a_hook_is_refused_when_it_is_made(arguments, settings, kind, match):
    with pytest.raises(kind, match=match):
        NoiseScale(*arguments, **settings)


@pytest.mark.parametrize(
    "settings", [{"groups": 7}, {"confidence": 1.0}, {"hessian_samples": 0}, {"draws": 31}, {"draws": 7}], ids=str
)
def test_settings_are_refused(settings):
    net, x, y = classifier()
    with pytest.raises(InvalidValue):
        noise_scale(net, F.cross_entropy, (x, y), **settings)


def test_a_hook_of_a_module_is_refused_in_a_solve_that_leaves_it_as_it_is():
    net, x, y = classifier()
    solver = mfoc.Gradient(lambda leaves: torch.optim.SGD(leaves, lr=0.1))
    hook = NoiseScale(net, nn.CrossEntropyLoss(), (x, y), every=1)
    with pytest.raises(InvalidValue, match="make the hook of the problem"):
        mfoc.solve(mfoc.from_module(net, F.cross_entropy), solver, (x, y), steps=1, hooks=[hook])


def test_what_is_unresolved_is_drawn_as_a_bound():
    u = torch.full((4,), 0.02, dtype=torch.float64)
    x = normal(320, 4)
    hook = NoiseScale(Location(u), quadratic, (x, H.expand(320, 4)))
    found = hook.measure(0)
    assert found.simple.status == "unresolved"
    bound = next(line for line in hook.plot().axes[0].lines if line.get_label() == "B_simple or more")
    assert bound.get_ydata().tolist() == [found.simple.low]
