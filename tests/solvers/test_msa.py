"""MSA is the loop of the paper and, with one inner step, back-propagation; E-MSA never raises the objective."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

import mfoc
from mfoc.minimisers import LBFGS, Descent, Minimum
from tests.oracles.training import msa
from tests.problems import CATALOGUE, INTERACTING, D, distance, leaves, li_chen_tai_e, normal, same_bits


@pytest.mark.parametrize("name", CATALOGUE)
def test_one_inner_step_is_sgd(name):
    problem, particles = CATALOGUE[name]()
    by_msa = mfoc.solve(problem, mfoc.MSA(Descent(lr=0.05)), particles, steps=4)
    by_sgd = mfoc.solve(problem, mfoc.Gradient(partial(torch.optim.SGD, lr=0.05)), particles, steps=4)
    assert distance(by_sgd.controls, problem.controls) > 1e-3
    assert distance(by_msa.controls, by_sgd.controls) < 1e-11
    assert [r["value"] for r in by_msa.history] == pytest.approx([r["value"] for r in by_sgd.history], rel=1e-11)
    assert [r["residual"] for r in by_msa.history] == pytest.approx([r["residual"] for r in by_sgd.history], rel=1e-10)


@pytest.mark.parametrize("name", ["mlp", "conv", "interacting", "batch_norm", "decayed"])
def test_msa_is_the_loop_by_hand(name):
    problem, particles = CATALOGUE[name]()
    solution = mfoc.solve(problem, mfoc.MSA(Descent(0.05, steps=3)), particles, steps=3)
    assert distance(solution.controls, msa(problem, particles, lr=0.05, inner=3, steps=3)) < 1e-12
    assert distance(solution.controls, msa(problem, particles, lr=0.05, inner=1, steps=3)) > 1e-4


@pytest.mark.parametrize(
    "solver", [mfoc.MSA(Descent(0.05, steps=3)), mfoc.EMSA(2.0, 0.5, adaptive=False), mfoc.EMSA(2.0), mfoc.EMSA()]
)
@pytest.mark.parametrize("name", ["mlp", "pytrees", "tied", "interacting"])
def test_step_is_pure(name, solver):
    problem, particles = CATALOGUE[name]()
    state = solver.init(problem, problem.controls)
    before = mfoc.tree.copy([problem.controls, state, particles.state])
    first, second = (solver.step(problem, problem.controls, state, particles) for _ in range(2))
    assert same_bits(before, [problem.controls, state, particles.state])
    assert same_bits(first[:2], second[:2])
    assert mfoc.tree.same_structure(first[0], problem.controls)
    expected = mfoc.evaluate(problem, problem.controls, particles)
    assert float(first[2].value) == pytest.approx(float(expected.value), rel=1e-13)
    assert distance(first[2].gradient, leaves(expected.gradient)) < 1e-12


def test_msa_solves_what_the_controls_decide_alone():
    """Dynamics x + u with cost (k u - 1)^2: the Hamiltonian does not depend on the state, so one step is exact."""
    problem = mfoc.Problem(
        lambda t, x, u, z: x + u,
        lambda x, z: x.sum(1),
        [torch.zeros(2, dtype=D) for _ in range(3)],
        running_cost=lambda t, x, u, z: ((t + 1) * u - 1).square().sum().expand(len(x)),
    )
    solution = mfoc.solve(problem, mfoc.MSA(LBFGS(30)), normal(4, 2), steps=1)
    for t, u in enumerate(solution.controls):  # 2 (t + 1) ((t + 1) u - 1) + 1 = 0
        expected = (1 - 0.5 / (t + 1)) / (t + 1)
        torch.testing.assert_close(u, torch.full((2,), expected, dtype=D), rtol=1e-7, atol=1e-8)


def test_empty_controls_are_left_out():
    problem = mfoc.Problem(
        lambda t, x, u, z: x + u.sum() - u.numel(),
        lambda x, z: x.square(),
        [torch.ones(0, dtype=D), torch.zeros(1, dtype=D)],
    )
    for solver in (mfoc.MSA(Descent(0.1)), mfoc.MSA(LBFGS(2, trials=4)), mfoc.EMSA()):
        solution = mfoc.solve(problem, solver, normal(3), steps=1)
        assert [leaf.shape for leaf in solution.controls] == [(0,), (1,)]
        assert float(solution.controls[1]) != 0


SQH = mfoc.EMSA(rho=0.0)


def trace(problem, solver, source, steps):
    """J before each step and at the end, the proximal weights, and the squares of the moves."""
    controls, values, weights, squares = problem.controls, [], [], []
    for at in mfoc.iterate(problem, solver, source):
        values.append(float(at.info.value))
        weights.append(at.info.extra["proximal"])
        squares.append(
            sum(float((a - b).square().sum()) for a, b in zip(leaves(at.controls), leaves(controls), strict=True))
        )
        controls = at.controls
        if at.step == steps:
            return [*values, float(mfoc.evaluate(problem, controls, source).value)], weights, squares


@pytest.mark.parametrize("solver", [mfoc.EMSA(), SQH, mfoc.EMSA(0.1, inner=LBFGS(5))], ids=["emsa", "sqh", "rho"])
@pytest.mark.parametrize("name", CATALOGUE)
def test_every_accepted_step_decreases_the_objective_enough(name, solver):
    """Part (ii) of the theorem; all costs of the catalogue but one are bounded below by zero."""
    problem, particles = CATALOGUE[name]()
    values, weights, squares = trace(problem, solver, particles, 6)
    assert values[-1] < values[0]
    for before, after, weight, square in zip(values[:-1], values[1:], weights, squares, strict=True):
        assert before - after >= solver.eta * weight * square - 1e-14 * abs(before)
    spent = sum(weight * square for weight, square in zip(weights, squares, strict=True))
    assert 0 < spent <= (values[0] - values[-1]) / solver.eta


@pytest.mark.slow
@pytest.mark.parametrize("solver", [mfoc.EMSA(), SQH], ids=["emsa", "sqh"])
@pytest.mark.parametrize("name", ["linear_quadratic", "tied", "decayed"])
def test_the_residual_tends_to_zero(name, solver):
    """Part (iii), per stage and tied."""
    problem, particles = CATALOGUE[name]()
    solution = mfoc.solve(problem, solver, particles, steps=60)
    assert min(record["residual"] for record in solution.history) < 0.1 * solution.history[0]["residual"]


@pytest.mark.parametrize("scale", [2.0**-40, 2.0**30])
@pytest.mark.parametrize("name", ["mlp", "linear_quadratic"])
def test_weights_from_the_problem_follow_its_scale(name, scale):
    problem, particles = CATALOGUE[name]()
    running = problem.running_cost and (lambda *at: scale * problem.running_cost(*at))
    scaled = replace(problem, terminal_cost=lambda x, z: scale * problem.terminal_cost(x, z), running_cost=running)
    plain, other = (mfoc.solve(each, mfoc.EMSA(), particles, steps=4) for each in (problem, scaled))
    assert distance(plain.controls, other.controls) < 1e-8
    assert distance(plain.controls, problem.controls) > 1e-3
    assert other.history[-1]["rho"] == pytest.approx(scale * plain.history[-1]["rho"], rel=0.05)


def test_the_weights_are_the_curvatures_of_the_problem():
    """x' = x + B u, |x_T|^2: along the top eigenvector of B'B in all stages J bends by 2 T lambda, f by lambda."""
    b, stages = normal(2, 2, seed=4), 3
    problem = mfoc.Problem(
        lambda t, x, u, z: x + u @ b.mT, lambda x, z: x.square().sum(1), [torch.zeros(2, dtype=D)] * stages
    )
    info = next(mfoc.iterate(problem, mfoc.EMSA(), normal(10, 2) + 1)).info
    top = torch.linalg.eigvalsh(b.mT @ b)[-1].item()
    assert info.extra["proximal"] == pytest.approx(0.01 * 2 * stages * top, rel=0.1)
    assert info.extra["rho"] == pytest.approx(2 * stages, rel=0.1)  # 2 T lambda / lambda


@pytest.mark.parametrize("make", [partial(mfoc.EMSA), lambda: SQH], ids=["emsa", "sqh"])
def test_adaptive_emsa_solves_where_fixed_weights_blow_up(make):
    a, b, eye = torch.eye(3, dtype=D) + 0.1 * normal(3, 3, seed=1), normal(3, 2, seed=2), torch.eye(3, dtype=D)
    lq = mfoc.lq.LinearQuadratic.discrete(A=a, B=b, Q=eye, R=0.1 * torch.eye(2, dtype=D), QT=eye, horizon=8)
    problem, cloud = lq.problem(), normal(20, 3, seed=4) + 1
    best = lq.value(cloud.mean(0), torch.cov(cloud.mT, correction=0), shared=True).item()
    fixed = mfoc.solve(problem, mfoc.EMSA(1.0, adaptive=False), cloud, steps=100)
    assert fixed.status is mfoc.Status.DIVERGED
    solution = mfoc.solve(problem, make(), cloud, steps=100)
    assert solution.value - best < 0.02 * (solution.history[0]["value"] - best)


def noisy_least_squares(seed, start):
    x = normal(100, 10, seed=seed)
    z = x @ normal(10, seed=seed + 1) + normal(100, seed=seed + 2)
    solution = torch.linalg.lstsq(x, z[:, None]).solution[:, 0]
    problem = mfoc.Problem(
        lambda t, x, u, z: {"x": x["x"], "y": x["x"] @ u},
        lambda x, z: (x["y"] - z).square(),
        [solution if start == "optimum" else torch.zeros(10, dtype=D)],
    )
    return problem, mfoc.Particles({"x": x, "y": torch.zeros(100, dtype=D)}, z), solution


@pytest.mark.parametrize("solver", [mfoc.EMSA(), SQH], ids=["emsa", "sqh"])
@pytest.mark.parametrize("seed", [0, 10, 20])
def test_minibatches_average_out(seed, solver):
    """Each batch of 4 can be fitted exactly by 10 numbers: only the growing proximal weight keeps the others' fit."""
    problem, cloud, best = noisy_least_squares(seed, "zero")
    solution = mfoc.solve(problem, solver, mfoc.population(cloud, batch_size=4, seed=seed), steps=60)
    start, least, end = (
        float(mfoc.evaluate(problem, u, cloud).value) for u in (problem.controls, [best], solution.controls)
    )
    assert end - least < 0.1 * (start - least)
    assert solution.history[-1]["proximal"] > 4 * solution.history[1]["proximal"]
    whole = mfoc.solve(problem, solver, cloud, steps=20)
    assert whole.last.state["changes"] == 0  # one population is not taken for many


@pytest.mark.parametrize("seed", [0, 10, 20])
def test_minibatches_hardly_leave_an_optimum(seed):
    problem, cloud, best = noisy_least_squares(seed, "optimum")
    solution = mfoc.solve(problem, mfoc.EMSA(), mfoc.population(cloud, batch_size=4, seed=seed), steps=60)
    least, end = (float(mfoc.evaluate(problem, u, cloud).value) for u in ([best], solution.controls))
    assert end < 1.2 * least


def test_adaptive_emsa_keeps_the_controls_when_every_try_fails():
    problem, particles = CATALOGUE["mlp"]()

    class Wild:
        def minimise(self, evaluate, start):
            value, _ = evaluate(start)
            return Minimum(start + 1e4, value, torch.zeros_like(value, dtype=torch.bool), 1)

    solver = mfoc.EMSA(1e-6, inner=Wild(), adaptive=True, tries=3)
    controls, state, info = solver.step(problem, problem.controls, solver.init(problem, problem.controls), particles)
    assert same_bits(controls, problem.controls)
    assert state["scale"] == 27.0
    assert info.extra["rho"] == pytest.approx(9e-6)  # of the last try
    assert info.extra["tries"] == 3


def test_emsa_with_no_penalty_is_msa():
    problem, particles = CATALOGUE["decayed"]()
    inner = LBFGS(4)
    by_msa = mfoc.solve(problem, mfoc.MSA(inner), particles, steps=2)
    by_emsa = mfoc.solve(problem, mfoc.EMSA(0.0, inner=inner, adaptive=False), particles, steps=2)
    assert distance(by_msa.controls, by_emsa.controls) < 1e-9


@pytest.mark.parametrize("name", INTERACTING)
def test_a_large_penalty_moves_little(name):
    problem, particles = CATALOGUE[name]()
    moves = []
    for rho in (1.0, 100.0, 10_000.0):
        solution = mfoc.solve(problem, mfoc.EMSA(rho, inner=LBFGS(20), adaptive=False), particles, steps=1)
        moves.append(distance(solution.controls, problem.controls))
    assert moves[0] > moves[1] > moves[2]


@pytest.mark.slow
def test_the_toy_of_li_chen_tai_e():
    problem, particles = li_chen_tai_e()

    def values(solver, steps):
        solution = mfoc.solve(problem, solver, particles, steps=steps)
        return np.array([record["value"] for record in solution.history] + [solution.value])

    basic = values(mfoc.MSA(LBFGS(10)), 12)
    assert (basic[1:] / basic[:-1]).max() > 20  # the frozen states are infeasible for the new control
    assert basic[-6:].min() > 0.5
    first_order = min(
        values(mfoc.Gradient(partial(torch.optim.SGD, lr=0.1)), 500)[-1],
        values(mfoc.Gradient(partial(torch.optim.Adam, lr=0.005)), 500)[-1],
    )
    assert first_order > 0.1
    for solver in (mfoc.EMSA(100.0, costate_rho=0.01, inner=LBFGS(), adaptive=False), mfoc.EMSA(1.0), mfoc.EMSA()):
        assert values(solver, 50)[-1] < first_order / 3


# ---- a control in the diffusion


def in_the_noise(steps, n=400, start=0.01):
    """dx = u dW, cost x_T^2 + the integral of -u^2/2 + u^4/4: J is least at 0, where H is not."""
    problem = mfoc.continuous(
        lambda s, x, u, z: 0 * x,
        lambda x, z: x[:, 0] ** 2,
        [torch.full((1,), start, dtype=D)] * steps,
        diffusion=lambda s, x, u, z: u.expand_as(x),
        running_cost=lambda s, x, u, z: (-(u**2) / 2 + u**4 / 4).expand(len(x)),
    )
    noise = mfoc.schemes.brownian(n, steps, 1, seed=0, like=torch.zeros(1, dtype=D))
    return problem, mfoc.Particles(torch.zeros(n, 1, dtype=D), {"noise": noise})


def test_msa_completes_the_hamiltonian_of_a_controlled_diffusion():
    problem, cloud = in_the_noise(5)
    solution = mfoc.solve(problem, mfoc.MSA(), cloud, steps=10)
    assert solution.value == pytest.approx(0, abs=1e-12)
    unsaid = mfoc.solve(replace(problem, noise=None), mfoc.MSA(), cloud, steps=1)
    assert unsaid.value > 0.2  # to the minima of H, at -1 and 1


def test_msa_refuses_a_controlled_diffusion_whose_second_adjoint_it_cannot_hold():
    problem, cloud = in_the_noise(2)
    coupled = replace(problem, terminal_cost=lambda x, z: (x[:, 0] - x[:, 0].mean()) ** 2)
    with pytest.raises(mfoc.InvalidValue, match="the control enters the diffusion"):
        mfoc.solve(coupled, mfoc.MSA(), cloud, steps=1)
    start = mfoc.evaluate(coupled, coupled, cloud).value.item()
    assert mfoc.solve(coupled, mfoc.EMSA(), cloud, steps=3).value <= start + 1e-12
