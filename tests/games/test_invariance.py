"""A particle is attacked for what it is, whatever the cloud, the batches, the order and the scale of the loss."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mfoc
from mfoc.games import costate_at, entering
from mfoc.games.maximisers import FGSM, PGD, YOPO, Free
from tests.architectures import mlp_net, seeded
from tests.problems import CATALOGUE, INTERACTING, D, distance, generator, labels, normal

NORMS = ("linf", "l2")
ADVERSARIES = {
    "fgsm": FGSM(),
    "fgsm, random": FGSM(0.4, random_start=True),
    "pgd": PGD(4),
    "pgd, still": PGD(4, random_start=False),
    "yopo": YOPO(2, 3),
    "yopo, one step": YOPO(3, 1),
    "free": Free(3),
}
every_adversary = pytest.mark.parametrize("inner", ADVERSARIES.values(), ids=ADVERSARIES)
every_norm = pytest.mark.parametrize("norm", NORMS)
X, Y = normal(9, 3).clamp(-0.8, 0.8), labels(9, 2)
CLOUD = mfoc.Particles(X, Y)


def scaled(scale):
    return lambda x, z: scale * F.cross_entropy(x, z, reduction="none")


def game_of(norm, scale=1.0, stage=0, net=None, dtype=D):
    problem = mfoc.from_module((net or mlp_net()).to(dtype), scaled(scale))
    bounds = (-0.8, 0.8) if stage == 0 else None
    return mfoc.Game.of(problem, mfoc.Ball(0.5, norm, bounds), stage=stage)


def answer(inner, game, cloud, seed=3):
    """Where the adversary puts the particles."""
    eta = inner.maximise(game, game.controls, cloud, generator(seed))
    return game.ball.enter(game.target(entering(game, game.controls, cloud)), eta)


@pytest.mark.parametrize("stage", [0, 1])
@every_norm
@every_adversary
def test_a_cloud_cut_doubled_or_in_another_order(inner, norm, stage):
    game = game_of(norm, stage=stage)
    whole = answer(inner, game, CLOUD)
    assert distance(whole, entering(game, game.controls, CLOUD)) > 0.1
    order = torch.randperm(9, generator=generator(1))
    clouds = {
        "one by one": [CLOUD[i : i + 1] for i in range(9)],
        "in batches": [CLOUD[:4], CLOUD[4:6], CLOUD[6:]],
        "mixed": [CLOUD[order]],
        "some": [CLOUD[torch.arange(9) % 2 == 0]],
        "doubled": [mfoc.Particles(X.repeat(2, 1), Y.repeat(2), torch.arange(9).repeat(2))],
        "many times": [mfoc.Particles(X.repeat(500, 1), Y.repeat(500), torch.arange(9).repeat(500))],
    }
    for name, parts in clouds.items():
        for part in parts:
            assert distance(answer(inner, game, part), whole[part.index]) < 1e-11, name


@pytest.mark.parametrize("scale", [1e-12, 1e12, 1e-150, 1e150])
@every_norm
@every_adversary
def test_the_scale_of_the_loss(inner, norm, scale):
    assert distance(answer(inner, game_of(norm, scale), CLOUD), answer(inner, game_of(norm), CLOUD)) < 1e-10


@pytest.mark.parametrize(("dtype", "scale"), [(torch.float32, 2.0**-100), (torch.float32, 2.0**90)], ids=str)
@every_norm
@every_adversary
def test_the_scale_of_the_loss_in_single_precision(inner, norm, dtype, scale):
    """Squares of these slopes are no numbers of float32; powers of two round nothing."""
    cloud = CLOUD.to(dtype)
    ones = [answer(inner, game_of(norm, s, dtype=dtype), cloud) for s in (1.0, scale)]
    assert distance(*ones) < 1e-6
    assert ones[0].dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@every_norm
def test_a_step_has_its_length_whatever_the_slope(norm, dtype):
    """From the least number of a dtype to its largest: one step is as long as it should be."""
    ball, x = mfoc.Ball(0.5, norm), torch.zeros(5, 2, 3, dtype=dtype)
    limits = torch.finfo(dtype)
    for size in (limits.smallest_normal, limits.smallest_normal**0.5, 1.0, limits.max**0.5, limits.max):
        slope = torch.full((5, 2, 3), size, dtype=dtype)
        eta = ball.ascend(x, torch.zeros_like(x), slope, 0.25)
        expected = 0.25 if norm == "linf" else 0.25 / 6**0.5
        assert float((eta.double() - expected).abs().max()) < 4 * limits.eps, size
        assert eta.dtype == dtype


@every_norm
def test_a_batch_of_a_hundred_is_attacked_like_one(norm):
    """A margin of 28 and an l2 ball of 1.5: each is broken on its own, and so are all of them together."""
    net = seeded(lambda: nn.Linear(20, 2))
    with torch.no_grad():
        net.weight.copy_(torch.stack([torch.ones(20, dtype=D), -torch.ones(20, dtype=D)]) * 5)
        net.bias.zero_()
    x = torch.full((100, 20), 28 / 200, dtype=D)
    y = torch.zeros(100, dtype=torch.int64)
    game = mfoc.Game.of(
        mfoc.from_module(nn.Sequential(net), F.cross_entropy), mfoc.Ball(1.5 if norm == "l2" else 0.3, norm)
    )
    assert (net(x)[:, 0] - net(x)[:, 1]).min() > 27
    for cloud in (mfoc.Particles(x[:1], y[:1]), mfoc.Particles(x, y)):
        assert not (net(answer(PGD(20, random_start=False), game, cloud)).argmax(1) == 0).any()


@pytest.mark.parametrize("case", [name for name in CATALOGUE if name not in (*INTERACTING, "pytrees")])
def test_a_costate_is_that_of_the_particle(case):
    problem, cloud = CATALOGUE[case]()
    game = mfoc.Game.of(problem, mfoc.Ball(0.1), stage=1)
    states, n = entering(game, game.controls, cloud), len(cloud)
    eta = 0.1 * torch.ones_like(game.target(states))
    whole = costate_at(game, game.controls, states, cloud.data, eta)
    disturbed = game.disturb(cloud, eta)
    p = mfoc.costates(game, game.controls, mfoc.rollout(game, game.controls, disturbed), disturbed)
    assert distance(whole, p[1]) < 1e-12
    for i in range(n):
        one = cloud[i : i + 1]
        alone = costate_at(game, game.controls, states[i : i + 1], one.data, eta[i : i + 1])
        assert distance(alone, whole[i : i + 1]) < 1e-12


# ---- solving


@every_norm
@every_adversary
def test_minimax_sees_a_doubled_cloud_as_the_cloud(inner, norm):
    doubled = mfoc.Particles(X.repeat(2, 1), Y.repeat(2), torch.arange(9).repeat(2))
    solver = mfoc.Minimax(inner, partial(torch.optim.SGD, lr=0.1, momentum=0.9), seed=2)
    once, twice = (mfoc.solve(game_of(norm), solver, cloud, steps=4) for cloud in (CLOUD, doubled))
    assert distance(once.controls, twice.controls) < 1e-10
    assert once.value == pytest.approx(twice.value, rel=1e-10)
    assert distance(once.controls, game_of(norm).controls) > 1e-2


@every_norm
@every_adversary
def test_minimax_scales_with_the_loss(inner, norm):
    """A power of two times a loss has as many times its gradients, which the learning rate undoes."""
    factor = 2.0**-40
    solutions = [
        mfoc.solve(game_of(norm, s), mfoc.Minimax(inner, partial(torch.optim.SGD, lr=0.1 / s)), CLOUD, steps=4)
        for s in (1.0, factor)
    ]
    assert distance(*[s.controls for s in solutions]) < 1e-10
    assert solutions[1].value == pytest.approx(factor * solutions[0].value, rel=1e-10)


# ---- slopes that are no numbers


SLOPES = {  # one particle's slope, and its direction in either norm
    "nan": ([torch.nan, 3.0, -4.0], [0, 1, -1], [0, 0.6, -0.8]),
    "all nan": ([torch.nan] * 3, [0, 0, 0], [0, 0, 0]),
    "inf": ([torch.inf, 3.0, -4.0], [1, 1, -1], [1, 0, 0]),
    "two inf": ([torch.inf, 3.0, -torch.inf], [1, 1, -1], [0.5**0.5, 0, -(0.5**0.5)]),
    "inf and nan": ([torch.nan, -torch.inf, 7.0], [0, -1, 1], [0, -1, 0]),
    "zero": ([0.0, 0.0, 0.0], [0, 0, 0], [0, 0, 0]),
    "tiny": ([0.0, 3e-310, -4e-310], [0, 1, -1], [0, 0.6, -0.8]),
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", [name for name in SLOPES if name != "tiny"])
@every_norm
def test_a_coordinate_without_a_slope_stays_and_an_infinite_one_leads(norm, case, dtype):
    slope, signs, direction = (torch.tensor([[*row, 0.0], [1.0, 0.0, 0.0, 0.0]], dtype=D) for row in SLOPES[case])
    ball, x = mfoc.Ball(0.5, norm), torch.zeros(2, 4, dtype=dtype)
    eta = ball.ascend(x, torch.zeros_like(x), slope.to(dtype), 0.25)
    expected = 0.25 * (signs if norm == "linf" else direction)
    assert distance(eta, expected) < 2 * torch.finfo(dtype).eps
    gap = ball.gap(x, torch.zeros_like(x), slope.to(dtype))
    finite = slope[0].nan_to_num(0, torch.inf, -torch.inf)
    size = finite.abs().sum() if norm == "linf" else finite.square().sum().sqrt()
    assert float(gap[0]) == pytest.approx(0.5 * float(size), rel=1e-2 if dtype == torch.float16 else 1e-6)
    assert float(ball.gap(x, (0.5 * (signs if norm == "linf" else direction)).to(dtype), slope.to(dtype))[0]) < 1e-2


@every_norm
def test_the_least_slopes_have_a_direction(norm):
    slope, signs, direction = (torch.tensor([row], dtype=D) for row in SLOPES["tiny"])
    eta = mfoc.Ball(0.5, norm).ascend(torch.zeros(1, 3, dtype=D), torch.zeros(1, 3, dtype=D), slope, 0.25)
    assert distance(eta, 0.25 * (signs if norm == "linf" else direction)) < 1e-9


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 1e300])
@every_norm
def test_a_projection_is_finite_and_in_the_ball(norm, bad):
    ball = mfoc.Ball(0.5, norm)
    eta = torch.tensor([[bad, 0.1, -0.2], [0.1, 0.2, 0.1], [bad, bad, bad]], dtype=D)
    found = ball.project(eta)
    assert found.isfinite().all()
    assert float(torch.linalg.vector_norm(found, torch.inf if norm == "linf" else 2, dim=1).max()) <= 0.5 * (1 + 1e-15)
    assert torch.equal(found[1], eta[1])


class Root(nn.Module):
    """Its slope is infinite at zero, and NaN (with its value) below."""

    def __init__(self, both):
        super().__init__()
        self.both = both
        self.weight = nn.Parameter(torch.ones((), dtype=D))

    def forward(self, x):
        root = x[:, 0].sqrt() * self.weight
        other = (0 * x[:, 1]).sqrt() if self.both else 0 * x[:, 1]  # its slope is 0 times infinity
        return 9 * torch.stack([root + other, 1 - root], 1)


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("bounds", [None, (0, 1)])
@every_norm
@every_adversary
def test_a_disturbance_is_finite_whatever_the_network_does(inner, norm, bounds, both):
    x = torch.rand(50, 2, generator=generator(1), dtype=D)
    x[:10, 0] = 0
    game = mfoc.Game.of(mfoc.from_module(nn.Sequential(Root(both)), F.cross_entropy), mfoc.Ball(0.1, norm, bounds))
    eta = inner.maximise(game, game.controls, mfoc.Particles(x, labels(50, 2)), generator(3))
    assert eta.isfinite().all()
    assert float(torch.linalg.vector_norm(eta, torch.inf if norm == "linf" else 2, dim=1).max()) <= 0.1 * (1 + 1e-14)
