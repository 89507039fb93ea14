"""Controlled diffusions: Peng's second-order adjoint against second derivatives of J itself."""

import math
from dataclasses import replace

import pytest
import torch

import mfoc
from mfoc.certificate import Standing
from mfoc.frozen import Sweep
from mfoc.second_order import second_adjoints
from tests.problems import D, normal


def diffusion(steps=3, d=2, n=5, controlled=True):
    """A non-linear diffusion in d dimensions whose control enters drift and noise."""
    matrix = 0.3 * normal(d, d, seed=8)

    def sigma(s, x, u, z):
        return (u["b"] * torch.cos(x) if controlled else 1 + 0.1 * torch.cos(x)) + 0.2

    problem = mfoc.continuous(
        lambda s, x, u, z: torch.tanh(x @ matrix) + u["a"],
        lambda x, z: (x**2).sum(1) + x.prod(1),
        [{"a": normal(d, seed=t), "b": normal(d, seed=9 + t)} for t in range(steps)],
        diffusion=sigma,
        running_cost=lambda s, x, u, z: (u["b"] ** 2).sum() + (x**3).sum(1) / 3,
    )
    noise = mfoc.schemes.brownian(n, steps, d, seed=1, like=matrix)
    return problem, mfoc.Particles(normal(n, d, seed=2), {"noise": noise})


def test_the_second_adjoint_is_the_hessian_of_the_cost_to_go():
    problem, cloud = diffusion()
    sweep = Sweep.at(problem, problem.controls, cloud)
    adjoints = second_adjoints(sweep)
    for t, (x, p) in enumerate(zip(sweep.states, adjoints, strict=True)):
        for i in range(len(cloud)):
            z = {"noise": cloud.data["noise"][i : i + 1]}

            def cost_to_go(point, t=t, z=z):
                at, total = point[None], 0.0
                for s in range(t, problem.stages):
                    total = total + problem.running_cost(s, at, problem.controls[s], z).sum()
                    at = problem.dynamics(s, at, problem.controls[s], z)
                return total + problem.terminal_cost(at, z).sum()

            assert torch.allclose(p[i], torch.autograd.functional.hessian(cost_to_go, x[i]), atol=1e-10)


def test_the_curvature_of_a_stage_is_that_of_j():
    problem, cloud = diffusion()
    found = mfoc.certify(problem, problem, cloud, groups=2)
    assert found.principle.name == "DIFFUSION"
    for t, stage in enumerate(found.stages):

        def value(row, t=t):
            controls = [*problem.controls[:t], {"a": row[:2], "b": row[2:]}, *problem.controls[t + 1 :]]
            return mfoc.rollout(problem, controls, cloud).cost.mean()

        own = torch.cat([problem.controls[t]["a"], problem.controls[t]["b"]])
        lowest = torch.linalg.eigvalsh(torch.autograd.functional.hessian(value, own))[0]
        assert stage.curvature.value == pytest.approx(float(lowest))


@pytest.mark.parametrize("steps", [2, 20])
def test_a_control_in_the_noise_is_not_condemned_for_its_hamiltonian(steps):
    """dx = u dW, cost x_T^2 + the integral of -u^2/2 + u^4/4: J is the integral of u^2/2 + u^4/4, least at 0."""
    problem = mfoc.continuous(
        lambda s, x, u, z: 0 * x,
        lambda x, z: x[:, 0] ** 2,
        [torch.zeros(1, dtype=D)] * steps,
        diffusion=lambda s, x, u, z: u.expand_as(x),
        running_cost=lambda s, x, u, z: (-(u**2) / 2 + u**4 / 4).expand(len(x)),
    )
    data = {"noise": mfoc.schemes.brownian(400, steps, 1, seed=0, like=torch.zeros(1, dtype=D))}
    cloud = mfoc.Particles(torch.zeros(400, 1, dtype=D), data)
    found = mfoc.certify(problem, problem, cloud, starts=2)
    assert found.verdict.standing is Standing.MINIMUM
    assert found.gap == pytest.approx(0, abs=1e-12)
    for stage in found.stages:
        assert stage.curvature.low <= 1 / steps <= stage.curvature.high + 0.1 / steps
    unsaid = replace(problem, noise=None)  # H alone has a gap of 1/4, but J is not lower there
    found = mfoc.certify(unsaid, problem, cloud, starts=2)
    assert found.gap == pytest.approx(0.25, rel=0.2)
    assert found.improvement.value == 0
    assert found.verdict.standing is Standing.MINIMUM


def test_noise_that_the_control_does_not_enter_leaves_the_principle_alone():
    problem, cloud = diffusion(controlled=False)
    problem = replace(problem, running_cost=lambda t, x, u, z: (u["a"] ** 2).sum() + (u["b"] ** 2).sum() + 0 * x[:, 0])
    assert mfoc.certify(problem, problem, cloud, groups=2, lanczos=2).principle.name == "HAMILTONIAN"


def test_what_is_too_wide_or_interacts_is_not_looked_at():
    problem, cloud = diffusion()
    coupled = replace(problem, terminal_cost=lambda x, z: (x - x.mean(0)).square().sum(1))
    found = mfoc.certify(coupled, coupled, cloud, groups=2, lanczos=2)
    assert found.principle.name == "WIDE_DIFFUSION"
    assert math.isnan(found.gap)
    assert math.isfinite(found.hessian.value)
    assert "the control enters the diffusion" in found.stages[0].note


def test_a_diffusion_without_second_derivatives():
    problem = mfoc.continuous(
        lambda s, x, u, z: torch.nn.functional.hardsigmoid(x) * u,
        lambda x, z: x[:, 0] ** 2,
        [torch.ones(1, dtype=D)] * 2,
        diffusion=lambda s, x, u, z: u + 0 * x,
        running_cost=lambda s, x, u, z: (u**2).expand(len(x)),
    )
    cloud = mfoc.Particles(normal(8, 1), {"noise": normal(8, 2, 1, seed=1)})
    found = mfoc.certify(problem, problem, cloud, groups=2)
    assert found.residual > 0
    assert "gap and curvature not available: torch's hardsigmoid has no second derivative" in found.stages[0].note
    with pytest.raises(mfoc.InvalidValue, match="use EMSA"):
        mfoc.solve(problem, mfoc.MSA(), cloud, steps=1)


def test_a_diffusion_is_the_euler_maruyama_scheme():
    def sigma(s, x, u, z):
        return u * x

    options = {"terminal_cost": lambda x, z: x[:, 0], "controls": [torch.ones(1, dtype=D)] * 2}
    cloud = mfoc.Particles(normal(4, 1), {"noise": normal(4, 2, 1, seed=1)})
    drift = lambda s, x, u, z: -x  # noqa: E731
    one = mfoc.continuous(drift, **options, diffusion=sigma)
    two = mfoc.continuous(drift, **options, scheme=mfoc.schemes.euler_maruyama(sigma))
    assert torch.equal(mfoc.rollout(one, one, cloud).cost, mfoc.rollout(two, two, cloud).cost)
    with pytest.raises(mfoc.InvalidValue, match="scheme was given with a diffusion"):
        mfoc.continuous(drift, **options, diffusion=sigma, scheme=mfoc.rk4)
