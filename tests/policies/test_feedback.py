"""Policies reach the feedback that Riccati gives, come back as modules, and are refused where they would be wrong."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import mfoc
from tests.problems import D, discrete_lq, distance, linear_quadratic, lq_matrices, normal


def lq_and_cloud(seed=1, horizon=3, full=False, noisy=False, n=40):
    """An LQ problem, its cloud, and mean and covariance of the cloud."""
    spec, start, _ = lq_matrices(seed, n=2, m=2, full=full)
    if not noisy:
        spec.pop("sigma")
    x = start + normal(n, 2, seed=7)
    return discrete_lq(spec, horizon=horizon), x, x.mean(0), torch.cov(x.mT, correction=0)


def gains(weights):
    return torch.stack([stage["weight"] for stage in weights])


def test_linear_policies_of_the_state_are_the_riccati_feedback():
    lq, x, mean, covariance = lq_and_cloud()
    policy = mfoc.linear_policy(lambda x: x, torch.zeros(2, 2, dtype=D))
    problem = mfoc.feedback(lq.problem(), policy, per_stage=True)
    solution = mfoc.solve(problem, mfoc.NewtonCG(), x, steps=40, tol=1e-9)
    assert solution.value == pytest.approx(lq.value(mean, covariance).item(), rel=1e-13)
    assert solution.value < 0.99 * lq.value(mean, covariance, shared=True).item()  # another class, another minimum
    assert distance(gains(solution.controls), -lq.riccati().K) < 1e-4
    solved = mfoc.policy_of(problem, solution)
    for t in range(lq.steps):
        assert distance(solved(t, x), lq.feedback(t, x)) < 1e-3


def test_noise_is_answered_by_feedback():
    """With w w' = I and w orthogonal to the start in the sample, J on the cloud is that of the population."""
    lq, _, _, _ = lq_and_cloud(noisy=True, horizon=2)
    sample, _ = torch.linalg.qr(torch.cat([torch.ones(64, 1, dtype=D), normal(64, 6, seed=3)], 1))
    whitened = 8 * sample[:, 1:]  # means 0 and covariance I, all uncorrelated
    x, noise = whitened[:, :2] + 1, whitened[:, 2:].reshape(64, 2, 2)
    cloud = mfoc.Particles(x, noise)
    policy = mfoc.linear_policy(lambda t, x: x, torch.zeros(2, 2, dtype=D))
    problem = mfoc.feedback(lq.problem(), policy, per_stage=True)
    solution = mfoc.solve(problem, mfoc.NewtonCG(), cloud, steps=40, tol=1e-9)
    exact = lq.value(torch.ones(2, dtype=D), torch.eye(2, dtype=D))
    assert solution.value == pytest.approx(exact.item(), rel=1e-12)
    assert distance(gains(solution.controls), -lq.riccati().K) < 1e-4


def test_a_diffusion_in_continuous_time():
    """dx = u dt + sigma dW, cost int u^2 + x_T^2: the discrete feedback is u = -x / (1 + T - t) with common noise."""
    stages, n = 4, 400
    h, like = 1 / stages, torch.zeros((), dtype=D)
    problem = mfoc.continuous(
        lambda t, x, u, z: u, lambda x, z: x.square().sum(-1), [torch.zeros(1, dtype=D) for _ in range(stages)],
        running_cost=lambda t, x, u, z: u.square().sum(-1).expand(len(x)), diffusion=0.5,
    )  # fmt: skip
    noise = mfoc.schemes.brownian(n, stages, 1, seed=0, like=like)
    cloud = mfoc.Particles(1 + normal(n, 1, seed=2), {"noise": torch.cat([noise, -noise])[:n]})
    policy = mfoc.linear_policy(lambda x: torch.cat([x, torch.ones_like(x)], 1), torch.zeros(1, 2, dtype=D))
    solution = mfoc.solve(mfoc.feedback(problem, policy, per_stage=True), mfoc.NewtonCG(), cloud, steps=40, tol=1e-9)
    found = gains(solution.controls)[:, 0]
    exact = torch.tensor([-1 / (1 + (stages - t) * h) for t in range(stages)], dtype=D)
    assert (found[:, 0] - exact).abs().max() < 0.1  # the best gains on a sample of 400 answer its own noise, too
    shared = mfoc.solve(problem, mfoc.NewtonCG(), cloud, steps=10, tol=1e-10)
    assert solution.value < 0.9 * shared.value


def test_a_policy_of_the_law_reaches_the_mean_field_optimum():
    lq, x, mean, covariance = lq_and_cloud(seed=2, full=True, horizon=2)
    with_law = mfoc.linear_policy(lambda x: torch.cat([x, mfoc.mean(x).expand_as(x)], -1), torch.zeros(2, 4, dtype=D))
    without = mfoc.linear_policy(lambda x: x, torch.zeros(2, 2, dtype=D))
    exact = lq.value(mean, covariance).item()
    problem = mfoc.feedback(lq.problem(), with_law, per_stage=True)
    solution = mfoc.solve(problem, mfoc.NewtonCG(), x, steps=60, tol=1e-7)
    blind = mfoc.solve(mfoc.feedback(lq.problem(), without, per_stage=True), mfoc.NewtonCG(), x, steps=40, tol=1e-7)
    assert solution.value == pytest.approx(exact, rel=1e-9)
    assert blind.value > exact * (1 + 1e-4)
    assert mfoc.interacting.coupling(problem, x).named
    certificate = mfoc.certify(problem, solution, x, lanczos=5, groups=2)
    assert len(certificate.stages) == lq.steps
    assert certificate.residual < 1e-6


class Timed(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))

    def forward(self, t, x):
        return self.net(torch.cat([x, torch.full_like(x[:, :1], t)], 1))


def plain():
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))


@pytest.mark.parametrize("make", [Timed, plain], ids=["time and state", "state"])
def test_a_small_network_does_close_to_riccati_and_comes_back_as_a_module(make):
    lq, x, mean, covariance = lq_and_cloud()
    torch.manual_seed(0)
    net = make().double()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    problem = mfoc.feedback(lq.problem(), net)
    assert problem.controls.keys() == before.keys()
    solution = mfoc.solve(problem, mfoc.NewtonCG(), x, steps=25)
    exact, shared = lq.value(mean, covariance).item(), lq.value(mean, covariance, shared=True).item()
    timed = isinstance(net, Timed)
    assert exact <= solution.value < exact + (0.01 if timed else 0.2) * (shared - exact)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    solved = mfoc.policy_of(problem, solution)
    assert type(solved.networks[0]) is type(net)
    cost, state = torch.zeros(len(x), dtype=D), x
    for t in range(lq.steps):
        own = solved.networks[0](t / lq.steps, state) if timed else solved.networks[0](state)
        assert torch.equal(solved(t, state), own)
        cost = cost + lq.problem().running_cost(t, state, own, None)
        state = lq.problem().dynamics(t, state, own, None)
    assert (cost + lq.problem().terminal_cost(state, None)).mean().item() == pytest.approx(solution.value, rel=1e-12)


def test_the_laws_of_problems_are_kept():
    lq, x, _, _ = lq_and_cloud()
    problem = mfoc.feedback(lq.problem(), nn.Linear(2, 2).double())
    mfoc.testing.check_problem(problem, mfoc.Particles(x[:8]), interacting=False)


def test_states_that_are_trees():
    class Steer(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 1).double()

        def forward(self, x):
            return self.linear(torch.cat([x["q"], x["v"]], 1))

    problem = mfoc.Problem(
        lambda t, x, u, z: {"q": x["q"] + 0.1 * x["v"], "v": x["v"] + 0.1 * u},
        lambda x, z: (x["q"].square() + x["v"].square()).sum(1),
        [torch.zeros(1, dtype=D) for _ in range(5)],
    )
    cloud = mfoc.Particles({"q": normal(6, 1), "v": normal(6, 1, seed=1)})
    solution = mfoc.solve(mfoc.feedback(problem, Steer()), mfoc.NewtonCG(), cloud, steps=5)
    assert solution.value < solution.history[0]["value"]


def test_constraints_are_on_the_policys_control():
    problem = mfoc.Problem(
        lambda t, x, u, z: x + u,
        lambda x, z: x.square().sum(-1),
        [torch.zeros(1, dtype=D) for _ in range(2)],
        running_cost=lambda t, x, u, z: 0.1 * u.square().sum(-1).expand(len(x)),
        path=mfoc.Inequality(lambda t, x, u, z: u.abs().expand(len(x), -1) - 0.4),
    )
    policy = mfoc.linear_policy(lambda x: torch.cat([x, torch.ones_like(x)], 1), torch.zeros(1, 2, dtype=D))
    loop, x = mfoc.feedback(problem, policy), torch.linspace(0.5, 1.5, 5, dtype=D)[:, None]
    solution = mfoc.solve(loop, mfoc.AugmentedLagrangian(mfoc.NewtonCG()), x, steps=25, tol=1e-6)
    solved, state = mfoc.policy_of(loop, solution), x
    for t in range(2):
        u = solved(t, state).detach()
        assert float(u.detach().abs().max()) < 0.4 + 1e-5
        state = state + u
    assert float(solved(0, x).detach().abs().max()) > 0.39


# ---- what is refused


def sums_over_the_cloud():
    return mfoc.Problem(
        lambda t, x, u, z: x + u, lambda x, z: x.square().sum(1), [torch.zeros(2, dtype=D)],
        running_cost=lambda t, x, u, z: u.square().sum().expand(len(x)),
    )  # fmt: skip


def test_a_cost_that_takes_the_control_for_shared_is_refused():
    """It would cost each particle what all of them do: N times too much, without an error."""
    problem = mfoc.feedback(sums_over_the_cloud(), nn.Linear(2, 2).double())
    with pytest.raises(mfoc.InvalidValue, match=r"running_cost of stage 0.*row by row"):
        mfoc.solve(problem, mfoc.NewtonCG(), normal(5, 2), steps=1)


class Nothing(nn.Module):
    def forward(self, a, b, c):
        return a


REFUSED = {
    "dropout": (lambda: nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)), ValueError, "random"),
    "lazy": (lambda: nn.LazyLinear(2), ValueError, "lazy"),
    "no parameter": (nn.Tanh, ValueError, "nothing to solve for"),
    "three arguments": (Nothing, TypeError, "3 arguments"),
    "no module": (lambda: torch.tanh, TypeError, r"policy is .*Module.*linear_policy"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_unfit_policies_are_refused(name):
    make, error, words = REFUSED[name]
    with pytest.raises(error, match=words):
        mfoc.feedback(lq_and_cloud()[0].problem(), make())


def test_bounds_on_u_are_the_policys_own():
    problem = replace(lq_and_cloud()[0].problem(), bounds=mfoc.Box(-1.0, 1.0))
    with pytest.raises(mfoc.InvalidValue, match="Hardtanh"):
        mfoc.feedback(problem, nn.Linear(2, 2))


def test_a_policy_without_a_row_for_each_particle_is_refused():
    problem = mfoc.feedback(lq_and_cloud()[0].problem(), mfoc.linear_policy(lambda x: x[:1], torch.ones(2, 2, dtype=D)))
    with pytest.raises(mfoc.InvalidValue, match="one row a particle"):
        mfoc.rollout(problem, problem, normal(5, 2))


def test_a_policy_that_fails_is_named():
    problem = mfoc.feedback(lq_and_cloud()[0].problem(), nn.Linear(3, 2).double())
    with pytest.raises(mfoc.InvalidValue, match=r"the policy failed on states float64\[5, 2\]: .*mat1"):
        mfoc.rollout(problem, problem, normal(5, 2))


@pytest.mark.parametrize("per_stage", [False, True])
@pytest.mark.parametrize("t", [0.5, 3, -1])
def test_a_solved_policy_is_asked_at_a_stage(per_stage, t):
    problem = mfoc.feedback(lq_and_cloud()[0].problem(), nn.Linear(2, 2).double(), per_stage=per_stage)
    with pytest.raises(mfoc.MfocError, match=r"t is .*integer from 0 to 2"):
        mfoc.policy_of(problem, problem)(t, normal(5, 2))


def test_bad_features_and_weights_are_refused():
    with pytest.raises(mfoc.InvalidType, match="module"):
        mfoc.linear_policy(nn.Linear(2, 2), torch.zeros(2, 2))
    with pytest.raises(mfoc.InvalidType, match="int64"):
        mfoc.linear_policy(lambda x: x, torch.zeros(2, 2, dtype=torch.int64))
    with pytest.raises(mfoc.InvalidValue, match=r"\[m, k\]"):
        mfoc.linear_policy(lambda x: x, torch.zeros(2))
    wide = mfoc.feedback(lq_and_cloud()[0].problem(), mfoc.linear_policy(lambda x: x, torch.zeros(2, 5, dtype=D)))
    with pytest.raises(mfoc.InvalidValue, match="5 columns"):
        mfoc.rollout(wide, wide, normal(5, 2))


def test_a_policy_is_read_back_from_its_own_problem_only():
    problem, _ = linear_quadratic()
    with pytest.raises(mfoc.InvalidType, match=r"mfoc\.feedback"):
        mfoc.policy_of(problem, problem)
    loop = mfoc.feedback(lq_and_cloud()[0].problem(), nn.Linear(2, 2).double())
    with pytest.raises(mfoc.InvalidValue, match="another structure"):
        mfoc.policy_of(loop, [torch.zeros(2)])


def test_a_free_end_time_is_refused():
    problem = mfoc.continuous(
        lambda t, x, u, z: u.expand(len(x), 1),
        lambda x, z: x[:, 0].square(),
        [torch.zeros(1, dtype=D) for _ in range(3)],
        T=mfoc.FreeTime(1.0, 0.1),
    )
    with pytest.raises(mfoc.InvalidValue, match="the end time of problem is solved for"):
        mfoc.feedback(problem, mfoc.linear_policy(lambda x: x, torch.zeros(1, 1, dtype=D)))
