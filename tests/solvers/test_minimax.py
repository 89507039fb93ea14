"""Solving games: YOPO, free training and the solver Minimax, against training loops written out by hand."""

import copy
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mfoc
from mfoc import hooks
from mfoc.games.maximisers import FGSM, PGD, YOPO, Free
from tests.games.test_game import ascended, entered, pgd, picked, yopo
from tests.problems import (
    CATALOGUE,
    D,
    batch_norm_net,
    distance,
    generator,
    labels,
    leaves,
    mlp_net,
    normal,
    same_bits,
    seeded,
)

# ---- YOPO, against the loop of the paper


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


@pytest.mark.parametrize("case", NETS)
def test_yopo_alone_ascends_as_it_does_at_play(case):
    game, particles, *_ = network_game(case)
    adversary = YOPO(2, 3)
    eta = adversary.maximise(game, game.controls, particles, generator(5))
    start = adversary.begin(game, game.controls, particles, generator(5), None)
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
    start = YOPO(m, n).begin(game, game.controls, particles, generator(), None)
    YOPO(m, n).play(counted, game.controls, particles, start)
    last = 1 if game.controls[s] else 0  # a stage without controls needs no gradient at the last disturbance
    expected = m + last + (0 if free else m * (n - 1))
    assert calls.count(s) == expected
    assert len(calls) == expected + m * (game.stages - 1)


# ---- training, against loops of torch


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

    def begin(self, game, controls, particles, generator, previous):
        return torch.zeros_like(particles.state)


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


# ---- the laws of a solver

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
