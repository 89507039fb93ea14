"""The bridge to the solvers: a problem on a cloud of particles has the optimum and the value of the closed form."""

from functools import partial

import pytest
import torch

import mfoc
from mfoc.particles import Particles
from mfoc.pontryagin import rollout
from tests.oracles.training import expected_quadratic
from tests.problems import D, continuous_lq, discrete_lq, error, lq_matrices


@pytest.mark.parametrize("feedback", [False, True])
@pytest.mark.parametrize("full", [False, True])
def test_problem_has_the_riccati_optimum(feedback, full):
    spec, _, _ = lq_matrices(30, full=full)
    spec.pop("sigma")
    lq, x = discrete_lq(spec), torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=D)
    problem = lq.problem(feedback=feedback)
    mean, cov = x.mean(0), torch.cov(x.mT, correction=0)
    solution = lq.riccati()
    best = (
        [{"K": K, "Kbar": Kbar} for K, Kbar in zip(solution.K, solution.Kbar, strict=True)]
        if feedback
        else list(lq.open_loop(mean))
    )
    problem.validate(Particles(x))
    # Without noise the cloud is a population of its own: its cost is the value, and its gradient vanishes.
    assert error(rollout(problem, best, Particles(x)).cost.mean(), lq.value(mean, cov, shared=not feedback)) < 1e-10
    at = mfoc.evaluate(problem, best, Particles(x))
    flat = [leaf for u in at.gradient for leaf in (u.values() if feedback else [u])]
    assert max(float(leaf.abs().max()) for leaf in flat) < 1e-10
    start = mfoc.evaluate(problem, problem.controls, Particles(x))
    assert start.value > at.value
    assert problem.kind is not None


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("feedback", [False, True])
def test_problem_with_noise_has_the_value_exactly(sampled, feedback):
    spec, m0, cov = lq_matrices(31)
    lq = continuous_lq(spec, 1.0, 3).discretise() if sampled else discrete_lq(spec, 3)
    problem, N, k, root = lq.problem(feedback=feedback), 3, 3 if sampled else 2, torch.linalg.cholesky(cov)
    solution = lq.riccati()
    gains = [{"K": K, "Kbar": Kbar} for K, Kbar in zip(solution.K, solution.Kbar, strict=True)]
    controls = gains if feedback else list(lq.open_loop(m0))

    def cost(normal):
        start, noise = normal[: 3 * N].view(N, 3), normal[3 * N :].view(N, 3, k)
        return rollout(problem, controls, Particles(m0 + start @ root.mT, noise)).cost.mean()

    assert (
        error(expected_quadratic(cost, 3 * N + 3 * N * k), lq.value(m0, cov, particles=N, shared=not feedback)) < 1e-10
    )
    assert problem.kind is None
    with pytest.raises(mfoc.InvalidType, match=r"data is a NoneType; expected normal variables of shape \(N, 3"):
        rollout(problem, controls, Particles(m0.expand(N, 3)))


def test_problem_follows_matrices_in_time():
    spec, other = lq_matrices(33, full=True)[0], lq_matrices(34, full=True)[0]
    fixed = ("QT", "QbarT", "ST")
    timed = {k: v if k in fixed else torch.stack([v, other[k], v + other[k]]) for k, v in spec.items()}
    timed["B"] = timed["B"][:1]
    timed.pop("sigma")
    lq, x = discrete_lq(timed, 3, varying=True), torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=D)
    cost = rollout(lq.problem(), list(lq.open_loop(x.mean(0))), Particles(x)).cost.mean()
    assert error(cost, lq.value(x.mean(0), torch.cov(x.mT, correction=0), shared=True)) < 1e-10
    assert lq.problem().kind is None


@pytest.mark.parametrize("feedback", [False, True])
def test_gradient_solver_finds_the_riccati_solution(feedback):
    spec, _, _ = lq_matrices(32, n=2, m=1)
    spec.pop("sigma")
    lq, x = discrete_lq(spec, 3), torch.randn(9, 2, generator=torch.Generator().manual_seed(3), dtype=D)
    lbfgs = partial(torch.optim.LBFGS, max_iter=60, tolerance_grad=1e-12, tolerance_change=0, history_size=20)
    found = mfoc.solve(lq.problem(feedback=feedback), mfoc.Gradient(lbfgs), x, steps=5).controls
    cost = rollout(lq.problem(feedback=feedback), found, Particles(x)).cost.mean()
    assert error(cost, lq.value(x.mean(0), torch.cov(x.mT, correction=0), shared=not feedback)) < 1e-10
    if feedback:
        assert error(torch.stack([u["K"] for u in found]), lq.riccati().K) < 1e-6
    else:
        assert error(torch.stack(found), lq.open_loop(x.mean(0))) < 1e-6
