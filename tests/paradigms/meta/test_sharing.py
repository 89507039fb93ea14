"""A learner on the user's own network, ``copy=False``, used as ``learn2learn.algorithms.MAML(model)`` is."""

import copy
import gc
import weakref
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mfoc
from paradigms.meta import Coordinatewise, Learner, anil, from_learn2learn, learned_update, maml, meta_sgd, sinusoids
from tests.problems import D, seeded

learn2learn = pytest.importorskip("learn2learn")
algorithms = learn2learn.algorithms
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # their clones of recurrent layers
LR = 0.05
LAW = sinusoids(tasks=3, shots=5, queries=6, dtype=D)
X, Y = (half[0] for half in LAW(0).data["support"])


class Tied(nn.Module):
    """One weight in two layers, and another used by a layer and the module itself."""

    def __init__(self):
        super().__init__()
        self.first, self.one, self.two = nn.Linear(1, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.two.weight = self.one.weight
        self.again = self.first.weight

    def forward(self, x):
        return self.two(self.one(self.first(x)).tanh()).tanh() @ self.again


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.cell, self.head = kind(1, 4, num_layers=2, batch_first=True), nn.Linear(4, 1)

    def forward(self, x):
        return self.head(self.cell(x[:, None])[0][:, 0])


def frozen():
    net = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1))
    net[0].weight.requires_grad_(False)
    return net


NETS = {
    "chain": lambda: nn.Sequential(nn.Linear(1, 6), nn.ReLU(), nn.Linear(6, 6), nn.Sigmoid(), nn.Linear(6, 1)),
    "in place": lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(1, 6), nn.ELU(inplace=True), nn.Linear(6, 1)),
    "frozen": frozen,
    "tied": Tied,
    "rnn": lambda: Recurrent(nn.RNN),
    "lstm": lambda: Recurrent(nn.LSTM),
    "gru": lambda: Recurrent(nn.GRU),
    "batch norm": lambda: nn.Sequential(nn.Linear(1, 6, bias=False), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 1)),
}


def shared(model, make=maml, **options):
    return Learner(make(model, F.mse_loss, LAW, inner_steps=2, inner_lr=LR, **options), copy=False)


def close(one, other):
    for mine, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def task_loss(learner, step=0, adaptations=2):
    """The mean query loss after adaptation, as scripts compute it (on copies: a layer may write over its input)."""
    (x, y), (a, b) = LAW(step).data["support"], LAW(step).data["query"]
    total = 0
    for i in range(len(x)):
        clone = learner.clone()
        for _ in range(adaptations):
            clone.adapt(F.mse_loss(clone(x[i].clone()), y[i]))
        total = total + F.mse_loss(clone(a[i].clone()), b[i]) / len(x)
    return total


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_the_model_is_trained(name, first_order):
    """``.grad`` of the user's model is filled through clones, and an optimiser over the model moves the learner."""
    model = seeded(NETS[name])
    twin = copy.deepcopy(model)
    ours = shared(model, first_order=first_order)
    theirs = algorithms.MAML(twin, lr=LR, first_order=first_order, allow_nograd=name == "frozen")
    assert ours.module is model
    assert [id(p) for p in ours.parameters()] == [id(p) for p in model.parameters()]
    start = [p.detach().clone() for p in model.parameters()]
    optimisers = [torch.optim.Adam(net.parameters(), lr=0.02) for net in (model, twin)]
    for step in range(3):
        for learner, optimiser in zip((ours, theirs), optimisers, strict=True):
            optimiser.zero_grad()
            task_loss(learner, step).backward()
            optimiser.step()
        grads = [[p.grad for p in net.parameters() if p.requires_grad] for net in (model, twin)]
        assert all(grad is not None for grad in grads[0])
        close(*grads)
        close(model.parameters(), twin.parameters())
    assert max(float((a - b).detach().abs().max()) for a, b in zip(start, ours.parameters(), strict=True)) > 0.02


def test_an_optimiser_over_the_learner_moves_the_model():
    model = seeded(NETS["chain"])
    learner = shared(model)
    before = model[0].weight.detach().clone()
    task_loss(learner).backward()
    torch.optim.SGD(learner.parameters(), lr=0.1).step()
    assert torch.equal(model[0].weight, before - 0.1 * model[0].weight.grad)
    learner.zero_grad()
    assert all(p.grad is None for p in model.parameters())


def test_a_copy_is_apart():
    """The default: what is learned does not reach the user's model."""
    model = seeded(NETS["chain"])
    made = maml(model, F.mse_loss, LAW, inner_steps=2, inner_lr=LR)
    learner = Learner(made)
    task_loss(learner).backward()
    torch.optim.SGD(learner.parameters(), lr=0.1).step()
    assert all(p.grad is None for p in model.parameters())
    close(model.parameters(), made.problem.controls["phi"].values())


def test_the_model_as_it_is_now():
    """Not as it was when the formulation was made; an explicit solution is written into it."""
    model = seeded(NETS["chain"])
    made = maml(model, F.mse_loss, LAW, inner_steps=2, inner_lr=LR)
    with torch.no_grad():
        model[0].bias.add_(1)
    kept = [p.detach().clone() for p in model.parameters()]
    close(Learner(made, copy=False).parameters(), kept)
    solution = made.solve(mfoc.Gradient(partial(torch.optim.SGD, lr=0.1)), steps=2)
    pointers = [p.data_ptr() for p in model.parameters()]
    learner = Learner(made, solution, copy=False)
    close(model.parameters(), solution.controls["phi"].values())
    close(learner.parameters(), solution.controls["phi"].values())
    assert pointers == [p.data_ptr() for p in model.parameters()]
    assert not torch.equal(kept[0], model[0].weight)


def test_layers_in_place_stay_so():
    """A clone writes over no input; the model itself does what it always did."""
    model = seeded(NETS["in place"])
    learner, x = shared(model), X.clone()
    clone = learner.clone()
    clone.adapt(F.mse_loss(clone(x), Y))
    assert torch.equal(x, X)
    assert model[0].inplace
    assert model[2].inplace
    close([learner(x)], [model(X.clone())])
    assert torch.equal(x, X.relu())


def test_buffers_stay():
    model = seeded(NETS["batch norm"])
    task_loss(shared(model)).backward()
    assert model[1].num_batches_tracked == 0
    model.eval()
    assert not shared(model).clone().module[1].training


def test_meta_sgd_and_a_head():
    """Step sizes given as a number are the learner's own; weights that are not adapted are the model's, too."""
    model = seeded(NETS["chain"])
    twin = copy.deepcopy(model)
    ours, theirs = shared(model, meta_sgd), algorithms.MetaSGD(twin, lr=LR)
    for learner in (ours, theirs):
        task_loss(learner).backward()
    close([p.grad for p in model.parameters()], [p.grad for p in twin.parameters()])
    close([p.grad for p in ours.lrs], [p.grad for p in theirs.lrs])
    model = seeded(NETS["chain"])
    task_loss(shared(model, anil)).backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in model.parameters())


ALGORITHMS = {
    "MAML": lambda net: algorithms.MAML(net, lr=LR),
    "FOMAML": lambda net: algorithms.MAML(net, lr=LR, first_order=True),
    "MetaSGD": lambda net: algorithms.MetaSGD(net, lr=LR),
    "GBML": lambda net: algorithms.GBML(net, learn2learn.optim.MetaCurvatureTransform, lr=LR),
    "adapted": lambda net: algorithms.GBML(
        net, learn2learn.optim.MetaCurvatureTransform, lr=LR, adapt_transform=True
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ALGORITHMS)
def test_their_algorithm_is_trained(name):
    """All parameters of the object of learn2learn: an optimiser over it goes on, whichever learner computes."""
    theirs = ALGORITHMS[name](seeded(NETS["chain"])).to(D)
    twin = copy.deepcopy(theirs)
    made = from_learn2learn(theirs, LAW, F.mse_loss, inner_steps=2)
    ours = Learner(made, copy=False)
    assert {id(p) for p in ours.parameters()} == {id(p) for p in theirs.parameters()}
    optimisers = [torch.optim.Adam(each.parameters(), lr=0.02) for each in (theirs, twin)]
    for step in range(3):
        for learner, optimiser in zip((ours, twin), optimisers, strict=True):
            optimiser.zero_grad()
            task_loss(learner, step).backward()
            optimiser.step()
        close([p.grad for p in theirs.parameters()], [p.grad for p in twin.parameters()])
        close(theirs.parameters(), twin.parameters())
    solution = made.solve(mfoc.Gradient(partial(torch.optim.SGD, lr=0.1)), steps=2)
    learner = Learner(made, solution, copy=False)
    close(mfoc.tree.leaves(learner.controls()), mfoc.tree.leaves(solution.controls))
    assert {id(p) for p in learner.parameters()} == {id(p) for p in theirs.parameters()}


def test_step_sizes_and_rules_of_the_user():
    net, rule = seeded(NETS["chain"]), Coordinatewise(nn.Linear(2, 1)).to(D)
    rates = {name: nn.Parameter(torch.full_like(p, LR)) for name, p in reversed(list(net.named_parameters()))}
    settings = {"inner_steps": 2}
    ours = Learner(meta_sgd(net, F.mse_loss, LAW, inner_lr=rates, **settings), copy=False)
    assert all(mine is rates[name] for mine, (name, _) in zip(ours.lrs, net.named_parameters(), strict=True))
    assert not any(mine is rates[name] for mine, name in zip(
        Learner(meta_sgd(net, F.mse_loss, LAW, inner_lr=rates, **settings)).lrs, reversed(rates), strict=True
    ))  # fmt: skip
    own = Learner(meta_sgd(net, F.mse_loss, LAW, inner_lr=rates, per_step=True, **settings), copy=False)
    assert own.lrs[0].shape == (2, *net[0].weight.shape)
    ours = Learner(learned_update(net, F.mse_loss, LAW, rule=rule, **settings), copy=False)
    task_loss(ours).backward()
    assert all(p.grad is not None for p in [*rule.parameters(), *net.parameters()])


@pytest.mark.parametrize("name", NETS)
def test_states_go_round(name):
    """A state is that of learn2learn on the model, and loading one into the learner loads the model."""
    model = seeded(NETS[name])
    learner, theirs = shared(model), algorithms.MAML(copy.deepcopy(model), lr=LR)
    state = {key: value.clone() for key, value in learner.state_dict().items()}
    assert state.keys() == theirs.state_dict().keys()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
    theirs.load_state_dict(learner.state_dict())
    learner.load_state_dict(state)
    close(model.state_dict().values(), state.values())
    close([p - 1 for p in theirs.module.parameters()], model.parameters())
    alone = seeded(NETS[name], seed=1)
    alone.load_state_dict(model.state_dict())  # the model's own names
    close(alone.parameters(), model.parameters())


def test_weights_in_several_places_stay_in_all_of_them():
    clone = shared(seeded(Tied)).clone()
    before = clone.one.weight
    clone.adapt(F.mse_loss(clone(X), Y))
    assert clone.one.weight is not before
    assert clone.two.weight is clone.one.weight
    assert clone.again is clone.first.weight


@pytest.mark.parametrize("share", [False, True], ids=["copied", "shared"])
def test_weights_that_take_no_part(share):
    """``allow_unused``: as theirs, they stay, and the others move."""
    model = seeded(NETS["chain"])
    made = maml(model, F.mse_loss, LAW, inner_steps=1, inner_lr=LR)
    ours, theirs = Learner(made, copy=not share), algorithms.MAML(copy.deepcopy(model), lr=LR)
    clones = [learner.clone(allow_unused=True) for learner in (ours, theirs)]
    for clone in clones:
        clone.adapt(clone.module[0](X).square().mean())
    close(*(clone.parameters() for clone in clones))


@pytest.mark.parametrize("first_order", [False, True])
def test_nothing_of_a_task_is_kept(first_order):
    """Clones, and the graphs of their steps, are freed at once and without the garbage collector."""
    learner = shared(seeded(NETS["chain"]), first_order=first_order)
    gc.collect()
    gc.disable()
    try:
        clone = learner.clone()
        clone.adapt(F.mse_loss(clone(X), Y))
        fast = [weakref.ref(p) for p in clone.parameters()]
        loss = F.mse_loss(clone(X), Y)
        loss.backward()
        del clone, loss
        assert not any(ref() is not None for ref in fast)
    finally:
        gc.enable()


def test_casts_reach_the_model():
    model = seeded(NETS["chain"])
    learner = shared(model).float()
    assert model[0].weight.dtype == torch.float32
    clone = learner.clone()
    clone.adapt(F.mse_loss(clone(X.float()), Y.float()))
    clone(X.float()).sum().backward()
    assert model[0].weight.grad.dtype == torch.float32


def test_refusals():
    model = seeded(NETS["chain"])
    made = maml(model, F.mse_loss, LAW, inner_steps=1, inner_lr=LR)
    with pytest.raises(mfoc.InvalidType, match="copy is 0"):
        Learner(made, copy=0)
    model[0] = nn.Linear(1, 7).to(D)
    with pytest.raises(mfoc.InvalidValue, match=r"0.weight has shape \(7, 1\)"):
        Learner(made, copy=False)
    model[0] = nn.Identity()
    with pytest.raises(mfoc.InvalidValue, match=r"0.weight has shape none"):
        Learner(made, copy=False)
