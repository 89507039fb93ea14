"""A problem with an adversary: where the disturbance enters, and what the problem is then."""

from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F

import mfoc
from mfoc.games.maximisers import PGD
from mfoc.minimisers import Descent
from tests.architectures import mlp_net
from tests.oracles.adversaries import ascended, disturbed_cost, picked
from tests.oracles.training import copied
from tests.problems import CATALOGUE, D, distance, generator, labels, leaves, normal, same_bits

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


def blind(part, reach=None):
    """A game on one of two entries of the state; costs depend on "a", and on "b" by so much."""
    problem = mfoc.Problem(
        lambda t, x, u, z: {"a": x["a"] + u, "b": x["b"]},
        lambda x, z: x["a"].sum(1) + (0 if reach is None else reach * x["b"].sum(1)),
        [normal(2, seed=k) for k in range(2)],
    )
    particles = mfoc.Particles({"a": normal(9, 2), "b": normal(9, 2)})
    return mfoc.Game.of(problem, mfoc.Ball(0.1), part=part), particles


MINIMAX = mfoc.Minimax(PGD(1), torch.optim.SGD)


def test_a_disturbance_that_no_cost_depends_on_is_refused():
    game, particles = blind("b")
    for act in (lambda: game.validate(particles), lambda: mfoc.solve(game, MINIMAX, particles, steps=1)):
        with pytest.raises(mfoc.InvalidValue, match=r"no cost depends on the state.*'b'"):
            act()
    late = mfoc.Game.of(_forgetful(), mfoc.Ball(0.1), stage=1)
    with pytest.raises(mfoc.InvalidValue, match="no cost depends on the state that enters stage 1"):
        late.validate(mfoc.Particles(normal(9, 2)))


def _forgetful():
    return mfoc.Problem(
        lambda t, x, u, z: x + u if t == 0 else u.expand_as(x),
        lambda x, z: x.square().sum(1),
        [normal(2, seed=k) for k in range(2)],
        running_cost=lambda t, x, u, z: u.square().sum().expand(len(x)),
    )


@pytest.mark.parametrize(("part", "reach"), [("a", None), ("b", 0.0)], ids=["a slope", "a slope of zero"])
def test_a_disturbance_with_a_path_is_accepted_whatever_its_slope(part, reach):
    game, particles = blind(part, reach)
    assert mfoc.solve(game, MINIMAX, particles, steps=1).last.step == 1


def test_under_a_head_of_zeros_a_network_is_played():
    net = mlp_net()
    torch.nn.init.zeros_(list(net.children())[-1].weight)
    game = mfoc.Game.of(mfoc.from_module(net, F.cross_entropy), mfoc.Ball(0.1))
    assert mfoc.solve(game, MINIMAX, (normal(7, 3), labels(7, 2)), steps=1).last.step == 1


class Playing:
    """A third party's solver with an adversary of its own: it says so."""

    plays_games = True

    def init(self, problem, controls):
        return {}

    def step(self, problem, controls, state, particles):
        value, gradient = mfoc.evaluate(problem, controls, particles)
        return controls, {}, mfoc.Info(value, gradient)


def test_who_has_an_adversary_says_so_and_who_has_none_is_refused_a_game():
    problem = mfoc.Problem(lambda t, x, u, z: x + u, lambda x, z: x.square().sum(1), [normal(2, seed=1)])
    game, particles = mfoc.Game.of(problem, mfoc.Ball(0.1)), normal(9, 2)
    gradient = mfoc.Gradient(torch.optim.SGD)
    for solver in (gradient, mfoc.MSA(), mfoc.EMSA()):
        with pytest.raises(mfoc.InvalidType, match="nothing here plays its adversary"):
            mfoc.solve(game, solver, particles, steps=1)
    assert mfoc.solve(game, Playing(), particles, steps=1).last.step == 1
    nominal = mfoc.solve(game, gradient, particles, steps=3, nominal=True)
    assert same_bits(nominal.controls, mfoc.solve(problem, gradient, particles, steps=3).controls)
    first = next(mfoc.iterate(game, gradient, particles, nominal=True))
    assert first.step == 1
    assert mfoc.certify(game, nominal, particles, nominal=True, lanczos=2).particles == 9


@pytest.mark.parametrize("outer", [partial(torch.optim.Adam, lr=0.1), mfoc.EMSA()], ids=["adam", "emsa"])
def test_the_minimiser_keeps_to_its_bounds(outer):
    """min over u, max over eta of |x + eta + u - z|^2, with the control on its bound."""
    problem = mfoc.Problem(
        lambda t, x, u, z: x + u,
        lambda x, z: (x - z).square().sum(1),
        [torch.zeros(2, dtype=D)],
        bounds=mfoc.Box(-0.5, 0.5),
    )
    own = mfoc.Game.of(problem, mfoc.Ball(0.1))
    cloud = torch.zeros(4, 2, dtype=D), torch.full((4, 2), 2.0, dtype=D)
    solution = mfoc.solve(own, mfoc.Minimax(mfoc.maximisers.PGD(5), outer), cloud, steps=30)
    assert solution.controls[0].tolist() == [0.5, 0.5]
    assert solution.residual == 0
    assert solution.value == pytest.approx(2 * (1.5 + 0.1) ** 2)
