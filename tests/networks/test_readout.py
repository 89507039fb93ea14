"""Reading out: the solved network, weights put in place, running averages estimated afresh."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mfoc
from tests.architectures import NETWORKS, batch_norm_net, mlp_net
from tests.oracles.training import output
from tests.problems import normal, same_bits

SGD = partial(torch.optim.SGD, lr=0.1)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_solution_is_read_out_as_the_network_it_is(name):
    """An ordinary module, which computes what the problem computes; the network that was given is left alone."""
    make, shape, stages = NETWORKS[name]
    net, x = make(), normal(*shape)
    before = copy.deepcopy(net.state_dict())
    with torch.no_grad():
        z = torch.zeros_like(copy.deepcopy(net)(x.clone()))
    problem = mfoc.from_module(net, F.mse_loss, stages=stages)
    solution = mfoc.solve(problem, mfoc.Gradient(SGD), (x, z), steps=2)
    trained = mfoc.to_module(net, solution, stages=stages)
    make().load_state_dict(trained.state_dict())
    with torch.no_grad():
        reached = output(problem, x, controls=solution.controls)
        torch.testing.assert_close(reached, copy.deepcopy(trained)(x.clone()), rtol=1e-13, atol=1e-14)
    assert same_bits(before, net.state_dict())
    assert net.training == trained.training == make().training


def test_to_module_refuses_other_controls():
    net = mlp_net()
    problem = mfoc.from_module(net, F.mse_loss)
    with pytest.raises(mfoc.InvalidValue, match="it has 5; pass the stages"):
        mfoc.to_module(net, problem.controls[:-1])
    other = [*problem.controls[:-1], {"weight": normal(3, 5), "bias": normal(3)}]
    with pytest.raises(mfoc.InvalidValue, match="stage '4'"):
        mfoc.to_module(net, other)


def test_weights_are_copied_into_place():
    net, weights = mlp_net(), {"0.bias": normal(5, seed=3)}
    kept = copy.deepcopy(net.state_dict())
    mfoc.networks.place(net, weights)
    assert torch.equal(net[0].bias, weights["0.bias"])
    assert net[0].bias.requires_grad
    weights["0.bias"].zero_()
    assert net[0].bias.any()
    assert all(torch.equal(net.state_dict()[name], value) for name, value in kept.items() if name != "0.bias")


@pytest.mark.parametrize("weights", [{"9.bias": normal(5)}, {"0.bias": normal(4)}], ids=["name", "shape"])
def test_weights_of_another_network_have_no_place(weights):
    with pytest.raises(mfoc.InvalidValue, match="do not belong to this network"):
        mfoc.networks.place(mlp_net(), weights)


@pytest.mark.parametrize("sizes", [[9], [4, 5], [2, 3, 4]])
def test_refreshed_averages_are_those_of_torch(sizes):
    """Each batch weighs alike; layers in evaluation mode keep theirs, and layers keep their modes and momenta."""
    x = normal(9, 3)
    mine, torchs = batch_norm_net(), batch_norm_net()
    mine(x + 1)  # averages of another time
    mine[1].momentum = 0.3
    mfoc.networks.refresh_averages(mine, x.split(sizes))
    torch.optim.swa_utils.update_bn(x.split(sizes), torchs)
    assert same_bits(mine.state_dict(), torchs.state_dict())
    assert (mine[1].momentum, mine[4].momentum) == (0.3, 0.1)
    assert mine.training

    half = batch_norm_net()
    half[1].eval()
    kept = copy.deepcopy(half[1].state_dict())
    mfoc.networks.refresh_averages(half, x.split(sizes))
    assert same_bits(kept, half[1].state_dict())
    assert not half[1].training
    assert half[4].num_batches_tracked == len(sizes)


def test_without_averages_to_refresh_no_batch_is_read():
    def batches():
        raise AssertionError("read")
        yield

    for net in (mlp_net(), batch_norm_net().eval(), nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False))):
        kept = copy.deepcopy(net.state_dict())
        mfoc.networks.refresh_averages(net, batches())
        assert same_bits(kept, net.state_dict())


def test_inputs_that_are_not_dealt_out_in_batches_are_refused():
    with pytest.raises(mfoc.InvalidType, match=r"batches is a tensor"):
        mfoc.networks.refresh_averages(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), torch.ones(4, 2))
