"""Langevin samplers and SVGD, against exact laws, loops written out by hand, and Pyro."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVGD, Predictive, RBFSteinKernel
from torch import nn

import mfoc
from mfoc import testing
from paradigms.bayesian import (
    MALA,
    RBF,
    AdaGradRule,
    AdamRule,
    PlainRule,
    PyroRBF,
    discrepancy,
    langevin,
    log_density,
    sample,
    svgd,
)
from tests.problems import D, normal

COVARIANCE = torch.tensor([[1.0, 0.4], [0.4, 0.5]], dtype=D)
ADAM = mfoc.Gradient(partial(torch.optim.Adam, lr=0.05))


def gaussian(covariance=COVARIANCE):
    precision = torch.linalg.inv(covariance)
    return log_density(lambda x: -0.5 * ((x @ precision.to(x)) * x).sum(1), like=torch.zeros(len(covariance), dtype=D))


def quartic(dim=3):
    return log_density(lambda x: -x.pow(4).sum(1) - 0.5 * x.sum(1).square(), like=torch.zeros(dim, dtype=D))


X, TRUE = normal(60, 3, seed=1), torch.tensor([1.0, -0.5, 0.3], dtype=D)
Y = X @ TRUE + normal(60, seed=2)


def conjugate(x, y=None):
    """Bayesian linear regression with unit noise and unit prior."""
    w = pyro.sample("w", dist.Normal(torch.zeros(3, dtype=x.dtype), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal((x * w).sum(-1), 1.0), obs=y)


def exact_posterior():
    precision = X.mT @ X + torch.eye(3, dtype=D)
    covariance = torch.linalg.inv(precision)
    return covariance @ (X.mT @ Y), covariance


# ---- Langevin: exact laws


def test_ula_has_the_law_of_its_autoregression_at_every_step():
    """On N(0, v): x' = (1 - h/v) x + sqrt(2h) xi, so the variance is known, and is not v in the limit."""
    v, h, n = 0.5, 0.2, 40_000
    made = langevin(gaussian(v * torch.eye(1, dtype=D)), step=h, steps=12, particles=3 * torch.ones(n, 1, dtype=D))
    x = sample(made).x
    mean, variance = 3.0, 0.0
    for t in range(12):
        mean, variance = (1 - h / v) * mean, (1 - h / v) ** 2 * variance + 2 * h
        assert float(x[t].mean()) == pytest.approx(mean, abs=5 * math.sqrt(variance / n))
        assert float(x[t].var()) == pytest.approx(variance, rel=5 * math.sqrt(2 / n))
    assert variance == pytest.approx(v * 2 / (2 - h / v), rel=1e-3)


def test_mala_keeps_the_target_exactly():
    """Started from the target, every step has its law; ULA at this step size does not."""
    n, start = 20_000, torch.linalg.cholesky(COVARIANCE)
    x0 = normal(n, 2, seed=4) @ start.mT
    for method, close in (("mala", True), ("ula", False)):
        x = sample(langevin(gaussian(), step=0.3, steps=15, particles=x0, method=method)).x[-1]
        gap = float((torch.cov(x.mT) - COVARIANCE).abs().max())
        assert (gap < 0.05) is close, (method, gap)


def test_mala_accepts_by_the_formula_of_metropolis_and_hastings():
    density, h = quartic(), 0.3
    made = langevin(density, step=h, steps=6, particles=normal(9, 3), method="mala", seed=3)
    particles = made.population(0)
    states = mfoc.rollout(made.problem, made.problem.controls, particles).states
    kernel = partial(torch.distributions.Normal, scale=math.sqrt(2 * h))
    refused = 0
    for i in range(9):
        x = particles.state["x"][i]
        for t in range(6):
            y = x + h * density.score(x[None])[0] + math.sqrt(2 * h) * particles.data["noise"][i, t]
            there = kernel(x + h * density.score(x[None])[0]).log_prob(y).sum()
            back = kernel(y + h * density.score(y[None])[0]).log_prob(x).sum()
            ratio = density(y[None])[0] - density(x[None])[0] + back - there
            moves = bool(particles.data["level"][i, t] <= ratio)
            refused += not moves
            x = y if moves else x
            torch.testing.assert_close(states[t + 1]["x"][i], x, rtol=1e-12, atol=1e-12)
    assert 0 < refused < 54


def test_mala_refuses_to_leave_the_support():
    density = log_density(
        lambda x: torch.where(x[:, 0] > 0, -x[:, 0], torch.full_like(x[:, 0], -math.inf)), like=torch.ones(1, dtype=D)
    )
    density = type(density)(density.function, density.shapes, density.like)
    made = langevin(density, step=0.5, steps=200, particles=torch.ones(2000, 1, dtype=D), method="mala")
    x = sample(made).x[-1]
    assert float(x.min()) > 0
    assert float(x.mean()) == pytest.approx(1, abs=0.1)


def test_sgld_on_batches_of_everything_is_unbiased_and_has_the_law_of_its_noise():
    """Gaussian mean: the stochastic gradient is linear, so the stationary variance is that of an AR(1) process."""
    data = normal(50, seed=5)
    density = log_density(
        lambda x: -0.5 * (data - x).square().sum(1) - 0.5 * x[:, 0].square(),
        like=torch.zeros(1, dtype=D),
        size=50,
        minibatch=lambda x, index: -0.5 * 10 * (data[index] - x).square().sum(1) - 0.5 * x[:, 0].square(),
    )
    h, n = 0.004, 4000
    made = langevin(density, step=h, steps=60, particles=torch.zeros(n, 1, dtype=D), method="sgld", batch_size=5)
    x = sample(made, steps=300).x[-1, :, 0]
    a = 1 - 51 * h
    # The gradient is 10 sum_B data - 51 x: its noise has variance 100 * 5 * var(data).
    variance = (2 * h + h**2 * 500 * float(data.var(correction=0))) / (1 - a**2)
    assert float(x.mean()) == pytest.approx(float(data.sum()) / 51, abs=5 * math.sqrt(variance / n))
    assert float(x.var()) == pytest.approx(variance, rel=5 * math.sqrt(2 / n))


@pytest.mark.parametrize("method", ["ula", "mala", "svgd"])
def test_a_conjugate_regression_through_pyro(method):
    density = log_density(conjugate, (X, Y))
    mean, covariance = exact_posterior()
    if method == "svgd":
        drawn = sample(svgd(density, step=0.02, particles=100, rule=AdamRule()), steps=500).x[-1]
    else:
        drawn = sample(langevin(density, step=0.004, particles=300, method=method), steps=300, burn_in=100, thin=20)
        drawn = drawn.posterior()["w"]
    torch.testing.assert_close(drawn.mean(0), mean, atol=0.02, rtol=0)
    # SVGD with few particles is too narrow, ULA too wide by h / (2 v).
    torch.testing.assert_close(drawn.var(0), covariance.diagonal(), atol=0, rtol=0.3 if method == "svgd" else 0.2)


# ---- SVGD


def loop(x, score, h):
    """Liu & Wang (2016), eq. (8), with two loops."""
    n = len(x)
    phi = torch.zeros_like(x)
    for i in range(n):
        for j in range(n):
            k = torch.exp(-(x[j] - x[i]).square().sum() / h)
            phi[i] += k * score[j] - 2 / h * (x[j] - x[i]) * k
    return phi / n


def test_the_direction_is_that_of_a_double_loop():
    x, score = normal(11, 4) + 5, normal(11, 4, seed=1)
    torch.testing.assert_close(RBF(1.7).direction(x, score), loop(x, score, 1.7), rtol=1e-12, atol=1e-12)
    pairs = torch.tensor([float((x[i] - x[j]).square().sum()) for i in range(11) for j in range(i)], dtype=D)
    h = pairs.median() / math.log(12)
    torch.testing.assert_close(RBF().direction(x, score), loop(x, score, h), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", ["univariate", "multivariate"])
@pytest.mark.parametrize(("n", "factor"), [(2, None), (5, None), (20, 2.0)])
def test_the_kernel_of_pyro(mode, n, factor):
    x, score = normal(n, 4), normal(n, 4, seed=1)
    log_kernel, slope = RBFSteinKernel(factor).log_kernel_and_grad(x)
    k = log_kernel.sum(-1, keepdim=True).exp() if mode == "multivariate" else log_kernel.exp()
    # Pyro's second factor is that of the loss, minus the log density.
    expected = ((k * score[None]).sum(1) - (k * slope).sum(1)) / n
    torch.testing.assert_close(PyroRBF(factor, mode).direction(x, score), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", ["univariate", "multivariate"])
@pytest.mark.parametrize(
    ("theirs", "rule", "step"),
    [(pyro.optim.SGD({"lr": 1e-3}), PlainRule(), 1e-3), (pyro.optim.Adam({"lr": 1e-2}), AdamRule(), 1e-2)],
)
def test_steps_are_those_of_pyro(mode, theirs, rule, step):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    engine = SVGD(conjugate, RBFSteinKernel(), theirs, num_particles=20, max_plate_nesting=1, mode=mode)
    engine.guide(X, Y)
    start = pyro.param("svgd_particles").detach().reshape(20, -1).clone()
    x = sample(
        svgd(log_density(conjugate, (X, Y)), step=step, kernel=PyroRBF(mode=mode), rule=rule, particles=start, steps=10)
    ).x
    for k in range(10):
        engine.step(X, Y)
        torch.testing.assert_close(x[k], pyro.param("svgd_particles").detach().reshape(20, -1), rtol=0, atol=1e-10)


def test_adagrad_against_a_loop():
    density, x = quartic(), normal(6, 3)
    made = svgd(density, step=0.1, rule=AdaGradRule(0.8, 1e-5), particles=x, steps=4)
    square = None
    for _ in range(4):
        phi = RBF().direction(x, density.score(x))
        square = phi**2 if square is None else 0.8 * square + 0.2 * phi**2
        x = x + 0.1 * phi / (1e-5 + square.sqrt())
    torch.testing.assert_close(sample(made).x[-1], x, rtol=1e-12, atol=1e-12)


# ---- the cost: the kernel Stein discrepancy


def test_the_discrepancy_against_derivatives_of_the_kernel():
    x, score = normal(6, 3), normal(6, 3, seed=1)

    def k(a, b):
        return (1 + (a - b).square().sum() / 1.3**2) ** -0.4

    expected = torch.zeros(6, dtype=D)
    for i in range(6):
        for j in range(6):
            a, b = x[i].clone().requires_grad_(), x[j].clone().requires_grad_()
            in_a = torch.autograd.grad(k(a, b), a, create_graph=True)[0]
            in_b = torch.autograd.grad(k(a, b), b, create_graph=True)[0]
            mixed = sum(torch.autograd.grad(in_a[m], b, retain_graph=True)[0][m] for m in range(3))
            value = k(a, b) * (score[i] @ score[j]) + score[i] @ in_b + score[j] @ in_a + mixed
            expected[i] += value.detach() / 6
    torch.testing.assert_close(discrepancy(x, score, length=1.3, beta=-0.4), expected, rtol=1e-11, atol=1e-12)


def test_the_discrepancy_vanishes_at_the_target_only():
    density = gaussian(torch.eye(2, dtype=D))
    x = normal(2000, 2, seed=8)
    right, wide = (float(discrepancy(c * x, density.score(c * x)).mean()) for c in (1.0, 1.3))
    assert right < 0.01 < 0.05 < wide


# ---- as control problems


MAKERS = {
    "ula": lambda d, x: langevin(d, step=0.05, steps=4, particles=x),
    "mala": lambda d, x: langevin(d, step=0.05, steps=4, particles=x, method="mala"),
    "schedule": lambda d, x: langevin(d, step=lambda t: 0.1 / (1 + t), steps=4, particles=x),
    "axes": lambda d, x: langevin(d, step=torch.tensor([0.1, 0.05, 0.02], dtype=D), steps=4, particles=x),
    "svgd": lambda d, x: svgd(d, step=0.1, steps=4, particles=x),
    "svgd, Pyro's kernel": lambda d, x: svgd(d, step=0.1, steps=4, particles=x, kernel=PyroRBF()),
    "svgd, Adam": lambda d, x: svgd(d, step=0.1, steps=4, particles=x, rule=AdamRule()),
}


@pytest.mark.parametrize("name", MAKERS)
def test_it_is_a_formulation(name):
    made = MAKERS[name](quartic(), 0.5 * normal(8, 3))
    testing.check_formulation(made, ADAM)


@pytest.mark.parametrize("name", MAKERS)
def test_the_fast_path_is_the_rollout_to_the_bit(name):
    made = MAKERS[name](quartic(), 0.5 * normal(8, 3))
    for k in (0, 3):
        states = mfoc.rollout(made.problem, made.problem.controls, made.population(k)).states
        x = sample(made, seed=k).x
        for t in range(4):
            there = states[t + 1]
            assert torch.equal(x[t], there["x"] if isinstance(there, dict) else there)


def test_solving_tunes_the_step_size():
    made = langevin(gaussian(), step=0.005, steps=10, particles=3 + normal(64, 2))
    solution = made.solve(ADAM, steps=30)
    assert solution.value < 0.5 * solution.history[0]["value"]
    assert float(solution.controls["log_step"]) > math.log(0.005)
    assert made.readout(solution)["x"].shape == (64, 2)


def test_sgld_on_networks_is_a_formulation():
    net = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1)).double()
    density = log_density(net, (X, Y), likelihood="gaussian", noise=1.0, traced=False)
    made = langevin(density, step=1e-4, steps=3, particles=6, method="sgld", batch_size=10)
    testing.check_formulation(made, ADAM)
    assert made.readout(made.solve(ADAM, steps=1))["0.weight"].shape == (6, 2, 3)


def test_draws_are_posterior_samples_and_can_be_continued():
    density = log_density(conjugate, (X, Y))
    made = langevin(density, step=0.002, particles=5, method="mala", steps=4)
    drawn = sample(made, steps=20, burn_in=8, thin=4)
    assert drawn.x.shape == (3, 5, 3)
    assert 0 < drawn.acceptance <= 1
    predicted = Predictive(conjugate, posterior_samples=drawn.posterior())(X[:2])["y"]
    assert predicted.shape == (15, 2)
    whole, first = sample(made, steps=7), sample(made, steps=4)
    again = sample(made, steps=3, start=first)
    assert torch.equal(torch.cat([first.x, again.x]), whole.x)
    assert again.done == 7


def _one(made, state):
    noise = {name: leaf[:, 0] for name, leaf in made.population(1).data.items()}
    return MALA().step(made.density, 0, state, made.problem.controls["log_step"].exp(), noise)["x"]


# ---- bad input

POINTS = normal(4, 3)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: langevin(quartic(), step=0.1, method="hmc"), mfoc.InvalidValue, "'hmc'"),
        (lambda: langevin(quartic(), step=0.0), mfoc.InvalidValue, "positive finite"),
        (lambda: langevin(quartic(), step="small"), mfoc.InvalidType, "step is a str"),
        (lambda: langevin(quartic(), step=[0.1, 0.1], steps=3), mfoc.InvalidValue, "horizon is 3"),
        (lambda: langevin(quartic(), step=torch.ones(2)), mfoc.InvalidValue, "3 axes"),
        (lambda: langevin(quartic(), step=0.1, steps=0), mfoc.InvalidValue, "steps is 0"),
        (lambda: langevin(quartic(), step=0.1, particles=0), mfoc.InvalidValue, "particles is 0"),
        (lambda: langevin(quartic(), step=0.1, particles=normal(4, 2)), mfoc.InvalidValue, r"\(n, 3\)"),
        (lambda: langevin(quartic(), step=0.1, particles=POINTS * math.nan), mfoc.InvalidValue, "not finite"),
        (lambda: langevin(quartic(), step=0.1, batch_size=3), mfoc.InvalidValue, "sgld"),
        (lambda: langevin(quartic(), step=0.1, method="sgld", batch_size=3), mfoc.InvalidValue, "no minibatch"),
        (lambda: langevin(3, step=0.1), mfoc.InvalidType, "log_density"),
        (lambda: svgd(quartic(), step=0.1, particles=1), mfoc.InvalidValue, "two particles"),
        (lambda: svgd(quartic(), step=0.1, kernel=RBF), mfoc.InvalidType, "an instance"),
        (lambda: svgd(quartic(), step=0.1, rule=torch.optim.Adam), mfoc.InvalidType, "an instance"),
        (lambda: RBF(-1.0), mfoc.InvalidValue, "bandwidth"),
        (lambda: PyroRBF(mode="both"), mfoc.InvalidValue, "'both'"),
        (lambda: sample(quartic()), mfoc.InvalidType, "what langevin or svgd returned"),
        (lambda: sample(langevin(quartic(), step=0.1, steps=5), burn_in=5), mfoc.InvalidValue, "nothing would be"),
        (lambda: sample(langevin(quartic(), step=[0.1], steps=1), steps=2), mfoc.InvalidValue, "ends after 1"),
        (lambda: sample(langevin(quartic(), step=5.0, steps=30)), mfoc.InvalidValue, "smaller steps"),
    ],
)
def test_bad_input_is_refused_with_a_reason(call, error, words):
    with pytest.raises(error, match=words):
        call()


# ---- points that coincide, and no points


@pytest.mark.parametrize("kernel", [RBF(), PyroRBF(), PyroRBF(mode="multivariate")])
def test_where_most_particles_coincide_the_positive_distances_give_the_bandwidth(kernel):
    """Seven points in one place and one far off: the median distance is zero; that of the positive ones is not."""
    x = torch.zeros(8, 2, dtype=D)
    x[0] = torch.tensor([1.0, 2.0], dtype=D)
    score = -x
    h = x[0].square() / math.log(9)  # by coordinate
    k = (-x[0].square() / h).exp() if isinstance(kernel, PyroRBF) else torch.exp(-torch.tensor(math.log(9.0), dtype=D))
    if isinstance(kernel, RBF):
        h = x[0].square().sum() / math.log(9)
    elif kernel.mode == "multivariate":
        k = k.prod()
    expected = torch.empty_like(x)
    expected[0] = (score[0] + 7 * k * 2 / h * x[0]) / 8
    expected[1:] = (k * score[0] - k * 2 / h * x[0]) / 8
    torch.testing.assert_close(kernel.direction(x, score), expected)
    together = kernel.direction(torch.ones(5, 2, dtype=D), torch.full((5, 2), 3.0, dtype=D))
    torch.testing.assert_close(together, torch.full((5, 2), 3.0, dtype=D))


def test_rounding_of_points_that_coincide_is_no_distance():
    """In single precision far from the origin, where products of equal rows differ in the last digits."""
    x = (1e3 * normal(2, 60, seed=1)).float()
    cloud = torch.cat([x[:1].expand(2, 60), x[1:].expand(9, 60)])
    found = RBF().direction(cloud, torch.zeros_like(cloud))
    exact = RBF().direction(cloud.double(), torch.zeros_like(cloud).double())
    torch.testing.assert_close(found.double(), exact, rtol=1e-3, atol=1e-3 * float(exact.abs().max()))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda target: svgd(target, step=0.1, particles=torch.ones(5, 2)), "start in one point"),
        (lambda target: svgd(target, step=0.1, particles=torch.ones(0, 2)), r"shape \(0, 2\)"),
        (lambda target: langevin(target, step=0.1, particles=torch.ones(0, 2)), r"shape \(0, 2\)"),
        (lambda target: langevin(target, step=0.1, particles=torch.ones(2)), r"shape \(2,\)"),
        (lambda target: langevin(target, step=0.1, particles=0), "particles is 0"),
    ],
)
def test_clouds_without_extent_are_refused(make, words):
    bare = lambda x: -x.square().sum(1)  # noqa: E731
    for target in (log_density(bare, like=torch.zeros(2)), bare):
        if "is 0" in words and target is bare:
            continue  # a bare function takes its dimension from the points
        with pytest.raises(mfoc.InvalidValue, match=words):
            make(target)
