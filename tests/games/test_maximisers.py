"""The adversaries: PGD and FGSM as torchattacks has them, free ascent, and YOPO as the loop of its paper."""

from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mfoc
from mfoc.games.maximisers import FGSM, PGD, YOPO, Free
from tests.architectures import mlp_net, seeded
from tests.oracles.adversaries import entered, pgd, picked, their_start, yopo
from tests.problems import CATALOGUE, distance, generator, labels, leaves, normal

NORMS = ("linf", "l2")


def images(shape, seed=0):
    channels, height, width = shape[1:]
    net = nn.Sequential(nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * height * width, 3))
    net = seeded(lambda: net).float().eval()
    return net, torch.rand(shape, generator=generator(seed)), labels(shape[0], 3)


@pytest.mark.parametrize("shape", [(5, 3, 8, 8), (7, 1, 5, 6), (1, 2, 4, 4)])
@pytest.mark.parametrize("random_start", [True, False])
@pytest.mark.parametrize("norm", NORMS)
def test_pgd_is_that_of_torchattacks(norm, random_start, shape, monkeypatch):
    """From the same start: ours are drawn particle by particle. In l2 theirs divide by the size of a slope + 1e-10."""
    monkeypatch.setattr(mfoc.Ball, "sample", their_start)
    attacks = pytest.importorskip("torchattacks")
    attack = {"linf": attacks.PGD, "l2": attacks.PGDL2}[norm]
    net, x, y = images(shape)
    game = mfoc.Game.of(mfoc.from_module(net, F.cross_entropy), mfoc.Ball(0.3, norm, (0, 1)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        expected = attack(net, eps=0.3, alpha=0.1, steps=5, random_start=random_start)(x, y)
        torch.manual_seed(5)
        eta = PGD(5, 0.1, random_start).maximise(game, game.controls, mfoc.Particles(x, y))
    assert not torch.equal(expected, x)
    assert distance(game.enter(x, eta), expected) <= (0 if norm == "linf" else 1e-6)


@pytest.mark.parametrize("shape", [(5, 3, 8, 8), (7, 1, 5, 6)])
def test_fgsm_is_that_of_torchattacks(shape):
    attacks = pytest.importorskip("torchattacks")
    net, x, y = images(shape)
    game = mfoc.Game.of(mfoc.from_module(net, F.cross_entropy), mfoc.Ball(8 / 255, bounds=(0, 1)))
    eta = FGSM().maximise(game, game.controls, mfoc.Particles(x, y))
    assert torch.equal(game.enter(x, eta), attacks.FGSM(net, eps=8 / 255)(x, y))


@pytest.mark.parametrize("norm", NORMS)
def test_pgd_on_features_is_a_plain_loop(norm):
    net, x, y = mlp_net(), normal(7, 3), labels(7, 2)
    ball = mfoc.Ball(0.5, norm)
    game = mfoc.Game.of(mfoc.from_module(net, F.cross_entropy), ball)

    def loss(point):
        return F.cross_entropy(net(point), y)

    expected = pgd(loss, x, ball, 6, 2.5 * 0.5 / 6)  # the default step
    found = PGD(6, random_start=False).maximise(game, game.controls, mfoc.Particles(x, y))
    assert distance(found, expected) < 1e-13
    assert distance(Free(6, 1.25 / 6).maximise(game, game.controls, mfoc.Particles(x, y)), expected) < 1e-13
    assert loss(x + found) > loss(x)


# ---- YOPO


def decay(t, x, ws):
    return (0.05 * sum(w.square().sum() for w in ws)).expand(len(x)) if ws else x.new_zeros(len(x))


def penalty(t, x, ws):
    return 0.3 * (t + 1) * x.flatten(1).pow(3).mean(1) + decay(t, x, ws)


def dense():
    return seeded(lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)))


def conv():
    return seeded(
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(18, 3))
    )


GROUPS = [["0", "1"], ["2"], ["3", "4"]]
LINF, L2 = mfoc.Ball(0.3), mfoc.Ball(0.5, "l2")
BOXED = (mfoc.Ball(0.3, bounds=(-0.5, 0.5)), mfoc.Ball(0.5, "l2", (-0.5, 0.5)))
NETS = {  # network, groups of layers, ball, disturbed stage, running cost; whether the n steps cost nothing
    "dense": (dense, None, LINF, 0, None, True),
    "dense, boxed": (dense, None, BOXED[0], 0, None, True),
    "conv": (conv, None, LINF, 0, None, True),
    "conv, l2": (conv, None, L2, 0, None, True),
    "conv, l2, boxed": (conv, None, BOXED[1], 0, None, True),
    "grouped": (conv, GROUPS, LINF, 0, None, False),
    "stage one": (dense, None, BOXED[0], 1, None, False),
    "stage two": (dense, None, LINF, 2, None, True),
    "stage two, l2": (dense, None, L2, 2, decay, True),
    "decay": (dense, None, LINF, 0, decay, True),
    "penalty on the state": (dense, None, LINF, 0, penalty, False),
}


def network_game(case):
    """The game, its cloud, and the stages, weights and running cost of an ordinary module."""
    make, groups, ball, s, running, free = NETS[case]
    net = make()
    given = None if running is None else lambda t, x, u, z: running(t, x, list(u.values()))
    game = mfoc.Game.of(mfoc.from_module(net, F.cross_entropy, stages=groups, running_cost=given), ball, stage=s)
    x = normal(6, 4) if make is dense else normal(6, 1, 6, 6)
    particles = mfoc.Particles(x.clamp(-0.5, 0.5), labels(6, 3))
    parts = [net[int(g[0]) : int(g[-1]) + 1] for g in groups] if groups else list(net)
    weights = [list(part.parameters()) for part in parts]
    plain = None if running is None else lambda t, x: running(t, x, weights[t])
    return game, particles, parts, weights, plain, free


@pytest.mark.parametrize("passes", [(1, 1), (1, 4), (3, 2)], ids=str)
@pytest.mark.parametrize("case", NETS)
def test_yopo_is_the_loop_of_the_paper(case, passes):
    game, particles, parts, weights, running, _ = network_game(case)
    (m, n), ball, s = passes, game.ball, game.stage
    clean = nn.Sequential(*parts[:s])(particles.state).detach()
    start = ball.sample(clean, generator(3))
    loss = partial(F.cross_entropy, target=particles.data, reduction="none")
    eta, slopes = yopo(parts, weights, loss, particles.state, ball, start, m, n, 0.07, s=s, running=running)
    play = YOPO(m, n, 0.07).play(game, game.controls, particles, start)
    # A boxed disturbance may differ where the box cuts it off: what is entered does not.
    assert distance(game.enter(clean, play.disturbance), entered(ball, clean, eta)) < 1e-12
    assert distance(play.gradient, slopes) < 1e-12
    assert distance(start, eta) > 0.02
    assert distance(play.gradient, game.controls) > 1e-3


def tied(affine):
    problem = mfoc.Problem(
        lambda t, x, u, z: (x @ u["W"].mT if affine else torch.tanh(x @ u["W"].mT)) + u["b"],
        lambda x, z: (x - z).square().sum(1),
        {"W": normal(2, 2, seed=1), "b": normal(2, seed=2)},
        horizon=3,
        schedule=mfoc.tied,
        affine=(lambda t: True) if affine else None,
    )
    return problem, mfoc.Particles(normal(6, 2, seed=3), normal(6, 2, seed=4))


SYSTEMS = {
    "tied, affine": (partial(tied, affine=True), 0, None),
    "tied": (partial(tied, affine=False), 1, None),
    "entry of a dict": (CATALOGUE["pytrees"], 1, "q"),
    "heun": (CATALOGUE["interacting"], 1, None),
}


@pytest.mark.parametrize("ball", [LINF, L2], ids=["linf", "l2"])
@pytest.mark.parametrize("case", SYSTEMS)
def test_yopo_of_a_control_system_is_the_loop_of_the_paper(case, ball):
    make, s, part = SYSTEMS[case]
    problem, particles = make()
    game, z = mfoc.Game.of(problem, ball, stage=s, part=part), particles.data
    free = mfoc.tree.detached(problem.controls, requires_grad=True)
    staged = [mfoc.tree.map(torch.clone, problem.schedule(free, t)) for t in range(problem.stages)]
    weights = [leaves(u) for u in staged]
    stages = [partial(lambda t, x: problem.dynamics(t, x, staged[t], z), t) for t in range(problem.stages)]
    cost = problem.running_cost
    start = ball.sample(picked(part, particles.state), generator(3))
    eta, slopes = yopo(
        stages, weights, lambda x: problem.terminal_cost(x, z), particles.state, ball, start, 2, 3, 0.1, s=s, part=part,
        running=None if cost is None else lambda t, x: cost(t, x, staged[t], z),
    )  # fmt: skip
    shared = torch.autograd.grad(leaves(weights), leaves(free), leaves(slopes))
    play = YOPO(2, 3, 0.1).play(game, game.controls, particles, start)
    assert distance(play.disturbance, eta) < 1e-11
    assert distance(play.gradient, shared) < 1e-11


@pytest.mark.parametrize("case", ["dense", "conv, l2, boxed", "grouped", "stage two", "penalty on the state"])
def test_yopo_with_steps_that_vanish_has_the_gradient_at_eta(case):
    """So no stage is counted twice, and none left out."""
    game, particles, parts, weights, running, _ = network_game(case)
    start = game.ball.sample(nn.Sequential(*parts[: game.stage])(particles.state).detach(), generator(4))
    x, value = particles.state, 0
    for t, part in enumerate(parts):
        x = entered(game.ball, x, start) if t == game.stage else x
        value, x = value + (0 if running is None else running(t, x)), part(x)
    value = (value + F.cross_entropy(x, particles.data, reduction="none")).mean()
    slopes = torch.autograd.grad(value, [w for ws in weights for w in ws])
    play = YOPO(1, 1, 1e-13).play(game, game.controls, particles, start)
    assert distance(play.gradient, slopes) < 1e-11
    assert float(play.value) == pytest.approx(float(value.detach()), rel=1e-13)


def arriving(game, particles):
    """The part of the state that will be disturbed."""
    return game.target(mfoc.games.entering(game, game.controls, particles))


@pytest.mark.parametrize("case", NETS)
def test_yopo_alone_ascends_as_it_does_at_play(case):
    game, particles, *_ = network_game(case)
    adversary = YOPO(2, 3)
    eta = adversary.maximise(game, game.controls, particles, generator(5))
    start = adversary.begin(game, arriving(game, particles), generator(5), None)
    assert torch.equal(eta, adversary.play(game, game.controls, particles, start).disturbance)
    before, after = (mfoc.evaluate(game, game.controls, game.disturb(particles, e)).value for e in (start, eta))
    assert after > before
    etas = [a.maximise(game, game.controls, particles, generator(6)) for a in (YOPO(4, 1, 0.1), PGD(4, 0.1))]
    assert distance(*etas) < 1e-12  # with one step a pass it is PGD


@pytest.mark.parametrize("case", NETS)
def test_an_affine_stage_is_not_evaluated_by_the_ascent(case):
    game, particles, *_, free = network_game(case)
    calls = []
    counted = replace(game, dynamics=lambda t, x, u, z: calls.append(t) or game.dynamics(t, x, u, z))
    m, n, s = 3, 5, game.stage
    start = YOPO(m, n).begin(game, arriving(game, particles), generator(), None)
    YOPO(m, n).play(counted, game.controls, particles, start)
    last = 1 if game.controls[s] else 0  # a stage without controls needs no gradient at the last disturbance
    expected = m + last + (0 if free else m * (n - 1))
    assert calls.count(s) == expected
    assert len(calls) == expected + m * (game.stages - 1)
