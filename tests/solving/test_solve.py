"""The loop: when it stops and why, what it reports, that it resumes bitwise."""

import logging
import math
import pickle
from functools import partial

import numpy as np
import pytest
import torch

import mfoc
from tests.problems import CATALOGUE, D, distance, leaves, normal, same_bits
from tests.solving import ADAM, SGD


def test_the_budget(case):
    problem, source = case
    solution = mfoc.solve(problem, SGD, source, steps=5)
    assert solution.status is mfoc.Status.MAX_STEPS
    assert solution.last.step == 5
    assert [record["step"] for record in solution.history] == [0, 1, 2, 3, 4]
    nothing = mfoc.solve(problem, SGD, source, steps=0)
    assert same_bits(nothing.controls, problem.controls)
    assert nothing.history == []
    assert nothing.value == float(mfoc.evaluate(problem, problem.controls, source(0)).value)


def test_the_report_is_about_the_controls_returned(case):
    problem, source = case
    solution = mfoc.solve(problem, ADAM, source, steps=4)
    found = mfoc.evaluate(problem, solution.controls, source(3))  # the last batch there was
    assert solution.value == float(found.value)
    assert solution.residual == pytest.approx(math.sqrt(sum(float(g.square().sum()) for g in leaves(found.gradient))))
    assert same_bits(solution.controls, solution.last.controls)


def test_history_is_plain(case):
    problem, source = case
    for solver in (SGD, mfoc.EMSA(1.0, adaptive=True)):
        history = mfoc.solve(problem, solver, source, steps=3).history
        for record in history:
            assert {"step", "value", "residual", "seconds"} <= record.keys()
            assert all(type(value) in (int, float) for value in record.values())
        assert [r["seconds"] for r in history] == sorted(r["seconds"] for r in history)


def test_tolerance():
    problem = mfoc.Problem(
        lambda t, x, u, z: x + u, lambda x, z: (x - 3).square().sum(1), [torch.zeros(2, dtype=D) for _ in range(3)]
    )
    particles = mfoc.Particles(normal(5, 2))
    loose = mfoc.solve(problem, mfoc.Gradient(partial(torch.optim.SGD, lr=0.02)), particles, steps=500, tol=1e-4)
    assert loose.status is mfoc.Status.CONVERGED
    assert loose.residual <= 1e-4
    assert loose.history[-1]["residual"] <= 1e-4 < loose.history[-2]["residual"]
    assert loose.last.step == loose.history[-1]["step"]  # the controls at which the residual was measured
    assert float(mfoc.evaluate(problem, loose.controls, particles).value) == pytest.approx(loose.value, rel=1e-14)
    never = mfoc.solve(problem, SGD, particles, steps=3, tol=0)
    assert never.status is mfoc.Status.MAX_STEPS


def test_a_stationary_start_converges_at_once():
    problem = mfoc.Problem(lambda t, x, u, z: x + u, lambda x, z: x.square(), [torch.zeros((), dtype=D)])
    solution = mfoc.solve(problem, SGD, torch.tensor([1.0, -1.0], dtype=D), steps=50, tol=1e-12)
    assert solution.status is mfoc.Status.CONVERGED
    assert solution.last.step == 0
    assert same_bits(solution.controls, problem.controls)


def test_hooks(case):
    problem, source = case
    seen = []

    class Hook:
        def start(self, steps):
            seen.append(("start", steps))

        def __call__(self, at):
            seen.append(at.step)
            return at.step == 3

        def finish(self, solution):
            seen.append(("finish", solution.status))

    also = []
    solution = mfoc.solve(problem, SGD, source, steps=9, hooks=[Hook(), lambda at: also.append(at.info.residual)])
    assert solution.status is mfoc.Status.STOPPED
    assert solution.last.step == 3
    assert seen == [("start", 9), 1, 2, 3, ("finish", mfoc.Status.STOPPED)]
    assert len(also) == 3  # every hook is called, also on the step that stops


STOPS = [True, np.bool_(True), torch.tensor(True), torch.tensor([True]), np.array(True)]
IGNORED = [None, 1, 1.0, "stop", [True], False, np.bool_(False), torch.tensor(False), np.array(False)]
IGNORED += [torch.tensor(1.0), torch.tensor(1), torch.ones(2, dtype=torch.bool), np.int64(1), np.ones(2, dtype=bool)]


@pytest.mark.parametrize("returned", STOPS + IGNORED, ids=repr)
def test_a_hook_stops_by_true_and_by_nothing_else(returned, case):
    problem, source = case
    solution = mfoc.solve(problem, SGD, source, steps=2, hooks=[lambda at: returned])
    stops = any(returned is value for value in STOPS)
    assert solution.status is (mfoc.Status.STOPPED if stops else mfoc.Status.MAX_STEPS)
    assert solution.last.step == (1 if stops else 2)


def test_a_resumed_solve_says_how_much_it_did(case):
    problem, source = case
    part = mfoc.solve(problem, ADAM, source, steps=4)
    assert part.message == "did 4 steps"
    for start in (part, part.last):
        on = mfoc.solve(problem, ADAM, source, steps=5, start=start)
        assert on.message == "did 1 step, 5 in all"
        assert [record["step"] for record in on.history] == list(range(5))
        assert on.history[:4] == part.history
        seconds = [record["seconds"] for record in on.history]
        assert seconds == sorted(seconds)
    still = mfoc.solve(problem, ADAM, source, steps=4, start=part)
    assert (still.message, still.status) == ("did 0 steps, 4 in all", mfoc.Status.MAX_STEPS)
    assert still.history == part.history
    assert same_bits(still.controls, part.controls)
    with pytest.raises(mfoc.InvalidValue, match=r"steps is 3 and start is at step 4.*steps=14"):
        mfoc.solve(problem, ADAM, source, steps=3, start=part)
    assert len(part.history) == len(part.last.history) == 4  # those who went on left it as it was


def test_every_iterate_has_its_own_past(case):
    problem, source = case
    kept = []
    solution = mfoc.solve(problem, ADAM, source, steps=4, hooks=[kept.append])
    assert [list(at.history) for at in kept] == [solution.history[:k] for k in range(1, 5)]
    again = mfoc.solve(problem, ADAM, source, steps=4, start=kept[1])
    assert [r["value"] for r in again.history] == [r["value"] for r in solution.history]
    assert pickle.loads(pickle.dumps(kept[1])).history == solution.history[:2]
    assert (kept[2].history[-1], kept[2].history[:2]) == (solution.history[2], solution.history[:2])
    with pytest.raises(IndexError):
        kept[0].history[1]


@pytest.mark.parametrize("name", ["decayed", "tied"])
def test_a_converged_solve_goes_on_without_a_record_twice(name):
    problem, particles = CATALOGUE[name]()
    first = mfoc.solve(problem, SGD, particles, steps=40, tol=1e9)
    on = mfoc.solve(problem, SGD, particles, steps=3, start=first)
    assert [record["step"] for record in first.history] == [0]
    assert [record["step"] for record in on.history] == [0, 1, 2]


def unused(**leaves):
    """The controls reach the cost through w alone."""
    return mfoc.Problem(
        lambda t, x, u, z: x * u["w"],
        lambda x, z: x.square().sum(1),
        [{"w": torch.full((2,), 0.5, dtype=D), **leaves} for _ in range(2)],
    )


def test_a_control_without_a_path_to_the_cost_is_warned_of_by_name(caplog):
    with caplog.at_level(logging.WARNING, logger="mfoc.solve"):
        solution = mfoc.solve(unused(b=torch.ones(1, dtype=D)), SGD, normal(6, 2), steps=1)
    warned = "".join(caplog.messages)
    assert "controls[0]['b'], controls[1]['b']" in warned
    assert "'w'" not in warned
    assert solution.last.step == 1


def test_a_slope_that_is_zero_is_no_reason_to_warn(caplog):
    problem = mfoc.Problem(
        lambda t, x, u, z: x + torch.relu(u),
        lambda x, z: x.square().sum(1),
        [-torch.ones(2, dtype=D)],
    )
    with caplog.at_level(logging.WARNING, logger="mfoc.solve"):
        mfoc.solve(problem, SGD, normal(6, 2), steps=1)
    assert not caplog.messages


def test_an_expert_that_only_later_particles_use_is_no_reason_to_warn(caplog):
    def dynamics(t, x, u, z):
        return torch.cat([x[z == k] * u[k] for k in range(3) if (z == k).any()])

    problem = mfoc.Problem(dynamics, lambda x, z: x.square().sum(1), [list(torch.ones(3, 2, dtype=D))])
    with caplog.at_level(logging.WARNING, logger="mfoc.solve"):
        mfoc.solve(problem, SGD, (normal(9, 2), torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])), steps=1)
    assert not caplog.messages


@pytest.mark.parametrize(
    "solver",
    [
        ADAM,
        mfoc.Gradient(partial(torch.optim.LBFGS, max_iter=3)),
        mfoc.Gradient(partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True), recompute=True),
        mfoc.MSA(mfoc.minimisers.Descent(0.1, steps=2)),
        mfoc.EMSA(1.0, adaptive=True, inner=mfoc.minimisers.LBFGS(3)),
    ],
    ids=["adam", "lbfgs", "nesterov", "msa", "emsa"],
)
@pytest.mark.parametrize("name", ["decayed", "pytrees", "tied"])
def test_resuming_is_bitwise(name, solver, tmp_path):
    problem, particles = CATALOGUE[name]()
    source = partial(mfoc.population, particles, batch_size=2, seed=3)
    whole = mfoc.solve(problem, solver, source(), steps=7)
    part = mfoc.solve(problem, solver, source(), steps=4)
    kept = mfoc.tree.copy([part.last.controls, part.last.state])
    resumed = mfoc.solve(problem, solver, source(), steps=7, start=part.last)
    assert same_bits(whole.controls, resumed.controls)
    assert same_bits(whole.last.state, resumed.last.state)
    assert (whole.value, whole.residual) == (resumed.value, resumed.residual)
    assert [r["value"] for r in whole.history] == [r["value"] for r in resumed.history]
    assert [r["step"] for r in resumed.history] == list(range(7))
    assert same_bits(kept, [part.last.controls, part.last.state])
    torch.save([part.last.step, part.last.controls, part.last.state], tmp_path / "iterate.pt")
    loaded = mfoc.Iterate(*torch.load(tmp_path / "iterate.pt", weights_only=True))
    assert same_bits(whole.controls, mfoc.solve(problem, solver, source(), steps=7, start=loaded).controls)


def test_iterate_is_the_loop_of_solve(case):
    problem, source = case
    stream = mfoc.iterate(problem, ADAM, source)
    steps = [next(stream) for _ in range(4)]
    assert [at.step for at in steps] == [1, 2, 3, 4]
    assert same_bits(steps[-1].controls, mfoc.solve(problem, ADAM, source, steps=4).controls)
    again = next(mfoc.iterate(problem, ADAM, source, start=steps[1]))
    assert same_bits(again.controls, steps[2].controls)


def test_the_problem_and_the_particles_are_left_alone(case):
    problem, source = case
    before = mfoc.tree.copy([problem.controls, [source(n).state for n in range(3)]])
    mfoc.solve(problem, ADAM, source, steps=3)
    assert same_bits(before, [problem.controls, [source(n).state for n in range(3)]])


def test_a_solver_of_ones_own():
    class Halving:
        def init(self, problem, controls):
            return {"calls": 0}

        def step(self, problem, controls, state, particles):
            value, gradient = mfoc.evaluate(problem, controls, particles)
            info = mfoc.Info(value, leaves(gradient), {"calls": float(state["calls"])})
            return mfoc.tree.map(lambda u: u / 2, controls), {"calls": state["calls"] + 1}, info

    problem, particles = CATALOGUE["tied"]()
    solution = mfoc.solve(problem, Halving(), particles, steps=3)
    assert distance(solution.controls, mfoc.tree.map(lambda u: u / 8, problem.controls)) < 1e-15
    assert [record["calls"] for record in solution.history] == [0, 1, 2]


def test_solving_under_no_grad(case):
    problem, source = case
    expected = mfoc.solve(problem, ADAM, source, steps=3).controls
    with torch.no_grad():
        found = mfoc.solve(problem, ADAM, source, steps=3).controls
        assert not torch.is_grad_enabled()
    assert same_bits(expected, found)


def test_a_population_function_is_asked_for_the_step():
    problem = mfoc.Problem(lambda t, x, u, z: x * u, lambda x, z: x.square().sum(1), [torch.ones(2, dtype=D)])
    asked = []

    def draw(n):
        asked.append(n)
        return mfoc.Particles(normal(3, 2, seed=n))

    mfoc.solve(problem, SGD, draw, steps=3)
    assert sorted(set(asked)) == [0, 1, 2]  # and for no more than there are steps
