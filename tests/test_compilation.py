"""Compiled stages: the same solve, and graphs that do not grow in number with the stages."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mfoc
from tests.problems import normal, same_bits

pytestmark = pytest.mark.slow  # a graph takes a tenth of a second

SGD = mfoc.Gradient(partial(torch.optim.SGD, lr=0.1))


class Graphs:
    """A backend that runs what it is given as it is, and counts the graphs."""

    def __init__(self):
        self.count = 0

    def __call__(self, graph, example_inputs):
        self.count += 1
        return graph.forward


@pytest.fixture
def graphs():
    torch._dynamo.reset()
    yield Graphs()
    torch._dynamo.reset()


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x):
        return x + torch.tanh(self.linear(x))


def deep(stages, *more):
    torch.manual_seed(0)
    return mfoc.from_module(nn.Sequential(*(Block() for _ in range(stages)), *more), F.mse_loss)


def of_blocks(stages):
    return deep(stages), (normal(6, 3).float(), normal(6, 3, seed=1).float())


def of_dynamics(dynamics, stages):
    return mfoc.Problem(dynamics, lambda x, z: x.square().sum(1), [torch.eye(3)] * stages), normal(6, 3).float()


def solved(problem, source):
    return mfoc.solve(problem, SGD, source, steps=3)


def test_as_many_graphs_however_many_stages_of_a_kind_there_are(graphs):
    made = []
    for stages in (3, 12):
        torch._dynamo.reset()
        before, (problem, source) = graphs.count, of_blocks(stages)
        one, other = solved(mfoc.compiled(problem, backend=graphs), source), solved(problem, source)
        assert same_bits(one.controls, other.controls)
        made.append(graphs.count - before)
    assert made[0] == made[1] > 0


def test_each_kind_is_computed_as_itself(graphs):
    problem, source = deep(4, nn.Linear(3, 3), nn.Tanh()), (normal(6, 3).float(), normal(6, 3, seed=1).float())
    assert len({problem.kind(t) for t in range(problem.stages)}) == 3
    one, other = solved(mfoc.compiled(problem, backend=graphs), source), solved(problem, source)
    assert same_bits(one.controls, other.controls)
    assert graphs.count > 0


SCALES = torch.linspace(0.5, 1, 12)
PLAIN = {
    "t is not used": (lambda t, x, u, z: torch.tanh(x @ u), 4),
    "t is calculated with": (lambda t, x, u, z: torch.tanh(x @ u) * (1 + 0.1 * t), 5),
    "a table": (lambda t, x, u, z: torch.tanh(x @ u) * SCALES[t], 5),
}


@pytest.mark.parametrize("name", PLAIN)
def test_dynamics_that_are_compiled_as_they_are(name, graphs):
    """Two graphs at most of each sort, for stage 0 and for all others: one more than where t is not used."""
    dynamics, most = PLAIN[name]
    problem, source = of_dynamics(torch.compile(dynamics, backend=graphs), 12)
    one, other = solved(problem, source), solved(of_dynamics(dynamics, 12)[0], source)
    torch.testing.assert_close(one.controls, other.controls)
    assert graphs.count <= most


@pytest.mark.parametrize("scheme", [mfoc.euler, mfoc.rk4])
def test_drifts_that_are_compiled_as_they_are(scheme, graphs):
    def drift(t, x, u, z):
        return torch.tanh(x @ u) * (1 + t)

    def problem(drift):
        return mfoc.continuous(drift, lambda x, z: x.square().sum(1), [torch.eye(3)] * 12, scheme=scheme)

    source = normal(6, 3).float()
    one, other = solved(problem(torch.compile(drift, backend=graphs)), source), solved(problem(drift), source)
    torch.testing.assert_close(one.controls, other.controls)
    assert graphs.count <= 5


def test_a_compiled_problem_is_read_out(graphs):
    problem, source = of_blocks(4)
    compiled = mfoc.compiled(problem, backend="eager")
    solution = solved(compiled, source)
    torch.testing.assert_close(compiled.readout(solution)(source[0]), problem.readout(solution)(source[0]))


def test_an_equilibrium_stays_one(graphs):
    problem, source = of_dynamics(lambda t, x, u, z: x @ u - 0.1 * mfoc.mean(x), 3)
    game = mfoc.Equilibrium(problem)
    compiled = mfoc.compiled(game, backend="eager")
    assert type(compiled) is type(game)
    one, other = (mfoc.hamiltonian(p, 0, source, source, torch.eye(3), None) for p in (compiled, game))
    torch.testing.assert_close(one, other)


def test_distributions_are_validated_as_before(graphs):
    law = torch.distributions.Distribution
    law.set_default_validate_args(True)
    problem, source = of_blocks(2)
    mfoc.rollout(mfoc.compiled(problem, backend=graphs), problem.controls, mfoc.population(source).cloud())
    assert law._validate_args is True


def test_what_is_no_problem_is_refused():
    with pytest.raises(mfoc.InvalidType, match=r"problem is a Block; expected mfoc\.Problem"):
        mfoc.compiled(Block())
