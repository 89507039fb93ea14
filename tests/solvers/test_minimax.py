"""Solving games: adversarial training is a loop of torch, and Minimax keeps the laws of a solver."""

import copy
from dataclasses import dataclass
from functools import partial

import pytest
import torch
import torch.nn.functional as F

import mfoc
from mfoc import hooks
from mfoc.games.maximisers import FGSM, PGD, YOPO, Free
from tests.architectures import batch_norm_net, mlp_net
from tests.oracles.adversaries import ascended, entered, pgd, yopo
from tests.problems import CATALOGUE, D, distance, labels, leaves, normal, same_bits

LINF, L2 = mfoc.Ball(0.3), mfoc.Ball(0.5, "l2")


def sgd(lr=0.1):
    return partial(torch.optim.SGD, lr=lr)


OPTIMISERS = {
    "momentum": partial(torch.optim.SGD, lr=0.05, momentum=0.9),
    "adam": partial(torch.optim.Adam, lr=0.02),
}
CLOUD = mfoc.Particles(normal(7, 3).clamp(-0.8, 0.8), labels(7, 2))


def mlp_game(ball=LINF, net=None):
    return mfoc.Game.of(mfoc.from_module(net or mlp_net(), F.cross_entropy), ball)


@pytest.mark.parametrize("ball", [mfoc.Ball(0.3, bounds=(-0.8, 0.8)), L2], ids=["linf", "l2"])
@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_minimax_with_pgd_is_adversarial_training(optimiser, ball):
    net, make, batches = mlp_net(), OPTIMISERS[optimiser], mfoc.population(CLOUD, batch_size=3, seed=1)
    game = mlp_game(ball, net)
    solution = mfoc.solve(game, mfoc.Minimax(PGD(3, 0.15, random_start=False), make), batches, steps=7)
    descent, values = make(net.parameters()), []
    for k in range(7):
        x, y = batches(k).state, batches(k).data
        eta = pgd(lambda point, y=y: F.cross_entropy(net(point), y), x, ball, 3, 0.15)
        value = F.cross_entropy(net(entered(ball, x, eta)), y)
        descent.zero_grad()
        value.backward()
        descent.step()
        values.append(float(value.detach()))
    assert distance(solution.controls, list(net.parameters())) < 1e-12
    assert distance(solution.controls, game.controls) > 1e-2
    assert [record["value"] for record in solution.history] == pytest.approx(values, rel=1e-12)


@dataclass(frozen=True)
class StillYOPO(YOPO):
    """Starts from no disturbance, so that a loop can start from the same."""

    def begin(self, game, x, generator, previous):
        return torch.zeros_like(x)


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("stages", [None, [["0", "1"], ["2"], ["3"], ["4"]]], ids=["affine", "grouped"])
def test_minimax_with_yopo_is_the_loop_of_the_paper(optimiser, stages):
    net, make = mlp_net(), OPTIMISERS[optimiser]
    game = mfoc.Game.of(mfoc.from_module(net, F.cross_entropy, stages=stages), LINF)
    solution = mfoc.solve(game, mfoc.Minimax(StillYOPO(3, 2), make), CLOUD, steps=5)
    parts, descent = [net[:2], *net[2:]] if stages else list(net), make(net.parameters())
    weights = [list(part.parameters()) for part in parts]
    loss = partial(F.cross_entropy, target=CLOUD.data, reduction="none")
    for _ in range(5):
        start = torch.zeros_like(CLOUD.state)
        _, slopes = yopo(parts, weights, loss, CLOUD.state, LINF, start, 3, 2, 2.5 * 0.3 / 6)
        for ws, gs in zip(weights, slopes, strict=True):
            for w, g in zip(ws, gs, strict=True):
                w.grad = g
        descent.step()
    assert distance(solution.controls, list(net.parameters())) < 1e-12
    assert distance(solution.controls, game.controls) > 1e-2


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("ball", [mfoc.Ball(0.3, bounds=(-0.8, 0.8)), L2], ids=["linf", "l2"])
def test_minimax_with_free_is_free_adversarial_training(optimiser, ball):
    """Seven particles in batches of three: the third batch holds one, and leaves the other two disturbances alone."""
    net, make, batches = mlp_net(), OPTIMISERS[optimiser], mfoc.population(CLOUD, batch_size=3, seed=2)
    game = mlp_game(ball, net)
    solution = mfoc.solve(game, mfoc.Minimax(Free(2, 0.1), make), batches, steps=8)
    descent, buffer = make(net.parameters()), torch.zeros(3, 3, dtype=D)
    for k in range(8):
        x, y = batches(k).state, batches(k).data
        eta = buffer[: len(x)]
        for _ in range(2):
            point = entered(ball, x, eta).requires_grad_()
            descent.zero_grad()
            F.cross_entropy(net(point), y).backward()
            descent.step()
            eta = ascended(ball, x, eta, point.grad, 0.1)
        buffer = torch.cat([eta, buffer[len(x) :]])
    assert distance(solution.controls, list(net.parameters())) < 1e-12
    assert distance(solution.controls, game.controls) > 1e-2
    assert distance(solution.last.state["disturbance"], eta) < 1e-12


ADAM = OPTIMISERS["adam"]
ADVERSARIES = pytest.mark.parametrize("inner", [PGD(2), YOPO(2, 2), Free(2)], ids=lambda a: type(a).__name__)
SOLVERS = {
    "pgd": mfoc.Minimax(PGD(2), ADAM, seed=3),
    "fgsm": mfoc.Minimax(FGSM(0.4, random_start=True), OPTIMISERS["momentum"]),
    "yopo": mfoc.Minimax(YOPO(2, 2), ADAM, seed=4),
    "free": mfoc.Minimax(Free(2), ADAM),
    "emsa": mfoc.Minimax(YOPO(2, 2), mfoc.EMSA(1.0, adaptive=True)),
    "msa": mfoc.Minimax(PGD(2), mfoc.MSA(mfoc.minimisers.Descent(0.05, steps=2))),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_a_step_is_pure_and_draws_from_no_global_generator(name):
    game, solver = mlp_game(), SOLVERS[name]
    controls, state = game.controls, solver.init(game, game.controls)
    for _ in range(2):
        before = mfoc.tree.copy([controls, state, CLOUD.state, CLOUD.data])
        drawn = torch.get_rng_state()
        first, second = (solver.step(game, controls, state, CLOUD) for _ in range(2))
        evaluations = [solver.evaluate(game, controls, state, CLOUD) for _ in range(2)]
        assert torch.equal(torch.get_rng_state(), drawn)
        assert same_bits(before, [controls, state, CLOUD.state, CLOUD.data])
        assert same_bits(first[:2], second[:2])
        assert same_bits(first[2].gradient, second[2].gradient)
        assert same_bits(*evaluations)
        assert distance(first[0], controls) > 1e-4
        controls, state = first[:2]


@pytest.mark.parametrize("name", SOLVERS)
def test_resuming_is_bitwise(name, tmp_path):
    game, solver, batches = mlp_game(), SOLVERS[name], mfoc.population(CLOUD, batch_size=3, seed=5)
    whole = mfoc.solve(game, solver, batches, steps=6)
    mfoc.solve(game, solver, batches, steps=4, hooks=[hooks.Checkpoint(tmp_path / "run")])
    resumed = mfoc.solve(game, solver, batches, steps=6, start=hooks.load(tmp_path / "run"))
    assert same_bits(resumed.controls, whole.controls)
    assert same_bits(resumed.last.state, whole.last.state)
    assert (resumed.value, resumed.residual) == (whole.value, whole.residual)


def test_random_starts_are_a_function_of_seed_and_step():
    game, values = mlp_game(), []
    for seed, steps in ((0, 0), (0, 1), (1, 0)):
        solver = mfoc.Minimax(PGD(1), ADAM, seed)
        state = solver.init(game, game.controls)
        for _ in range(steps):
            state = solver.step(game, game.controls, state, CLOUD)[1]
        values.append(float(solver.evaluate(game, game.controls, state, CLOUD).value))
    assert len(set(values)) == 3


@pytest.mark.parametrize(
    "outer",
    [mfoc.EMSA(1.0), mfoc.EMSA(2.0, adaptive=True), mfoc.MSA(mfoc.minimisers.Descent(0.1)), mfoc.Gradient(ADAM)],
)
def test_another_solver_answers_the_adversary(outer):
    game, adversary = mlp_game(), PGD(3, random_start=False)
    solver = mfoc.Minimax(adversary, outer)
    state = solver.init(game, game.controls)
    moved, after, info = solver.step(game, game.controls, state, CLOUD)
    disturbed = game.disturb(CLOUD, adversary.maximise(game, game.controls, CLOUD))
    expected = outer.step(game, game.controls, state["outer"], disturbed)
    assert same_bits([moved, after["outer"], info.value], [*expected[:2], expected[2].value])
    assert distance(moved, game.controls) > 1e-3
    assert mfoc.evaluate(game, moved, disturbed).value < info.value


@pytest.mark.parametrize("name", SOLVERS)
def test_the_solution_has_the_value_of_the_game(name):
    game, solver = mlp_game(), SOLVERS[name]
    solution = mfoc.solve(game, solver, CLOUD, steps=3)
    expected = solver.evaluate(game, solution.controls, solution.last.state, CLOUD)
    assert solution.value == float(expected.value)
    assert solution.residual == pytest.approx(float(torch.cat([g.flatten() for g in leaves(expected.gradient)]).norm()))
    assert solution.value > float(mfoc.evaluate(game, solution.controls, CLOUD).value) + 1e-3


def duel(epsilon):
    """E [u^2 + (x + eta) u - eta^2 / 2]: convex in u, concave in eta; the data hold x."""
    problem = mfoc.Problem(
        lambda t, x, u, z: x,
        lambda x, z: 0 * x[:, 0],
        [torch.zeros(1, dtype=D)],
        running_cost=lambda t, x, u, z: (u.square() + x * u - (x - z).square() / 2)[:, 0],
    )
    x = 1 + 0.3 * normal(8, 1)
    return mfoc.Game.of(problem, mfoc.Ball(epsilon)), mfoc.Particles(x, x), float(x.mean())


@pytest.mark.parametrize(
    "inner", [PGD(8, 0.02), FGSM(), YOPO(1, 5), YOPO(2, 3, 0.05), Free(2, 0.05)], ids=lambda a: type(a).__name__
)
def test_a_saddle_point_is_found(inner):
    """In a small ball eta = epsilon sign(u) = -epsilon, and 2 u + E x - epsilon = 0."""
    game, particles, mean = duel(0.05)
    solution = mfoc.solve(game, mfoc.Minimax(inner, sgd(0.2)), particles, steps=80)
    u = -(mean - 0.05) / 2
    assert float(solution.controls[0]) == pytest.approx(u, abs=1e-8)
    assert solution.value == pytest.approx(u**2 + (mean - 0.05) * u - 0.05**2 / 2, abs=1e-8)
    assert solution.residual < 1e-8


@ADVERSARIES
def test_a_loss_that_blows_up_ends_with_the_last_good_iterate(inner):
    problem = mfoc.Problem(lambda t, x, u, z: x * u, lambda x, z: (x - z).square().sum(1), [torch.ones(2, dtype=D)])
    game, x = mfoc.Game.of(problem, LINF), normal(5, 2)
    solution = mfoc.solve(game, mfoc.Minimax(inner, sgd(1e200)), mfoc.Particles(x, 0 * x), steps=9)
    assert solution.status is mfoc.Status.NONFINITE
    assert same_bits(solution.controls, problem.controls)
    assert solution.last.step == 0


@ADVERSARIES
def test_batch_norm_uses_the_disturbed_cloud_and_leaves_its_averages(inner):
    net, particles = batch_norm_net().train(), CATALOGUE["batch_norm"]()[1]
    before = copy.deepcopy(net.state_dict())
    game = mlp_game(net=net)
    solution = mfoc.solve(game, mfoc.Minimax(inner, sgd()), particles, steps=3)
    assert same_bits(net.state_dict(), before)
    solved = mfoc.to_module(net, solution.controls)
    eta = 0.3 * normal(8, 3, seed=1).sign()
    found = mfoc.evaluate(game, solution.controls, game.disturb(particles, eta)).value
    expected = F.cross_entropy(solved(particles.state + eta), particles.data)
    assert float(found) == pytest.approx(float(expected.detach()), rel=1e-12)
    assert distance(solution.controls, game.controls) > 1e-3
