"""Adversarial training as a game: what is made, what is read out, TRADES, the certificate, and what it is good for."""

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
from mfoc.games.maximisers import FGSM, PGD, YOPO, Free
from mfoc.seeding import mixed_seed
from paradigms.adversarial import TRADES, certify, evaluate, game
from tests.problems import D, conv_net, distance, generator, labels, mlp, mlp_net, normal, same_bits, seeded

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


# ---- game


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


# ---- TRADES


def test_the_cost_is_that_of_trades():
    """Zhang et al. (2019), eq. (5), as their code has it: cross-entropy + beta / N * KLDivLoss(sum)."""
    net, beta = mlp_net(), 4.0
    formulation = game(net, TRADES(beta), (X, Y), epsilon=0.2)
    made, particles = formulation.problem, formulation.population(0)
    eta = made.ball.sample(X, generator(2))
    entered = (X + eta).clamp(0, 1)
    natural, disturbed = net(X), net(entered)
    divergence = nn.KLDivLoss(reduction="sum")(disturbed.log_softmax(1), natural.softmax(1))
    expected = F.cross_entropy(natural, Y) + beta / len(X) * divergence
    found = mfoc.evaluate(made, made.controls, made.disturb(particles, eta))
    assert float(found.value) == pytest.approx(float(expected.detach()), rel=1e-13)
    slopes = torch.autograd.grad(expected, list(net.parameters()))
    assert distance(found.gradient, list(slopes)) < 1e-14
    assert beta / len(X) * float(divergence.detach()) > 1e-4
    # Undisturbed, the divergence is zero, and the cost is the cross-entropy.
    clean = mfoc.evaluate(made, made.controls, particles).value
    assert float(clean) == pytest.approx(float(F.cross_entropy(natural, Y).detach()), rel=1e-13)


def test_the_adversary_of_trades_sees_the_divergence_alone():
    net, beta = mlp_net(), 4.0
    formulation = game(net, TRADES(beta), (X, Y), epsilon=0.2, bounds=None)
    made, particles = formulation.problem, formulation.population(0)
    eta = made.ball.sample(X, generator(2))
    slope = mfoc.games.costate_at(made, made.controls, particles.state, Y, eta) * len(X)
    point = (X + eta).requires_grad_()
    divergence = F.kl_div(net(point).log_softmax(1), net(X).softmax(1), reduction="sum")
    assert distance(slope, beta * torch.autograd.grad(divergence, point)[0]) < 1e-14
    still = mfoc.games.costate_at(made, made.controls, particles.state, Y, torch.zeros_like(X))
    assert float(still.abs().max()) < 1e-15  # so that no adversary gets away from eta = 0 without a random start


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_minimax_with_pgd_on_trades_is_the_loop_of_trades(norm):
    net, beta, epsilon, steps, size, seed = mlp_net(), 3.0, 0.2, 3, 0.08, 5
    formulation = game(net, TRADES(beta), (X, Y), epsilon=epsilon, norm=norm, batch_size=4, seed=2)
    solution = formulation.solve(mfoc.Minimax(PGD(steps, size), SGD, seed), steps=6)
    batches, descent, values = mfoc.population((X, Y), batch_size=4, seed=2), SGD(net.parameters()), []
    ball = mfoc.Ball(epsilon, norm)
    for k in range(6):
        x, y = batches(k).state, batches(k).data
        natural = net(x).detach().softmax(1)
        # The random start is a function of (seed, step): drawn again here.
        start = ball.sample(x, torch.Generator().manual_seed(mixed_seed(seed, k, 0)))
        point = (x + start).clamp(0, 1)
        for _ in range(steps):
            point.requires_grad_()
            loss = beta / len(x) * F.kl_div(net(point).log_softmax(1), natural, reduction="sum")
            slope = torch.autograd.grad(loss, point)[0]
            if norm == "linf":
                eta = (point.detach() + size * slope.sign() - x).clamp(-epsilon, epsilon)
            else:
                eta = point.detach() + size * slope / (slope.norm(dim=1, keepdim=True) + 1e-10) - x
                eta = eta * (epsilon / eta.norm(dim=1, keepdim=True)).clamp_max(1)
            point = (x + eta).clamp(0, 1)
        out = net(x)
        value = F.cross_entropy(out, y) + beta / len(x) * F.kl_div(
            net(point).log_softmax(1), out.softmax(1), reduction="sum"
        )
        descent.zero_grad()
        value.backward()
        descent.step()
        values.append(float(value.detach()))
    assert distance(solution.controls, list(net.parameters())) < 1e-12
    assert distance(solution.controls, formulation.problem.controls) > 1e-2
    assert [record["value"] for record in solution.history] == pytest.approx(values, rel=1e-12)


# ---- the certificate


def duel(mean=1.0, epsilon=0.05):
    """E [u^2 + (x + eta) u - eta^2 / 2]: the saddle point is eta = -epsilon, u = (epsilon - E x) / 2."""
    problem = mfoc.Problem(
        lambda t, x, u, z: x,
        lambda x, z: 0 * x[:, 0],
        [torch.zeros(1, dtype=D)],
        running_cost=lambda t, x, u, z: (u.square() + x * u - (x - z).square() / 2)[:, 0],
    )
    x = normal(8, 1)
    x = mean + 0.3 * (x - x.mean())
    return game(problem, None, (x, x), epsilon=epsilon, bounds=None)


def at(u):
    return mfoc.Iterate(0, [torch.tensor([u], dtype=D)], {})


def test_at_the_saddle_point_nobody_gains():
    found = certify(duel(), at((0.05 - 1) / 2), maximiser=PGD(10))
    assert found.adversary.value == pytest.approx(0, abs=1e-12)
    assert found.gap.value == pytest.approx(0, abs=1e-12)
    assert found.minimiser.residual < 1e-12
    assert found.minimiser.gap < 1e-12
    u = (0.05 - 1) / 2
    assert found.present == pytest.approx(u**2 + (1 - 0.05) * u - 0.05**2 / 2, abs=1e-12)
    assert found.clean == pytest.approx(u**2 + u, abs=1e-12)


def test_away_from_the_saddle_point_the_one_who_can_gain_is_found():
    """The adversary's step is too short: it stands at eta = -0.01, with slope u - eta towards -0.05."""
    u, eta = (0.05 - 1) / 2, -0.01
    found = certify(duel(), at(u), maximiser=PGD(1, 0.01, random_start=False))
    assert found.adversary.value == pytest.approx((u - eta) * (-0.05 - eta), rel=1e-9)
    assert found.gap.value == pytest.approx((u * -0.05 - 0.05**2 / 2) - (u * eta - eta**2 / 2), rel=1e-9)
    assert found.best - found.present == pytest.approx(found.gap.value, rel=1e-9)
    # The minimiser stands elsewhere, and the adversary has answered it: 2 u + E x - epsilon = 0.25.
    moved = certify(duel(), at(u + 0.125), maximiser=PGD(10))
    assert moved.adversary.value == pytest.approx(0, abs=1e-12)
    assert moved.gap.value == pytest.approx(0, abs=1e-12)
    assert moved.minimiser.residual == pytest.approx(0.25, rel=1e-9)
    assert moved.minimiser.gap == pytest.approx(0.125**2, rel=1e-6)


@pytest.mark.parametrize("loss", [F.cross_entropy, TRADES(2.0)], ids=["cross-entropy", "trades"])
@pytest.mark.parametrize("weaker", [FGSM(), YOPO(2, 2), Free(2), PGD(30)], ids=lambda a: type(a).__name__)
def test_a_best_response_never_loses_to_the_present_answer(weaker, loss):
    formulation = game(mlp_net(), loss, (X, Y), epsilon=0.3)
    solution = formulation.solve(MINIMAX, steps=2)
    found = certify(formulation, solution, maximiser=weaker, best_response=FGSM(0.01), lanczos=3, replicates=20)
    assert found.gap.value >= 0
    assert found.adversary.value >= -1e-12
    assert found.best >= found.present
    assert found.minimiser.particles == len(X)


def test_the_minimisers_part_is_the_certificate_on_the_disturbed_cloud():
    formulation = game(mlp_net(), F.cross_entropy, (X, Y), epsilon=0.3)
    solution, made = formulation.solve(MINIMAX, steps=3), formulation.problem
    settings = {"lanczos": 4, "replicates": 30, "groups": 5, "seed": 7}
    found = certify(formulation, solution, maximiser=PGD(3), confidence=0.9, **settings)
    cloud = formulation.population(0)
    eta = PGD(3).maximise(made, solution.controls, cloud, generator(7))
    disturbed = made.disturb(cloud, eta)
    expected = mfoc.certify(made, solution.controls, disturbed, confidence=0.9, **settings)
    assert str(found.minimiser) == str(expected)
    costs = [mfoc.rollout(made, solution.controls, c).cost.mean() for c in (cloud, disturbed)]
    assert [found.clean, found.present] == pytest.approx([float(c) for c in costs], rel=1e-12)
    assert found.confidence == expected.confidence == 0.9
    assert all(words in str(found) for words in ("90% intervals", "best response", "duality gap", str(expected)))
    assert found.gap.low <= found.gap.value <= found.gap.high


class Fixed:
    """An adversary whose answer to a particle depends on nothing else."""

    def __init__(self, scale):
        self.scale = scale

    def maximise(self, game, controls, particles, generator=None):
        x = game.target(particles.state)
        return self.scale * game.ball.epsilon * torch.sin(40 * x)


@pytest.mark.parametrize("loss", [F.cross_entropy, TRADES(2.0)], ids=["cross-entropy", "trades"])
def test_batches_do_not_matter_and_a_population_can_be_given(loss):
    still = {"maximiser": Fixed(0.5), "best_response": Fixed(-1.0), "lanczos": 2, "restarts": 1}
    whole = game(mlp_net(), loss, (X, Y), epsilon=0.3)
    solution = whole.solve(MINIMAX, steps=3)
    parts = game(mlp_net(), loss, (X, Y), epsilon=0.3, batch_size=4)
    some = game(mlp_net(), loss, (X[:5], Y[:5]), epsilon=0.3)
    found = {
        "whole": certify(whole, solution, **still),
        "batches": certify(parts, solution, **still),
        "given": certify(some, solution, population=(X, Y), **still),
        "given, batches": certify(some, solution, population=mfoc.population((X, Y), batch_size=2), **still),
    }
    numbers = {
        name: [c.clean, c.present, c.best, c.adversary.value, c.gap.value, c.minimiser.residual]
        for name, c in found.items()
    }
    for name in found:
        assert numbers[name] == pytest.approx(numbers["whole"], rel=1e-10), name
    assert certify(some, solution, **still).clean != pytest.approx(found["whole"].clean, rel=1e-3)


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
    robust = formulation.readout(formulation.solve(solver, steps=steps))
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
