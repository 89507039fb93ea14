"""The learner in scripts written for learn2learn: same gradients, same weights, same attributes."""

import copy
import inspect
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mfoc
from paradigms.meta import Learner, anil, learned_update, maml, meta_sgd, sinusoids, tasks
from paradigms.meta.algorithms import Coordinatewise
from tests.problems import D, normal, seeded

learn2learn = pytest.importorskip("learn2learn")
algorithms = learn2learn.algorithms
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # their clones of recurrent layers
LR = 0.05
LAW = sinusoids(tasks=3, shots=5, queries=6, dtype=D)
X = LAW(0).data["support"][0][0]


class Branched(nn.Module):
    """Named parts, a parameter of its own, a buffer and an argument."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Linear(1, 5), nn.ReLU(inplace=True))
        self.head = nn.Linear(5, 1)
        self.scale = nn.Parameter(torch.tensor(0.7))
        self.register_buffer("shift", torch.tensor(0.3))

    def forward(self, x, *, gain=1.0):
        return gain * self.scale * self.head(self.features(x)) + self.shift


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.RNN(1, 4, batch_first=True), nn.Linear(4, 1)

    def forward(self, x):
        return self.head(self.cell(x[:, None])[0][:, 0])


def frozen(net):
    net[0].weight.requires_grad_(False)
    return net


NETS = {
    "chain": lambda: nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1)),
    "branched": Branched,
    "frozen": lambda: frozen(nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1))),
    "batch norm": lambda: nn.Sequential(nn.Linear(1, 6, bias=False), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 1)),
    "recurrent": Recurrent,
    "layer norm": lambda: nn.Sequential(nn.Linear(1, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 1)),
}


def pair(name, **options):
    """Their learner and ours on one network."""
    net = seeded(NETS[name])
    theirs = algorithms.MAML(copy.deepcopy(net), lr=LR, allow_nograd=name == "frozen", **options)
    return theirs, Learner(maml(net, F.mse_loss, LAW, inner_steps=2, inner_lr=LR, **options))


def sgd_pair():
    net = seeded(NETS["chain"])
    theirs = algorithms.MetaSGD(copy.deepcopy(net), lr=LR)
    return theirs, Learner(meta_sgd(net, F.mse_loss, LAW, inner_steps=2, inner_lr=LR))


def train(learner, *, outer=4, steps=2, calls=None):
    """The script of learn2learn's examples; gradients and weights of every outer step."""
    calls, history = calls or {}, []
    optimizer = torch.optim.Adam(learner.parameters(), lr=0.01)
    for step in range(outer):
        (x, y), (a, b) = LAW(step).data["support"], LAW(step).data["query"]
        learner.zero_grad()
        for i in range(len(x)):
            clone = learner.clone()
            for _ in range(steps):
                clone.adapt(F.mse_loss(clone(x[i]), y[i]), **calls)
            (F.mse_loss(clone(a[i]), b[i]) / len(x)).backward()
        slopes = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in learner.parameters()]
        optimizer.step()
        history.append((slopes, [p.detach().clone() for p in learner.parameters()]))
    return history


def distance(one, other):
    """The largest difference of two histories, which must have as many tensors of the same shapes."""
    flat = [mfoc.tree.leaves(history) for history in (one, other)]
    assert [a.shape for a in flat[0]] == [b.shape for b in flat[1]]
    return max(float((a - b).detach().abs().max()) for a, b in zip(*flat, strict=True))


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_the_same_script_trains_the_same_weights(name, first_order):
    theirs, ours = pair(name, first_order=first_order)
    start = [p.detach().clone() for p in ours.parameters()]
    history = train(ours)
    assert distance(train(theirs), history) < 1e-10
    assert distance(start, history[-1][1]) > 1e-2  # something was learned


def test_the_same_script_with_meta_sgd():
    theirs, ours = sgd_pair()
    assert distance(train(theirs), train(ours)) < 1e-10


@pytest.mark.parametrize(
    "calls", [{"first_order": True}, {"allow_unused": True}, {"allow_nograd": True}, {"first_order": False}]
)
def test_arguments_of_adapt(calls):
    theirs, ours = pair("chain")
    assert distance(train(theirs, calls=calls), train(ours, calls=calls)) < 1e-10


def test_signatures_are_theirs():
    for method in ("clone", "adapt"):
        mine, other = (list(inspect.signature(getattr(kind, method)).parameters) for kind in (Learner, algorithms.MAML))
        assert mine == other


@pytest.mark.parametrize("name", NETS)
def test_names_and_states(name):
    theirs, ours = pair(name)
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    assert [n for n, _ in ours.named_buffers()] == [n for n, _ in theirs.named_buffers()]
    clones = theirs.clone(), ours.clone()
    assert [n for n, _ in clones[1].named_parameters()] == [n for n, _ in clones[0].named_parameters()]
    state = {key: value.clone() for key, value in theirs.state_dict().items()}
    assert state.keys() == ours.state_dict().keys()
    ours.load_state_dict({key: value + 1 for key, value in state.items()})
    theirs.load_state_dict(ours.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert all(torch.equal(ours.state_dict()[key], value + 1) for key, value in state.items())


def test_names_of_meta_sgd():
    theirs, ours = sgd_pair()
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert [n for n, _ in ours.clone().named_parameters()] == [n for n, _ in theirs.clone().named_parameters()]
    assert len(ours.clone().lrs) == len(theirs.clone().lrs) == 4


def test_attributes():
    theirs, ours = pair("branched")
    assert ours.lr == theirs.lr == LR
    assert isinstance(ours.module, Branched)
    for learner in (theirs, ours, theirs.clone(), ours.clone()):
        assert isinstance(learner.features, nn.Sequential)  # looked up in the network
        assert float(learner.shift) == pytest.approx(0.3)
        assert not hasattr(learner, "nose")
    torch.testing.assert_close(ours.clone()(X, gain=2.0), theirs.clone()(X, gain=2.0), rtol=0, atol=1e-14)
    clone = ours.clone(first_order=True, allow_unused=True, allow_nograd=True)
    assert (clone.first_order, clone.allow_unused, clone.allow_nograd) == (True, True, True)
    assert (ours.first_order, ours.allow_unused, ours.allow_nograd) == (False, False, False)


def test_a_step_size_that_is_set():
    theirs, ours = pair("chain")
    theirs.lr = ours.lr = 0.2
    assert distance(train(theirs), train(ours)) < 1e-10


def test_a_step_size_that_is_learned():
    found = []
    for learner in pair("chain"):
        learner.lr = nn.Parameter(torch.tensor(0.1, dtype=D))
        history = train(learner)
        assert next(name for name, _ in learner.named_parameters()) == "lr"
        assert float(learner.lr.detach()) != 0.1
        found.append(history)
    assert distance(*found) < 1e-10


def test_parameters_of_a_clone_are_its_fast_weights():
    for learner in pair("chain"):
        clone = learner.clone()
        before = [p.detach().clone() for p in clone.parameters()]
        clone.adapt(clone(X).square().mean())
        after = list(clone.parameters())
        slopes = torch.autograd.grad(clone(X).sum(), after, retain_graph=True)  # a user's own update can go on
        assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
        assert all(slope is not None for slope in slopes)
        assert all(torch.equal(a, b) for a, b in zip(before, learner.parameters(), strict=True))


@pytest.mark.parametrize("first_order", [False, True])
def test_clones_of_clones(first_order):
    """An adaptation within an adaptation derives into the learner, as theirs does."""
    found = []
    for learner in pair("chain"):
        outer = learner.clone()
        outer.adapt(outer(X).square().mean())
        inner = outer.clone(first_order=first_order)
        inner.adapt((inner(X) - X).square().mean())
        outer.adapt((inner(X) + outer(X)).square().mean())
        found.append(torch.autograd.grad(outer(X).sum() + inner(X).sum(), list(learner.parameters())))
    assert distance(*found) < 1e-10


def test_modes_reach_the_network():
    theirs, ours = pair("batch norm")
    for learner in (theirs, ours):
        learner.eval()
        assert not learner.module[1].training
        assert not learner.clone().module[1].training
    torch.testing.assert_close(ours.clone()(X), theirs.clone()(X), rtol=0, atol=1e-14)  # averages are constants
    ours.train()
    batch = F.batch_norm(ours.module[0](X), None, None, *ours.module[1].parameters(), True)
    torch.testing.assert_close(ours.clone()(X), ours.module[3](batch.relu()))


def test_averages_of_a_clone_are_its_own():
    ours = pair("batch norm")[1]
    clone, other = ours.clone(), ours.clone()
    clone(100 * X)
    assert clone.module[1].num_batches_tracked == 1
    assert other.module[1].num_batches_tracked == ours.module[1].num_batches_tracked == 0


def test_copies_and_casts():
    ours = pair("branched")[1]
    twin = copy.deepcopy(ours).float()
    clone = twin.clone()
    clone.adapt(clone(X.float()).square().mean())
    clone(X.float()).sum().backward()
    assert all(p.grad is not None and p.dtype == torch.float32 for p in twin.parameters())
    assert all(p.grad is None for p in ours.parameters())


def test_layers_frozen_later():
    theirs, ours = pair("chain")
    for learner in (theirs, ours):
        learner.module[0].weight.requires_grad_(False)
        learner.allow_nograd = True
    assert distance(train(theirs), train(ours)) < 1e-10


def test_other_inner_loops_are_trained_alike():
    net = seeded(NETS["chain"])
    rule = seeded(lambda: Coordinatewise(nn.Linear(2, 1)))
    for made in (
        anil(net, F.mse_loss, LAW, inner_steps=2, inner_lr=LR),
        meta_sgd(net, F.mse_loss, LAW, inner_steps=2, inner_lr=LR, per_step=True),
        learned_update(net, F.mse_loss, LAW, rule=rule, inner_steps=2),
    ):
        solution = made.solve(mfoc.Gradient(partial(torch.optim.Adam, lr=0.01)), steps=4)
        learner = Learner(made)
        train(learner)
        assert distance(learner.controls(), solution.controls) < 1e-10


def test_refusals():
    ours = pair("chain")[1]
    clone, other = ours.clone(), ours.clone()
    with pytest.raises(mfoc.InvalidValue, match="does not depend on"):
        clone.adapt(other(X).mean())
    with pytest.raises(mfoc.InvalidValue, match="does not depend on"):
        clone.adapt(other(X).mean(), allow_unused=True)  # no weight at all takes part
    with pytest.raises(mfoc.InvalidValue, match="no graph"):
        clone.adapt(clone(X).mean().detach())
    still = pair("frozen")[1].clone()
    loss = still(X).mean()
    with pytest.raises(mfoc.InvalidValue, match="allow_nograd"):
        still.adapt(loss, allow_nograd=False)
    with pytest.raises(mfoc.InvalidValue, match=r"2.weight, 2.bias"):
        clone.adapt(clone.module[0](X).mean())
    clone.adapt(clone.module[0](X).mean(), allow_unused=True)
    assert torch.equal(clone.module[2].weight, ours.module[2].weight)
    assert not torch.equal(clone.module[0].weight, ours.module[0].weight)


def test_a_solution_of_another_network():
    made = maml(seeded(NETS["chain"]), F.mse_loss, LAW, inner_steps=1, inner_lr=LR)
    wide = tasks((normal(2, 3, 2), normal(2, 3, 1)), (normal(2, 3, 2), normal(2, 3, 1)))
    other = maml(seeded(lambda: nn.Linear(2, 1)), F.mse_loss, wide, inner_steps=1, inner_lr=LR)
    with pytest.raises(mfoc.InvalidValue, match="another formulation"):
        Learner(made, other.problem)
