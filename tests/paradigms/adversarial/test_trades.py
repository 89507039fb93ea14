"""TRADES: its cost, its adversary and its training loop."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mfoc
from mfoc.games.maximisers import PGD
from mfoc.seeding import mixed_seed
from paradigms.adversarial import TRADES, game
from tests.oracles import adversaries as oracles
from tests.problems import D, distance, generator, labels, mlp_net

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)


def uniform(*shape, seed=0):
    return torch.rand(*shape, generator=generator(seed), dtype=D)


X, Y = uniform(9, 3), labels(9, 2)


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
    slope = mfoc.games.costate_at(made, made.controls, particles.state, Y, eta)
    point = (X + eta).requires_grad_()
    divergence = F.kl_div(net(point).log_softmax(1), net(X).softmax(1), reduction="sum")
    assert distance(slope, beta * torch.autograd.grad(divergence, point)[0]) < 1e-14
    still = mfoc.games.costate_at(made, made.controls, particles.state, Y, torch.zeros_like(X))
    assert float(still.abs().max()) < 1e-15  # so that no adversary gets away from eta = 0 without a random start


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_minimax_with_pgd_on_trades_is_the_loop_of_trades(norm):
    net, beta, steps, size, seed, ball = mlp_net(), 3.0, 3, 0.08, 5, mfoc.Ball(0.2, norm)
    formulation = game(net, TRADES(beta), (X, Y), epsilon=0.2, norm=norm, batch_size=4, seed=2)
    solution = formulation.solve(mfoc.Minimax(PGD(steps, size), SGD, seed), steps=6)
    batches, descent = mfoc.population((X, Y), batch_size=4, seed=2), SGD(net.parameters())
    values = []
    for k in range(6):
        # A random start is a function of (seed, step, particle): drawn again here.
        batch, key = batches(k), torch.Generator().manual_seed(mixed_seed(seed, k, 0))
        start = ball.sample(batch.state, key, index=batch.index)
        values.append(oracles.trades_step(net, descent, batch, ball, start, beta=beta, steps=steps, size=size))
    assert distance(solution.controls, list(net.parameters())) < 1e-12
    assert distance(solution.controls, formulation.problem.controls) > 1e-2
    assert [record["value"] for record in solution.history] == pytest.approx(values, rel=1e-12)
