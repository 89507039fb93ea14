"""The gradient step on the Hamiltonian is a training loop of torch, and its steps are pure."""

from functools import partial

import pytest
import torch

import mfoc
from tests.oracles.training import trained
from tests.problems import CATALOGUE, distance, leaves, same_bits

OPTIMISERS = {
    "sgd": partial(torch.optim.SGD, lr=0.1),
    "nesterov": partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "adam": partial(torch.optim.Adam, lr=0.02, amsgrad=True),
    "adamw": partial(torch.optim.AdamW, lr=0.02, weight_decay=0.1),
    "lbfgs": partial(torch.optim.LBFGS, lr=0.5, max_iter=4, history_size=5),
    "lbfgs wolfe": partial(torch.optim.LBFGS, max_iter=5, line_search_fn="strong_wolfe"),
}


@pytest.mark.parametrize("recompute", [False, True], ids=["plain", "recompute"])
@pytest.mark.parametrize("name", ["mlp", "interacting", "pytrees", "tied", "decayed"])
@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_equals_a_torch_loop(optimiser, name, recompute):
    problem, particles = CATALOGUE[name]()
    make = OPTIMISERS[optimiser]
    expected, values = trained(problem, make, lambda n: particles, 5)
    solution = mfoc.solve(problem, mfoc.Gradient(make, recompute=recompute), particles, steps=5)
    assert distance(solution.controls, problem.controls) > 1e-3
    # A line search amplifies the rounding by which a recomputed gradient differs.
    tolerance = 1e-9 if recompute and "lbfgs" in optimiser else 1e-12
    assert distance(solution.controls, expected) < tolerance
    assert [record["value"] for record in solution.history] == pytest.approx(values, rel=tolerance)


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_step_is_pure(optimiser):
    problem, particles = CATALOGUE["pytrees"]()
    solver = mfoc.Gradient(OPTIMISERS[optimiser])
    controls, state = problem.controls, solver.init(problem, problem.controls)
    for _ in range(3):
        before = mfoc.tree.copy([controls, state, particles.state, particles.data])
        first = solver.step(problem, controls, state, particles)
        second = solver.step(problem, controls, state, particles)
        assert same_bits(before, [controls, state, particles.state, particles.data])
        assert same_bits(first[:2], second[:2])
        assert same_bits(first[2].gradient, second[2].gradient)
        controls, state = first[:2]


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_info_is_what_the_step_started_from(optimiser):
    problem, particles = CATALOGUE["mlp"]()
    solver = mfoc.Gradient(OPTIMISERS[optimiser])
    expected = mfoc.evaluate(problem, problem.controls, particles)
    _, _, info = solver.step(problem, problem.controls, solver.init(problem, problem.controls), particles)
    assert torch.equal(info.value, expected.value)
    assert mfoc.tree.same_structure(info.gradient, problem.controls)
    assert same_bits(info.gradient, expected.gradient)
    flat = torch.cat([g.flatten() for g in leaves(info.gradient)])
    assert info.residual == pytest.approx(float(flat.norm()), rel=1e-12)


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_state_is_plain(optimiser, tmp_path):
    problem, particles = CATALOGUE["mlp"]()
    state = mfoc.solve(problem, mfoc.Gradient(OPTIMISERS[optimiser]), particles, steps=3).last.state
    for leaf in leaves(state):
        assert leaf is None or isinstance(leaf, torch.Tensor | int | float | bool | str)
    torch.save(state, tmp_path / "state.pt")
    assert same_bits(torch.load(tmp_path / "state.pt", weights_only=True), state)
    assert not any(leaf.requires_grad for leaf in leaves(state) if isinstance(leaf, torch.Tensor))


def test_recompute_costs_no_accuracy():
    problem, particles = CATALOGUE["batch_norm"]()
    plain = mfoc.solve(problem, mfoc.Gradient(OPTIMISERS["adam"]), particles, steps=10)
    recomputed = mfoc.solve(problem, mfoc.Gradient(OPTIMISERS["adam"], recompute=True), particles, steps=10)
    assert distance(plain.controls, recomputed.controls) < 1e-11


def test_a_plain_step_runs_each_stage_once():
    problem, particles = CATALOGUE["mlp"]()
    calls = []
    counted = mfoc.Problem(
        lambda t, x, u, z: calls.append(t) or problem.dynamics(t, x, u, z), problem.terminal_cost, problem.controls
    )
    solver = mfoc.Gradient(OPTIMISERS["sgd"])
    solver.step(counted, counted.controls, solver.init(counted, counted.controls), particles)
    assert calls == [0, 1, 2, 3, 4]


def test_a_batched_solve_equals_a_torch_loop():
    problem, particles = CATALOGUE["decayed"]()
    batches = mfoc.population(particles, batch_size=3, seed=4)
    make = partial(torch.optim.Adam, lr=0.01)
    expected, values = trained(problem, make, batches, 7)
    solution = mfoc.solve(problem, mfoc.Gradient(make), batches, steps=7)
    assert distance(solution.controls, expected) < 1e-12
    assert [record["value"] for record in solution.history] == pytest.approx(values, rel=1e-12)


SCHEDULES = {
    "decay": lambda k: 0.7**k,
    "warm-up": lambda k: min(1.0, (k + 1) / 4),
    "steps": lambda k: 0.1 if k >= 3 else 1,
    "halt": lambda k: float(k < 2),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("optimiser", ["nesterov", "adam", "adamw"])
def test_a_schedule_is_that_of_torch(optimiser, schedule):
    problem, particles = CATALOGUE["mlp"]()
    make, rate = OPTIMISERS[optimiser], SCHEDULES[schedule]
    scheduler = partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=rate)
    expected, _ = trained(problem, make, lambda n: particles, 7, scheduler)
    solution = mfoc.solve(problem, mfoc.Gradient(make, lr_schedule=rate), particles, steps=7)
    assert distance(solution.controls, expected) < 1e-12
    unscheduled = mfoc.solve(problem, mfoc.Gradient(make), particles, steps=7)
    assert distance(solution.controls, unscheduled.controls) > 1e-3


def test_each_group_keeps_its_own_rate_under_a_schedule():
    problem, particles = CATALOGUE["mlp"]()

    def make(parameters):
        groups = [{"params": parameters[:2], "lr": 0.3}, {"params": parameters[2:]}]
        return torch.optim.SGD(groups, lr=0.05, momentum=0.9)

    def rate(k):
        return 1 / (k + 1)

    expected, _ = trained(
        problem, make, lambda n: particles, 4, partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=rate)
    )
    solution = mfoc.solve(problem, mfoc.Gradient(make, lr_schedule=rate), particles, steps=4)
    assert distance(solution.controls, expected) < 1e-12


@pytest.mark.parametrize("optimiser", ["nesterov", "adam"])
def test_a_schedule_goes_on_where_a_run_stopped(optimiser, tmp_path):
    problem, particles = CATALOGUE["mlp"]()
    solver = mfoc.Gradient(OPTIMISERS[optimiser], lr_schedule=lambda k: 0.8**k)
    whole = mfoc.solve(problem, solver, particles, steps=8)
    mfoc.solve(problem, solver, particles, steps=5, hooks=[mfoc.hooks.Checkpoint(tmp_path / "run")])
    resumed = mfoc.solve(problem, solver, particles, steps=8, start=mfoc.hooks.load(tmp_path / "run"))
    assert same_bits(resumed.controls, whole.controls)
    assert same_bits(resumed.last.state, whole.last.state)


def test_a_gradient_from_elsewhere_is_followed():
    problem, _ = CATALOGUE["mlp"]()
    solver, seen = mfoc.Gradient(OPTIMISERS["sgd"]), []

    def evaluate(free):
        seen.append([leaf.requires_grad for leaf in free])
        return torch.tensor(3.0), [torch.full_like(leaf, 2.0) for leaf in free]

    moved, state, info = solver.follow(evaluate, problem.controls, solver.init(problem, problem.controls))
    assert seen == [[True] * len(leaves(problem.controls))]
    assert float(info.value) == 3.0
    assert state["steps"] == 1
    assert distance(moved, [leaf - 0.2 for leaf in leaves(problem.controls)]) < 1e-15
