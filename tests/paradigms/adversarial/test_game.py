"""Adversarial training as a game: what is made, what is read out, and what it is good for."""

import copy
import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import mfoc
from mfoc.games.maximisers import PGD, YOPO, Free
from paradigms.adversarial import TRADES, evaluate, game
from tests.problems import D, conv_net, distance, generator, labels, mlp, mlp_net, same_bits, seeded

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
MINIMAX = mfoc.Minimax(PGD(2), SGD, seed=1)


SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
MINIMAX = mfoc.Minimax(PGD(2), SGD, seed=1)


def uniform(*shape, seed=0):
    return torch.rand(*shape, generator=generator(seed), dtype=D)


X, Y = uniform(9, 3), labels(9, 2)
IMAGES = (uniform(6, 1, 6, 6), labels(6, 3))


class Custom(nn.Module):
    """Not a Sequential: its forward pass is cut after the named child."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)).flatten(1)) + 0.1


def batch_norm_net():
    return seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)))


def logits_of(formulation, solution, x):
    particles = formulation.cloud(x, labels(len(x), 2))
    state = mfoc.rollout(formulation.problem, solution.controls, particles).states[-1]
    return state[0] if formulation.pairs else state


# ---- what is made and read out


GAMES = {
    "sequential": (mlp_net, (X, Y), {}),
    "images": (conv_net, IMAGES, {}),
    "custom": (lambda: seeded(Custom), (X, Y), {"stages": ["first", "second"]}),
    "grouped": (mlp_net, (X, Y), {"stages": [["0", "1"], ["2", "3"], ["4"]]}),
    "hidden stage": (mlp_net, (X, Y), {"at": 2, "bounds": None}),
    "other bounds": (mlp_net, (2 * X - 1, Y), {"bounds": (-1, 1)}),
    "l2": (mlp_net, (X, Y), {"norm": "l2"}),
}


@pytest.mark.parametrize("loss", [F.cross_entropy, TRADES(2.0)], ids=["cross-entropy", "trades"])
@pytest.mark.parametrize("case", GAMES)
def test_the_readout_is_the_solved_network_and_nothing_given_is_changed(case, loss):
    make, data, options = GAMES[case]
    net = make().train()
    kept, inputs = copy.deepcopy(net.state_dict()), [part.clone() for part in data]
    formulation = game(net, loss, data, epsilon=0.2, batch_size=4, **options)
    solution = formulation.solve(MINIMAX, steps=4)
    robust = formulation.readout(solution)
    assert type(robust) is type(net)
    assert robust is not net
    assert not any(module.training for module in robust.modules())
    assert same_bits([kept, inputs], [dict(net.state_dict()), list(data)])
    assert all(module.training for module in net.modules())
    with torch.no_grad():
        assert distance(robust(data[0]), logits_of(formulation, solution, data[0])) < 1e-14
        assert distance(robust(data[0]), net(data[0])) > 1e-3
    # A readout is a network of its own: training it on leaves the solution alone.
    controls = copy.deepcopy(solution.controls)
    with torch.no_grad():
        next(robust.parameters()).mul_(2)
    assert same_bits(controls, solution.controls)


@pytest.mark.parametrize("case", GAMES)
def test_the_game_is_that_of_the_network_and_its_ball(case):
    make, data, options = GAMES[case]
    formulation = game(make(), F.cross_entropy, data, epsilon=0.2, **options)
    made, x = formulation.problem, formulation.population(0)
    ball = mfoc.Ball(0.2, options.get("norm", "linf"), options.get("bounds", (0, 1)))
    base = mfoc.from_module(make(), F.cross_entropy, stages=options.get("stages"))
    expected = mfoc.Game.of(base, ball, stage=options.get("at", 0))
    eta = ball.sample(made.target(mfoc.rollout(made, made.controls, x).states[made.stage]), generator(3))
    assert (made.ball, made.stage, made.part) == (ball, expected.stage, None)
    found, wanted = (mfoc.evaluate(g, g.controls, g.disturb(x, eta)) for g in (made, expected))
    assert same_bits(list(found), list(wanted))
    assert found.value != mfoc.evaluate(made, made.controls, x).value


def test_a_problem_keeps_its_own_loss_and_its_controls_are_read_out():
    problem, cloud = mlp()
    formulation = game(problem, None, cloud, epsilon=0.2, bounds=None)
    solution = formulation.solve(MINIMAX, steps=3)
    assert formulation.readout(solution) is solution.controls
    assert formulation.net is None
    expected = mfoc.solve(mfoc.Game.of(problem, mfoc.Ball(0.2)), MINIMAX, cloud, steps=3)
    assert same_bits(solution.controls, expected.controls)


SOURCES = {
    "pair": (X, Y),
    "list": [X, Y],
    "arrays": (X.numpy(), Y.numpy().astype(np.int32)),
    "particles": mfoc.Particles(X, Y),
    "dataset": TensorDataset(X, Y),
    "loader": DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True),
    "population": mfoc.population((X, Y), batch_size=4),
    "function": lambda step: mfoc.Particles(X[step % 5 : step % 5 + 4], Y[step % 5 : step % 5 + 4]),
}


@pytest.mark.parametrize("loss", [F.cross_entropy, TRADES()], ids=["cross-entropy", "trades"])
@pytest.mark.parametrize("source", SOURCES)
def test_data_are_whatever_a_population_takes(source, loss):
    own_size = source in ("loader", "population", "function")
    formulation = game(mlp_net(), loss, SOURCES[source], epsilon=0.2, batch_size=None if own_size else 4)
    plain = mfoc.population(SOURCES[source], batch_size=None if own_size else 4)
    assert formulation.population.batches_per_epoch == plain.batches_per_epoch
    assert (formulation.population.size, formulation.population.batch_size) == (plain.size, plain.batch_size)
    for step in range(3):
        batch, expected = formulation.population(step), plain(step)
        states = batch.state if formulation.pairs else (batch.state,)
        assert len(states) == 1 + formulation.pairs
        assert same_bits([*states, batch.data], [*[expected.state] * len(states), expected.data])
    assert math.isfinite(formulation.solve(MINIMAX, steps=2).value)


def test_a_formulation_prints_in_a_line_and_compares():
    one, other = (game(mlp_net(), F.cross_entropy, (X, Y), epsilon=0.2) for _ in range(2))
    assert repr(one).startswith("GameFormulation(a Sequential, Ball(epsilon=0.2, norm='linf', ")
    assert repr(one).endswith(" at stage 0 of 5)")
    assert one == one
    assert one != other


# ---- batch norm


@pytest.mark.parametrize("loss", [F.cross_entropy, TRADES(2.0)], ids=["cross-entropy", "trades"])
def test_batch_norm_is_read_out_with_the_averages_of_the_clean_population(loss):
    """Batches of three, three and two: a cumulative average weighs them equally, in the order of the data."""
    x = X[:8]
    net = batch_norm_net().train()
    net(x)  # averages that are neither those of a new network nor those of the solved one
    kept = copy.deepcopy(net.state_dict())
    formulation = game(net, loss, (x, Y[:8]), epsilon=0.2, batch_size=3, seed=3)
    solution = formulation.solve(MINIMAX, steps=4)
    robust = formulation.readout(solution)
    assert same_bits(kept, dict(net.state_dict()))
    assert all(module.training for module in net.modules())
    hidden = [robust[0](x[k : k + 3]).detach() for k in (0, 3, 6)]
    assert distance(robust[1].running_mean, torch.stack([h.mean(0) for h in hidden]).mean(0)) < 1e-15
    assert distance(robust[1].running_var, torch.stack([h.var(0) for h in hidden]).mean(0)) < 1e-15
    expected = mfoc.to_module(net, solution.controls)
    torch.optim.swa_utils.update_bn(iter([x[:3], x[3:6], x[6:]]), expected)
    assert same_bits(dict(robust.state_dict()), dict(expected.state_dict()))
    assert distance(robust[1].running_mean, net[1].running_mean) > 1e-3
    with torch.no_grad():  # in training mode the network is the roll-out's
        assert distance(robust.train()(x), logits_of(formulation, solution, x)) < 1e-14


def test_batch_norm_in_evaluation_mode_keeps_its_averages():
    net = batch_norm_net().train()
    net(X)
    net.eval()
    formulation = game(net, F.cross_entropy, (X, Y), epsilon=0.2, batch_size=4)
    robust = formulation.readout(formulation.solve(MINIMAX, steps=4))
    assert same_bits(dict(robust[1].named_buffers()), dict(net[1].named_buffers()))
    assert distance(list(robust.parameters()), list(net.parameters())) > 1e-3


def test_a_last_batch_of_one_particle_is_refused_where_batch_norm_needs_more():
    with pytest.raises(mfoc.InvalidValue, match="holds one, and batch norm"):
        game(batch_norm_net().train(), F.cross_entropy, (X, Y), epsilon=0.2, batch_size=4)
    for fits in (
        game(batch_norm_net().eval(), F.cross_entropy, (X, Y), epsilon=0.2, batch_size=4),
        game(batch_norm_net().train(), F.cross_entropy, (X, Y), epsilon=0.2, batch_size=3),
    ):
        assert fits.population.size == 9


# ---- what it is good for


@pytest.fixture(scope="module")
def digits():
    data = pytest.importorskip("sklearn.datasets").load_digits()
    order = torch.randperm(len(data.data), generator=generator())
    x, y = torch.tensor(data.data / 16, dtype=torch.float32)[order], torch.tensor(data.target)[order]
    return (x[:1200], y[:1200]), (x[1200:], y[1200:])


def trained(digits, solver, loss=F.cross_entropy, steps=300):
    net = seeded(lambda: nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)))
    formulation = game(net.float(), loss, digits[0], epsilon=0.1, batch_size=100)
    nominal = isinstance(solver, mfoc.Gradient)  # plain training, on purpose
    robust = formulation.readout(formulation.solve(solver, steps=steps, nominal=nominal))
    table = evaluate(robust, digits[1], epsilon=0.1, attacks={"PGD-20": PGD(20)}, progress=False)
    assert table["clean"].value > 0.9
    return table["PGD-20"].value


@pytest.mark.slow
def test_adversarial_training_makes_digits_robust(digits):
    adam = partial(torch.optim.Adam, lr=3e-3)
    clean = trained(digits, mfoc.Gradient(adam))
    pgd, yopo = (trained(digits, mfoc.Minimax(adversary, adam)) for adversary in (PGD(5), YOPO(3, 2)))
    assert pgd > clean + 0.2
    assert yopo > clean + 0.2
    assert abs(yopo - pgd) < 0.05
    for adversary, steps in ((YOPO(3, 2), 200), (Free(3), 100)):
        assert trained(digits, mfoc.Minimax(adversary, adam), TRADES(6.0), steps) > clean + 0.2
