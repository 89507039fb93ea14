"""Networks as control problems: the same output, the same gradient, nothing changed, or a refusal."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mfoc
from tests.architectures import NETWORKS, batch_norm_net, mlp_net
from tests.oracles.training import output
from tests.problems import distance, normal, same_bits

SGD = partial(torch.optim.SGD, lr=0.1)


@pytest.mark.parametrize("name", NETWORKS)
def test_output_and_gradient_are_the_networks(name):
    """Bit for bit the output, and the gradient to rounding; the network and the input are left alone."""
    make, shape, stages = NETWORKS[name]
    net, x = make(), normal(*shape)
    before, x_before = copy.deepcopy(net.state_dict()), x.clone()
    with torch.no_grad():
        expected = copy.deepcopy(net)(x.clone())
    z = torch.zeros_like(expected)
    problem = mfoc.from_module(net, F.mse_loss, stages=stages)
    particles = mfoc.Particles(x, z)
    if name == "attention":  # torch takes another kernel when no weight requires grad
        torch.testing.assert_close(output(problem, x), expected, rtol=1e-13, atol=1e-14)
    else:
        assert torch.equal(output(problem, x), expected)
    problem.validate(particles)

    own = copy.deepcopy(net)
    own.zero_grad()
    F.mse_loss(own(x.clone()), z).backward()
    gradients = {id(p): p.grad for p in own.parameters()}
    found = mfoc.evaluate(problem, problem.controls, particles).gradient
    recomputed = mfoc.evaluate(problem, problem.controls, particles, recompute=True).gradient
    assert distance(found, recomputed) < 1e-12
    solved = mfoc.to_module(net, found, stages=stages)
    for (key, value), own_value in zip(solved.named_parameters(), own.parameters(), strict=True):
        gradient = gradients[id(own_value)]
        if gradient is not None:
            torch.testing.assert_close(value, gradient, rtol=1e-10, atol=1e-12, msg=key)
    assert same_bits(before, net.state_dict())
    assert torch.equal(x, x_before)
    assert net.training == make().training


def test_stages_without_parameters_are_empty():
    problem = mfoc.from_module(mlp_net(), F.cross_entropy)
    assert [sorted(u) for u in problem.controls] == [["bias", "weight"], [], ["bias", "weight"], [], ["bias", "weight"]]


def test_buffers_are_constants():
    class Counter(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return self.linear(x)

    parts = [Counter(), nn.BatchNorm1d(3)]
    net, x = nn.Sequential(*parts), torch.randn(8, 3)
    before = copy.deepcopy(net.state_dict())
    problem = mfoc.from_module(net, F.mse_loss)
    expected = copy.deepcopy(net)(x)
    for _ in range(2):
        assert torch.equal(output(problem, x), expected)
    mfoc.solve(problem, mfoc.Gradient(SGD), (x, x), steps=2)
    assert same_bits(before, net.state_dict())


def test_batch_norm_interacts_only_in_training_mode():
    x = normal(6, 3)
    training, evaluation = batch_norm_net(), batch_norm_net().eval()
    problems = [mfoc.from_module(net, F.mse_loss) for net in (training, evaluation)]
    alone = [output(problem, x[:3]) for problem in problems]
    together = [output(problem, x)[:3] for problem in problems]
    assert not torch.allclose(alone[0], together[0])
    torch.testing.assert_close(alone[1], together[1])


def test_frozen_parameters_are_constants():
    net = mlp_net()
    net[0].weight.requires_grad_(False)
    net[2].requires_grad_(False)
    problem = mfoc.from_module(net, F.mse_loss)
    assert [sorted(u) for u in problem.controls] == [["bias"], [], [], [], ["bias", "weight"]]
    x, z = normal(4, 3), normal(4, 2)
    assert torch.equal(output(problem, x), net(x))
    solution = mfoc.solve(problem, mfoc.Gradient(SGD), (x, z), steps=3)
    solved = mfoc.to_module(net, solution.controls)
    assert torch.equal(solved[0].weight, net[0].weight)
    assert not solved[0].weight.requires_grad
    assert not torch.equal(solved[0].bias, net[0].bias)
    assert torch.equal(output(problem, x, controls=solution.controls), solved(x))


def test_a_forward_whose_input_is_called_z():
    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, z):
            return self.linear(z)

    net, x = nn.Sequential(Decoder()), torch.randn(4, 3)
    assert torch.equal(output(mfoc.from_module(net, F.mse_loss), x, torch.ones(4, 3)), net(x))


def test_sharing_is_refused():
    linear = nn.Linear(3, 3)
    with pytest.raises(mfoc.InvalidValue, match="shared"):
        mfoc.from_module(nn.Sequential(linear, nn.Tanh(), linear), F.mse_loss)
    one, two = nn.Linear(3, 3), nn.Linear(3, 3)
    two.weight = one.weight
    with pytest.raises(mfoc.InvalidValue, match=r"'0\.weight' is used in stages '0' and '1'.*tied=True"):
        mfoc.from_module(nn.Sequential(one, two), F.mse_loss)


def test_dropout_is_refused_unless_it_is_off_or_masked():
    for net, culprit in (
        (nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.2)), "'1'"),
        (nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.AlphaDropout(0.2))), "'1.0'"),
        (nn.Sequential(nn.TransformerEncoderLayer(4, 2, 8, dropout=0.1)), "dropout"),
    ):
        with pytest.raises(mfoc.InvalidValue, match="random in training mode") as caught:
            mfoc.from_module(net, F.mse_loss)
        assert culprit in str(caught.value) or "Dropout" in str(caught.value) or "Multihead" in str(caught.value)
        mfoc.from_module(net.eval(), F.mse_loss)
    mfoc.from_module(nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.0)), F.mse_loss)


def test_functional_dropout_is_found():
    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x):
            return F.dropout(self.linear(x), 0.5, self.training)

    problem = mfoc.from_module(nn.Sequential(Hidden()), F.mse_loss)
    with pytest.raises(mfoc.InvalidValue, match="random numbers"):
        mfoc.solve(problem, mfoc.Gradient(SGD), (torch.randn(4, 3), torch.randn(4, 3)), steps=1)


def test_a_module_that_cannot_be_copied_is_named():
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    net[1].handle = (i for i in range(3))
    with pytest.raises(mfoc.InvalidValue, match="module '1' cannot be copied"):
        mfoc.from_module(net, F.mse_loss)
