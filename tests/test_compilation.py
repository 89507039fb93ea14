"""Compiled stages: the same solve, and graphs that do not grow in number with the stages."""

from functools import partial
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

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


def test_a_stage_is_one_graph_however_many_stages_of_a_kind_there_are(graphs):
    """Four: the first stage has no costate, values need no gradient, and two calls try the problem on few particles."""
    for stages in (3, 12):
        torch._dynamo.reset()
        before, (problem, source) = graphs.count, of_blocks(stages)
        one, other = solved(mfoc.compiled(problem, backend=graphs, fullgraph=True), source), solved(problem, source)
        assert same_bits(one.controls, other.controls)
        assert graphs.count - before == 4


def test_kinds_have_limits_of_their_own(graphs):
    sizes = [3, 4, 5, 6, 3, 4, 5, 6, 3]
    net = nn.Sequential(*(layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.Tanh())))
    problem, source = mfoc.from_module(net, F.mse_loss), (normal(6, 3).float(), normal(6, 3, seed=1).float())
    assert len({problem.kind(t) for t in range(problem.stages)}) == 5  # four sizes, and the Tanh
    with torch._dynamo.config.patch(recompile_limit=4, fail_on_recompile_limit_hit=True):
        one = solved(mfoc.compiled(problem, backend=graphs, fullgraph=True), source)
    assert same_bits(one.controls, solved(problem, source).controls)


class Checkpointed(Block):
    """Recomputed in the backward pass, with reentry; its graph is cut there, if asked for."""

    def __init__(self, cut):
        super().__init__()
        self.cut = cut

    def forward(self, x):
        return checkpoint(self.inner, x, use_reentrant=True)

    def inner(self, x):
        if self.cut:
            torch._dynamo.graph_break()
        return super().forward(x)


class Normalised(Block):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x):
        return F.relu(self.norm(super().forward(x)), inplace=True)


class Remembering(Block):
    """Leaves a tensor of its forward pass behind, and reads its layer from a list."""

    def __init__(self):
        super().__init__()
        self.layers, self.last = [self.linear], None

    def forward(self, x):
        self.last = self.layers[0](x)
        return x + self.last


MODULES = {
    "checkpointed": lambda: Checkpointed(cut=False),
    "checkpointed, cut": lambda: Checkpointed(cut=True),
    "batch norm": Normalised,
    "remembering": Remembering,
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3)),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules_that_compute_in_ways_of_their_own(name, graphs):
    torch.manual_seed(0)
    problem = mfoc.from_module(nn.Sequential(MODULES[name](), nn.Linear(3, 3)), F.mse_loss)
    source = normal(6, 3).float(), normal(6, 3, seed=1).float()
    one, other = (mfoc.solve(p, SGD, source, steps=1) for p in (mfoc.compiled(problem, backend=graphs), problem))
    assert same_bits(one.controls, other.controls)


def test_a_module_that_is_not_pure_is_refused_as_ever(graphs):
    class Counting(Block):
        count = 0

        def forward(self, x):
            self.count += 1
            return self.count * super().forward(x)

    problem = mfoc.from_module(nn.Sequential(Counting()), F.mse_loss)
    with pytest.raises(mfoc.InvalidValue, match="another function after it has run"):
        solved(mfoc.compiled(problem, backend=graphs), (normal(6, 3).float(), normal(6, 3).float()))


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
