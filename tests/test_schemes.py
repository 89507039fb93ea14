"""Every scheme shows its order; noise has its law."""

import math

import pytest
import torch

import mfoc
from tests.oracles.training import observed_order
from tests.problems import D

ORDERS = {"euler": 1, "heun": 2, "rk4": 4}


def trajectory(scheme, steps, tied):
    """dx/dt = a cos(t) x + b with running cost t x^2: (x(2), integral)."""
    a, b = 0.8, 0.5
    pair = {"a": torch.tensor(a, dtype=D), "b": torch.tensor(b, dtype=D)}
    problem = mfoc.continuous(
        lambda t, x, u, z: u["a"] * math.cos(t) * x + u["b"],
        lambda x, z: torch.zeros_like(x),
        pair if tied else [pair] * steps,
        running_cost=lambda t, x, u, z: t * x.square(),
        T=2.0,
        scheme=getattr(mfoc, scheme),
        horizon=steps if tied else None,
        schedule=mfoc.tied if tied else mfoc.per_stage,
    )
    x0 = torch.tensor([1.0, -0.4], dtype=D)
    found = mfoc.rollout(problem, problem.controls, mfoc.Particles(x0))
    return found.states[-1], found.cost


@pytest.fixture(scope="module")
def exact():
    return trajectory("rk4", 4000, tied=True)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "per stage"])
@pytest.mark.parametrize("scheme", ORDERS)
def test_order_of_state_and_cost(scheme, tied, exact):
    steps = [16, 32, 64, 128]
    found = [trajectory(scheme, n, tied) for n in steps]
    hs = [2 / n for n in steps]
    for part in (0, 1):
        errors = [float((f[part] - exact[part]).abs().max()) for f in found]
        assert observed_order(hs, errors) == pytest.approx(ORDERS[scheme], abs=0.15)


@pytest.mark.parametrize("scheme", ORDERS)
def test_controls_are_piecewise_constant(scheme):
    """dx/dt = u_t: every scheme is exact, step by step."""
    u = torch.arange(1.0, 5.0, dtype=D)
    problem = mfoc.continuous(
        lambda t, x, u, z: u.expand(len(x)),
        lambda x, z: x,
        list(u),
        running_cost=lambda t, x, u, z: u.expand(len(x)),
        T=2.0,
        scheme=getattr(mfoc, scheme),
    )
    found = mfoc.rollout(problem, problem.controls, mfoc.Particles(torch.zeros(1, dtype=D)))
    assert [float(x) for x in found.states] == pytest.approx([0, 0.5, 1.5, 3, 5])
    assert float(found.cost) == pytest.approx(10)


def test_dict_states_are_matched_by_key():
    """A drift may list its keys in another order than the state; integer leaves are carried."""
    problem = mfoc.continuous(
        lambda t, x, u, z: {"v": -x["q"] * u, "id": x["id"], "q": x["v"]},
        lambda x, z: x["q"],
        [torch.ones((), dtype=D)] * 400,
        T=math.pi / 2,
        scheme=mfoc.rk4,
    )
    state = {"q": torch.ones(1, dtype=D), "v": torch.zeros(1, dtype=D), "id": torch.tensor([7])}
    last = mfoc.rollout(problem, problem.controls, mfoc.Particles(state)).states[-1]
    assert last["q"].item() == pytest.approx(0, abs=1e-9)
    assert last["v"].item() == pytest.approx(-1, abs=1e-9)
    assert last["id"].item() == 7


def brownian_path(n, finest, seed):
    return mfoc.schemes.brownian(n, finest, 1, seed=seed, like=torch.zeros((), dtype=D))


def coarsened(noise, factor):
    n, steps, k = noise.shape
    return noise.view(n, steps // factor, factor, k).sum(2) / math.sqrt(factor)


def test_strong_order_on_geometric_brownian_motion():
    """dx = mu x dt + sigma x dW, x(1) = exp((mu - sigma^2 / 2) + sigma W(1)): order 1/2."""
    mu, sigma, finest = 0.5, 1.0, 512
    noise = brownian_path(2000, finest, seed=1)
    exact = torch.exp(mu - sigma**2 / 2 + sigma * noise.sum(1) / math.sqrt(finest))
    errors, hs = [], []
    for factor in (2, 4, 8, 16, 32):
        z = {"noise": coarsened(noise, factor)}
        steps = finest // factor
        problem = mfoc.continuous(
            lambda t, x, u, z: u * x,
            lambda x, z: x[:, 0],
            torch.tensor(mu, dtype=D),
            horizon=steps,
            schedule=mfoc.tied,
            scheme=mfoc.euler_maruyama(lambda t, x, u, z: sigma * x),
        )
        found = mfoc.rollout(problem, problem.controls, mfoc.Particles(torch.ones(2000, 1, dtype=D), z))
        errors.append(float((found.states[-1] - exact).abs().mean()))
        hs.append(1 / steps)
    assert observed_order(hs, errors) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("diffusion", ["number", "diagonal", "matrix"])
def test_ornstein_uhlenbeck_moments(diffusion):
    """dx = -theta x dt + sigma dW: mean x0 e^(-theta), variance sigma^2 (1 - e^(-2 theta)) / (2 theta)."""
    theta, sigma, n, steps = 1.5, 0.7, 40_000, 100
    matrix = torch.tensor([[0.6, 0.8], [0.8, -0.6]], dtype=D)  # orthogonal: the same law
    how = {
        "number": sigma,
        "diagonal": lambda t, x, u, z: torch.full_like(x, sigma),
        "matrix": lambda t, x, u, z: (sigma * matrix).expand(len(x), 2, 2),
    }[diffusion]
    problem = mfoc.continuous(
        lambda t, x, u, z: -u * x,
        lambda x, z: x[:, 0],
        torch.tensor(theta, dtype=D),
        horizon=steps,
        schedule=mfoc.tied,
        scheme=mfoc.euler_maruyama(how, noise=lambda z: z),
    )
    noise = mfoc.schemes.brownian(n, steps, 2, seed=2, like=torch.zeros((), dtype=D))
    x = mfoc.rollout(problem, problem.controls, mfoc.Particles(torch.full((n, 2), 2.0, dtype=D), noise)).states[-1]
    variance = sigma**2 * (1 - math.exp(-2 * theta)) / (2 * theta)
    assert x.mean().item() == pytest.approx(2 * math.exp(-theta), abs=0.015)
    assert x.var(0).mean().item() == pytest.approx(variance, rel=0.03)
    assert abs(torch.corrcoef(x.mT)[0, 1].item()) < 0.02


def test_brownian_is_seeded():
    assert torch.equal(mfoc.schemes.brownian(3, 4, 2, seed=1), mfoc.schemes.brownian(3, 4, 2, seed=1))
    assert not torch.equal(mfoc.schemes.brownian(3, 4, 2, seed=1), mfoc.schemes.brownian(3, 4, 2, seed=2))


def test_noisy_steps_are_never_batched():
    noisy = mfoc.continuous(
        lambda t, x, u, z: x, lambda x, z: x[:, 0], [torch.ones(())], scheme=mfoc.euler_maruyama(1.0), autonomous=True
    )
    assert noisy.kind is None


def test_noise_that_ends_too_soon_is_named():
    problem = mfoc.continuous(
        lambda t, x, u, z: u.expand_as(x), lambda x, z: x[:, 0], [torch.zeros(1)] * 3, diffusion=1.0
    )
    with pytest.raises(mfoc.InvalidValue, match=r"stage 2: dynamics: the noise has shape \(4, 2, 1\)"):
        mfoc.rollout(problem, problem, mfoc.Particles(torch.zeros(4, 1), {"noise": torch.zeros(4, 2, 1)}))


def test_a_diffusion_of_another_brownian_motion_is_refused():
    """One normal for two columns would be the same noise twice."""
    wide = mfoc.euler_maruyama(lambda t, x, u, z: torch.ones(len(x), 1, 2))
    with pytest.raises(mfoc.InvalidValue, match=r"\(3, 1, 2\) and each stage 1 normals; expected 2"):
        wide.increment(0, 0.0, torch.zeros(3, 1), (), {"noise": torch.zeros(3, 4, 1)}, 0.1)
