"""The path-integral (Foellmer) sampler, against closed forms and paths written out by hand."""

import itertools
import math
from functools import partial

import pytest
import torch
from torch import nn

import mfoc
from mfoc import testing
from mfoc.schemes import euler_maruyama
from paradigms.bayesian import Drift, GaussianDrift, follmer, log_density
from tests.paradigms.bayesian.targets import COVARIANCE, LOG_Z, MEAN, Constant, at_start, gaussian, wild
from tests.problems import D, normal

ADAM = mfoc.Gradient(partial(torch.optim.Adam, lr=0.02))


@pytest.mark.parametrize(("sigma", "T"), [(1.0, 1.0), (0.7, 2.0)])
def test_for_a_shifted_reference_the_optimum_is_a_constant_and_exact(sigma, T):
    """Target Z N(m, sigma^2 T): u = m / T, all weights are Z and J = -log Z, on any grid."""
    target = gaussian(MEAN, sigma**2 * T * torch.eye(2, dtype=D))
    found = [
        follmer(target, Constant(MEAN / T), sigma=sigma, T=T, steps=steps, spacing=spacing)
        for steps, spacing in ((1, 1.0), (7, 1.0), (5, 2.0))
    ]
    for made in found:
        evidence = made.evaluate(at_start(made), n=50)
        torch.testing.assert_close(evidence.log_weights, torch.full((50,), LOG_Z, dtype=D), rtol=1e-10, atol=0)
        assert evidence.log_z == pytest.approx(LOG_Z, rel=1e-12)
        assert pytest.approx(-LOG_Z, rel=1e-12) == evidence.J
        assert evidence.ess == pytest.approx(1)


def test_the_gap_of_the_optimal_drift_is_of_the_order_of_the_step():
    target, gaps = gaussian(), []
    for steps in (10, 20, 40, 80):
        made = follmer(target, GaussianDrift(MEAN, COVARIANCE), steps=steps)
        evidence = made.evaluate(at_start(made), n=20_000)
        gaps.append(evidence.J + LOG_Z)
        assert evidence.log_z == pytest.approx(LOG_Z, abs=4 * evidence.error)
    assert all(gap > 0 for gap in gaps)
    ratios = [before / after for before, after in itertools.pairwise(gaps)]
    assert all(1.6 < ratio < 2.6 for ratio in ratios), gaps
    assert gaps[-1] < 0.01


def test_the_end_points_of_the_optimal_drift_are_draws_from_the_target():
    made = follmer(gaussian(), GaussianDrift(MEAN, COVARIANCE), steps=100)
    evidence = made.evaluate(at_start(made), n=20_000)
    for x in (evidence.x, evidence.resampled()):
        torch.testing.assert_close(x.mean(0), MEAN, atol=0.02, rtol=0)
        torch.testing.assert_close(torch.cov(x.mT), COVARIANCE, atol=0.02, rtol=0)


@pytest.mark.slow
def test_solving_finds_the_optimum_from_a_wrong_guess():
    made = follmer(gaussian(), GaussianDrift(MEAN + 0.5, 2 * COVARIANCE), steps=10, particles=64)
    exact = follmer(gaussian(), GaussianDrift(MEAN, COVARIANCE), steps=10)
    before, optimum = made.evaluate(at_start(made)).J, exact.evaluate(at_start(exact)).J
    solver = mfoc.Gradient(partial(torch.optim.Adam, lr=0.1), lr_schedule=lambda k: 0.97**k)
    after = made.evaluate(made.solve(solver, steps=120))
    assert before > -LOG_Z + 0.3
    # On the grid the best drift of this form is at least as good as that of continuous time.
    assert after.J > -LOG_Z
    assert optimum + 0.02 > after.J
    assert after.log_z == pytest.approx(LOG_Z, abs=4 * after.error)
    assert after.ess > 0.8


@pytest.mark.parametrize("path_gradient", [True, False])
@pytest.mark.parametrize(("steps", "spacing"), [(3, 1.0), (8, 2.0)])
def test_the_mean_weight_is_z_whatever_the_policy(path_gradient, steps, spacing):
    made = follmer(gaussian(), wild(), steps=steps, spacing=spacing, sigma=0.9, path_gradient=path_gradient)
    evidence = made.evaluate(at_start(made), n=60_000)
    assert evidence.log_z == pytest.approx(LOG_Z, abs=4 * evidence.error)
    assert evidence.error < 0.03
    assert evidence.J > -LOG_Z + 0.1


@pytest.mark.parametrize("path_gradient", [True, False])
def test_weights_are_the_ratio_of_the_densities_of_the_paths(path_gradient):
    """The target times the reference's path density given its end, over the controlled path density."""
    steps, sigma, T = 5, 0.8, 1.5
    policy, target = wild(), gaussian()
    made = follmer(target, policy, steps=steps, sigma=sigma, T=T, particles=6, path_gradient=path_gradient)
    particles, h = made.population(3), T / steps
    states = mfoc.rollout(made.problem, made.problem.controls, particles).states
    cost = mfoc.rollout(made.problem, made.problem.controls, particles).cost
    scale = sigma * math.sqrt(h)
    controlled = free = integral = 0
    for t in range(steps):
        x, y = states[t]["x"], states[t + 1]["x"]
        with torch.no_grad():
            u = policy(torch.tensor(t * h, dtype=D), x)
        controlled = controlled + torch.distributions.Normal(x + h * u, scale).log_prob(y).sum(1)
        free = free + torch.distributions.Normal(x, scale).log_prob(y).sum(1)
        integral = integral + (u * particles.data["noise"][:, t]).sum(1) * math.sqrt(h) / sigma
    end = states[-1]["x"]
    reference = torch.distributions.Normal(torch.zeros(2, dtype=D), sigma * math.sqrt(T)).log_prob(end).sum(1)
    log_w = target(end) - reference + free - controlled
    torch.testing.assert_close(cost.detach(), -log_w if path_gradient else -log_w - integral, rtol=1e-10, atol=1e-10)


def test_the_problem_is_that_of_the_continuous_scheme():
    steps, policy, target = 6, wild(), gaussian()
    made = follmer(target, policy, steps=steps, sigma=0.8, particles=7, path_gradient=False)
    variance = 0.8**2

    def call(controls, t, x):
        return torch.func.functional_call(policy, controls, (torch.tensor(t, dtype=x.dtype), x))

    plain = mfoc.continuous(
        lambda t, x, u, z: call(u, t, x),
        lambda x, z: -0.5 * (x.square() / variance + math.log(2 * math.pi * variance)).sum(1) - target(x),
        made.problem.controls,
        running_cost=lambda t, x, u, z: call(u, t, x).square().sum(1) / (2 * variance),
        scheme=euler_maruyama(0.8),
        horizon=steps,
        schedule=mfoc.tied,
    )
    particles = made.population(0)
    theirs = mfoc.evaluate(plain, plain.controls, mfoc.Particles(particles.state["x"], particles.data))
    ours = mfoc.evaluate(made.problem, made.problem.controls, particles)
    torch.testing.assert_close(ours.value, theirs.value)
    for name, slope in ours.gradient.items():
        torch.testing.assert_close(slope, theirs.gradient[name])


def test_the_path_gradient_has_the_same_mean_and_less_noise_near_the_optimum():
    def gradients(path_gradient):
        made = follmer(
            gaussian(), GaussianDrift(MEAN, 1.1 * COVARIANCE), steps=20, particles=200, path_gradient=path_gradient
        )
        rows = [mfoc.evaluate(made.problem, made.problem.controls, made.population(k)).gradient for k in range(30)]
        return torch.stack([torch.cat([leaf.flatten() for leaf in row.values()]) for row in rows])

    with_it, without = gradients(True), gradients(False)
    noise = without.std(0) / math.sqrt(30)
    assert bool(((with_it.mean(0) - without.mean(0)).abs() < 5 * noise).all())
    assert bool((with_it.std(0) < 0.7 * without.std(0)).all())


@pytest.mark.parametrize("stop_score", [True, False])
@pytest.mark.parametrize("path_gradient", [True, False])
def test_it_is_a_formulation(path_gradient, stop_score):
    density = log_density(lambda x: -x.pow(4).sum(1), like=torch.zeros(2, dtype=D))
    drift = Drift(2, hidden=8, base=GaussianDrift(MEAN, COVARIANCE)).double()
    for leaf in drift.out.parameters():
        leaf.data = 0.1 * normal(*leaf.shape)
    made = follmer(density, drift, steps=3, particles=6, path_gradient=path_gradient, stop_score=stop_score)
    testing.check_formulation(made, ADAM)


def test_no_particle_sees_another():
    made = follmer(gaussian(), wild(), steps=3, particles=6)
    testing.check_problem(made.problem, made.population(0), interacting=False)


def test_the_score_is_differentiated_unless_it_is_stopped():
    def slope(stop_score):
        drift = Drift(2, hidden=8).double()
        for leaf in drift.out.parameters():
            leaf.data = 0.1 * normal(*leaf.shape)
        density = log_density(lambda x: -x.pow(4).sum(1), like=torch.zeros(2, dtype=D))
        made = follmer(density, drift, steps=3, particles=6, stop_score=stop_score, path_gradient=False)
        controls = made.problem.controls
        step = {name: 1e-5 * normal(*leaf.shape, seed=3) for name, leaf in controls.items()}
        ends = [
            mfoc.rollout(
                made.problem, {k: v + s * step[k] for k, v in controls.items()}, made.population(0)
            ).cost.mean()
            for s in (1, -1)
        ]
        gradient = mfoc.evaluate(made.problem, controls, made.population(0)).gradient
        return float(sum((gradient[k] * step[k]).sum() for k in step)), float((ends[0] - ends[1]) / 2)

    by_gradient, by_difference = slope(False)
    assert by_gradient == pytest.approx(by_difference, rel=1e-5)
    by_gradient, by_difference = slope(True)
    assert by_gradient != pytest.approx(by_difference, rel=1e-3)


def test_paths_are_a_function_of_the_seed_and_never_those_of_the_training():
    made = follmer(gaussian(), wild(), steps=3, particles=5)
    first, again, other = (made.evaluate(at_start(made), n=5, seed=seed).x for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    training = mfoc.rollout(made.problem, made.problem.controls, made.population(0)).states[-1]["x"]
    assert float((training - first).abs().min()) > 0


@pytest.mark.slow
def test_the_evidence_of_a_mixture():
    centres = 3 * torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])

    def mixture(x):
        gaps = (x[:, None] - centres.to(x)).square().sum(2)
        return torch.logsumexp(-gaps, 1) - math.log(4 * math.pi) + 2

    target = log_density(mixture, like=torch.zeros(2))
    made = follmer(target, Drift(2, hidden=32), sigma=3.0, steps=25, particles=128, stop_score=True)
    solution = made.solve(mfoc.Gradient(partial(torch.optim.Adam, lr=5e-3)), steps=80)
    before, after = (made.evaluate(point, n=4000) for point in (at_start(made), solution))
    assert after.ess > 1.3 * before.ess
    assert after.log_z == pytest.approx(2, abs=4 * after.error)
    assert after.J > -2
    quarter = [
        (after.resampled() @ c > (after.resampled() @ centres.mT).max(1).values - 1e-3).float().mean() for c in centres
    ]
    assert all(abs(float(share) - 0.25) < 0.08 for share in quarter)


class Wrong(nn.Module):
    def __init__(self):
        super().__init__()
        self.u = nn.Parameter(torch.zeros(3, dtype=D))

    def forward(self, t, x):
        return self.u.expand(len(x), 3)


class Mixing(Constant):
    """A drift to the mean of the cloud."""

    def forward(self, t, x):
        return self.u * (x.mean(0) - x)


class Chancy(Constant):
    """A drift that is drawn."""

    def forward(self, t, x):
        return self.u + torch.randn_like(x)


class Layered(nn.Module):
    """A drift through a layer."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.out = layer.double(), nn.Linear(2, 2).double()

    def forward(self, t, x):
        return self.out(self.layer(x))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: follmer(lambda x: x), mfoc.InvalidType, "log_density"),
        (lambda: follmer(gaussian(), sigma=0.0), mfoc.InvalidValue, "sigma is 0.0"),
        (lambda: follmer(gaussian(), T=math.inf), mfoc.InvalidValue, "T is inf"),
        (lambda: follmer(gaussian(), spacing=-1.0), mfoc.InvalidValue, "spacing"),
        (lambda: follmer(gaussian(), steps=0), mfoc.InvalidValue, "steps is 0"),
        (lambda: follmer(gaussian(), particles=2.5), mfoc.InvalidType, "particles is 2.5"),
        (lambda: follmer(gaussian(), lambda t, x: x), mfoc.InvalidType, "torch.nn.Module"),
        (lambda: follmer(gaussian(), nn.Identity()), mfoc.InvalidValue, "nothing to solve for"),
        (lambda: follmer(gaussian(), nn.Linear(2, 2).double()), mfoc.InvalidValue, r"policy\(t, x\) failed"),
        (lambda: follmer(gaussian(), Wrong()), mfoc.InvalidValue, r"returned \(2, 3\)"),
        (lambda: follmer(gaussian(), Layered(nn.BatchNorm1d(2))), mfoc.InvalidValue, "layer .BatchNorm1d. mixes"),
        (
            lambda: follmer(gaussian(), Layered(nn.BatchNorm1d(2, track_running_stats=False)).eval()),
            mfoc.InvalidValue,
            "mixes",
        ),
        (lambda: follmer(gaussian(), Layered(nn.Dropout(0.5))), mfoc.InvalidValue, "draws at random"),
        (lambda: follmer(gaussian(), Layered(nn.LSTM(2, 2, 2, dropout=0.5))), mfoc.InvalidValue, "LSTM. draws"),
        (lambda: follmer(gaussian(), stop_score="no"), mfoc.InvalidType, "stop_score is 'no'"),
        (lambda: follmer(gaussian(), Mixing(MEAN)), mfoc.InvalidValue, "mixes the paths"),
        (lambda: follmer(gaussian(), Chancy(MEAN)), mfoc.InvalidValue, "draws at random"),
        (lambda: follmer(gaussian(), Drift(2).double(), T=2.0), mfoc.InvalidValue, "another end time than T = 2"),
        (lambda: follmer(gaussian(), seed=-1), mfoc.InvalidValue, "seed is -1"),
        (lambda: follmer(gaussian()).paths({}), mfoc.InvalidValue, "not those of this sampler"),
        (lambda: follmer(gaussian(), wild()).evaluate({"u": MEAN}), mfoc.InvalidValue, r"expected net.weight \(2, 2\)"),
        (lambda: follmer(gaussian(), Constant(MEAN)).paths({"u": MEAN[:1]}), mfoc.InvalidValue, r"u \(2,\)"),
        (lambda: follmer(gaussian(), Constant(MEAN)).paths({"u": MEAN}, seed=-1), mfoc.InvalidValue, "seed is -1"),
    ],
)
def test_bad_input_is_refused_with_a_reason(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(2).eval(), nn.Dropout(0.5).eval(), nn.LayerNorm(2)])
def test_layers_that_keep_paths_apart_are_taken(layer):
    made = follmer(gaussian(), Layered(layer), steps=2)
    assert made.evaluate(made.problem, n=10).log_weights.isfinite().all()
