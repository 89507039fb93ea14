"""What goes wrong in a solve is said, and nothing is lost: a NaN, errors of the user and of hooks, Ctrl-C."""

import logging
import math
from functools import partial

import pytest
import torch

import mfoc
from tests.problems import D, leaves, same_bits
from tests.solving import ADAM, SGD


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
