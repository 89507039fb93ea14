"""Random starts: uniform, independent across particles, coordinates and keys, and functions of (key, particle)."""

import pytest
import torch
from scipy import stats

import mfoc
from mfoc.streams import drawn_key, normals, uniforms
from tests.problems import D, generator

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
MASK = 2**64 - 1


def key(seed=0):
    return drawn_key(generator(seed))


def splitmix(state):
    """Steele, Lea, Flood (2014), fig. 17, in Python's integers."""
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    return state ^ (state >> 31)


@pytest.mark.parametrize("seed", [0, 1, 2**40, 2**63 - 1])
def test_the_stream_of_a_particle_is_that_of_splitmix(seed):
    step, index = 0x9E3779B97F4A7C15, [0, 1, 5, 2**40, -3]
    found = uniforms(torch.tensor(seed), torch.tensor(index), 7, D)
    for row, i in zip(found.tolist(), index, strict=True):
        state = splitmix((splitmix(seed) + i * step) & MASK)
        words = [splitmix((state + k * step) & MASK) for k in range(1, 8)]
        assert row == [((word >> 12) + 0.5) / 2**52 for word in words]


@DTYPES
@pytest.mark.parametrize("seed", range(3))
def test_numbers_are_uniform_and_normal(seed, dtype):
    index = torch.arange(400)
    u, g = uniforms(key(seed), index, 251, dtype).double(), normals(key(seed), index, 251, dtype).double()
    assert 0 < float(u.min()) < 1e-4
    assert 1 - 1e-4 < float(u.max()) < 1
    assert stats.kstest(u.flatten().numpy(), "uniform").pvalue > 1e-3
    assert stats.kstest(g.flatten().numpy(), "norm").pvalue > 1e-3
    for sample, law in ((u, "uniform"), (g, "norm")):  # within a particle, and within a coordinate
        assert min(stats.kstest(row.numpy(), law).pvalue for row in [*sample[:40], *sample.T[:40]]) > 1e-5


def correlation(a, b):
    """In units of its deviation under independence."""
    pair = torch.stack([a.flatten(), b.flatten()])
    return float(torch.corrcoef(pair)[0, 1]) * a.numel() ** 0.5


@DTYPES
@pytest.mark.parametrize("law", [uniforms, normals])
def test_numbers_are_uncorrelated_across_particles_coordinates_and_keys(law, dtype):
    index = torch.arange(3000)
    one, other = (law(key(seed), index, 30, dtype).double() for seed in (0, 1))
    near = law(key(0) + 1, index, 30, dtype).double()
    pairs = {
        "keys": (one, other),
        "keys side by side": (one, near),
        "key against index": (one[1:], near[:-1]),
        "particles": (one[1:], one[:-1]),
        "far particles": (one[1024:], one[:-1024]),
        "coordinates": (one[:, 1:], one[:, :-1]),
        "halves": (one[:, 15:], one[:, :15]),
        "diagonal": (one[1:, 1:], one[:-1, :-1]),
        "squares": ((one - one.mean())[:, 15:].square(), (one - one.mean())[:, :15].square()),
    }
    for name, pair in pairs.items():
        assert abs(correlation(*pair)) < 4, name
    assert abs(correlation(uniforms(key(0), index, 30, dtype).double(), normals(key(0), index, 30, dtype).double())) < 4


@DTYPES
def test_all_numbers_of_a_large_population_differ(dtype):
    """No two particles share a stream, nor a part of one."""
    u = uniforms(key(), torch.arange(60_000), 4, torch.float64)
    assert len(u.unique()) == u.numel()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, D], ids=str)
@pytest.mark.parametrize("shape", [(3, 4, 5), (7,), ()])
def test_a_start_is_a_function_of_the_key_and_the_particle(norm, dtype, shape):
    ball, x = mfoc.Ball(0.3, norm), torch.zeros(60, *shape, dtype=dtype)
    whole = ball.sample(x, generator(1))
    assert (whole.dtype, whole.shape) == (dtype, x.shape)
    assert whole.isfinite().all()
    order = torch.randperm(60, generator=generator(2))
    assert torch.equal(ball.sample(x, generator(1), index=order), whole[order])
    for i in (0, 7, 59):
        assert torch.equal(ball.sample(x[:1], generator(1), index=torch.tensor([i]))[0], whole[i])
    assert not torch.equal(ball.sample(x, generator(1), index=torch.arange(60) + 1), whole)


def test_the_starts_of_a_ball_are_uniform():
    x = torch.zeros(4000, 3, dtype=D)
    cube = mfoc.Ball(0.3).sample(x, generator(1))
    assert stats.kstest((cube / 0.6 + 0.5).flatten().numpy(), "uniform").pvalue > 1e-3
    ball = mfoc.Ball(0.3, "l2").sample(x, generator(1))
    radius = ball.norm(dim=1, keepdim=True)
    assert stats.kstest((radius / 0.3).flatten().numpy(), "uniform").pvalue > 1e-3
    # A coordinate of a uniform direction in space is uniform itself (Archimedes).
    for k in range(3):
        assert stats.kstest(((ball / radius)[:, k] / 2 + 0.5).numpy(), "uniform").pvalue > 1e-3


def test_without_a_generator_torchs_own_is_drawn_from():
    ball, x = mfoc.Ball(0.3), torch.zeros(4, 3, dtype=D)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        first, second = ball.sample(x), ball.sample(x)
        torch.manual_seed(5)
        assert torch.equal(ball.sample(x), first)
    assert not torch.equal(first, second)
