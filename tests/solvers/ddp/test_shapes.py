"""States and controls of any shape, size and precision: one Newton step where all is quadratic."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

import mfoc
from mfoc.solvers.ddp import tracking
from tests.problems import D, distance, normal


def solved(problem, cloud, steps=2):
    solution = mfoc.solve(problem, mfoc.DDP(), cloud, steps=steps)
    return solution, mfoc.evaluate(problem, solution, cloud)


def growing(n, sizes, dtype=D, **more):
    """x' = W_t x + u, from one width to the next."""
    maps = [normal(b, a, seed=7 + a).to(dtype) for a, b in pairwise(sizes)]
    return mfoc.Problem(
        lambda t, x, u, z: x @ maps[t].mT + u,
        lambda x, z: x.square().sum(1),
        [torch.ones(n, b, dtype=dtype) for b in sizes[1:]],
        running_cost=lambda t, x, u, z: u.square().sum(1),
        per_particle=True,
        **more,
    ), mfoc.Particles(normal(n, sizes[0], seed=3).to(dtype))


@pytest.mark.parametrize("sizes", [(2, 3, 1, 4), (2, 2)], ids=["varying", "one-stage"])
@pytest.mark.parametrize("n", [1, 3], ids=["one", "three"])
def test_sizes(sizes, n):
    _, at = solved(*growing(n, sizes))
    assert mfoc.tree.norm(at.gradient) < 1e-12


def test_single_precision():
    problem, cloud = growing(3, (2, 2, 2), torch.float32)
    solution, at = solved(problem, cloud)
    assert mfoc.tree.norm(at.gradient) < 1e-5
    assert {u.dtype for u in solution.controls} == {torch.float32}
    double, _ = solved(*growing(3, (2, 2, 2)))
    assert distance([u.double() for u in solution.controls], double.controls) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_half_precision_is_refused(dtype):
    with pytest.raises(mfoc.InvalidType, match="float32 or float64"):
        solved(*growing(2, (2, 2), dtype))


@pytest.mark.parametrize("own", [True, False], ids=["per-particle", "shared"])
def test_numbers_for_states_and_controls(own):
    """x_T = x_0 + u_0 + u_1 + u_2 with J = x_T^2 + sum u^2: u = -x_0/4, of the mean where it is shared."""
    x = torch.arange(4, dtype=D)
    guess = [torch.ones(4, dtype=D) if own else torch.ones((), dtype=D) for _ in range(3)]
    problem = mfoc.Problem(
        lambda t, x, u, z: x + u,
        lambda x, z: x.square(),
        guess,
        running_cost=lambda t, x, u, z: u.square() + 0.0 * x,
        per_particle=own,
    )
    solution, _ = solved(problem, mfoc.Particles(x))
    assert distance(solution.controls, [-(x if own else x.mean()) / 4] * 3) < 1e-12


def test_trees_and_data():
    """Two integrators, one scaled by data; tokens may lie among the data. The feedback does as the controls do."""
    problem = mfoc.Problem(
        lambda t, x, u, z: {"a": x["a"] + u["f"], "b": x["b"] + u["g"][:, None] * z["scale"][:, None]},
        lambda x, z: x["a"].square().sum((1, 2)) + x["b"].square().sum(1),
        [{"f": torch.zeros(3, 2, 2, dtype=D), "g": torch.zeros(3, dtype=D)} for _ in range(3)],
        running_cost=lambda t, x, u, z: u["f"].square().sum((1, 2)) + u["g"].square(),
        per_particle=True,
    )
    scale = torch.tensor([1.0, 2.0, 3.0], dtype=D)
    state = {"a": normal(3, 2, 2, seed=1), "b": normal(3, 1, seed=2)}
    solution, _ = solved(problem, mfoc.Particles(state, {"scale": scale, "token": torch.arange(3)}))
    expected = {"f": -state["a"] / 4, "g": -state["b"][:, 0] * scale / (1 + 3 * scale**2)}
    assert distance(solution.controls, [expected] * 3) < 1e-12
    assert distance(tracking(problem, solution).policy(0, state), expected) < 1e-12
    with pytest.raises(mfoc.InvalidValue, match="that were solved for"):
        tracking(problem, solution).policy(0, {"a": state["a"][:2], "b": state["b"][:2]})


def test_a_cloud_that_cannot_be_mapped():
    """Control flow that depends on values: stages of one kind are then evaluated one by one."""
    problem = mfoc.Problem(
        lambda t, x, u, z: x + u if x.sum() > -1e9 else x,
        lambda x, z: x.square().sum(1),
        [torch.zeros(2, dtype=D) for _ in range(3)],
        running_cost=lambda t, x, u, z: u.square().sum() + 0.0 * x[:, 0],
        kind=lambda t: "step",
    )
    state = normal(4, 2)
    solution, _ = solved(problem, mfoc.Particles(state))
    assert distance(solution.controls, [-state.mean(0) / 4] * 3) < 1e-12


def test_a_feedback_needs_a_step_of_ddp():
    problem, cloud = growing(2, (2, 2))
    other = mfoc.solve(problem, mfoc.NewtonCG(), cloud, steps=1)
    with pytest.raises(mfoc.InvalidType, match="DDP"):
        tracking(problem, other)
