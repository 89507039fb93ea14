"""Particle methods as control problems, and running them for long."""

import math
from functools import partial

import pytest
import torch
from pyro.infer import Predictive
from torch import nn

import mfoc
from mfoc import testing
from paradigms.bayesian import AdamRule, PyroRBF, langevin, log_density, sample, svgd
from tests.paradigms.bayesian.targets import X, Y, centred, conjugate, quartic
from tests.problems import D, normal

ADAM = mfoc.Gradient(partial(torch.optim.Adam, lr=0.05))
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
    made = langevin(centred(), step=0.005, steps=10, particles=3 + normal(64, 2))
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


def test_where_particles_start_is_copied():
    start = normal(5, 2).float()
    target = log_density(lambda x: -0.5 * x.square().sum(1), like=torch.zeros(2))
    made = langevin(target, step=0.1, steps=3, particles=start)
    kept = made.population(0).state.clone()
    start.mul_(100)
    assert torch.equal(made.population(0).state, kept)


def test_a_sampler_takes_solutions_and_refuses_what_is_not_its_own():
    target = log_density(lambda x: -0.5 * x.square().sum(1), like=torch.zeros(2))
    made = {method: langevin(target, step=0.1, steps=2, particles=3, method=method) for method in ("ula", "mala")}
    ula, mala = made.values()
    solution = ula.solve(ADAM, steps=1)
    assert torch.equal(sample(ula, controls=solution).x, sample(ula, controls=solution.controls).x)
    assert torch.equal(ula.readout(solution)["x"], ula.readout(solution.controls)["x"])
    others = sample(langevin(target, step=0.1, steps=2, particles=4))
    for words, wrong in (
        ("another sampler", lambda: sample(mala, start=sample(ula))),
        ("another sampler", lambda: sample(ula, start=others)),
        ("log_step", lambda: sample(ula, controls={"a": torch.zeros(())})),
        ("solution is a NoneType", lambda: ula.readout(None)),
    ):
        with pytest.raises(mfoc.MfocError, match=words):
            wrong()


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


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: sample(quartic()), mfoc.InvalidType, "what langevin or svgd returned"),
        (lambda: sample(langevin(quartic(), step=0.1, steps=5), burn_in=5), mfoc.InvalidValue, "nothing would be"),
        (lambda: sample(langevin(quartic(), step=[0.1], steps=1), steps=2), mfoc.InvalidValue, "ends after 1"),
        (lambda: sample(langevin(quartic(), step=5.0, steps=30)), mfoc.InvalidValue, "smaller steps"),
    ],
)
def test_bad_input_is_refused_with_a_reason(call, error, words):
    with pytest.raises(error, match=words):
        call()
