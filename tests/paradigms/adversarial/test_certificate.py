"""The certificate of a game: what each player could still gain."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

import mfoc
from mfoc.games.maximisers import FGSM, PGD, YOPO, Free
from paradigms.adversarial import TRADES, certify, game
from tests.problems import D, generator, labels, mlp_net, normal

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
MINIMAX = mfoc.Minimax(PGD(2), SGD, seed=1)


SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
MINIMAX = mfoc.Minimax(PGD(2), SGD, seed=1)


def uniform(*shape, seed=0):
    return torch.rand(*shape, generator=generator(seed), dtype=D)


X, Y = uniform(9, 3), labels(9, 2)


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
    found = certify(formulation, solution, maximiser=weaker, best_response=FGSM(0.01), lanczos=3)
    assert found.gap.value >= 0
    assert found.adversary.value >= -1e-12
    assert found.best >= found.present
    assert found.minimiser.particles == len(X)


def test_the_minimisers_part_is_the_certificate_on_the_disturbed_cloud():
    formulation = game(mlp_net(), F.cross_entropy, (X, Y), epsilon=0.3)
    solution, made = formulation.solve(MINIMAX, steps=3), formulation.problem
    settings = {"lanczos": 4, "groups": 5, "seed": 7}
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


def test_a_formulation_certifies_the_game_and_asks_for_the_adversary():
    """Not the undisturbed problem, which a certificate of any other formulation would be of."""
    formulation = game(mlp_net(), F.cross_entropy, (X, Y), epsilon=0.3)
    solution, settings = formulation.solve(MINIMAX, steps=3), {"lanczos": 2, "restarts": 1, "seed": 3}
    found = formulation.certify(solution, maximiser=PGD(3), best_response=PGD(5), **settings)
    expected = certify(formulation, solution, maximiser=PGD(3), best_response=PGD(5), **settings)
    assert str(found) == str(expected)
    assert (found.gap, found.adversary, found.best) == (expected.gap, expected.adversary, expected.best)
    assert found.minimiser.value == pytest.approx(found.present, rel=1e-12)
    assert found.present > found.clean
    with pytest.raises(mfoc.InvalidType, match=r"maximiser is a NoneType; expected an adversary.*PGD\(20\)"):
        formulation.certify(solution)


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
