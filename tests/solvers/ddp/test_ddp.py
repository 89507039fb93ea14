"""DDP against dense Newton, a textbook loop, Riccati and ipopt."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

import mfoc
from mfoc.solvers.ddp import tracking
from mfoc.testing import check_solver
from tests.oracles.ddp import ddp_step
from tests.problems import D, discrete_lq, distance, lq_matrices, normal
from tests.robots import ROBOTS, by_ipopt, in_torch

BOTH = pytest.mark.parametrize("bounded", [False, True], ids=["free", "boxed"])


def solved(name, n=1, *, steps=80, tol=1e-8, **more):
    problem, cloud = in_torch(name, n, **more)
    return mfoc.solve(problem, mfoc.DDP(), cloud, steps=steps, tol=tol), problem, cloud


def quadratic(n=3, *, stages=5):
    """x' = A x + B u with quadratic costs, a control for each particle."""
    a, b = torch.eye(2, dtype=D) + 0.2 * normal(2, 2, seed=1), normal(2, 2, seed=2)
    problem = mfoc.Problem(
        lambda t, x, u, z: x @ a.mT + u @ b.mT,
        lambda x, z: 2 * x.square().sum(1),
        [normal(n, 2, seed=3 + t) for t in range(stages)],
        running_cost=lambda t, x, u, z: x.square().sum(1) + 0.5 * u.square().sum(1) + x[:, 0] * u[:, 1],
        kind=lambda t: "step",
        per_particle=True,
    )
    return problem, mfoc.Particles(normal(n, 2, seed=9)), a, b


@BOTH
@pytest.mark.parametrize("name", ["pendulum", "unicycle", pytest.param("cart-pole", marks=pytest.mark.slow)])
def test_the_objective_is_ipopts(name, bounded):
    solution, _, cloud = solved(name, bounded=bounded)
    expected, *_ = by_ipopt(name, cloud.state[0].numpy(), bounded=bounded, tol=1e-12)
    assert solution.status is mfoc.Status.CONVERGED
    assert solution.last.step <= (30 if name == "unicycle" else 80)
    assert abs(solution.value - expected) <= 1e-8 * max(1.0, abs(expected))
    if bounded:
        largest = max(float(u.abs().max()) for u in solution.controls)
        assert largest == pytest.approx(ROBOTS[name].limit, rel=1e-12)  # a bound is active, and none is crossed


def test_the_tail_is_quadratic():
    """Each residual is at most a constant times the square of the one before."""
    solution, *_ = solved("unicycle", tol=1e-12)
    tail = [record["residual"] for record in solution.history if 1e-13 < record["residual"] < 0.1]
    assert len(tail) >= 3
    assert all(after <= 50 * before**2 for before, after in pairwise(tail))


def test_ilqr_finds_the_same_and_takes_more_steps():
    newton, problem, cloud = solved("unicycle")
    ilqr = mfoc.solve(problem, mfoc.DDP(second_order=False), cloud, steps=200, tol=1e-8)
    assert ilqr.value == pytest.approx(newton.value, abs=1e-12)
    assert ilqr.last.step > newton.last.step


def test_a_step_is_the_textbooks():
    near, problem, cloud = solved("unicycle", steps=5, tol=None)
    stacked = torch.stack(near.controls)[:, 0]
    new, _, info = mfoc.DDP().step(problem, near.controls, near.last.state, cloud)
    expected, gain = ddp_step(problem, stacked, cloud)
    assert info.extra["step_length"] == 1.0
    assert info.extra["indefinite"] == info.extra["regularisation"] == 0.0
    assert distance(torch.stack(new)[:, 0], expected) < 1e-9
    assert info.extra["expected"] == pytest.approx(gain, rel=1e-9)


def _one_step(problem, controls, cloud, **options):
    solver = mfoc.DDP(**options)
    new, state, info = solver.step(problem, controls, solver.init(problem, controls), cloud)
    return (state, info), new


def test_a_quadratic_problem_takes_one_step():
    problem, cloud, *_ = quadratic()
    (state, info), new = _one_step(problem, problem.controls, cloud)
    after = mfoc.evaluate(problem, new, cloud)
    assert mfoc.tree.norm(after.gradient) < 1e-12
    assert float(after.value - info.value) == pytest.approx(info.extra["expected"] / 3, rel=1e-12)
    assert state["regularisation"].tolist() == [0.0] * 3


def test_the_gains_are_riccatis():
    problem, cloud, a, b = quadratic()
    (state, _), _ = _one_step(problem, problem.controls, cloud)
    V = 2 * torch.eye(2, dtype=D)
    N = torch.tensor([[0.0, 1.0], [0.0, 0.0]], dtype=D) / 2  # x'Nu of the cross term, halved as the others
    for K in reversed(state["gains"]):
        Huu, Hux = 0.5 * torch.eye(2, dtype=D) + b.mT @ V @ b, N.mT + b.mT @ V @ a
        expected = -torch.linalg.solve(Huu, Hux)
        assert distance(K, expected.expand(3, 2, 2)) < 1e-12
        V = torch.eye(2, dtype=D) + a.mT @ V @ a + Hux.mT @ expected


def test_a_shared_control_is_solved_on_the_joint_state():
    """Open-loop control of a whole cloud; the LQ room knows the optimum."""
    spec, *_ = lq_matrices(seed=3, n=2, m=1)
    lq = discrete_lq({key: value for key, value in spec.items() if key != "sigma"})
    problem = lq.problem()
    state = normal(5, 2, seed=4)
    (carried, info), new = _one_step(problem, problem.controls, mfoc.Particles(state))
    expected = lq.open_loop(state.mean(0))
    assert distance(torch.stack([mfoc.tree.ravel(u) for u in new]), expected.reshape(len(new), -1)) < 1e-9
    assert carried["gains"][0].shape == (1, 1, 10)
    assert info.extra["step_length"] == 1.0


def test_doubling_a_cloud_changes_no_particles_controls():
    once, problem, cloud = solved("unicycle", 2, steps=3, tol=None, bounded=True)
    twice = replace(problem, controls=[u.repeat(2, 1) for u in problem.controls])
    doubled = mfoc.solve(twice, mfoc.DDP(), mfoc.Particles(cloud.state.repeat(2, 1)), steps=3)
    assert distance(doubled.controls, [u.repeat(2, 1) for u in once.controls]) < 1e-12


def test_each_problem_goes_at_its_own_pace():
    """What a problem gets does not depend on the others: not on their step lengths, nor on their models."""
    together, problem, cloud = solved("unicycle", 3, steps=7, tol=None, spread=0.5)
    assert len({record["step_length"] for record in together.history}) > 1
    for i in range(3):
        alone = replace(problem, controls=[u[i : i + 1] for u in problem.controls])
        own = mfoc.solve(alone, mfoc.DDP(), cloud[i : i + 1], steps=7)
        assert distance([u[i : i + 1] for u in together.controls], own.controls) < 1e-9


def test_a_problem_that_is_done_stays_where_it_is():
    done, problem, cloud = solved("unicycle", steps=10, tol=None)
    assert done.history[-1]["converged"] == 1
    two = replace(problem, controls=[torch.cat([a, b]) for a, b in zip(done.controls, problem.controls, strict=True)])
    both = mfoc.Particles(cloud.state.repeat(2, 1))
    stream = mfoc.iterate(two, mfoc.DDP(), both)
    settled, *_, later = [next(stream) for _ in range(7)][2:]
    assert later.info.extra["converged"] == 1
    assert all(torch.equal(a[0], b[0]) for a, b in zip(settled.controls, later.controls, strict=True))
    assert distance([u[1:] for u in settled.controls], [u[1:] for u in later.controls]) > 0.01


@BOTH
def test_it_keeps_the_laws_of_solvers(bounded):
    problem, cloud = in_torch("pendulum", 2, bounded=bounded)
    check_solver(mfoc.DDP(), problem, cloud)


@BOTH
def test_multiple_shooting_swings_a_pole_up(bounded):
    """From a straight line of states; single shooting takes 70 steps and more."""
    problem, cloud = in_torch("cart-pole", bounded=bounded)
    upright = torch.tensor([[0.0, torch.pi, 0.0, 0.0]], dtype=D)
    states = [cloud.state.lerp(upright, t / problem.stages) for t in range(problem.stages + 1)]
    solver = mfoc.DDP(states=states)
    first = next(mfoc.iterate(problem, solver, cloud)).info
    assert first.extra["gap"] > 0.1
    assert float(first.value) == pytest.approx(float(mfoc.evaluate(problem, problem, cloud).value), rel=1e-12)
    solution = mfoc.solve(problem, solver, cloud, steps=40, tol=1e-8)
    assert solution.status is mfoc.Status.CONVERGED
    expected, *_ = by_ipopt("cart-pole", cloud.state[0].numpy(), bounded=bounded, tol=1e-12)
    assert solution.value == pytest.approx(expected, abs=1e-8)


@BOTH
def test_the_feedback_is_optimal_nearby(bounded):
    """Elsewhere the open loop loses a quadratic in the distance, the feedback a quartic (and what a bound takes)."""
    solution, problem, cloud = solved("unicycle", tol=1e-10, bounded=bounded)
    feedback = tracking(problem, solution)
    assert len(repr(feedback)) < 120
    near = mfoc.Particles(cloud.state + 0.01 * normal(1, 3, seed=5))
    x, controls = near.state, []
    for t in range(problem.stages):
        controls.append(feedback.policy(t, x))
        x = problem.dynamics(t, x, controls[-1], None)
    best = mfoc.solve(replace(problem, controls=solution.controls), mfoc.DDP(), near, steps=20, tol=1e-10).value
    loss = float(mfoc.evaluate(problem, controls, near).value) - best
    assert -1e-12 < loss < (0.1 if bounded else 1e-4) * (float(mfoc.evaluate(problem, solution, near).value) - best)
    if bounded:
        assert max(float(u.abs().max()) for u in controls) <= ROBOTS["unicycle"].limit


@pytest.mark.parametrize("top", [None, 1.2], ids=["free", "speed-limit"])
def test_constraints_are_met(top):
    """A double integrator from rest at 0 to rest at 1, minimum energy: the Gramian of 20 exact steps gives J."""
    h, stages = 0.05, 20
    a, b = torch.tensor([[1.0, h], [0.0, 1.0]], dtype=D), torch.tensor([h**2 / 2, h], dtype=D)
    problem = mfoc.Problem(
        lambda t, x, u, z: x @ a.mT + u * b,
        lambda x, z: 0.0 * x[:, 0],
        [torch.zeros(2, 1, dtype=D) for _ in range(stages)],
        running_cost=lambda t, x, u, z: h * u[:, 0] ** 2,
        kind=lambda t: "step",
        per_particle=True,
        terminal=mfoc.Equality(lambda x, z: x - torch.tensor([1.0, 0.0], dtype=D)),
        path=None if top is None else mfoc.Inequality(lambda t, x, u, z: x[:, 1:] - top),
    )
    cloud = mfoc.Particles(torch.tensor([[0.0, 0.0], [0.3, 0.0]], dtype=D))
    solution = mfoc.solve(problem, mfoc.AugmentedLagrangian(mfoc.DDP()), cloud, steps=30, tol=1e-7)
    assert solution.status is mfoc.Status.CONVERGED
    trajectory = mfoc.rollout(problem, solution.controls, cloud)
    assert distance(trajectory.states[-1], torch.tensor([[1.0, 0.0]] * 2, dtype=D)) < 1e-6
    columns = torch.stack([torch.linalg.matrix_power(a, k) @ b for k in range(stages)], 1)
    gramian = columns @ columns.mT / h
    free = torch.stack(
        [(way := torch.tensor([d, 0.0], dtype=D)) @ torch.linalg.solve(gramian, way) for d in (1.0, 0.7)]
    )
    if top is None:
        assert distance(trajectory.cost, free) < 1e-5
    else:  # the second, which has less far to go, is not held up: it never goes faster than 1.05
        assert max(float(x[:, 1].max()) for x in trajectory.states) == pytest.approx(top, abs=1e-6)
        assert float(trajectory.cost[0] - free[0]) > 0.1
        assert float(trajectory.cost[1]) == pytest.approx(float(free[1]), abs=1e-5)
