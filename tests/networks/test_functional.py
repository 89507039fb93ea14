"""Modules as functions of their weights: whenever their code runs, and whatever they refer to."""

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import mfoc
from mfoc.networks import functional
from mfoc.networks.stages import Stage
from tests.architectures import seeded
from tests.problems import normal, same_bits


class Checkpointed(nn.Module):
    """Its middle is computed again in the backward pass."""

    def __init__(self, reentrant, nested=False):
        super().__init__()
        self.first, self.inside, self.last = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.reentrant, self.nested = reentrant, nested

    def middle(self, h):
        again = functools.partial(checkpoint, use_reentrant=self.reentrant) if self.nested else lambda f, y: f(y)
        return again(lambda y: self.inside(y).tanh(), h) + h

    def forward(self, x):
        return self.last(checkpoint(self.middle, self.first(x), use_reentrant=self.reentrant))


class Hooked(nn.Module):
    """A hook on a gradient reads the weights in the backward pass."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        h = self.first(x)
        if h.requires_grad:
            h.register_hook(lambda slope: slope * self.last.weight.sum().detach())
        return self.last(h)


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, layer):
        ctx.layer = layer
        return x * layer.weight.sum()

    @staticmethod
    def backward(ctx, slope):
        return slope * ctx.layer.weight.sum(), None


class Custom(nn.Module):
    """A function of its own reads its module in the backward pass."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.last(_Scaled.apply(self.first(x), self.first))


class Listed(nn.Module):
    """It refers to its registered parts in other ways."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)
        self.steps = [self.a, self.b]
        self.by_name = {"last": (self.c,)}
        self.bound = self.twice
        self.part = functools.partial(F.linear, weight=self.a.weight)

    def twice(self, h):
        return 2 * self.b(h)

    def forward(self, x):
        for step in self.steps:
            x = step(x).tanh()
        return self.by_name["last"][0](self.bound(x) + self.part(x))


def recurrent(kind):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = kind(3, 4, num_layers=2, batch_first=True), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.body(x.unsqueeze(1).expand(-1, 3, -1))[0][:, -1])

    return Net


MODULES = {
    "checkpointed": lambda: Checkpointed(False),
    "checkpointed with reentry": lambda: Checkpointed(True),
    "checkpointed twice": lambda: Checkpointed(False, nested=True),
    "checkpointed twice with reentry": lambda: Checkpointed(True, nested=True),
    "a hook on a gradient": Hooked,
    "a function that holds its module": Custom,
    "lists of parts": Listed,
    "RNN": recurrent(nn.RNN),
    "GRU": recurrent(nn.GRU),
    "LSTM": recurrent(nn.LSTM),
}


@pytest.mark.parametrize("name", MODULES)
def test_gradients_at_other_weights_are_those_of_torch(name):
    """The weights are not those the copy was made with, and others are used before the backward pass runs."""
    own, x = seeded(MODULES[name]), normal(5, 3)
    there = seeded(MODULES[name], seed=1)
    stage = Stage("net", own)
    weights = {key: p.detach().clone().requires_grad_() for key, p in there.named_parameters()}
    found = stage(x, weights, None)
    stage(x, stage.controls(), None)  # as when two rollouts are made before a gradient is taken
    slopes = torch.autograd.grad(found.square().sum(), list(weights.values()))
    expected = there(x.clone().requires_grad_())
    expected.square().sum().backward()
    assert torch.equal(found, expected)
    for slope, parameter in zip(slopes, there.parameters(), strict=True):
        torch.testing.assert_close(slope, parameter.grad, rtol=1e-12, atol=1e-14)


def test_checkpointing_elsewhere_is_what_it_was():
    """Without an input that requires grad a checkpoint with reentry has no gradient; within a stage it has J's."""
    net, x = seeded(lambda: Checkpointed(True)), normal(5, 3)
    Stage("net", net)(x, {key: p.detach() for key, p in net.named_parameters()}, None)
    inside = checkpoint(net.inside, normal(2, 4), use_reentrant=True)
    assert not inside.requires_grad
    with pytest.raises(RuntimeError, match="use_reentrant"):
        torch.autograd.grad(net(x).sum(), list(net.parameters()))


def test_a_whole_solve_of_a_checkpointed_network():
    net, (x, y) = seeded(lambda: Checkpointed(True)), (normal(8, 3), normal(8, 2, seed=1))
    solver = mfoc.Gradient(functools.partial(torch.optim.Adam, lr=0.05))
    solution = mfoc.solve(mfoc.from_module(net, F.mse_loss), solver, (x, y), steps=20)
    twin = seeded(lambda: Checkpointed(False))
    adam = torch.optim.Adam(twin.parameters(), lr=0.05)
    for _ in range(20):
        adam.zero_grad()
        F.mse_loss(twin(x), y).backward()
        adam.step()
    assert solution.value == pytest.approx(F.mse_loss(twin(x), y).item(), rel=1e-12)


def captured_in_an_attribute():
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    net[1].inner = lambda x: net[0](x)
    return net


def captured_in_a_hook():
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    net[1].register_forward_hook(lambda module, args, out: out + net[0].weight.sum())
    return net


def captured_as_a_default():
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh())

    def scaled(x, by=net[0].weight):
        return x * by.sum()

    net[1].inner = [functools.partial(scaled)]
    return net


def captured_forward():
    net = nn.Linear(3, 3)
    own = net.forward
    net.forward = lambda x: own(x).tanh()
    return net


@pytest.mark.parametrize(
    "make", [captured_in_an_attribute, captured_in_a_hook, captured_as_a_default, captured_forward]
)
def test_functions_that_hold_a_part_of_the_network_are_refused(make):
    """A copy of the network would go on using the original's weights in them."""
    with pytest.raises(mfoc.InvalidValue, match=r"holds a part of the network.*Make it a method"):
        mfoc.from_module(make(), F.mse_loss)


def test_a_stage_that_holds_a_part_of_another_is_refused():
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    net[1].other = [net[0]]
    with pytest.raises(mfoc.InvalidValue, match=r"stage '1' refers, by its attribute 'other'"):
        mfoc.from_module(net, F.mse_loss)


def test_functions_that_hold_other_things_are_not():
    seen, scale = [], torch.tensor(2.0)
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh()).double()
    net[1].register_forward_hook(lambda module, args, out: seen.append(out) or out * scale)
    problem, x = mfoc.from_module(net, F.mse_loss), normal(4, 3)
    assert torch.equal(mfoc.rollout(problem, problem, (x, x)).states[-1], 2 * net[0](x).tanh())
    assert seen


def test_each_call_starts_from_the_buffers_of_the_module():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3)
            self.register_buffer("seen", torch.zeros(()))
            self.calls = 0

        def forward(self, x):
            self.seen += len(x)
            self.calls += 1
            return self.linear(x), self.seen.expand(len(x)), torch.full((len(x),), float(self.calls))

    for mode in (True, False):
        run, x = functional(Counting().train(mode)), torch.ones(4, 3)
        for _ in range(2):
            _, seen, calls = run(run.initial(), x)
            assert seen[0] == 4
            assert calls[0] == 1
        assert run.module.seen == 0


STATES = ["buffer", "attribute", "replaced buffer", "list"]


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("what", STATES)
def test_an_output_that_depends_on_what_a_forward_pass_changes_is_refused(what, mode):
    class Changing(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3)
            self.register_buffer("seen", torch.zeros(()))
            self.calls, self.past = 0, []

        def forward(self, x):
            shift = {"buffer": self.seen, "replaced buffer": self.seen, "attribute": self.calls}.get(
                what, len(self.past)
            )
            out = self.linear(x) + shift
            if what == "buffer":
                self.seen += 1
            self.seen = self.seen + 1 if what == "replaced buffer" else self.seen
            self.calls += 1
            self.past = [*self.past, 1]
            return out

    net, x = Changing().train(mode).double(), normal(4, 3)
    problem = mfoc.from_module(net, F.mse_loss)
    with pytest.raises(mfoc.InvalidValue, match="another function after it has run"):
        mfoc.solve(problem, mfoc.Gradient(functools.partial(torch.optim.SGD, lr=0.1)), (x, x), steps=1)


def test_a_network_is_left_alone():
    for make in MODULES.values():
        net, x = seeded(make), normal(5, 3)
        before = copy.deepcopy(net.state_dict())
        problem = mfoc.from_module(net, F.mse_loss)
        mfoc.solve(problem, mfoc.Gradient(functools.partial(torch.optim.SGD, lr=0.1)), (x, normal(5, 2)), steps=2)
        assert same_bits(before, net.state_dict())
        assert all(p.grad is None for p in net.parameters())


class InPlace(nn.Module):
    """What its layer writes into is used again, and it is the input itself where ``first``."""

    def __init__(self, first, layer):
        super().__init__()
        self.linear, self.first, self.layer = nn.Linear(3, 3), first, layer

    def forward(self, x):
        h = x if self.first else self.linear(x)
        h = h + 0 if not self.first and not isinstance(self.layer, nn.Module) else h
        y = self.layer(h)
        return self.linear(y) + h


@pytest.mark.parametrize("layer", [nn.ReLU(inplace=True), F.relu_, lambda h: h.mul_(2)], ids=["layer", "relu_", "mul_"])
@pytest.mark.parametrize("first", [True, False])
def test_what_is_written_in_place_is_what_torch_computes(first, layer):
    """The state that enters is left alone."""
    net, x, y = seeded(lambda: InPlace(first, layer)), normal(5, 3), normal(5, 3, seed=1)
    twin, kept = seeded(lambda: InPlace(first, layer)), x.clone()
    problem = mfoc.from_module(net, F.mse_loss)
    for _ in range(2):
        value, gradient = mfoc.evaluate(problem, problem, (x, y))
        expected = F.mse_loss(twin(x.clone()), y)
        assert value == pytest.approx(expected.item(), rel=1e-12)
        torch.testing.assert_close(list(gradient[0].values()), list(torch.autograd.grad(expected, twin.parameters())))
    mfoc.costates(problem, problem, mfoc.rollout(problem, problem, (x, y)), (x, y))
    assert torch.equal(x, kept)


class Stale(nn.Module):
    def __init__(self, within, detached=False):
        super().__init__()
        self.a, self.within = nn.Linear(3, 3), within
        self.twice = 2 * self.a.weight
        if detached:
            self.twice = self.twice.detach()

    def forward(self, x):
        if self.within:
            self.twice = 2 * self.a.weight
        return F.linear(x, self.twice)


def test_an_attribute_that_does_not_follow_the_weights_is_refused():
    """Where it is computed anew in each pass it does; where it is detached it is a constant, as in torch."""
    x = normal(4, 3)
    for within, detached, right in ((False, False, False), (True, False, True), (False, True, True)):
        net = seeded(lambda w=within, d=detached: Stale(w, d))
        net.twice = net.twice.double()
        problem = mfoc.from_module(net, F.mse_loss)
        if right:
            problem.validate(mfoc.Particles(x, x))
        else:
            with pytest.raises(mfoc.InvalidValue, match="computed before"):
                problem.validate(mfoc.Particles(x, x))


def test_parts_made_in_a_forward_pass_are_asked_for():
    class Growing(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(3, 3)

        def forward(self, x):
            if not hasattr(self, "second"):
                self.second = nn.Linear(3, 3).to(x)
            return self.second(self.first(x))

    net, x = seeded(Growing), normal(4, 3)
    with pytest.raises(mfoc.InvalidValue, match=r"makes parts of itself in its forward pass.*run the network once"):
        mfoc.from_module(net, F.mse_loss).validate(mfoc.Particles(x, x))
    net(x)
    mfoc.from_module(net, F.mse_loss).validate(mfoc.Particles(x, x))
