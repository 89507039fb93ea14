"""The optimal cost, against dense quadratic programmes, moments and Monte Carlo; what it is optimal among."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles.linear_quadratic import closed_loop_cost, term
from tests.problems import D, continuous_lq, discrete_lq, error, lq_matrices


@pytest.mark.parametrize("full", [False, True])
def test_value_and_open_loop_match_the_dense_quadratic_programme(full):
    spec, m0, _ = lq_matrices(8, full=full)
    spec.pop("sigma")
    lq, zero = discrete_lq(spec), torch.zeros(6, 2, 3, dtype=D)
    flat = torch.zeros(3, 3, dtype=D)

    def cost(u):
        return closed_loop_cost(spec, zero, zero, m0, flat, u.view(6, 2))

    origin = torch.zeros(12, dtype=D)
    hessian, slope = torch.autograd.functional.hessian(cost, origin), torch.func.grad(cost)(origin)
    best = -torch.linalg.solve(hessian, slope)
    path = lq.path(m0)
    assert error(path.controls.flatten(), best) < 1e-10
    assert error(path.cost, cost(best)) < 1e-10
    assert error(lq.value(m0), cost(best)) < 1e-10
    assert error(lq.open_loop(m0), path.controls) < 1e-10
    feedback = torch.stack([lq.feedback(t, path.states[t]) for t in range(6)])
    assert error(feedback, path.controls) < 1e-10


def test_value_matches_the_moments_of_the_closed_loop():
    spec, m0, cov = lq_matrices(9)
    lq = discrete_lq(spec)
    assert error(lq.value(m0, cov), closed_loop_cost(spec, lq.riccati().K, lq.riccati().Kbar, m0, cov)) < 1e-10
    none = torch.zeros(6, 2, 3, dtype=D)
    assert error(lq.value(m0, cov, shared=True), closed_loop_cost(spec, none, none, m0, cov, lq.open_loop(m0))) < 1e-10
    assert lq.value(m0, cov) < lq.value(m0, cov, shared=True)


def test_value_matches_monte_carlo():
    spec, m0, cov = lq_matrices(10)
    lq, count = discrete_lq(spec), 100_000
    rng = torch.Generator().manual_seed(0)
    x = m0 + torch.randn(count, 3, generator=rng, dtype=D) @ torch.linalg.cholesky(cov).mT
    mean, total = m0, 0.0
    for t in range(6):
        u, v = lq.feedback(t, x, mean), lq.feedback(t, mean)
        quad = lambda y, W: ((y @ W) * y).sum(-1)  # noqa: E731
        total = total + quad(x, spec["Q"]) + quad(x - spec["S"] @ mean, spec["Qbar"]) + quad(u, spec["R"])
        total = total + quad(v, spec["Rbar"]) + 2 * ((x @ spec["cross"]) * u).sum(-1)
        total = total + 2 * (mean @ spec["crossbar"]) @ v
        w = torch.randn(count, 2, generator=rng, dtype=D)
        x = x @ spec["A"].mT + u @ spec["B"].mT + spec["Abar"] @ mean + spec["Bbar"] @ v + w @ spec["sigma"].mT
        mean = (spec["A"] + spec["Abar"]) @ mean + (spec["B"] + spec["Bbar"]) @ v
    total = total + quad(x, spec["QT"]) + quad(x - spec["ST"] @ mean, spec["QbarT"])
    error = total.std() / math.sqrt(count)
    assert abs(total.mean() - lq.value(m0, cov)) < 4 * error
    assert error < 0.01 * total.mean()


def test_continuous_value_matches_integrated_moments():
    spec, m0, cov = lq_matrices(11)
    lq = continuous_lq(spec, 1.0, 200)
    solution = lq.riccati()
    at = lambda name: term(spec, name)  # noqa: E731
    quadrature = torch.tensor([1.0, *([4.0, 2.0] * 99), 4.0, 1.0], dtype=D) / 600  # Simpson
    noise = at("sigma") @ at("sigma").mT
    integral = (quadrature * (solution.P * noise).sum((-2, -1))).sum()
    expected = m0 @ solution.Pi[0] @ m0 + (solution.P[0] * cov).sum() + integral
    assert error(lq.value(m0, cov), expected) < 1e-9
    gap = ((solution.Pi - solution.P)[0] * cov).sum()
    gap = gap + (quadrature * ((solution.Pi - solution.P) * noise).sum((-2, -1))).sum()
    assert error(lq.finite_population_gap(cov, 5), gap / 5) < 1e-8


def test_noise_quadrature_is_of_order_six():
    spec, m0, cov = lq_matrices(12)
    exact = continuous_lq(spec, 1.0, 400).value(m0, cov)
    errors = [abs(float(continuous_lq(spec, 1.0, steps).value(m0, cov) - exact)) for steps in (8, 16, 32)]
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert min(orders) > 5.5, orders


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), size=st.floats(1e-3, 3.0))
def test_no_other_control_costs_less(seed, size):
    spec, m0, cov = lq_matrices(seed)
    lq, rng = discrete_lq(spec, 4), torch.Generator().manual_seed(seed)
    value, solution = lq.value(m0, cov), lq.riccati()

    def shake(x):
        return x + size * torch.randn(x.shape, generator=rng, dtype=D)

    slack = 1e-12 * value
    push = size * torch.randn(4, 2, generator=rng, dtype=D)
    assert closed_loop_cost(spec, shake(solution.K), shake(solution.Kbar), m0, cov) >= value - slack
    assert closed_loop_cost(spec, solution.K, solution.Kbar, m0, cov, push) >= value - slack
    none = torch.zeros_like(solution.K)
    shared = closed_loop_cost(spec, none, none, m0, cov, shake(lq.open_loop(m0)))
    assert shared >= lq.value(m0, cov, shared=True) - slack >= value - 2 * slack


@pytest.mark.parametrize("make", [lambda s: discrete_lq(s, 3), lambda s: continuous_lq(s, 0.7, 3)])
def test_value_is_differentiable(make):
    spec, m0, cov = lq_matrices(21, n=2, m=1)
    names = [name for name in spec if name not in ("Q", "R", "QT", "Qbar", "Rbar", "QbarT")]
    roots = {name: torch.linalg.cholesky(spec[name]) for name in ("Q", "R", "Qbar", "QbarT")}

    def value(mean, *tensors):
        given = dict(zip([*names, *roots], tensors, strict=True))
        weights = {name: given[name] @ given[name].mT for name in roots}
        lq = make(spec | given | weights)
        return lq.value(mean, cov, particles=3), lq.value(mean, cov, shared=True), lq.open_loop(mean)

    inputs = [x.clone().requires_grad_() for x in (m0, *(spec[name] for name in names), *roots.values())]
    assert torch.autograd.gradcheck(value, inputs, atol=1e-6, fast_mode=True)
