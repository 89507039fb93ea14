"""Iterates of a solve in place are read from anywhere: by threads, without derivatives, after the solve has ended."""

import contextlib
import copy
import gc
import itertools
import math
import sys
import threading
import weakref

import pytest
import torch

import mfoc
from tests.problems import D, leaves, same_bits
from tests.solving import ADAM
from tests.solving.test_in_place import (
    SOLVERS,
    Halfway,
    Pure,
    breaking,
    gradient,
    lesson,
    numbers,
    same_iterate,
)


def pure(steps):
    problem, source = lesson()
    return list(itertools.islice(mfoc.iterate(problem, Pure(ADAM), source), steps))


@pytest.fixture
def eager_threads():
    """Threads take turns every few instructions."""
    pure(1)  # the first optimiser of a process takes seconds
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


class Reader:
    """Reads the iterates it is handed in threads of its own, while the solve goes on."""

    def __init__(self):
        self.threads, self.read, self.errors = [], [], []

    def __call__(self, at):
        for _ in range(2):
            self.threads.append(threading.Thread(target=self._look, args=(at,)))
            self.threads[-1].start()

    def _look(self, at):
        try:
            self.read.append((at.step, copy.deepcopy(at.controls), [r["residual"] for r in at.history]))
        except BaseException as error:
            self.errors.append(error)

    def join(self):
        for thread in self.threads:
            thread.join()


@pytest.mark.usefixtures("eager_threads")
@pytest.mark.parametrize("door", ["solve", "iterate"])
def test_threads_read_what_they_were_handed(door):
    steps, reader, (problem, source) = 12, Reader(), lesson()
    if door == "solve":
        found = mfoc.solve(problem, ADAM, source, steps=steps, hooks=[reader])
        assert numbers(found.history) == numbers(mfoc.solve(problem, Pure(ADAM), source, steps=steps).history)
    else:
        for at in itertools.islice(mfoc.iterate(problem, ADAM, source), steps):
            reader(at)
    reader.join()
    assert not reader.errors
    assert len(reader.read) == 2 * steps
    expected = pure(steps)
    assert all(same_bits(leaves(u), leaves(expected[step - 1].controls)) for step, u, _ in reader.read)
    assert all(math.isfinite(residual) for _, _, residuals in reader.read for residual in residuals)


def test_inference_mode_of_the_reader_is_not_that_of_the_iterate():
    problem, source = lesson()
    kept, expected = [], pure(40)

    def look(at):
        with torch.inference_mode():
            kept.append(at.controls)

    mfoc.solve(problem, ADAM, source, steps=40, hooks=[look])
    steps = mfoc.iterate(problem, ADAM, source)
    late = [next(steps), next(steps)]
    next(steps)
    with torch.inference_mode():  # the last is made again from a snapshot
        kept += [at.controls for at in late]
    assert not any(u.is_inference() for controls in kept for u in leaves(controls))
    wanted = [*expected, *expected[:2]]
    assert all(same_bits(leaves(u), leaves(at.controls)) for u, at in zip(kept, wanted, strict=True))
    with torch.inference_mode(), pytest.raises(mfoc.InvalidValue, match="inference_mode"):
        next(steps)


@pytest.mark.parametrize("name", ["Adam", "LBFGS"])
def test_within_autocast_each_evaluation_sees_the_weights_as_they_are(name):
    """Autocast remembers what it has cast a leaf to, for as long as it is on."""
    problem, source = lesson()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, expected = (mfoc.solve(problem, s, source, steps=20) for s in (SOLVERS[name], Pure(SOLVERS[name])))
    assert same_iterate(found.last, expected.last)
    steps = mfoc.iterate(problem, SOLVERS[name], source)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        last = next(itertools.islice(steps, 19, None))
        assert same_iterate(last, expected.last)


def test_iterates_that_are_kept_do_not_keep_the_solver(monkeypatch):
    (problem, source), kept, live, make = lesson(), [], [], mfoc.Gradient.in_place

    def in_place(self, *args):
        made = make(self, *args)
        live.append(weakref.ref(made))
        return made

    monkeypatch.setattr(mfoc.Gradient, "in_place", in_place)
    solution = mfoc.solve(problem, ADAM, source, steps=40, hooks=[kept.append])

    def broken(at):
        kept.append(at)
        if at.step == 40:
            raise ValueError("a hook")

    try:  # not pytest.raises, which keeps the frames
        mfoc.solve(problem, ADAM, source, steps=60, hooks=[broken])
    except ValueError as error:
        rescued = error.last_iterate
    gc.collect()
    assert [made() for made in live if made() is not None] == []
    assert solution.last.step == rescued.step == 40
    assert all(math.isfinite(r["residual"]) for at in (*kept, rescued) for r in at.history)


def test_hooks_may_write_into_the_gradient_they_are_handed():
    problem, source = lesson()

    def zero(at):
        for slope in leaves(at.info.gradient):
            slope.zero_()

    found, expected = (mfoc.solve(problem, s, source, steps=40, hooks=[zero]) for s in (ADAM, Pure(ADAM)))
    assert numbers(found.history) == numbers(expected.history)


@pytest.mark.parametrize("at", [20, 32, 39])
def test_a_hook_that_lets_no_error_out_hides_none(at):
    problem, x, solver = breaking(at, "slope"), torch.zeros(4, dtype=D), gradient(torch.optim.SGD, lr=1.0)

    def hook(iterate):
        with contextlib.suppress(Exception):
            _ = iterate.controls

    found, expected = (mfoc.solve(problem, s, x, steps=at + 1, hooks=[hook]) for s in (solver, Pure(solver)))
    assert (found.status, found.message) == (mfoc.Status.NONFINITE, expected.message)
    assert same_iterate(found.last, expected.last)
    assert numbers(found.history) == numbers(expected.history)


def test_ctrl_c_while_steps_are_made_again_leaves_the_last_snapshot():
    problem, source = lesson()

    def draw(n):
        if Halfway.count >= 38:
            raise KeyboardInterrupt
        return source(n)

    Halfway.count, Halfway.at, Halfway.error = -2, 38, RuntimeError
    with pytest.raises(KeyboardInterrupt) as caught:
        mfoc.solve(problem, gradient(Halfway, lr=0.1), draw, steps=60)
    Halfway.at = 0
    expected = mfoc.solve(problem, Pure(gradient(torch.optim.SGD, lr=0.1)), source, steps=32)
    assert same_iterate(caught.value.last_iterate, expected.last)
    assert numbers(caught.value.last_iterate.history) == numbers(expected.history)


def hooked(parameters):
    """Clips harder at every step, in a hook."""
    optimizer, count = torch.optim.SGD(parameters, lr=0.1), itertools.count(1)

    def clip(*_):
        torch.nn.utils.clip_grad_norm_(parameters, 1 / next(count))

    optimizer.register_step_pre_hook(clip)
    return optimizer


def patched(parameters):
    """Has a step of its own that counts."""
    optimizer, count = torch.optim.SGD(parameters, lr=0.1), itertools.count(1)
    step = optimizer.step

    def counted(closure=None):
        optimizer.param_groups[0]["lr"] = 0.1 / next(count)
        return step(closure)

    optimizer.step = counted
    return optimizer


@pytest.mark.parametrize("make", [hooked, patched])
def test_an_optimiser_with_a_memory_outside_its_state_is_made_anew_each_step(make):
    (problem, source), solver = lesson(), mfoc.Gradient(make)
    found, expected = (mfoc.solve(problem, s, source, steps=9) for s in (solver, Pure(solver)))
    assert same_iterate(found.last, expected.last)


class Decaying(torch.optim.SGD):
    """Writes into a learning rate that is a tensor."""

    def step(self, closure=None):
        loss = super().step(closure)
        for group in self.param_groups:
            group["lr"].mul_(0.9)
        return loss


def test_a_learning_rate_that_is_written_into_is_the_solver_s_own():
    (problem, source), rate = lesson(), torch.tensor(0.1)
    solver = gradient(Decaying, lr=rate)
    state = solver.init(problem, problem.controls)
    for _ in range(2):
        found = solver.step(problem, problem.controls, state, source(0))[1]
        assert float(found["groups"][0]["lr"]) == pytest.approx(0.09)
    assert float(rate) == pytest.approx(0.1)
    assert float(state["groups"][0]["lr"]) == pytest.approx(0.1)


def test_a_start_that_is_written_into_moves_nothing():
    (problem, source), expected = lesson(), pure(44)
    start = mfoc.solve(problem, ADAM, source, steps=3).last
    steps = mfoc.iterate(problem, ADAM, source, start=start)
    next(steps)
    kept = next(steps)
    for leaf in leaves(start.controls):
        leaf.zero_()
    for memory in start.state["memory"]:
        for leaf in memory.values():
            leaf.zero_()
    next(steps)
    assert same_iterate(kept, expected[4])
    assert same_iterate(next(itertools.islice(steps, 37, None)), expected[43])
