"""What N particles pay more than the limit, against the problem of all N written out."""

import math

import pytest
import torch

from mfoc.particles import Particles
from mfoc.pontryagin import rollout
from tests.oracles.linear_quadratic import closed_loop_cost, many_particles
from tests.problems import D, continuous_lq, discrete_lq, error, lq_matrices


@pytest.mark.parametrize("N", [1, 2, 5])
def test_finite_population_law_is_exact(N):
    spec, m0, cov = lq_matrices(13)
    lq, big = discrete_lq(spec), many_particles(spec, N)
    solution, eye, ones = lq.riccati(), torch.eye(N, dtype=D), torch.ones(N, N, dtype=D) / N
    K = torch.stack([torch.kron(eye - ones, k) + torch.kron(ones, kbar) for k, kbar in zip(*solution[2:], strict=True)])
    start, spread = m0.repeat(N), torch.kron(eye, cov)
    J_N = closed_loop_cost(big, K, K, start, spread) / N
    assert error(J_N - lq.value(m0, cov), lq.finite_population_gap(cov, N)) < 1e-10
    assert error(J_N, lq.value(m0, cov, particles=N)) < 1e-10
    # The feedback is optimal for the N particles: an ordinary LQ solver finds no better one.
    assert error(discrete_lq(big).value(start, spread) / N, J_N) < 1e-10
    none, push = torch.zeros_like(K), lq.open_loop(m0).repeat(1, N)
    shared = closed_loop_cost(big, none, none, start, spread, push) / N
    assert error(shared, lq.value(m0, cov, particles=N, shared=True)) < 1e-10


def test_continuous_finite_population_law_is_exact():
    spec, m0, cov = lq_matrices(14)
    lq, big = continuous_lq(spec, 1.0, 100), continuous_lq(many_particles(spec, 3), 1.0, 100)
    J_N = big.value(m0.repeat(3), torch.kron(torch.eye(3, dtype=D), cov)) / 3
    assert error(J_N, lq.value(m0, cov, particles=3)) < 1e-9


def test_sampled_finite_population_law_is_exact():
    spec, m0, cov = lq_matrices(15)
    lq, big = continuous_lq(spec, 1.0, 4).discretise(), continuous_lq(many_particles(spec, 3), 1.0, 4).discretise()
    J_N = big.value(m0.repeat(3), torch.kron(torch.eye(3, dtype=D), cov)) / 3
    assert error(J_N, lq.value(m0, cov, particles=3)) < 1e-9


def test_simulated_gap_falls_as_one_over_n():
    spec, m0, cov = lq_matrices(16)
    lq, rng = discrete_lq(spec, 4), torch.Generator().manual_seed(1)
    problem, solution = lq.problem(feedback=True), lq.riccati()
    gains = [{"K": K, "Kbar": Kbar} for K, Kbar in zip(solution.K, solution.Kbar, strict=True)]
    limit, root = float(lq.value(m0, cov)), torch.linalg.cholesky(cov)
    for N, clouds in ((2, 3000), (8, 2000)):
        x = m0 + torch.randn(clouds, N, 3, generator=rng, dtype=D) @ root.mT
        z = torch.randn(clouds, N, 4, 2, generator=rng, dtype=D)
        costs = torch.func.vmap(lambda x, z: rollout(problem, gains, Particles(x, z)).cost.mean())(x, z)
        deviation = float(costs.std()) / math.sqrt(clouds)
        gap = float(lq.finite_population_gap(cov, N))
        assert abs(float(costs.mean()) - limit - gap) < 4 * deviation
        if N == 2:
            assert abs(gap) > 4 * deviation  # the simulation would notice if the gap were forgotten
