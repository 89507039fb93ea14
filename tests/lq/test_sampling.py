"""A continuous problem sampled: the discrete one met by a control held over each step."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.linalg import expm

from tests.oracles.linear_quadratic import held_moments, modes
from tests.problems import D, continuous_lq, error, lq_matrices


@pytest.mark.parametrize("shared", [True, False])
def test_discretised_value_converges_from_above(shared):
    spec, m0, cov = lq_matrices(17)
    lq, noiseless = continuous_lq(spec), continuous_lq({k: v for k, v in spec.items() if k != "sigma"})
    for problem, order in ((noiseless, 2), (lq, 2 if shared else 1)):
        exact = problem.value(m0, cov, shared=shared)
        errors = [float(problem.discretise(steps).value(m0, cov, shared=shared) - exact) for steps in (64, 128, 256)]
        assert min(errors) > 0
        orders = [math.log2(a / b) for a, b in pairwise(errors)]
        assert all(abs(found - order) < 0.1 for found in orders), orders


@pytest.mark.parametrize("mode", [0, 1])
def test_zero_order_hold_is_exact(mode):
    """Second moments of one mode under held feedback, by integration, against the sampled problem's matrices."""
    spec, m0, cov = lq_matrices(18)
    sampled = continuous_lq(spec, 1.2, 3).discretise()
    rng = np.random.default_rng(0)
    gain = rng.normal(size=(2, 3))
    exact = modes(spec)[mode]
    noise = (spec["sigma"] @ spec["sigma"].mT).numpy()
    M = np.outer(m0, m0) + cov.numpy()
    cost, second = held_moments(exact, gain, 0.4, noise, M)
    found = modes(vars(sampled))[mode]
    A, B, Q, R, N = (found[name] for name in ("A", "B", "Q", "R", "cross"))
    W = (sampled.noise + mode * sampled.noisebar).numpy()
    offset = float(sampled.offset + mode * sampled.offsetbar)
    expected = np.sum((Q + gain.T @ R @ gain - 2 * N @ gain) * M) + offset
    closed = A - B @ gain
    np.testing.assert_allclose(expected, cost, rtol=1e-9)
    np.testing.assert_allclose(closed @ M @ closed.T + W, second, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(A, expm(0.4 * exact["A"]), rtol=1e-11, atol=1e-12)


def test_sampling_a_long_step_loses_no_digits():
    spec, _, _ = lq_matrices(19, full=False)
    spec["A"] = spec["A"] - 3 * torch.eye(3, dtype=D)  # stable: the weights over a long step reach a limit
    once, pieces = continuous_lq(spec, 40.0, 1).discretise(), continuous_lq(spec, 40.0, 64).discretise()
    Q, A = torch.zeros(3, 3, dtype=D), torch.eye(3, dtype=D)
    for _ in range(64):
        Q, A = Q + A.mT @ pieces.Q @ A, pieces.A @ A
    assert error(once.Q, Q) < 1e-10
    assert error(once.A, A) < 1e-10
    noise = torch.zeros(3, 3, dtype=D)
    for _ in range(64):
        noise = pieces.A @ noise @ pieces.A.mT + pieces.noise
    assert error(once.noise, noise) < 1e-10


def test_shared_control_costs_the_same_in_both_clocks():
    """With no control worth taking, sampling changes nothing at all: noise within steps is accounted for."""
    spec, m0, cov = lq_matrices(20)
    spec |= {"B": torch.zeros(3, 2, dtype=D), "Bbar": None, "cross": None, "crossbar": None}
    lq = continuous_lq(spec, 1.0, 200)
    assert error(lq.discretise(3).value(m0, cov), lq.value(m0, cov)) < 1e-10
    assert error(lq.discretise(3).finite_population_gap(cov, 4), lq.finite_population_gap(cov, 4)) < 1e-10


def test_the_sampled_value_is_differentiable():
    spec, m0, cov = lq_matrices(22, n=2, m=1)

    def value(A, sigma, Abar):
        lq = continuous_lq(spec | {"A": A, "sigma": sigma, "Abar": Abar}, 2.0, 2).discretise()
        return lq.value(m0, cov, particles=3)

    inputs = [spec[name].clone().requires_grad_() for name in ("A", "sigma", "Abar")]
    assert torch.autograd.gradcheck(value, inputs, atol=1e-6, fast_mode=True)
