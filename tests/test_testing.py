"""The conformance checks pass what is right and fail what is wrong."""

from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch

import mfoc
from mfoc.testing import check_problem, check_solver
from tests.problems import interacting, mlp, pytrees, tied

SOLVERS = [
    mfoc.Gradient(partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True)),
    mfoc.Gradient(partial(torch.optim.Adam, lr=0.1)),
    mfoc.Gradient(torch.optim.LBFGS, recompute=True),
    mfoc.MSA(mfoc.minimisers.Descent(lr=0.1, steps=3)),
    mfoc.MSA(),
    mfoc.EMSA(1.0),
    mfoc.EMSA(1.0, adaptive=True),
]


@pytest.mark.parametrize("make", [mlp, interacting, pytrees, tied])
def test_good_problems_pass(make):
    check_problem(*make())


@pytest.mark.parametrize("make", [mlp, interacting, pytrees, tied])
@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_our_solvers_pass(solver, make):
    check_solver(solver, *make())


def broken(**changes):
    problem, cloud = mlp()
    return replace(problem, **{name: make(problem) for name, make in changes.items()}), cloud


def test_hidden_randomness_fails():
    problem, cloud = broken(running_cost=lambda p: lambda t, x, u, z: torch.rand(len(x), dtype=torch.float64))
    with pytest.raises((AssertionError, mfoc.MfocError), match="pure"):
        check_problem(problem, cloud)


def test_dependence_on_the_order_fails():
    problem, cloud = broken(running_cost=lambda p: lambda t, x, u, z: torch.arange(len(x), dtype=torch.float64))
    with pytest.raises(AssertionError, match="permutation"):
        check_problem(problem, cloud)


@pytest.mark.filterwarnings("ignore:var")
def test_hidden_interaction_fails():
    with pytest.raises(AssertionError, match="depends on the others"):
        check_problem(*interacting(), interacting=False)


def test_a_cut_graph_fails():
    problem, cloud = broken(terminal_cost=lambda p: lambda x, z: p.terminal_cost(x.detach(), z) + 0 * x.sum(1))
    check_problem(problem, cloud)  # a zero gradient is consistent, however useless
    state = {"calls": 0}

    def fickle(x, z):
        state["calls"] += 1
        return x.square().sum(1) if state["calls"] % 2 else x.square().sum(1).detach() + 0 * x.sum(1)

    with pytest.raises(AssertionError, match=r"pure|fails"):
        check_problem(replace(problem, terminal_cost=fickle), cloud)


@dataclass(frozen=True)
class Bad:
    how: str

    def init(self, problem, controls):
        return {}

    def step(self, problem, controls, state, particles):
        value, gradient = mfoc.evaluate(problem, controls, particles)
        leaves = mfoc.tree.leaves(gradient)
        if self.how == "in place":
            for leaf in mfoc.tree.leaves(controls):
                leaf -= 0.1
        if self.how == "random":
            controls = mfoc.tree.map(lambda leaf: leaf + torch.rand_like(leaf), controls)
        if self.how == "value":
            value = value + 1
        if self.how == "gradient":
            leaves = [2 * leaf for leaf in leaves]
        if self.how == "dtype":
            controls = mfoc.tree.map(lambda leaf: leaf.float(), controls)
        state = {"memory": object()} if self.how == "state" else state
        return controls, state, mfoc.Info(value, leaves)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("in place", "inputs"),
        ("random", "differ"),
        ("value", "info.value"),
        ("gradient", "info.gradient"),
        ("dtype", "dtype"),
        ("state", "state holds"),
    ],
)
def test_bad_solvers_fail(how, message):
    with pytest.raises(AssertionError, match=message):
        check_solver(Bad(how), *mlp())
