"""A learner of networks that hold their parts elsewhere, compute again on the way back, or normalise by averages."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from paradigms.meta import Learner, adapt, maml, tasks
from tests.doors.plain import averaged, twice_differentiable
from tests.problems import D

LR = 0.1


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4, dtype=D), nn.Linear(4, 2, dtype=D)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x)))


class InAList(Base):
    """A plain list refers to its layers, a method is kept as an attribute, and a layer knows its owner."""

    def __init__(self):
        super().__init__()
        self.order, self.run = [(self.first, torch.tanh), (self.last, None)], self.walk
        object.__setattr__(self.last, "owner", self)

    def walk(self, x):
        for layer, bend in self.last.owner.order:
            x = layer(x) if bend is None else bend(layer(x))
        return x

    def forward(self, x):
        return self.run(x)


class Recomputed(Base):
    def __init__(self, reentrant):
        super().__init__()
        self.reentrant = reentrant

    def forward(self, x):
        return self.last(checkpoint(lambda h: torch.tanh(self.first(h)), x, use_reentrant=self.reentrant))


class Scaled(Base):
    """A hook reads a weight on the way back."""

    def forward(self, x):
        h = self.first(x)
        if h.requires_grad:
            h.register_hook(lambda slope: slope * self.first.bias)
        return self.last(torch.tanh(h))


class Normalised(Base):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4, momentum=None, dtype=D)
        self.parts = [self.first, self.norm]

    def forward(self, x):
        for part in self.parts:
            x = part(x)
        return self.last(x)


def parametrised(wrap):
    net = Base()
    net.first = wrap(net.first)
    return net


NETS = {
    "in a list": InAList,
    "recomputed": lambda: Recomputed(False),
    "recomputed with reentry": lambda: Recomputed(True),
    "hook on the way back": Scaled,
    "averages": Normalised,
    "weight norm": lambda: parametrised(nn.utils.parametrizations.weight_norm),
    "spectral norm": lambda: parametrised(nn.utils.parametrizations.spectral_norm),
}


def made(name):
    torch.manual_seed(0)
    return NETS[name]()


def batch(seed):
    drawn = torch.Generator().manual_seed(seed)
    return torch.randn(5, 3, generator=drawn, dtype=D), torch.randint(2, (5,), generator=drawn)


def with_weights(name, weights):
    """A network that holds these tensors for good, and never reenters."""
    net = made(name)
    if hasattr(net, "reentrant"):
        net.reentrant = False
    for path, value in weights.items():
        owner, _, leaf = path.rpartition(".")
        del net.get_submodule(owner)._parameters[leaf]
        setattr(net.get_submodule(owner), leaf, value)
    return net


def descended(name, weights, x, y):
    loss = F.cross_entropy(with_weights(name, weights)(x), y)
    slopes = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
    return {key: w - LR * slope for (key, w), slope in zip(weights.items(), slopes, strict=True)}


def formulation(name):
    (x, y), (a, b) = batch(1), batch(2)
    return maml(made(name), F.cross_entropy, tasks((x[None], y[None]), (a[None], b[None])), inner_steps=1, inner_lr=LR)


@pytest.mark.parametrize("copied", [True, False])
@pytest.mark.parametrize("name", NETS)
def test_two_steps_of_a_clone_and_their_gradient_are_those_written_out(name, copied):
    learner, (x, y), (a, b) = Learner(formulation(name), copy=copied), batch(1), batch(2)
    kinds = {key: type(part) for key, part in learner.module.named_modules()}
    clone = learner.clone()
    for _ in range(2):
        clone.adapt(F.cross_entropy(clone(x), y))
    found = F.cross_entropy(clone(a), b)
    found.backward()

    weights = {key: p.detach().clone().requires_grad_() for key, p in made(name).named_parameters()}
    with twice_differentiable():
        fast = descended(name, descended(name, weights, x, y), x, y)
        expected = F.cross_entropy(with_weights(name, fast)(a), b)
        slopes = torch.autograd.grad(expected, list(weights.values()))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    for (key, p), slope in zip(learner.module.named_parameters(), slopes, strict=True):
        torch.testing.assert_close(p.grad, slope, rtol=1e-8, atol=1e-10, msg=lambda m, key=key: f"{key}: {m}")
    assert {key: type(part) for key, part in learner.module.named_modules()} == kinds


def test_buffers_of_a_clone_are_its_own_whatever_the_mode_it_was_made_in():
    learner = Learner(formulation("averages")).eval()
    before = copy.deepcopy(dict(learner.module.named_buffers()))
    learner.clone().train()(batch(3)[0])
    for key, buffer in learner.module.named_buffers():
        assert torch.equal(buffer, before[key])


def test_an_adapted_network_in_evaluation_mode_has_the_averages_of_the_support():
    x, y = batch(1)
    found = adapt(formulation("averages"), formulation("averages").problem, (x, y), steps=2)
    assert found.training
    expected = averaged(copy.deepcopy(found), x)
    torch.testing.assert_close(found.eval()(x), expected(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.norm.running_mean, found.first(x).mean(0), rtol=1e-12, atol=1e-12)


def test_a_learner_of_a_solution_has_the_averages_of_the_tasks():
    problem = formulation("averages")
    found = Learner(problem, problem.problem.controls)
    expected = problem.readout(problem.problem.controls)
    assert float(expected.norm.running_mean.abs().sum()) > 0
    torch.testing.assert_close(found.module.norm.running_mean, expected.norm.running_mean)
