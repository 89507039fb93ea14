"""The loop: when it stops and why, what it reports, that it resumes bitwise and loses nothing."""

import logging
import math
import pickle
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

import mfoc
from tests.problems import CATALOGUE, D, distance, leaves, normal, same_bits

SGD = mfoc.Gradient(partial(torch.optim.SGD, lr=0.1))
ADAM = mfoc.Gradient(partial(torch.optim.Adam, lr=0.05))


@pytest.fixture
def case():
    problem, particles = CATALOGUE["decayed"]()
    return problem, mfoc.population(particles, batch_size=3, seed=1)


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
    found = mfoc.evaluate(problem, solution.controls, source(4))
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


def exploding(what):
    """Each step adds 1 to the control of stage 1; above 2.5 something is NaN."""

    def broken(x, u):
        return torch.where(u > 2.5, torch.nan, 0.0) * x

    return mfoc.Problem(
        lambda t, x, u, z: x + u + (broken(x, u) if what == "state" and t == 1 else 0),
        lambda x, z: -x + (broken(x, x) if what == "terminal" else 0),
        [torch.zeros((), dtype=D) for _ in range(3)],
        running_cost=lambda t, x, u, z: 0 * x + (broken(x, u) if what == "running" and t == 2 else 0),
    )


@pytest.mark.parametrize(
    ("what", "stage", "words", "last"),
    [("state", 1, "stage 1", 2), ("running", 2, "stage 2", 2), ("terminal", 3, "terminal cost", 0)],
)
@pytest.mark.parametrize(
    "solver", [mfoc.Gradient(partial(torch.optim.SGD, lr=1.0)), mfoc.MSA(mfoc.minimisers.Descent(1.0))]
)
def test_nan_stops_with_stage_step_and_last_good_iterate(solver, what, stage, words, last, caplog):
    problem, x = exploding(what), torch.zeros(4, dtype=D) + 0.1
    with caplog.at_level(logging.WARNING, logger="mfoc.solve"):
        solution = mfoc.solve(problem, solver, x, steps=50)
    assert solution.status is mfoc.Status.NONFINITE
    assert words in solution.message
    assert f"step {last + 1}" in solution.message
    assert solution.last.step == last
    assert math.isfinite(solution.value)
    assert all(leaf.isfinite().all() for leaf in leaves(solution.controls))
    assert [float(u) for u in solution.controls] == pytest.approx([last] * 3)
    assert any("stopped" in record.message for record in caplog.records)
    at_the_end = mfoc.solve(problem, solver, x, steps=last + 1)  # nothing is left to do, and still it is seen
    assert (at_the_end.status, at_the_end.message) == (solution.status, solution.message)
    assert at_the_end.last.step == last
    assert at_the_end.value == solution.value
    with pytest.raises(mfoc.NonFiniteError) as caught:
        for _ in mfoc.iterate(problem, solver, x):
            pass
    assert (caught.value.stage, caught.value.step, caught.value.last.step) == (stage, last + 1, last)


def test_a_nan_costate_is_located():
    """The square root at zero: finite cost, infinite slope."""
    problem = mfoc.Problem(
        lambda t, x, u, z: x * 0 + u if t == 0 else x.abs().sqrt(), lambda x, z: x, [torch.zeros((), dtype=D)] * 2
    )
    solution = mfoc.solve(problem, SGD, torch.ones(3, dtype=D), steps=5)
    assert solution.status is mfoc.Status.NONFINITE
    assert "costate at stage 1" in solution.message
    assert solution.last.step == 0


def test_an_error_in_user_code_keeps_the_last_iterate(case):
    problem, source = case

    def hook(at):
        if at.step == 3:
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine") as caught:
        mfoc.solve(problem, ADAM, source, steps=9, hooks=[hook])
    assert caught.value.last_iterate.step == 3
    assert "step 3" in caught.value.__notes__[0]
    resumed = mfoc.solve(problem, ADAM, source, steps=6, start=caught.value.last_iterate)
    assert same_bits(resumed.controls, mfoc.solve(problem, ADAM, source, steps=6).controls)


def test_an_error_in_the_dynamics_keeps_the_last_iterate(case):
    problem, source = case
    calls = []

    def dynamics(t, x, u, z):
        calls.append(t)
        if len(calls) > 90:
            raise OSError("disk")
        return problem.dynamics(t, x, u, z)

    broken = mfoc.Problem(dynamics, problem.terminal_cost, problem.controls)
    with pytest.raises(OSError, match="disk") as caught:
        mfoc.solve(broken, ADAM, source, steps=50)
    assert caught.value.last_iterate.step >= 1


def test_keyboard_interrupt(case):
    problem, source = case

    def hook(at):
        if at.step == 2:
            raise KeyboardInterrupt

    solution = mfoc.solve(problem, ADAM, source, steps=9, hooks=[hook])
    assert solution.status is mfoc.Status.INTERRUPTED
    assert solution.last.step == 2
    assert same_bits(solution.controls, mfoc.solve(problem, ADAM, source, steps=2).controls)


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
    assert sorted(set(asked)) == [0, 1, 2, 3]


class Failing:
    """A hook that raises where it is told to, and counts how often it is closed."""

    def __init__(self, where, error):
        self.where, self.error, self.closed = where, error, 0

    def _fail(self, where):
        if where == self.where:
            raise self.error

    def start(self, steps):
        self._fail("start")

    def __call__(self, iterate):
        self._fail("call")

    def finish(self, solution):
        self._fail("finish")

    def close(self):
        self.closed += 1
        self._fail("close")


class Refusing(Exception):
    """Takes no attribute of others."""

    def __setattr__(self, name, value):
        if name == "last_iterate":
            raise AttributeError(name)
        super().__setattr__(name, value)


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt(), SystemExit(3), Refusing("mine")], ids=repr)
@pytest.mark.parametrize("where", ["start", "call", "finish", "close"])
def test_whatever_a_hook_raises_it_carries_the_last_iterate_and_all_hooks_are_closed(where, error, case):
    problem, source = case
    hooks = [Failing(None, None), Failing(where, error), Failing(None, None)]
    if isinstance(error, KeyboardInterrupt) and where == "call":  # ends the solve with a status
        assert mfoc.solve(problem, ADAM, source, steps=2, hooks=hooks).status is mfoc.Status.INTERRUPTED
    else:
        with pytest.raises(type(error)) as caught:
            mfoc.solve(problem, ADAM, source, steps=2, hooks=hooks)
        assert caught.value is error
        if not isinstance(error, Refusing):
            assert error.last_iterate.step == {"start": 0, "call": 1}.get(where, 2)
    assert [hook.closed for hook in hooks] == [1, 1, 1]


def test_a_hook_may_say_that_something_is_not_finite(case):
    problem, source = case
    error = mfoc.NonFiniteError("a loss of mine", stage=None, step=1, last=None)
    solution = mfoc.solve(problem, ADAM, source, steps=3, hooks=[Failing("call", error)])
    assert solution.status is mfoc.Status.NONFINITE
    assert solution.last.step == 1


class Closing:
    def __init__(self, error, when="close"):
        self.error, self.when, self.ran = error, when, []

    def __call__(self, iterate):
        if self.when == "call":
            raise self.error

    def finish(self, solution):
        self.ran.append("finish")
        if self.when == "finish":
            raise self.error

    def close(self):
        self.ran.append("close")
        if self.when == "close":
            raise self.error


@pytest.mark.parametrize("when", ["call", "finish", "close"])
def test_of_several_hooks_that_fail_the_first_error_is_raised_and_the_others_are_noted(when, case):
    problem, source = case
    hooks = [Closing(ValueError("one"), when), Closing(KeyError("two")), Closing(OSError("three"))]
    with pytest.raises(ValueError, match="one") as caught:
        mfoc.solve(problem, ADAM, source, steps=1, hooks=hooks)
    notes = "\n".join(caught.value.__notes__)
    assert "KeyError('two')" in notes
    assert "OSError('three')" in notes
    ran = ["close"] if when == "call" else ["finish", "close"]
    assert [hook.ran for hook in hooks] == [ran] * 3  # a checkpoint behind one that fails still saves


def test_an_interrupt_while_hooks_close_is_not_lost_in_a_note(case):
    problem, source = case
    with pytest.raises(KeyboardInterrupt) as caught:
        mfoc.solve(problem, ADAM, source, steps=1, hooks=[Closing(ValueError("one")), Closing(KeyboardInterrupt())])
    assert "ValueError('one')" in "\n".join(caught.value.__notes__)


# ---- divergence


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
    assert mfoc.solve(problem, sgd(0.05), x, steps=9, start=solution).last.step == 9


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
