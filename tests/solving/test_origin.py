"""A solve goes on with what an iterate was made with, or says what has changed."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

import mfoc
from mfoc import hooks
from tests.problems import same_bits

X = torch.linspace(-1, 1, 40).reshape(20, 2)


def problem(weight=1.0, power=2, stages=3, **options):
    return mfoc.Problem(
        lambda t, x, u, z: x + u,
        lambda x, z: weight * (x**power).sum(1),
        [torch.zeros(2) for _ in range(stages)],
        **options,
    )


def gradient(kind=torch.optim.Adam, **settings):
    return mfoc.Gradient(partial(kind, **{"lr": 0.1, **settings}))


def source(data=X, **options):
    return mfoc.population(data, **{"batch_size": 4, "seed": 1, **options})


@pytest.fixture
def start(tmp_path):
    mfoc.solve(problem(), gradient(), source(), steps=5, hooks=[hooks.Checkpoint(tmp_path / "run")])
    return hooks.load(tmp_path / "run")


CHANGED = {  # problem, solver, population; what the message says
    "optimizer": ((problem(), gradient(torch.optim.AdamW), source()), "solver.optimizer was 'Adam' and is 'AdamW'"),
    "learning rate": ((problem(), gradient(lr=0.2), source()), r"solver.optimizer.groups.0.lr was 0.1 and is 0.2"),
    "recompute": ((problem(), replace(gradient(), recompute=True), source()), "solver.recompute"),
    "schedule": ((problem(), replace(gradient(), lr_schedule=lambda k: 0.5), source()), "solver.lr_schedule"),
    "seed": ((problem(), gradient(), source(seed=2)), "population.seed was 1 and is 2"),
    "batch size": ((problem(), gradient(), source(batch_size=5)), "population.batch_size was 4 and is 5"),
    "order": ((problem(), gradient(), source(shuffle=False)), "population.shuffle was True and is False"),
    "data": ((problem(), gradient(), source(X + 1)), "batch 4, the last that start was made with, is another"),
    "cost": ((problem(2.0), gradient(), source()), "problem.terminal_cost.holds.weight was 1.0 and is 2.0"),
    "power": ((problem(1.0, 4), gradient(), source()), "problem.terminal_cost.holds.power was 2 and is 4"),
    "bounds": ((problem(bounds=mfoc.Box(-1, 1)), gradient(), source()), "problem.bounds"),
}


@pytest.mark.parametrize("what", CHANGED)
def test_what_has_changed_is_refused_by_name_unless_asked_for(what, start):
    made, words = CHANGED[what]
    with pytest.raises(mfoc.InvalidValue, match=words):
        mfoc.solve(*made, steps=9, start=start)
    with pytest.raises(mfoc.InvalidValue, match="allow_changes=True"):
        next(mfoc.iterate(*made, start=start))
    assert mfoc.solve(*made, steps=9, start=start, allow_changes=True).last.step == 9


def test_however_the_same_optimizer_is_written(start):
    same = mfoc.Gradient(lambda tensors: torch.optim.Adam(tensors, lr=0.1))
    whole = mfoc.solve(problem(), gradient(), source(), steps=9)
    assert same_bits(mfoc.solve(problem(), same, source(), steps=9, start=start).controls, whole.controls)


def test_settings_that_change_are_those_of_now_and_the_memory_is_that_of_before(start):
    changed = mfoc.solve(problem(), gradient(lr=0.2), source(), steps=6, start=start, allow_changes=True)
    assert changed.last.state["groups"][0]["lr"] == 0.2
    u = [leaf.clone().requires_grad_() for leaf in start.controls]
    plain = torch.optim.Adam(u, lr=0.2)
    plain.state.update({leaf: dict(memory) for leaf, memory in zip(u, start.state["memory"], strict=True)})
    for leaf, slope in zip(u, mfoc.evaluate(problem(), start.controls, source()(5)).gradient, strict=True):
        leaf.grad = slope
    plain.step()
    assert same_bits(changed.controls, [leaf.detach() for leaf in u])


def test_what_the_optimizer_itself_has_changed_is_kept(start):
    """Only what the user changed is changed: an optimiser's own numbers in its groups are memory."""
    start.state["groups"][0]["eps"] = 1e-3  # as an optimiser does that adapts a setting of its own
    changed = mfoc.solve(problem(), gradient(lr=0.2), source(), steps=6, start=start, allow_changes=True)
    group = changed.last.state["groups"][0]
    assert (group["lr"], group["eps"]) == (0.2, 1e-3)


@pytest.mark.parametrize("solver", [mfoc.EMSA(1.0), mfoc.MSA(mfoc.minimisers.Descent(0.1)), mfoc.NewtonCG()])
def test_other_solvers_settings_are_known_too(solver):
    whole = source(batch_size=None)
    part = mfoc.solve(problem(), solver, whole, steps=2)
    field = {"EMSA": "rho", "MSA": "inner", "NewtonCG": "radius"}[type(solver).__name__]
    other = replace(solver, **{field: mfoc.minimisers.Descent(0.2) if field == "inner" else 0.25})
    with pytest.raises(mfoc.InvalidValue, match=f"solver.{field}"):
        mfoc.solve(problem(), other, whole, steps=3, start=part)
    mfoc.solve(problem(), solver, whole, steps=3, start=part)


def test_networks_and_losses_are_known():
    def made(width=4, smoothing=0.0):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 3))
        return mfoc.from_module(net, nn.CrossEntropyLoss(label_smoothing=smoothing))

    data = source((X, torch.arange(20) % 3))
    part = mfoc.solve(made(), gradient(), data, steps=2)
    mfoc.solve(made(), gradient(), data, steps=3, start=part)
    with pytest.raises(mfoc.InvalidValue, match=r"problem.terminal_cost"):
        mfoc.solve(made(smoothing=0.1), gradient(), data, steps=3, start=part)


def moving():
    generator = torch.Generator().manual_seed(0)
    return lambda n: mfoc.Particles(torch.randn(4, 2, generator=generator))


def clouds(scale):
    return lambda n: mfoc.Particles(scale * torch.randn(4, 2, generator=torch.Generator().manual_seed(n)))


def test_a_population_that_moves_on_is_refused_at_once():
    with pytest.raises(mfoc.InvalidValue, match="another batch when step 0 is asked for again"):
        mfoc.solve(problem(), gradient(), moving(), steps=3)


def test_a_population_that_is_another_when_the_run_goes_on_is_refused():
    scales = {"scale": 1.0}
    draw = lambda n: clouds(scales["scale"])(n)  # noqa: E731
    part = mfoc.solve(problem(), gradient(), draw, steps=3)
    mfoc.solve(problem(), gradient(), draw, steps=5, start=part)
    scales["scale"] = 2.0
    with pytest.raises(mfoc.InvalidValue, match="batch 2, the last that start was made with, is another one now"):
        mfoc.solve(problem(), gradient(), draw, steps=5, start=part)
    assert mfoc.solve(problem(), gradient(), draw, steps=5, start=part, allow_changes=True).last.step == 5


def test_iterates_of_which_nothing_is_known_go_on_as_they_are(start):
    bare = mfoc.Iterate(start.step, start.controls, start.state)
    assert mfoc.solve(problem(2.0), gradient(lr=0.2), source(seed=3), steps=6, start=bare).last.step == 6


def test_an_iterate_that_outlives_its_solve_does_not_keep_it():
    kept = []
    mfoc.solve(problem(), gradient(), source(), steps=3, hooks=[lambda at: kept.append(at)])
    assert kept[0].origin["solver"]["type"] == "Gradient"
    assert kept[0].origin["batch"] is None


def padded(step):
    """Sequences as long as the longest of their batch: one for each step."""
    generator = torch.Generator().manual_seed(step)
    length = 2 + step % 3
    return mfoc.Particles(torch.randn(3, length, 2, generator=generator), torch.ones(3, length))


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_batches_may_have_other_sizes_along_any_axis_when_a_run_goes_on(at):
    sequences = mfoc.Problem(
        lambda t, x, u, z: torch.tanh(x + u), lambda x, z: (x.square().sum(2) * z).mean(1), [torch.ones(2)] * 2
    )
    whole = mfoc.solve(sequences, gradient(), padded, steps=6)
    start = mfoc.solve(sequences, gradient(), padded, steps=at).last
    assert same_bits(mfoc.solve(sequences, gradient(), padded, steps=6, start=start).controls, whole.controls)


def test_another_dtype_or_number_of_axes_is_another_problem(start):
    for other, words in ((X.double(), "float32 2d' and is 'float64 2d"), (X[:, None], "2d' and is 'float32 3d")):
        with pytest.raises(mfoc.InvalidValue, match=words):
            mfoc.solve(problem(), gradient(), source(other), steps=9, start=start)
