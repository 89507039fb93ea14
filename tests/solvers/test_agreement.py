"""Every solver finds the control that Riccati gives, on random mean-field LQ problems."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mfoc
from mfoc.minimisers import LBFGS, Descent
from tests.problems import D


def random_lq(seed, horizon=4, n=3, m=2):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=D)

    a, abar = 0.4 * normal(n, n) / n**0.5, 0.2 * normal(n, n) / n**0.5
    root, spread = normal(n, n), normal(n, n)
    eye = torch.eye(n, dtype=D)
    lq = mfoc.lq.LinearQuadratic.discrete(
        A=a, B=0.5 * normal(n, m), Q=0.1 * root @ root.mT + 0.1 * eye, R=2 * torch.eye(m, dtype=D), QT=eye,
        Abar=abar, Qbar=0.1 * spread @ spread.mT, S=0.5 * eye, horizon=horizon,
    )  # fmt: skip
    return lq, normal(30, n) + 1


def newton(parameters):
    return torch.optim.LBFGS(parameters, max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-16)


SOLVERS = {
    "gradient": (mfoc.Gradient(newton), 5),
    "msa": (mfoc.MSA(LBFGS(steps=15, tol=1e-10)), 120),
    "msa descent": (mfoc.MSA(Descent(lr=0.1, steps=3)), 400),
    "emsa": (mfoc.EMSA(0.1, inner=LBFGS(steps=15, tol=1e-10), adaptive=True), 150),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SOLVERS)
@settings(max_examples=2, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000))
def test_solvers_find_the_riccati_control(name, seed):
    lq, cloud = random_lq(seed)
    problem = lq.problem()
    solver, steps = SOLVERS[name]
    solution = mfoc.solve(problem, solver, cloud, steps=steps, tol=1e-8)
    exact = lq.open_loop(cloud.mean(0))
    assert (torch.stack(solution.controls) - exact).abs().max() < 1e-6, solution.message
    covariance = torch.cov(cloud.mT, correction=0)
    value = lq.value(cloud.mean(0), covariance, shared=True)
    assert solution.value == pytest.approx(value.item(), rel=1e-9)
