"""Every way out of a solve is a full ending: hooks run to the end, and the last iterate is kept."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
from contextlib import suppress

import pytest
import torch

import mfoc
from tests.problems import same_bits
from tests.solving import ADAM


class Witness:
    """A hook that notes what it is called for, and does something at one of the calls."""

    def __init__(self, when=None, act=None):
        self.calls, self.when, self.act = [], when, act

    def note(self, what):
        self.calls.append(what)
        if what == self.when:
            self.act()

    def start(self, steps):
        self.note("start")

    def __call__(self, iterate):
        self.note(f"step {iterate.step}")

    def finish(self, solution):
        self.note("finish")
        self.solution = solution

    def failed(self, iterate):
        self.note("failed")
        self.iterate = iterate

    def close(self):
        self.note("close")


def raising(error):
    def act():
        raise error

    return act


def sending(number):
    return lambda: os.kill(os.getpid(), number)


@pytest.mark.parametrize("error", [ValueError("mine"), SystemExit(3), MemoryError()], ids=repr)
def test_hooks_are_handed_the_last_iterate_when_something_is_raised(case, error):
    problem, source = case
    before, after = Witness(), Witness()
    with pytest.raises(type(error)) as caught:
        mfoc.solve(problem, ADAM, source, steps=9, hooks=[before, Witness("step 3", raising(error)), after])
    assert caught.value is error
    assert before.calls == ["start", "step 1", "step 2", "step 3", "failed", "close"]
    assert after.calls == ["start", "step 1", "step 2", "failed", "close"]
    assert before.iterate.step == 3
    assert same_bits(before.iterate.controls, mfoc.solve(problem, ADAM, source, steps=3).controls)
    assert len(before.iterate.history) == 3


def test_a_hook_that_cannot_start_keeps_no_other_from_starting_and_closing(case):
    problem, source = case
    hooks = [Witness("start", raising(ValueError("one"))), Witness("start", raising(KeyError("two"))), Witness()]
    with pytest.raises(ValueError, match="one") as caught:
        mfoc.solve(problem, ADAM, source, steps=9, hooks=hooks)
    assert [hook.calls for hook in hooks] == [["start", "close"]] * 3  # no step was made: there is nothing to save
    assert "KeyError('two')" in "\n".join(caught.value.__notes__)


def test_of_several_that_fail_to_save_each_is_asked(case):
    problem, source = case
    hooks = [Witness("failed", raising(OSError("disk"))), Witness(), Witness("step 2", raising(ValueError("mine")))]
    with pytest.raises(ValueError, match="mine") as caught:
        mfoc.solve(problem, ADAM, source, steps=9, hooks=hooks)
    assert [hook.calls[-2:] for hook in hooks] == [["failed", "close"]] * 3
    assert "disk" in "\n".join(caught.value.__notes__)


class Interrupting:
    """A problem's cost that does something at a call after ``armed`` is set."""

    def __init__(self, act):
        self.armed, self.act = False, act

    def __call__(self, x, z):
        if self.armed:
            self.armed = False
            self.act()
        return x.square().sum(1)


def interrupted_while_judged(act):
    """A solve whose first evaluation after the last step does something."""
    cost = Interrupting(act)
    problem = mfoc.Problem(lambda t, x, u, z: x + u, cost, [torch.zeros(2)])

    def arm(iterate):
        cost.armed = iterate.step == 4

    witness = Witness()
    return lambda: mfoc.solve(problem, ADAM, torch.ones(3, 2), steps=4, hooks=[arm, witness]), witness


def test_a_signal_while_the_solution_is_judged_loses_nothing():
    run, witness = interrupted_while_judged(sending(signal.SIGINT))
    solution = run()
    assert solution.status is mfoc.Status.INTERRUPTED
    assert solution.last.step == 4
    assert len(solution.history) == 4
    assert solution.value != solution.value  # not known
    assert witness.calls[-2:] == ["finish", "close"]


def test_an_error_while_the_solution_is_judged_leaves_the_last_iterate():
    run, witness = interrupted_while_judged(raising(RuntimeError("mine")))
    with pytest.raises(RuntimeError, match="mine") as caught:
        run()
    assert caught.value.last_iterate.step == witness.iterate.step == 4
    assert witness.calls[-2:] == ["failed", "close"]


@pytest.mark.parametrize("where", ["step 3", "judged"])
def test_sigterm_ends_the_solve_as_ctrl_c_does_and_then_the_process(where, case):
    problem, source = case
    if where == "judged":
        run, witness = interrupted_while_judged(sending(signal.SIGTERM))
    else:
        witness = Witness(where, sending(signal.SIGTERM))
        run = lambda: mfoc.solve(problem, ADAM, source, steps=9, hooks=[witness])  # noqa: E731
    with pytest.raises(SystemExit) as caught:
        run()
    assert caught.value.code == 143
    assert caught.value.solution is witness.solution
    assert witness.solution.status is mfoc.Status.INTERRUPTED
    assert witness.calls[-2:] == ["finish", "close"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize("where", ["start", "finish", "close"])
def test_sigterm_in_a_hook_that_is_no_step_ends_the_process_too(where, case):
    problem, source = case
    hooks = [Witness(where, sending(signal.SIGTERM)), Witness()]
    with pytest.raises(SystemExit) as caught:
        mfoc.solve(problem, ADAM, source, steps=2, hooks=hooks)
    assert caught.value.code == 143
    assert caught.value.last_iterate.step == (0 if where == "start" else 2)
    assert [hook.calls[-1] for hook in hooks] == ["close"] * 2


def swallowing(number):
    def act():
        with suppress(BaseException):  # as some libraries do
            os.kill(os.getpid(), number)

    return act


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("where", ["finish", "close"])
def test_a_signal_that_a_hook_swallows_when_all_is_done_is_raised_with_the_solution(where, number, case):
    hook, other = Witness(where, swallowing(number)), Witness()
    with pytest.raises(SystemExit if number == signal.SIGTERM else KeyboardInterrupt) as caught:
        mfoc.solve(case[0], ADAM, case[1], steps=3, hooks=[hook, other])
    assert caught.value.solution.last.step == caught.value.last_iterate.step == 3
    assert other.calls[-2:] == ["finish", "close"]
    assert getattr(caught.value, "code", 143) == 143


def test_a_signal_that_was_swallowed_is_not_lost_when_something_fails(case):
    def act():
        swallowing(signal.SIGTERM)()
        raise ValueError("mine")

    hook = Witness("step 2", act)
    with pytest.raises(SystemExit) as caught:
        mfoc.solve(case[0], ADAM, case[1], steps=3, hooks=[hook])
    assert (caught.value.code, caught.value.last_iterate.step) == (143, 2)
    assert hook.calls[-2:] == ["failed", "close"]


def test_sigterm_in_a_solve_within_a_solve_ends_both(case):
    problem, source = case
    inner, outer = Witness("step 1", sending(signal.SIGTERM)), Witness()

    def nested(iterate):
        mfoc.solve(problem, ADAM, source, steps=3, hooks=[inner])

    with pytest.raises(SystemExit) as caught:
        mfoc.solve(problem, ADAM, source, steps=9, hooks=[outer, nested])
    assert caught.value.code == 143
    assert inner.calls == ["start", "step 1", "finish", "close"]
    assert outer.calls == ["start", "step 1", "failed", "close"]
    assert outer.iterate.step == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_who_listens_to_signals_himself_is_left_alone(number, case):
    problem, source = case
    heard = []
    before = signal.signal(number, lambda *_: heard.append(number))
    try:
        solution = mfoc.solve(problem, ADAM, source, steps=4, hooks=[Witness("step 2", sending(number))])
    finally:
        signal.signal(number, before)
    assert solution.status is mfoc.Status.MAX_STEPS
    assert heard == [number]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_that_python_drops_still_ends_the_solve(case):
    """What is raised in a destructor is printed and forgotten."""
    problem, source = case

    class Bell:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(1000):  # the handler runs here
                pass

    solution = mfoc.solve(problem, ADAM, source, steps=9, hooks=[Witness("step 4", Bell)])
    assert (solution.status, solution.last.step) == (mfoc.Status.INTERRUPTED, 4)


def test_a_solve_in_another_thread_does_not_touch_signals(case):
    problem, source = case
    found = []
    thread = threading.Thread(target=lambda: found.append(mfoc.solve(problem, ADAM, source, steps=3)))
    thread.start()
    thread.join()
    assert found[0].status is mfoc.Status.MAX_STEPS


SCRIPT = """
    import os, signal, sys, torch, mfoc
    from functools import partial
    path, number = sys.argv[1], int(sys.argv[2])
    problem = mfoc.Problem(lambda t, x, u, z: x + u, lambda x, z: x.square().sum(1), [torch.zeros(2)])
    def ask(iterate):
        if iterate.step == 7:
            os.kill(os.getpid(), number)
    hooks = [ask, mfoc.hooks.Checkpoint(path)]
    solver = mfoc.Gradient(partial(torch.optim.SGD, lr=0.1))
    solution = mfoc.solve(problem, solver, torch.ones(3, 2), steps=100, hooks=hooks)
    print(solution.status.value)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code", "said"), [(signal.SIGINT, 0, "interrupted"), (signal.SIGTERM, 143, "")])
def test_a_process_that_is_asked_to_end_leaves_a_checkpoint(number, code, said, tmp_path):
    script = tmp_path / "run.py"
    script.write_text(textwrap.dedent(SCRIPT))
    done = subprocess.run(
        [sys.executable, script, tmp_path / "run.ckpt", str(int(number))], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (code, said), done.stderr
    assert mfoc.hooks.load(tmp_path / "run.ckpt").step == 7
