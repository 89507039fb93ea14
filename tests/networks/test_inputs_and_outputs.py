"""What enters a network and what leaves it: several inputs, the data where they are asked for, trees of any kind."""

import dataclasses
from functools import partial
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mfoc
from mfoc import tree
from mfoc.tree_nodes import registered
from tests.architectures import seeded
from tests.oracles.training import output
from tests.problems import normal

SGD = mfoc.Gradient(partial(torch.optim.SGD, lr=0.1))


class Optional(nn.Module):
    """Its second argument is named as the data are."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x, z=None):
        return self.linear(x) + (0 if z is None else 100)


class Asking(Optional):
    takes_data = True


class Needing(Optional):
    def forward(self, x, z):
        return self.linear(x) + z


def test_labels_reach_no_module_by_the_name_of_an_argument():
    """Nor one in a Sequential, nor at the readout."""
    x, y = normal(6, 3), normal(6, 2, seed=1)
    for make in (Optional, lambda: nn.Sequential(Optional(), nn.Linear(2, 2))):
        net = seeded(make)
        problem = mfoc.from_module(net, F.mse_loss)
        assert mfoc.rollout(problem, problem, (x, y)).cost.mean() == pytest.approx(F.mse_loss(net(x), y).item())
        solution = mfoc.solve(problem, SGD, (x, y), steps=1)
        assert problem.readout(solution)(x).abs().max() < 50


def test_a_module_that_asks_is_given_the_data():
    x, y = normal(6, 3), normal(6, 2, seed=1)
    for make in (Asking, lambda: nn.Sequential(Asking())):
        net = seeded(make)
        problem = mfoc.from_module(net, F.mse_loss)
        cost = mfoc.rollout(problem, problem, (x, y)).cost.mean()
        inner = net if isinstance(net, Asking) else net[0]
        assert cost == pytest.approx(F.mse_loss(inner(x, y), y).item())


def test_a_module_that_needs_more_than_its_state_is_told_how_to_ask():
    with pytest.raises(mfoc.InvalidValue, match="takes_data = True"):
        mfoc.from_module(seeded(lambda: nn.Sequential(Needing())), F.mse_loss)
    problem = mfoc.from_module(seeded(Needing), F.mse_loss)
    with pytest.raises(mfoc.InvalidType, match="takes_data = True"):
        problem.validate(mfoc.Particles(normal(6, 3), normal(6, 2)))


class Masked(nn.Module):
    """Two inputs, and an option."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, tokens, mask, scale=1.0):
        return self.linear((tokens * mask[..., None]).sum(1)) * scale


@pytest.mark.parametrize("named", [True, False])
def test_several_inputs_are_a_dict_by_name_or_a_tuple_in_order(named):
    net, tokens, mask, y = seeded(Masked), normal(5, 4, 3), normal(5, 4).sign(), normal(5, 2, seed=2)
    state = {"mask": mask, "tokens": tokens} if named else (tokens, mask)
    problem = mfoc.from_module(net, F.mse_loss)
    solution = mfoc.solve(problem, SGD, mfoc.Particles(state, y), steps=2)
    twin = seeded(Masked)
    sgd = torch.optim.SGD(twin.parameters(), lr=0.1)
    for _ in range(2):
        sgd.zero_grad()
        F.mse_loss(twin(tokens, mask), y).backward()
        sgd.step()
    assert torch.equal(problem.readout(solution)(tokens, mask), twin(tokens, mask))
    with pytest.raises(mfoc.InvalidType, match=r"needs tokens, mask and the state.*a tuple in this order, or a dict"):
        problem.validate(mfoc.Particles(tokens, y))


def test_a_dict_that_is_one_input_stays_one():
    class Keyed(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, batch, flag=None):
            return self.linear(batch["x"])

    net, x = seeded(Keyed), normal(5, 3)
    assert torch.equal(output(mfoc.from_module(net, F.mse_loss), {"x": x}), net({"x": x}))


class Pair(NamedTuple):
    mean: torch.Tensor
    spread: torch.Tensor


@dataclasses.dataclass
class Inner:
    spread: torch.Tensor
    note: str = "kept"


@dataclasses.dataclass(frozen=True)
class Outcome:
    mean: torch.Tensor
    inner: Inner
    extra: torch.Tensor | None = None


class Heads(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.mean, self.spread, self.kind = nn.Linear(3, 2), nn.Linear(3, 2), kind

    def forward(self, x):
        mean, spread = self.mean(x), self.spread(x)
        if self.kind == "dataclass":
            return Outcome(mean, Inner(spread))
        made = {"tuple": (mean, spread), "dict": {"mean": mean, "spread": spread}, "named tuple": Pair(mean, spread)}
        return made[self.kind]


def nll(out, y):
    if isinstance(out, Outcome):
        assert out.extra is None
        assert out.inner.note == "kept"
        mean, spread = out.mean, out.inner.spread
    else:
        mean, spread = (out["mean"], out["spread"]) if isinstance(out, dict) else out
    assert not isinstance(out, tuple) or type(out) in (tuple, Pair)
    return (0.5 * (y - mean).square() * (-spread).exp() + 0.5 * spread).sum(1)


@pytest.mark.parametrize("kind", ["tuple", "dict", "named tuple", "dataclass"])
def test_the_loss_sees_the_output_as_the_network_returns_it(kind):
    net, x, y = seeded(lambda: Heads(kind)), normal(6, 3), normal(6, 2, seed=1)
    problem = mfoc.from_module(net, nll)
    solution = mfoc.solve(problem, SGD, (x, y), steps=2)
    twin = seeded(lambda: Heads(kind))
    sgd = torch.optim.SGD(twin.parameters(), lr=0.1)
    for _ in range(2):
        sgd.zero_grad()
        nll(twin(x), y).mean().backward()
        sgd.step()
    assert solution.value == pytest.approx(nll(twin(x), y).mean().item(), rel=1e-12)
    assert mfoc.certify(problem, solution, (x, y), lanczos=2).residual == pytest.approx(
        float(tree.norm([p.grad for p in _graded(twin, x, y)])), rel=1e-9
    )


def _graded(net, x, y):
    net.zero_grad()
    nll(net(x), y).mean().backward()
    return list(net.parameters())


def test_dataclasses_are_nodes_once_they_are_registered():
    value = registered(Outcome(torch.ones(2), Inner(torch.zeros(2))))
    assert len(tree.leaves(value)) == 2
    doubled = tree.map(lambda leaf: 2 * leaf, value)
    assert type(doubled) is Outcome
    assert torch.equal(doubled.mean, 2 * torch.ones(2))
    assert doubled.inner.note == "kept"
    assert registered(3) == 3


@pytest.mark.parametrize(
    "wrap",
    [lambda a, b: Outcome(a, Inner(b)), lambda a, b: (a, None, b), lambda a, b: {"a": a, "n": 3, "b": [b, "text"]}],
    ids=["dataclass", "tuple with None", "nest with constants"],
)
def test_outputs_of_every_kind_are_mapped(wrap):
    """Within ``vmap`` torch puts numbers in the place of tensors, which are no constants then."""
    x = normal(4, 3)
    found = torch.func.vmap(lambda row: registered(wrap(row, 2 * row)))(x)
    assert [leaf.shape for leaf in tree.leaves(found)] == [x.shape, x.shape]
    assert torch.equal(tree.leaves(found)[1], 2 * x)
    assert type(found) is type(registered(wrap(x, x)))
