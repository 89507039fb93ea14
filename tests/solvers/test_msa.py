"""MSA is the loop of the paper and, with one inner step, back-propagation; E-MSA never raises the objective."""

from functools import partial
from itertools import pairwise

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
    "solver", [mfoc.MSA(Descent(0.05, steps=3)), mfoc.EMSA(2.0, 0.5), mfoc.EMSA(2.0, adaptive=True)]
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
    for solver in (mfoc.MSA(Descent(0.1)), mfoc.MSA(LBFGS(2, trials=4)), mfoc.EMSA(1.0, adaptive=True)):
        solution = mfoc.solve(problem, solver, normal(3), steps=1)
        assert [leaf.shape for leaf in solution.controls] == [(0,), (1,)]
        assert float(solution.controls[1]) != 0


@pytest.mark.parametrize("name", CATALOGUE)
def test_adaptive_emsa_never_raises_the_objective(name):
    problem, particles = CATALOGUE[name]()
    start = float(mfoc.evaluate(problem, problem.controls, particles).value)
    solution = mfoc.solve(problem, mfoc.EMSA(0.1, inner=LBFGS(5), adaptive=True), particles, steps=8)
    values = [record["value"] for record in solution.history] + [solution.value]
    assert values[0] == pytest.approx(start, rel=1e-12)
    assert all(b <= a + 1e-12 for a, b in pairwise(values))
    assert values[-1] < values[0]


def test_adaptive_emsa_keeps_the_controls_when_every_try_fails():
    problem, particles = CATALOGUE["mlp"]()

    class Wild:
        def minimise(self, evaluate, start):
            value, _ = evaluate(start)
            return Minimum(start + 1e4, value, torch.zeros_like(value, dtype=torch.bool), 1)

    solver = mfoc.EMSA(1e-6, inner=Wild(), adaptive=True, tries=3)
    controls, state, info = solver.step(problem, problem.controls, solver.init(problem, problem.controls), particles)
    assert same_bits(controls, problem.controls)
    assert state["scale"] == 8.0
    assert info.extra["rho"] == pytest.approx(8e-6)


def test_emsa_with_no_penalty_is_msa():
    problem, particles = CATALOGUE["decayed"]()
    inner = LBFGS(4)
    by_msa = mfoc.solve(problem, mfoc.MSA(inner), particles, steps=2)
    by_emsa = mfoc.solve(problem, mfoc.EMSA(0.0, inner=inner), particles, steps=2)
    assert distance(by_msa.controls, by_emsa.controls) < 1e-9


@pytest.mark.parametrize("name", INTERACTING)
def test_a_large_penalty_moves_little(name):
    problem, particles = CATALOGUE[name]()
    moves = []
    for rho in (1.0, 100.0, 10_000.0):
        solution = mfoc.solve(problem, mfoc.EMSA(rho, inner=LBFGS(20)), particles, steps=1)
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
    for solver in (mfoc.EMSA(100.0, costate_rho=0.01), mfoc.EMSA(1.0, adaptive=True)):
        assert values(solver, 50)[-1] < first_order / 3
