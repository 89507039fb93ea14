"""A problem with an adversary: where the disturbance enters, and what the problem is then."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import mfoc
from mfoc.games.maximisers import PGD
from mfoc.minimisers import Descent
from tests.architectures import mlp_net
from tests.oracles.adversaries import ascended, disturbed_cost, picked
from tests.oracles.training import copied
from tests.problems import CATALOGUE, distance, generator, labels, leaves, normal, same_bits

BOUNDS = (None, (-0.4, 0.9))


@pytest.mark.parametrize("name", CATALOGUE)
def test_on_plain_particles_a_game_is_the_undisturbed_problem(name):
    problem, particles = CATALOGUE[name]()
    part = "q" if name == "pytrees" else None
    game = mfoc.Game.of(problem, mfoc.Ball(0.3, bounds=(-0.1, 0.1)), stage=problem.stages - 1, part=part)
    expected = mfoc.evaluate(problem, problem.controls, particles)
    assert same_bits(mfoc.evaluate(game, game.controls, particles), expected)
    mfoc.testing.check_problem(game, particles)


@pytest.mark.parametrize("bounds", BOUNDS)
def test_on_disturbed_particles_a_game_is_the_network_on_the_disturbed_states(bounds):
    net, x, y = mlp_net(), normal(7, 3), labels(7, 2)
    ball = mfoc.Ball(0.5, bounds=bounds)
    game, eta = mfoc.Game.of(mfoc.from_module(net, F.cross_entropy), ball), ball.sample(x, generator())
    disturbed = game.disturb(mfoc.Particles(x, y), eta)
    point = x + eta if bounds is None else torch.clamp(x + eta, *bounds)
    value = F.cross_entropy(net(point), y)
    value.backward()
    found = mfoc.evaluate(game, game.controls, disturbed)
    assert float(found.value) == pytest.approx(float(value.detach()), rel=1e-14)
    assert distance(found.gradient, [p.grad for p in net.parameters()]) < 1e-14
    mfoc.testing.check_problem(game, disturbed, interacting=False)


def pair():
    """A state that is a tuple, of which the second entry may be disturbed."""
    problem = mfoc.Problem(
        lambda t, x, u, z: (x[0] + 0.3 * torch.tanh(x[1] @ u), x[1] - 0.2 * x[0]),
        lambda x, z: (x[0] - z).square().sum(1),
        [normal(2, 2, seed=t) for t in range(3)],
        running_cost=lambda t, x, u, z: 0.1 * x[1].square().sum(1) + u.square().sum(),
    )
    return problem, mfoc.Particles((normal(5, 2, seed=7), normal(5, 2, seed=8)), normal(5, 2, seed=9))


LATER = {
    "first entry of a tuple": (pair, 2, 0),
    "second entry of a tuple": (pair, 1, 1),
    "entry of a dict": (CATALOGUE["pytrees"], 1, "q"),
    "stage two": (CATALOGUE["mlp"], 2, None),
    "tied": (CATALOGUE["tied"], 2, None),
    "interacting": (CATALOGUE["interacting"], 1, None),
}


@pytest.mark.parametrize("case", LATER)
def test_a_disturbance_enters_where_the_game_says(case):
    make, stage, part = LATER[case]
    problem, particles = make()
    ball = mfoc.Ball(0.4, bounds=(-0.8, 0.8))
    game = mfoc.Game.of(problem, ball, stage=stage, part=part)
    controls = copied(problem.controls)
    eta = ball.sample(picked(part, mfoc.rollout(problem, problem.controls, particles).states[stage]), generator(1))
    expected = disturbed_cost(problem, controls, particles, eta, ball, stage, part)
    slopes = torch.autograd.grad(expected.mean(), leaves(controls))
    disturbed = game.disturb(particles, eta)
    found = mfoc.evaluate(game, game.controls, disturbed)
    assert float(found.value) == pytest.approx(float(expected.detach().mean()), rel=1e-13)
    assert float(found.value) != pytest.approx(float(mfoc.evaluate(game, game.controls, particles).value), rel=1e-6)
    assert distance(found.gradient, slopes) < 1e-13
    mfoc.testing.check_problem(game, disturbed)


@pytest.mark.parametrize("case", LATER)
def test_pgd_ascends_from_a_later_stage(case):
    make, stage, part = LATER[case]
    problem, particles = make()
    ball = mfoc.Ball(0.4, "l2")
    game = mfoc.Game.of(problem, ball, stage=stage, part=part)
    target = picked(part, mfoc.rollout(problem, problem.controls, particles).states[stage])
    eta = torch.zeros_like(target)
    for _ in range(4):
        free = eta.detach().requires_grad_()
        value = disturbed_cost(problem, problem.controls, particles, free, ball, stage, part).mean()
        eta = ascended(ball, target, eta, torch.autograd.grad(value, free)[0], 0.15)
    found = PGD(4, 0.15, random_start=False).maximise(game, game.controls, particles)
    assert distance(found, eta) < 1e-10
    clean = mfoc.evaluate(game, game.controls, particles).value
    assert mfoc.evaluate(game, game.controls, game.disturb(particles, found)).value > clean


def test_a_cloud_without_data_can_be_disturbed():
    problem, particles = CATALOGUE["linear_quadratic"]()
    ball, eta = mfoc.Ball(0.3), 0.1 * normal(5, 2)
    game = mfoc.Game.of(problem, ball)
    found = mfoc.evaluate(game, game.controls, game.disturb(particles, eta)).value
    assert float(found) == pytest.approx(
        float(disturbed_cost(problem, problem.controls, particles, eta, ball).mean()), rel=1e-13
    )


def test_a_stage_that_is_disturbed_is_minimised_apart_from_its_kind():
    """MSA evaluates stages of one kind in one batch; the disturbed one computes another function."""
    problem, particles = CATALOGUE["decayed"]()
    eta = 0.2 * normal(7, 4, seed=3)
    game = mfoc.Game.of(problem, mfoc.Ball(0.5), stage=2)
    assert problem.kind(2) == problem.kind(3)
    kindless = mfoc.Game.of(replace(problem, kind=None), mfoc.Ball(0.5), stage=2)
    solver = mfoc.MSA(Descent(0.05, steps=3))
    moved = [solver.step(g, g.controls, {}, g.disturb(particles, eta))[0] for g in (game, kindless)]
    assert distance(moved[0], game.controls) > 1e-3
    assert distance(*moved) < 1e-13
