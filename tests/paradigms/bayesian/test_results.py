"""What the paradigm returns: compared without an error, and printed in a few telling lines."""

import copy
import re
from functools import partial

import pytest
import torch
from torch import nn

from paradigms.bayesian import (
    Drift,
    bridge_matching,
    ensemble,
    follmer,
    langevin,
    log_density,
    predict,
    reliability,
    sample,
    svgd,
    to_potential,
    variational,
)
from tests.problems import normal, seeded

X, Y, LABELS = normal(12, 3, seed=1), normal(12, 2, seed=2), torch.arange(12) % 2


def net():
    return seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))


def posterior(**settings):
    f = variational(net(), (X, Y), **{"likelihood": "gaussian", **settings})
    return f.readout(f.problem)


def target():
    return log_density(lambda x: -0.5 * x.square().sum(1), like=torch.zeros(2))


def members():
    weights = {name: normal(7, *p.shape) for name, p in net().named_parameters()}
    return ensemble(net(), weights, likelihood="categorical")


path_sampler = partial(follmer, steps=3, particles=8)

RESULTS = {
    "a density": (
        lambda: log_density(net(), (X, Y), likelihood="gaussian", noise=1.0),
        r"LogDensity\(0.weight \(4, 3\), .* given 12 observations; d = 26\)",
    ),
    "a potential": (lambda: to_potential(target()), r"Potential\(LogDensity\(x \(2,\); d = 2\)\)"),
    "a posterior": (posterior, r"NetworkPosterior\(26 weights of Sequential, given 12 Gaussian observations\)"),
    "an ensemble": (members, r"Ensemble\(7 of Sequential, Categorical observations\)"),
    "a prediction of numbers": (
        lambda: predict(posterior(), X, samples=5),
        r"Prediction\(mean of numbers \(12, 2\), epistemic .* and aleatoric .* variance on average\)",
    ),
    "a prediction of classes": (
        lambda: predict(members(), X), r"Prediction\(mean of classes \(12, 2\), .* nats on average\)",
    ),
    "a prediction without noise": (
        lambda: predict(posterior(likelihood=lambda out, y: (out - y).square().sum(1)), X, samples=5),
        r"Prediction\(mean of numbers \(12, 2\), epistemic \S+ variance on average\)",
    ),
    "a reliability diagram": (
        lambda: reliability(predict(members(), X), LABELS), r"Reliability\(ECE 0\.\d+ of 12 observations in 15 bins\)",
    ),
    "a sampler": (
        lambda: langevin(target(), step=0.1, particles=5),
        r"Sampler\(5 particles, 100 steps of ULA\(\) to LogDensity\(.*\)\)",
    ),
    "a sampler with a memory": (lambda: svgd(target(), step=0.1, particles=5), r"Sampler\(5 particles, 100 steps of "),
    "draws": (
        lambda: sample(langevin(target(), step=0.1, particles=5), steps=20, thin=4),
        r"Draws\(5 clouds of 5 particles after 20 steps, 100% moved; LogDensity\(.*\)\)",
    ),
    "a path problem": (
        lambda: path_sampler(target()).problem, r"PathProblem\(8 paths of 3 steps by Drift to LogDensity\(.*\)\)",
    ),
    "a path sampler": (lambda: path_sampler(target(), Drift(2)), r"Follmer\(PathProblem\(.*\)\)"),
    "a matched sampler": (
        lambda: bridge_matching(path_sampler(target()), normal(9, 2).float()), r"Follmer\(PathProblem\(.*\)\)",
    ),
    "evidence": (lambda: path_sampler(target()).evaluate(path_sampler(target()).problem, n=9), r"log Z = .* of 9"),
}  # fmt: skip


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_is_itself_and_no_other(name):
    make, _ = RESULTS[name]
    one, other = make(), make()
    assert one == one
    assert one != other
    assert one != 3
    assert one != copy.copy(one)
    assert len({one, other}) == 2


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_prints_no_tensors(name):
    make, words = RESULTS[name]
    found = repr(make())
    assert "tensor(" not in found
    assert len(found) < 300
    assert re.match(words, found), found
