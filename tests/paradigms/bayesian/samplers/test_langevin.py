"""Langevin samplers, against exact laws and loops written out by hand."""

import math
from functools import partial

import pytest
import torch

import mfoc
from paradigms.bayesian import langevin, log_density, sample
from paradigms.bayesian.samplers.langevin import SGLD
from tests.paradigms.bayesian.targets import NARROW, centred, quartic
from tests.problems import D, normal


def test_ula_has_the_law_of_its_autoregression_at_every_step():
    """On N(0, v): x' = (1 - h/v) x + sqrt(2h) xi, so the variance is known, and is not v in the limit."""
    v, h, n = 0.5, 0.2, 40_000
    made = langevin(centred(v * torch.eye(1, dtype=D)), step=h, steps=12, particles=3 * torch.ones(n, 1, dtype=D))
    x = sample(made).x
    mean, variance = 3.0, 0.0
    for t in range(12):
        mean, variance = (1 - h / v) * mean, (1 - h / v) ** 2 * variance + 2 * h
        assert float(x[t].mean()) == pytest.approx(mean, abs=5 * math.sqrt(variance / n))
        assert float(x[t].var()) == pytest.approx(variance, rel=5 * math.sqrt(2 / n))
    assert variance == pytest.approx(v * 2 / (2 - h / v), rel=1e-3)


def test_mala_keeps_the_target_exactly():
    """Started from the target, every step has its law; ULA at this step size does not."""
    n, start = 20_000, torch.linalg.cholesky(NARROW)
    x0 = normal(n, 2, seed=4) @ start.mT
    for method, close in (("mala", True), ("ula", False)):
        x = sample(langevin(centred(), step=0.3, steps=15, particles=x0, method=method)).x[-1]
        gap = float((torch.cov(x.mT) - NARROW).abs().max())
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


POINTS = normal(4, 3)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: langevin(quartic(), step=0.1, method="hmc"), mfoc.InvalidValue, "'hmc'"),
        (lambda: langevin(quartic(), step=0.0), mfoc.InvalidValue, "positive finite"),
        (lambda: langevin(quartic(), step=["a"] * 2, steps=2), mfoc.InvalidType, "step is 'a'"),
        (lambda: langevin(quartic(), step=lambda t: None), mfoc.InvalidType, "step is None"),
        (lambda: SGLD("a"), mfoc.InvalidType, "batch_size is 'a'"),
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
    ],
)
def test_bad_input_is_refused_with_a_reason(call, error, words):
    with pytest.raises(error, match=words):
        call()
