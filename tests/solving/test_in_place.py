"""Solving in place: the bits of pure steps, and nothing that anybody holds moves under him."""

import copy
import itertools
import math
import pickle
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mfoc
from mfoc.optim import CMSGD, CSGD
from mfoc.solving import steps as stepping
from tests.problems import D, leaves, same_bits
from tests.solving import ADAM, SGD
from tests.solving.test_failures import exploding

LONG = 70  # steps: two snapshots, and some


class Pure:
    """A solver that has only its pure steps."""

    respects_bounds = True

    def __init__(self, solver):
        self.init, self.step = solver.init, solver.step


def lesson(**options):
    """A network in batches, in float32."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4))
        x, y = torch.randn(40, 3), torch.randint(4, (40,))
    return mfoc.from_module(net, F.cross_entropy, **options), mfoc.population((x, y), batch_size=12, seed=1)


def gradient(optimizer, schedule=None, **settings):
    return mfoc.Gradient(partial(optimizer, **settings), lr_schedule=schedule)


def warm(k):
    return min(1.0, (k + 1) / 20)


SOLVERS = {
    "SGD": gradient(torch.optim.SGD, lr=0.1),
    "Nesterov": gradient(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True),
    "Nesterov, writing gradients": gradient(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, foreach=True),
    "Adam": gradient(torch.optim.Adam, lr=0.05, amsgrad=True),
    "AdamW, scheduled": gradient(torch.optim.AdamW, warm, lr=0.05),
    "LBFGS": gradient(torch.optim.LBFGS, lr=0.3, max_iter=3, history_size=4),
    "LBFGS, scheduled": gradient(torch.optim.LBFGS, warm, lr=0.02, max_iter=3),
    "Rprop": gradient(torch.optim.Rprop, lr=0.01),
    "CSGD": gradient(CSGD, lr=0.1),
    "CMSGD": gradient(CMSGD, lr=0.1),
    "recomputed": replace(gradient(torch.optim.Adam, lr=0.05), recompute=True),
}


def numbers(history):
    return [{key: value for key, value in record.items() if key != "seconds"} for record in history]


def same_iterate(left, right):
    return left.step == right.step and same_bits([left.controls, left.state], [right.controls, right.state])


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_the_bits_are_those_of_pure_steps(solver):
    problem, source = lesson()
    assert solver.in_place(problem, problem.controls, solver.init(problem, problem.controls)) is not None
    found = mfoc.solve(problem, solver, source, steps=LONG)
    expected = mfoc.solve(problem, Pure(solver), source, steps=LONG)
    assert same_iterate(found.last, expected.last)
    assert numbers(found.history) == numbers(expected.history)
    assert (found.value, found.residual) == (expected.value, expected.residual)
    assert found.last.info.residual == expected.last.info.residual
    resumed = mfoc.solve(problem, solver, source, steps=LONG, start=mfoc.solve(problem, solver, source, steps=37))
    assert same_iterate(resumed.last, expected.last)


def test_other_settings_of_a_problem_too():
    for options in ({"tied": True}, {"running_cost": mfoc.weight_decay(0.1)}, {"bounds": mfoc.Box(-0.3, 0.3)}):
        problem, source = lesson(**options)
        found, expected = (mfoc.solve(problem, s, source, steps=40) for s in (ADAM, Pure(ADAM)))
        assert same_iterate(found.last, expected.last)


class Forgetful(torch.optim.SGD):
    """Keeps something beside its state: every second step is twice as long."""

    def step(self, closure=None):
        self.count = getattr(self, "count", 0) + 1
        for group in self.param_groups:
            group["lr"] = 0.1 * (1 + self.count % 2)
        return super().step(closure)


def test_an_optimiser_that_remembers_more_than_its_state_is_made_anew_each_step():
    problem, source = lesson()
    solver = gradient(Forgetful, lr=0.1)
    found, expected = (mfoc.solve(problem, s, source, steps=9) for s in (solver, Pure(solver)))
    assert same_iterate(found.last, expected.last)


@pytest.mark.parametrize("solver", [SOLVERS["Adam"], SOLVERS["LBFGS"]])
def test_iterates_that_are_kept_never_change(solver):
    problem, source = lesson()
    expected = list(itertools.islice(mfoc.iterate(problem, Pure(solver), source), LONG))
    kept = list(itertools.islice(mfoc.iterate(problem, solver, source), LONG))
    assert all(map(same_iterate, kept, expected))
    some = [at for at in itertools.islice(mfoc.iterate(problem, solver, source), LONG) if at.step % 9 == 0]
    assert all(map(same_iterate, some, expected[8::9]))
    read = [leaves(at.controls) for at in itertools.islice(mfoc.iterate(problem, solver, source), LONG)]
    assert all(same_bits(now, leaves(at.controls)) for now, at in zip(read, expected, strict=True))
    hooked = []
    mfoc.solve(problem, solver, source, steps=LONG, hooks=[hooked.append])
    assert all(map(same_iterate, hooked, expected))
    assert [at.info.residual for at in hooked] == [at.info.residual for at in expected]
    assert [len(at.history) for at in hooked] == [at.step for at in hooked]


def test_a_hook_that_keeps_every_tenth_has_those():
    problem, source = lesson()
    expected = list(itertools.islice(mfoc.iterate(problem, Pure(ADAM), source), LONG))
    kept, controls, copies = [], [], []

    def hook(at):
        if at.step % 10 == 0:
            kept.append(at)
            controls.append(at.controls)
            copies.extend([copy.copy(at), pickle.loads(pickle.dumps(at)), replace(at, info=None)])

    mfoc.solve(problem, ADAM, source, steps=LONG, hooks=[hook])
    assert all(map(same_iterate, kept, expected[9::10]))
    assert all(same_bits(u, at.controls) for u, at in zip(controls, expected[9::10], strict=True))
    assert all(map(same_iterate, copies, [at for at in expected[9::10] for _ in range(3)]))


def test_nothing_is_copied_for_who_does_not_look(monkeypatch):
    problem, source = lesson()
    made, live = [], SGD.in_place

    def counted(self, *args):
        found = live(*args)
        copies = found.copies
        found.copies = lambda: made.append(1) or copies()
        return found

    monkeypatch.setattr(mfoc.Gradient, "in_place", counted)
    for at in mfoc.iterate(problem, SGD, source):
        assert math.isfinite(at.info.value)
        if at.step == 64:
            break
    assert len(made) <= 2  # snapshots
    made.clear()
    mfoc.solve(problem, SGD, source, steps=64, hooks=[lambda at: at.info.residual < 0])
    assert len(made) <= 3  # and the solution


def test_controls_that_are_written_into_are_refused():
    problem, source = lesson()

    def clamp(at):
        for u in leaves(at.controls):
            u.clamp_(-0.1, 0.1)

    with pytest.raises(mfoc.InvalidValue, match=r"written into.*bounds="):
        mfoc.solve(problem, SGD, source, steps=5, hooks=[clamp])


def test_a_record_can_be_read_in_every_hook():
    problem, source = lesson()
    seen = []
    mfoc.solve(problem, ADAM, source, steps=40, hooks=[lambda at: seen.append((at.history[-1], at.info))])
    assert all(record["value"] == float(info.value) for record, info in seen)
    assert all(record["residual"] == info.residual for record, info in seen)
    assert all(math.isfinite(record["residual"]) for record, _ in seen)


@pytest.fixture(params=[True, False], ids=["values at hand", "values on a device"])
def looking(request, monkeypatch):
    """With False, no value is looked at before the next snapshot, as on a GPU."""
    monkeypatch.setattr(stepping, "_at_hand", lambda value: request.param)


def breaking(at, what):
    """Each step adds 1 to the control; from the step ``at`` on J, or its slope alone, is not finite."""

    class Slope(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, slope):
            return torch.full_like(slope, torch.nan)

    def terminal(x, z):
        broken = bool(x.detach()[0] > at - 0.5)
        if what == "slope":
            return -Slope.apply(x) if broken else -x
        return -x + (torch.inf if broken else 0)

    return mfoc.Problem(lambda t, x, u, z: x + u, terminal, [torch.zeros((), dtype=D)])


@pytest.mark.usefixtures("looking")
@pytest.mark.parametrize("at", [1, 2, 11, 31, 32, 33, 64, 69])
@pytest.mark.parametrize("what", ["value", "slope"])
def test_the_last_good_iterate_comes_back(at, what):
    problem, x = breaking(at, what), torch.zeros(4, dtype=D)
    solver = gradient(torch.optim.SGD, lr=1.0)
    found, expected = (mfoc.solve(problem, s, x, steps=LONG) for s in (solver, Pure(solver)))
    assert found.status is expected.status is mfoc.Status.NONFINITE
    assert found.message == expected.message
    assert same_iterate(found.last, expected.last)
    assert numbers(found.history) == numbers(expected.history)
    caught = []
    for each in (solver, Pure(solver)):
        with pytest.raises(mfoc.NonFiniteError) as error:
            for _ in mfoc.iterate(problem, each, x):
                pass
        caught.append(error.value)
    assert [error.step for error in caught] == [at, at]
    assert same_iterate(caught[0].last, caught[1].last)


@pytest.mark.usefixtures("looking")
def test_nobody_sees_controls_that_are_not_finite():
    problem, x, seen = breaking(20, "slope"), torch.zeros(4, dtype=D), []
    solution = mfoc.solve(
        problem, gradient(torch.optim.SGD, lr=1.0), x, steps=50, hooks=[lambda at: seen.extend(leaves(at.controls))]
    )
    assert solution.status is mfoc.Status.NONFINITE
    assert all(u.isfinite().all() for u in seen)
    assert solution.last.step == 19


@pytest.mark.usefixtures("looking")
def test_divergence_tolerance_and_hooks_end_a_solve_where_they_did():
    growing = mfoc.Problem(
        lambda t, x, u, z: x + u, lambda x, z: x.square(), [torch.zeros(2, dtype=D), torch.zeros(2, dtype=D)]
    )
    growing = replace(growing, terminal_cost=lambda x, z: x.square().sum(1))
    x = torch.ones(3, 2, dtype=D)
    for solver, options in (
        (gradient(torch.optim.SGD, lr=1.5), {"steps": 60}),
        (gradient(torch.optim.SGD, lr=0.1), {"steps": 60, "tol": 1e-4}),
        (gradient(torch.optim.SGD, lr=0.1), {"steps": 60, "hooks": [lambda at: at.step == 45]}),
    ):
        found, expected = (mfoc.solve(growing, s, x, **options) for s in (solver, Pure(solver)))
        assert (found.status, found.message) == (expected.status, expected.message)
        assert same_iterate(found.last, expected.last)
        assert numbers(found.history) == numbers(expected.history)
        assert (found.value, found.residual) == (expected.value, expected.residual)
        assert found.last.info is None or found.last.info.residual == expected.last.info.residual


def test_exploding_stages_are_found():
    problem, x = exploding("state"), torch.zeros(4, dtype=D) + 0.1
    for look in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stepping, "_at_hand", lambda value, look=look: look)
            with pytest.raises(mfoc.NonFiniteError) as caught:
                for _ in mfoc.iterate(problem, gradient(torch.optim.SGD, lr=1.0), x):
                    pass
        assert (caught.value.stage, caught.value.step, caught.value.last.step) == (1, 3, 2)


class Halfway(torch.optim.SGD):
    """Is interrupted when it has written the first of its tensors, once."""

    at, error, count = 0, KeyboardInterrupt, 0

    def step(self, closure=None):
        Halfway.count += 1
        if Halfway.count == Halfway.at:
            with torch.no_grad():
                self.param_groups[0]["params"][0].fill_(math.nan)
            raise Halfway.error("between two tensors")
        return super().step(closure)


Halfway.__module__ = "torch.optim.sgd"


@pytest.mark.parametrize("steps", [0, 5, 32, 40])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_error_in_the_middle_of_a_step_leaves_the_iterate_before_it(steps, error):
    problem, source = lesson()
    solver = gradient(Halfway, lr=0.1)
    Halfway.at = 0
    expected = mfoc.solve(problem, Pure(gradient(torch.optim.SGD, lr=0.1)), source, steps=steps)
    Halfway.count, Halfway.at, Halfway.error = -2, steps + 1, error  # init makes two steps of its own
    if error is KeyboardInterrupt:
        found = mfoc.solve(problem, solver, source, steps=LONG)
        assert found.status is mfoc.Status.INTERRUPTED
        assert same_iterate(found.last, expected.last)
        assert numbers(found.history) == numbers(expected.history)
    else:
        with pytest.raises(RuntimeError) as caught:
            mfoc.solve(problem, solver, source, steps=LONG)
        assert same_iterate(caught.value.last_iterate, expected.last)


def test_when_steps_cannot_be_made_again_the_last_snapshot_is_left():
    problem, source = lesson()
    broken = []

    def draw(n):
        if broken:
            raise OSError("the disk is gone")
        if n == 40:
            broken.append(True)
        return source(n)

    Halfway.count, Halfway.at, Halfway.error = -2, 41, RuntimeError
    with pytest.raises(RuntimeError) as caught:
        mfoc.solve(problem, gradient(Halfway, lr=0.1), draw, steps=LONG)
    Halfway.at = 0
    expected = mfoc.solve(problem, Pure(gradient(torch.optim.SGD, lr=0.1)), source, steps=32)
    assert same_iterate(caught.value.last_iterate, expected.last)
    assert len(caught.value.last_iterate.history) == 32
