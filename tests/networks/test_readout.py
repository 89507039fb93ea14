"""Reading out: the solved network, weights put in place, running averages estimated afresh."""

import copy
import pickle
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mfoc
from tests.architectures import NETWORKS, batch_norm_net, mlp_net, seeded
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


# ---- what a forward pass in training mode advances


class Gathered(nn.Module):
    """Averages of every kind, in a network that is one stage or is cut."""

    def __init__(self):
        super().__init__()
        self.conv, self.batch = nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3, momentum=None)
        self.instance = nn.InstanceNorm1d(3, affine=True, track_running_stats=True, momentum=None)
        self.head = nn.Linear(12, 2)

    def forward(self, x):
        return self.head(self.instance(self.batch(self.conv(x)).tanh()).flatten(1))


@pytest.mark.parametrize("stages", [None, ["batch", "head"]])
@pytest.mark.parametrize("batch_size", [None, 4])
def test_a_readout_agrees_in_evaluation_mode(stages, batch_size):
    """Its averages are those of one pass over what the solution was found on, in the order of the population."""
    net, x, y = seeded(Gathered), normal(8, 2, 4), normal(8, 2, seed=1)
    problem = mfoc.from_module(net, F.mse_loss, stages=stages)
    solution = mfoc.solve(problem, mfoc.Gradient(SGD), mfoc.population((x, y), batch_size=batch_size), steps=3)
    expected = copy.deepcopy(net)
    for name, value in problem.readout(solution).named_parameters():
        expected.get_parameter(name).data = value.data
    for norm in (expected.batch, expected.instance):
        norm.reset_running_stats()
    for count, part in enumerate(x.split(batch_size or 8), 1):
        expected.batch.momentum = expected.instance.momentum = 1 / count
        expected(part)
    expected.batch.momentum = expected.instance.momentum = None
    for solved in (problem.readout(solution), mfoc.to_module(net, solution)):
        assert solved.training
        assert torch.equal(solved.eval()(x), expected.eval()(x))
        expected.train()
    given = problem.readout(solution.controls, population=x)
    assert given.batch.num_batches_tracked == 1
    assert not net.batch.running_mean.any()


def test_averages_that_cannot_be_estimated_are_warned_of():
    net = batch_norm_net()
    problem = mfoc.from_module(net, F.mse_loss)
    with pytest.warns(UserWarning, match=r"running averages.*population="):
        problem.readout(problem.controls)
    with pytest.raises(mfoc.InvalidValue, match="running averages cannot be estimated"):
        problem.readout(problem.controls, population=normal(1, 3))
    problem = mfoc.from_module(batch_norm_net().eval(), F.mse_loss)
    problem.readout(problem.controls)  # averages in evaluation mode are constants


def test_a_readout_pass_gives_the_data_to_who_asks():
    make = lambda: nn.Sequential(nn.Linear(3, 3), mfoc.networks.MaskedDropout(0.5, "mask"), nn.BatchNorm1d(3))  # noqa: E731
    net, x = seeded(make), normal(6, 3)
    mask = (normal(6, 3, seed=2) > 0).double()
    problem = mfoc.from_module(net, lambda out, z: (out - z["y"]).square().sum(1))
    solution = mfoc.solve(problem, mfoc.Gradient(SGD), (x, {"mask": mask, "y": x}), steps=2)
    solved = problem.readout(solution)
    inside = solved[0](x) * mask / 0.5
    torch.testing.assert_close(solved[2].running_mean, inside.mean(0), rtol=1e-12, atol=1e-14)


class Spectral(nn.Module):
    def __init__(self, iterations=1, dim=0):
        super().__init__()
        norm = partial(nn.utils.parametrizations.spectral_norm, n_power_iterations=iterations)
        self.conv, self.line = norm(nn.Conv1d(2, 3, 2), dim=dim), norm(nn.Linear(9, 2))

    def forward(self, x):
        return self.line(self.conv(x).tanh().flatten(1))


@pytest.mark.parametrize("dim", [0, 1])
def test_spectral_norm_holds_along_the_path(dim):
    """As in torch where the power method has converged in each step; in evaluation mode as well."""
    net, x, y = seeded(lambda: Spectral(dim=dim)), 3 * normal(8, 2, 4), 20 * normal(8, 2, seed=1)
    problem = mfoc.from_module(net, F.mse_loss)
    solution = mfoc.solve(problem, mfoc.Gradient(SGD), (x, y), steps=12)
    twin = seeded(lambda: Spectral(iterations=1000, dim=dim))
    sgd = SGD(twin.parameters())
    for _ in range(12):
        sgd.zero_grad()
        F.mse_loss(twin(x), y).backward()
        sgd.step()
    solved = problem.readout(solution)
    for mode in (True, False):
        torch.testing.assert_close(solved.train(mode)(x), twin.train(mode)(x), rtol=1e-8, atol=1e-8)
    solved.eval()
    assert torch.linalg.matrix_norm(solved.line.weight, 2).item() == pytest.approx(1.0, rel=1e-12)
    assert torch.linalg.matrix_norm(solved.line.parametrizations.weight.original, 2) > 2


def test_spectral_norm_in_evaluation_mode_is_torchs():
    net, x = seeded(Spectral).eval(), normal(8, 2, 4)
    assert torch.equal(output(mfoc.from_module(net, F.mse_loss), x), net(x))


# ---- weights in several stages


class Tied(nn.Module):
    """A language model in little: the head is the embedding's transpose."""

    def __init__(self):
        super().__init__()
        self.embed, self.block, self.head = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(self.block(self.embed(tokens)).tanh())


@pytest.mark.parametrize("cut", [None, ["embed", "block", "head"]])
def test_tied_weights_train_as_in_torch(cut):
    """Weight decay, too, counts what is shared once."""
    tokens, y = torch.arange(12).reshape(4, 3) % 7, torch.arange(12).reshape(4, 3) % 5

    def loss(out, z):
        return F.cross_entropy(out.flatten(0, 1), z.flatten(), reduction="none").view(len(z), -1).mean(1)

    net = seeded(Tied)
    problem = mfoc.from_module(net, loss, stages=cut, tied=cut is not None, running_cost=mfoc.weight_decay(0.1))
    solution = mfoc.solve(problem, mfoc.Gradient(SGD), (tokens, y), steps=4)
    twin = seeded(Tied)
    sgd = SGD(twin.parameters(), weight_decay=0.1)
    for _ in range(4):
        sgd.zero_grad()
        loss(twin(tokens), y).mean().backward()
        sgd.step()
    for solved in (problem.readout(solution), mfoc.to_module(net, solution)):
        assert solved.head.weight is solved.embed.weight
        torch.testing.assert_close(solved(tokens), twin(tokens), rtol=1e-12, atol=1e-13)
    if cut is not None:
        assert problem.stages == 3
        assert set(problem.controls) == {"embed.weight", "block.weight", "block.bias"}
        with pytest.raises(mfoc.InvalidValue, match=r"'embed\.weight' is used in stages 'embed' and 'head'.*tied=True"):
            mfoc.from_module(net, loss, stages=cut)
        with pytest.raises(mfoc.InvalidValue, match="controls hold"):
            mfoc.to_module(net, {"embed.weight": normal(7, 4)}, stages=cut)


def test_a_layer_that_runs_twice_is_one_control():
    layer = nn.Linear(3, 3)
    net, x = nn.Sequential(layer, nn.Tanh(), layer).double(), normal(5, 3)
    problem = mfoc.from_module(net, F.mse_loss, tied=True, bounds=mfoc.Box(-0.1, 0.1))
    assert list(problem.controls) == ["0.weight", "0.bias"]
    solution = mfoc.solve(problem, mfoc.Gradient(SGD), (x, x), steps=3)
    solved = problem.readout(solution)
    assert solved[0] is solved[2]
    assert solved[0].weight.abs().max() <= 0.1
    assert solution.value == pytest.approx(F.mse_loss(solved(x), x).item())


# ---- what the solution knows


def test_a_solution_knows_what_it_solved_and_a_pickle_of_it_does_not():
    net, x = mlp_net(), normal(4, 3)
    problem = mfoc.from_module(net, F.cross_entropy)
    solution = mfoc.solve(problem, mfoc.Gradient(SGD), (x, torch.tensor([0, 1, 0, 1])), steps=1)
    assert solution.problem is problem
    assert torch.equal(solution.population.cloud().state, x)
    again = pickle.loads(pickle.dumps(solution))
    assert again.problem is None
    assert again.population is None
    assert same_bits(again.controls, solution.controls)
