"""Steps of Stein variational gradient descent, against Pyro and a loop."""

import pyro
import pytest
import torch
from pyro.infer import SVGD, IMQSteinKernel, RBFSteinKernel

import mfoc
from paradigms.bayesian import RBF, AdaGradRule, AdamRule, PlainRule, PyroIMQ, PyroRBF, log_density, sample, svgd
from tests.paradigms.bayesian.targets import X, Y, conjugate, quartic
from tests.problems import normal


@pytest.mark.parametrize("mode", ["univariate", "multivariate"])
@pytest.mark.parametrize(("kernel", "own"), [(RBFSteinKernel, PyroRBF), (IMQSteinKernel, PyroIMQ)])
@pytest.mark.parametrize(
    ("theirs", "rule", "step"),
    [(pyro.optim.SGD({"lr": 1e-3}), PlainRule(), 1e-3), (pyro.optim.Adam({"lr": 1e-2}), AdamRule(), 1e-2)],
)
def test_steps_are_those_of_pyro(kernel, own, mode, theirs, rule, step):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    engine = SVGD(conjugate, kernel(), theirs, num_particles=20, max_plate_nesting=1, mode=mode)
    engine.guide(X, Y)
    start = pyro.param("svgd_particles").detach().reshape(20, -1).clone()
    x = sample(
        svgd(log_density(conjugate, (X, Y)), step=step, kernel=own(mode=mode), rule=rule, particles=start, steps=10)
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


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: svgd(quartic(), step=0.1, particles=1), mfoc.InvalidValue, "two particles"),
        (lambda: AdamRule(betas="ab"), mfoc.InvalidType, "betas is a str"),
        (lambda: AdamRule(betas=(0.9, 1.0)), mfoc.InvalidValue, r"expected two numbers in \[0, 1\)"),
        (lambda: AdaGradRule(decay=None), mfoc.InvalidType, "decay is None"),
        (lambda: svgd(quartic(), step=0.1, kernel=RBF), mfoc.InvalidType, "an instance"),
        (lambda: svgd(quartic(), step=0.1, rule=torch.optim.Adam), mfoc.InvalidType, "an instance"),
    ],
)
def test_bad_input_is_refused_with_a_reason(call, error, words):
    with pytest.raises(error, match=words):
        call()
