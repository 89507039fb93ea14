"""Balls, games, and the adversaries that roll the whole problem out, against loops written out by hand."""

from dataclasses import replace
from functools import partial
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import mfoc
from mfoc.games.maximisers import FGSM, PGD, Free
from mfoc.minimisers import Descent
from tests.problems import CATALOGUE, D, distance, generator, labels, leaves, mlp_net, normal, same_bits, seeded

NORMS = ("linf", "l2")
BOUNDS = (None, (-0.4, 0.9))
seeds = st.integers(0, 10_000)

# ---- plain references


def size(v):
    return v.reshape(len(v), -1).norm(dim=1).view(-1, *[1] * (v.dim() - 1))


def entered(ball, x, eta):
    return x + eta if ball.bounds is None else (x + eta).clamp(*ball.bounds)


def ascended(ball, x, eta, slope, step):
    """One step of projected steepest ascent."""
    if ball.norm == "linf":
        return (entered(ball, x, eta) + step * slope.sign() - x).clamp(-ball.epsilon, ball.epsilon)
    eta = entered(ball, x, eta) + step * slope / (size(slope) + 1e-10) - x
    return eta * torch.where(size(eta) > ball.epsilon, ball.epsilon / size(eta), torch.ones_like(size(eta)))


def placed(part, x, value):
    """A state with one of its entries replaced."""
    if part is None:
        return value
    if isinstance(x, dict):
        return {**x, part: value}
    return type(x)(value if i == part else entry for i, entry in enumerate(x))


def picked(part, x):
    return x if part is None else x[part]


def cost(problem, controls, particles, eta, ball, stage=0, part=None):
    """The cost of each particle when the state that enters a stage is disturbed."""
    x, z, total = particles.state, particles.data, 0
    for t in range(problem.stages):
        u = problem.schedule(controls, t)
        if t == stage:
            x = placed(part, x, entered(ball, picked(part, x), eta))
        if problem.running_cost is not None:
            total = total + problem.running_cost(t, x, u, z)
        x = problem.dynamics(t, x, u, z)
    return total + problem.terminal_cost(x, z)


def pgd(loss, x, ball, steps, step):
    """Projected gradient ascent from no disturbance; ``loss`` is that of the disturbed states."""
    eta = torch.zeros_like(x)
    for _ in range(steps):
        point = entered(ball, x, eta).detach().requires_grad_()
        slope = torch.autograd.grad(loss(point), point)[0]
        eta = ascended(ball, x, eta, slope, step)
    return eta


def yopo(stages, weights, loss, x, ball, eta, m, n, step, *, s=0, part=None, running=None):
    """Zhang et al. (2019), sec. 3.2: eta, and the gradient in the weights of each stage.

    ``stages[t](x)`` is f_t, with the tensors ``weights[t]`` in it; ``running(t, x)`` is L_t.
    """
    running = running or (lambda t, x: torch.zeros(len(leaves(x)[0]), dtype=D))
    totals = [[torch.zeros_like(w) for w in ws] for ws in weights]

    def add(t, slopes):
        for total, slope in zip(totals[t], slopes, strict=True):
            total += 0 if slope is None else slope

    def hamiltonian(x):
        inner = sum((q * y).flatten(1).sum(1) for q, y in zip(p, floats(stages[s](x)), strict=True))
        return (inner + running(s, x)).mean()

    for _ in range(m):
        value, h = 0, x
        for t in range(s):
            value, h = value + running(t, h), stages[t](h)
        entry = mfoc.tree.detached(h)
        clean = picked(part, entry)
        h = placed(part, h, entered(ball, picked(part, h), eta))
        value, h = value + running(s, h), stages[s](h)
        after = floats(h)
        for t in range(s + 1, len(stages)):
            value, h = value + running(t, h), stages[t](h)
        others = [t for t in range(len(stages)) if t != s]
        wanted = [*after, *(w for t in others for w in weights[t])]
        found = iter(torch.autograd.grad((value + loss(h)).mean(), wanted, allow_unused=True))
        p = [len(clean) * (torch.zeros_like(y) if g is None else g) for y, g in ((y, next(found)) for y in after)]
        for t in others:
            add(t, [next(found) for _ in weights[t]])
        for _ in range(n):
            point = entered(ball, clean, eta).requires_grad_()
            slope = torch.autograd.grad(hamiltonian(placed(part, entry, point)), point)[0]
            eta = ascended(ball, clean, eta, slope, step)
        if weights[s]:
            h = hamiltonian(placed(part, entry, entered(ball, clean, eta)))
            add(s, torch.autograd.grad(h, weights[s], allow_unused=True))
    return eta, totals


def floats(tree):
    return [leaf for leaf in leaves(tree) if leaf.is_floating_point()]


def inside(ball, eta):
    largest = eta.abs().max() if ball.norm == "linf" else size(eta).max()
    return float(largest) <= ball.epsilon * (1 + 1e-12)


# ---- the ball


@settings(deadline=None, max_examples=40)
@given(seed=seeds, norm=st.sampled_from(NORMS), epsilon=st.floats(1e-3, 10), scale=st.floats(0, 5))
def test_the_projection_is_the_nearest_point_of_the_ball(seed, norm, epsilon, scale):
    ball = mfoc.Ball(epsilon, norm)
    eta, other = scale * normal(5, 2, 3, seed=seed), ball.sample(normal(5, 2, 3), generator(seed))
    nearest = ball.project(eta)
    assert inside(ball, nearest)
    torch.testing.assert_close(ball.project(nearest), nearest, rtol=1e-14, atol=0)
    # A point of a convex set is the nearest one just when no direction into the set makes an acute angle.
    angle = ((eta - nearest) * (other - nearest)).flatten(1).sum(1)
    assert float(angle.max()) <= 1e-12 * (1 + scale) * (1 + epsilon)
    within = size(eta) <= epsilon if norm == "l2" else eta.abs() <= epsilon
    assert torch.equal(torch.where(within, nearest, eta), eta)


@pytest.mark.parametrize(
    ("norm", "shape"),
    [*product(NORMS, [(50, 3), (50, 2, 4, 4), (50,)])],
)
def test_a_sample_fills_the_ball_and_comes_from_its_generator(norm, shape):
    ball, x = mfoc.Ball(0.3, norm), torch.zeros(shape, dtype=D)
    before = torch.get_rng_state()
    eta = ball.sample(x, generator(3))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(eta, ball.sample(x, generator(3)))
    assert not torch.equal(eta, ball.sample(x, generator(4)))
    assert inside(ball, eta)
    reach = eta.abs() if norm == "linf" else size(eta)
    assert float(reach.max()) > 0.27
    assert float(reach.min()) < 0.05


@pytest.mark.parametrize("times", [2, 3, 7])
@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("norm", NORMS)
def test_n_steps_are_n_times_one_step(norm, bounds, times):
    ball = mfoc.Ball(0.5, norm, bounds)
    x, slope = normal(6, 3, seed=1).clamp(-0.4, 0.9), normal(6, 3, seed=2)
    slope[0] = 0
    start = ball.sample(x, generator(3))
    by_hand, single = start, start
    for _ in range(times):
        by_hand = ascended(ball, x, by_hand, slope, 0.11)
        single = ball.ascend(x, single, slope, 0.11)
    together = ball.ascend(x, start, slope, 0.11, times=times)
    assert inside(ball, together)
    assert distance(single, by_hand) < 1e-14
    assert distance(ball.enter(x, together), entered(ball, x, by_hand)) < 1e-14
    assert torch.equal(ball.enter(x, together)[0], ball.enter(x, start)[0])  # no slope, no move
    if bounds is None or norm == "l2":
        assert distance(together, by_hand) < 1e-14


@settings(deadline=None, max_examples=30)
@given(seed=seeds, bounds=st.sampled_from(BOUNDS))
def test_the_gap_in_the_cube_is_that_of_its_best_vertex(seed, bounds):
    ball = mfoc.Ball(0.5, "linf", bounds)
    x, slope = normal(4, 3, seed=seed).clamp(-0.4, 0.9), normal(4, 3, seed=seed + 1)
    eta = ball.sample(x, generator(seed))
    least, most = entered(ball, x, torch.full_like(x, -0.5)), entered(ball, x, torch.full_like(x, 0.5))
    vertices = [torch.where(torch.tensor(corner), most, least) for corner in product([False, True], repeat=3)]
    moves = torch.stack([(slope * (v - entered(ball, x, eta))).sum(1) for v in vertices])
    gap = ball.gap(x, eta, slope)
    assert float(gap.min()) >= 0
    torch.testing.assert_close(gap, moves.max(0).values, rtol=1e-12, atol=1e-14)
    best = torch.stack(vertices)[moves.argmax(0), torch.arange(4)] - x
    assert float(ball.gap(x, best, slope).abs().max()) < 1e-14


@settings(deadline=None, max_examples=30)
@given(seed=seeds)
def test_the_gap_in_the_euclidean_ball_has_a_closed_form(seed):
    ball, x, slope = mfoc.Ball(0.5, "l2"), normal(4, 2, 3, seed=seed), normal(4, 2, 3, seed=seed + 1)
    eta = ball.sample(x, generator(seed))
    gap = ball.gap(x, eta, slope)
    assert float(gap.min()) >= 0
    torch.testing.assert_close(gap, (0.5 * size(slope)).flatten() - (slope * eta).sum((1, 2)), rtol=1e-12, atol=1e-13)
    assert float(ball.gap(x, 0.5 * slope / size(slope), slope).abs().max()) < 1e-13


# ---- the game


@pytest.mark.parametrize("name", CATALOGUE)
def test_on_plain_particles_a_game_is_the_undisturbed_problem(name):
    problem, particles = CATALOGUE[name]()
    game = mfoc.Game.of(problem, mfoc.Ball(0.3, bounds=(-0.1, 0.1)), stage=problem.stages - 1)
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
    controls = mfoc.tree.detached(problem.controls, requires_grad=True)
    eta = ball.sample(picked(part, mfoc.rollout(problem, problem.controls, particles).states[stage]), generator(1))
    expected = cost(problem, controls, particles, eta, ball, stage, part)
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
        value = cost(problem, problem.controls, particles, free, ball, stage, part).mean()
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
    assert float(found) == pytest.approx(float(cost(problem, problem.controls, particles, eta, ball).mean()), rel=1e-13)


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


class Bent(nn.Linear):
    def forward(self, x):
        return super().forward(x).tanh()


def hooked():
    layer = nn.Linear(4, 4)
    layer.register_forward_hook(lambda module, args, out: out.tanh())
    return layer


CIRCULAR = partial(nn.Conv1d, 2, 2, 3, padding=1, padding_mode="circular")
AFFINE = {"linear": partial(nn.Linear, 4, 4), "circular": CIRCULAR, "transposed": partial(nn.ConvTranspose1d, 2, 2, 3)}
CURVED = {"subclass": partial(Bent, 4, 4), "hook": hooked, "norm": lambda: nn.LayerNorm(4), "relu": nn.ReLU}


@pytest.mark.parametrize("name", [*AFFINE, *CURVED])
def test_a_stage_is_called_affine_when_it_is(name):
    make = (AFFINE | CURVED)[name]
    nested = seeded(lambda: nn.Sequential(nn.Linear(4, 4), make(), nn.AvgPool1d(2)))
    problem = mfoc.from_module(nn.Sequential(*nested), F.mse_loss, stages=[["0", "1", "2"]])
    x, y = normal(3, 2, 4, seed=1), normal(3, 2, 4, seed=2)
    bend = nested(x) + nested(y) - nested(torch.zeros_like(x)) - nested(x + y)
    assert problem.affine(0) == (name in AFFINE) == (float(bend.detach().abs().max()) < 1e-12)


# ---- the adversaries, against torchattacks


def images(shape, seed=0):
    channels, height, width = shape[1:]
    net = nn.Sequential(nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * height * width, 3))
    net = seeded(lambda: net).float().eval()
    return net, torch.rand(shape, generator=generator(seed)), labels(shape[0], 3)


@pytest.mark.parametrize("shape", [(5, 3, 8, 8), (7, 1, 5, 6), (1, 2, 4, 4)])
@pytest.mark.parametrize("random_start", [True, False])
@pytest.mark.parametrize("norm", NORMS)
def test_pgd_is_that_of_torchattacks(norm, random_start, shape):
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
    assert torch.equal(game.enter(x, eta), expected)


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
