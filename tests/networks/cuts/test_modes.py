"""What a trace does not see must not be lost: gradients that are off, backward passes of one's own, other axes."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import mfoc
from tests.architectures import seeded
from tests.networks.cuts.test_alive import agrees
from tests.oracles.training import output
from tests.problems import normal


class Chain(nn.Module):
    """Three layers, one after another, each called as a test says."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        y = self.a(x)
        z = self.middle(y)
        return self.c(z) + y

    def middle(self, y):
        return self.b(y)


class Steep(torch.autograd.Function):
    """The identity, with a slope of three."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, slope):
        return 3 * slope


class Straight(Chain):
    def middle(self, y):
        return Steep.apply(self.b(y))


class Checkpointed(Chain):
    def middle(self, y):
        return checkpoint(self.b, y, use_reentrant=False)


@pytest.mark.parametrize("make", [Chain, Straight, Checkpointed])
def test_the_backward_pass_is_the_networks(make):
    agrees(seeded(make), normal(4, 3), ["a", "c"])
    agrees(seeded(make), normal(4, 3), ["a", "b", "c"])


def test_gradients_that_are_off():
    class Frozen(Chain):
        def middle(self, y):
            with torch.no_grad():
                return self.b(y).tanh()

    net, x = seeded(Frozen), normal(4, 3)
    problem = mfoc.from_module(net, F.mse_loss, stages=["a", "b", "c"])
    particles = mfoc.Particles(x, torch.zeros_like(x))
    found = mfoc.evaluate(problem, problem.controls, particles).gradient
    F.mse_loss(net(x), torch.zeros_like(x)).backward()
    for u in found:
        for key, value in u.items():
            expected = net.get_parameter(key).grad
            expected = torch.zeros_like(value) if expected is None else expected
            torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-14)
    assert not found[1]["b.weight"].any()


class Sequences(nn.Module):
    """Layers that have the sequence first and the particles second."""

    def __init__(self, *, branching=False):
        super().__init__()
        self.branching = branching
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(4, 2, 6, 0.0) for _ in range(3))
        self.rnn, self.head = nn.LSTM(4, 4, num_layers=2), nn.Linear(4, 2)

    def forward(self, x):
        y = x.transpose(0, 1)
        for layer in self.layers:
            if self.branching and y.mean() > 1e3:
                break
            y = layer(y)
        out, (h, c) = self.rnn(y)
        return self.head(out[-1] + h.sum(0) + c[0])


@pytest.mark.parametrize("branching", [False, True], ids=["traced", "run again"])
@pytest.mark.parametrize("sizes", [(5, 3, 4), (3, 5, 4), (4, 4, 4), (2, 4, 4)], ids=str)
def test_particles_on_another_axis(sizes, branching):
    """Also where two axes have one length."""
    net = seeded(lambda: Sequences(branching=branching))
    problem = agrees(net, normal(*sizes), ["layers.0", "layers.1", "layers.2", "rnn"] + ["head"] * (not branching))
    for n in (1, 2, 6):
        x = normal(n, *sizes[1:])
        torch.testing.assert_close(output(problem, x), net(x), rtol=1e-12, atol=1e-13)
        states = mfoc.rollout(problem, problem.controls, mfoc.Particles(x, torch.zeros(n, 2).double())).states
        assert all(len(leaf) == n for state in states for leaf in mfoc.tree.leaves(state))


def test_random_numbers_are_not_frozen():
    class Noisy(Chain):
        def middle(self, y):
            return self.b(y) + torch.randn(3, dtype=y.dtype)

    problem = mfoc.from_module(seeded(Noisy), F.mse_loss, stages=["a", "b"])
    with pytest.raises(mfoc.InvalidValue, match="random numbers"):
        problem.validate(mfoc.Particles(normal(4, 3), normal(4, 3)))


def test_a_mode_of_torch_inside_of_a_stage():
    class Cast(Chain):
        def middle(self, y):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                z = self.b(y)
            return z.float()

    net, x = seeded(Cast).float(), normal(4, 3).float()
    problem = mfoc.from_module(net, F.mse_loss, stages=["a", "c"])
    assert torch.equal(output(problem, x), net(x))
