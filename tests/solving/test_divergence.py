"""A solve whose objective grows beyond return stops with the best iterate; ordinary ups and downs do not."""

import logging
from dataclasses import replace
from functools import partial

import pytest
import torch

import mfoc
from tests.problems import D, normal, same_bits


def bowl(scale=1.0, offset=0.0, stages=3):
    """J = scale |x_0 + sum u - 3|^2 + offset, of curvature 2 scale in every stage's direction."""
    return mfoc.Problem(
        lambda t, x, u, z: x + u,
        lambda x, z: scale * (x - 3).square().sum(1) + offset,
        [torch.zeros(2, dtype=D) for _ in range(stages)],
    )


def unstable_lq():
    """Cheap control over a long horizon: successive approximations are no contraction."""
    a, b = torch.eye(3, dtype=D) + 0.1 * normal(3, 3, seed=1), normal(3, 2, seed=2)
    eye = torch.eye(3, dtype=D)
    lq = mfoc.lq.LinearQuadratic.discrete(A=a, B=b, Q=eye, R=0.1 * torch.eye(2, dtype=D), QT=eye, horizon=12)
    return lq.problem(), normal(20, 3, seed=4) + 1


def sgd(lr):
    return mfoc.Gradient(partial(torch.optim.SGD, lr=lr))


@pytest.mark.parametrize("offset", [0.0, -5.0, 1e3])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_steps_that_are_too_long_diverge_at_any_scale_and_sign_of_the_objective(scale, offset, caplog):
    problem, x = bowl(scale, scale * offset), torch.ones(4, 2, dtype=D)
    with caplog.at_level(logging.WARNING, logger="mfoc"):
        solution = mfoc.solve(problem, sgd(0.5 / scale), x, steps=400)  # the error grows 2.0 times a step
    assert solution.status is mfoc.Status.DIVERGED
    assert solution.last.step == 0  # J was never lower
    assert same_bits(solution.controls, problem.controls)
    assert solution.value == float(mfoc.evaluate(problem, problem.controls, x).value)
    assert len(solution.history) < 40
    assert "learning rate" in solution.message
    assert "EMSA()" in solution.message
    assert f"{solution.history[-1]['value']:.3g}" in solution.message
    assert any("diverged" in record.message for record in caplog.records)


@pytest.mark.parametrize("solver", [mfoc.MSA(), mfoc.EMSA(1.0, adaptive=False), sgd(0.1)], ids=["msa", "emsa", "sgd"])
def test_every_solver_that_diverges_says_so(solver):
    problem, x = unstable_lq()
    solution = mfoc.solve(problem, solver, x, steps=300)
    assert solution.status is mfoc.Status.DIVERGED
    assert solution.value <= solution.history[0]["value"] * (1 + 1e-12)


def test_divergence_keeps_the_best_iterate_and_a_solve_goes_on_from_it():
    problem, x = bowl(), torch.ones(4, 2, dtype=D)
    solver = mfoc.Gradient(partial(torch.optim.SGD, lr=0.05), lr_schedule=lambda k: 1.0 if k < 5 else 20.0)
    solution = mfoc.solve(problem, solver, x, steps=300)
    values = [record["value"] for record in solution.history]
    assert solution.status is mfoc.Status.DIVERGED
    assert solution.last.step == values.index(min(values)) == 5
    assert solution.value == pytest.approx(min(values), rel=1e-14)
    assert mfoc.solve(problem, sgd(0.05), x, steps=9, start=solution, allow_changes=True).last.step == 9


def test_iterate_goes_on_through_divergence():
    problem, x = bowl(), torch.ones(4, 2, dtype=D)
    for at in mfoc.iterate(problem, sgd(0.5), x):
        if at.step == 60:
            break
    assert float(at.info.value) > 1e20


class Scripted:
    """Sees the objectives it is told, whatever the problem."""

    def __init__(self, values, residual=0.0):
        self.values, self.residual = values, residual

    def init(self, problem, controls):
        return {}

    def step(self, problem, controls, state, particles):
        step = int(controls[0][0])
        gradient = mfoc.tree.map(torch.zeros_like, controls)
        gradient[0][0] = self.residual
        moved = [controls[0] + torch.tensor([1.0, 0.0], dtype=D), *controls[1:]]
        return moved, state, mfoc.Info(torch.tensor(self.values[step], dtype=D), gradient)

    def evaluate(self, problem, controls, state, particles):
        return mfoc.Evaluation(torch.tensor(self.values[-1], dtype=D), mfoc.tree.map(torch.zeros_like, controls))


ORDINARY = {
    "a warm-up bump": [1.0] * 15 + [30.0, 100.0, 90.0, 10.0] + [1.0] * 20,
    "a slow start and a bump": [2.0 - 0.01 * k for k in range(30)] + [150.0, 20.0, 1.0],
    "from exactly zero": [0.0] * 3 + [1.0, 0.5] * 20,
    "zero for long": [0.0] * 30 + [1.0, 2.0, 1.5] * 5,
    "from next to zero": [1e-12] + [0.5, 1.0] * 20,
    "below zero": [-1.0 - k for k in range(20)] + [50.0, -20.0, -30.0],
    "through zero": [1.0 - 0.05 * k for k in range(60)],
    "to minus infinity": [-(10.0**k) for k in range(60)],
    "noise": [float(v) for v in (2 * normal(60, seed=3)).exp()],
    "noise about zero": [float(v) for v in normal(60, seed=4)],
    "at the minimum at once and a little up": [1.0] + [1e-14] * 15 + [1e-3] * 5,
    "to the minimum and a little up": [10.0 ** -min(k, 14) for k in range(40)] + [1e-3] * 10,
}


@pytest.mark.parametrize("name", ORDINARY)
def test_no_false_alarm(name):
    values = ORDINARY[name]
    solution = mfoc.solve(bowl(), Scripted(values), torch.ones(4, 2, dtype=D), steps=len(values))
    assert solution.status is mfoc.Status.MAX_STEPS
    assert solution.last.step == len(values)


@pytest.mark.parametrize("growth", [10.0, 15.0, 100.0, 1e6])
@pytest.mark.parametrize("steps", [12, 50])
def test_a_solve_that_explodes_at_once_is_not_measured_by_its_own_explosion(growth, steps):
    values = [growth ** min(k, 14) for k in range(steps)]  # and then stays where it is
    solution = mfoc.solve(bowl(), Scripted(values), torch.ones(4, 2, dtype=D), steps=steps)
    assert solution.status is mfoc.Status.DIVERGED
    assert solution.last.step == 0


def test_a_tiny_objective_that_can_grow_at_first_order_does_not_diverge():
    values = [1e-12] * 15 + [1.0, 0.5, 0.4]
    solver = Scripted(values, residual=1e-5)  # |u| counts the steps
    assert mfoc.solve(bowl(), solver, torch.ones(4, 2, dtype=D), steps=len(values)).status is mfoc.Status.MAX_STEPS
    alone = mfoc.solve(bowl(), Scripted(values), torch.ones(4, 2, dtype=D), steps=len(values))
    assert alone.status is mfoc.Status.DIVERGED


def test_noisy_batches_and_growing_balls_do_not_diverge(case):
    problem, source = case
    assert mfoc.solve(problem, sgd(0.05), source, steps=60).status is mfoc.Status.MAX_STEPS
    start = mfoc.solve(bowl(), sgd(0.1), torch.ones(4, 2, dtype=D), steps=60)  # J is zero there without an adversary
    game = mfoc.Game.of(replace(bowl(), controls=start.controls), mfoc.Ball(1.0))
    solver = mfoc.Minimax(mfoc.maximisers.PGD(2), partial(torch.optim.SGD, lr=0.01), ramp=lambda k: min(1.0, k / 30))
    solution = mfoc.solve(game, solver, torch.ones(4, 2, dtype=D), steps=40)
    assert solution.history[0]["value"] < 1e-9
    assert solution.history[-1]["value"] > 0.5
    assert solution.status is mfoc.Status.MAX_STEPS
