"""Every scheme shows its order; noise has its law."""

import logging
import math

import pytest
import torch
from torchdiffeq import odeint

import mfoc
from mfoc.tree import leaves
from tests.oracles.training import central_difference, gradient, observed_order
from tests.problems import D, distance, normal

ORDERS = {"euler": 1, "heun": 2, "rk4": 4, "rk38": 4}


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


# ---- against torchdiffeq


def neural_ode(scheme, stages=3, **more):
    """Piecewise-constant weights on [0, 1.5], a drift and a cost that know the time."""
    controls = [{"W": normal(3, 3, seed=t), "b": normal(3, seed=10 + t)} for t in range(stages)]
    problem = mfoc.continuous(
        lambda t, x, u, z: torch.tanh(x @ u["W"].mT + u["b"]) * (1 + t) - t * x,
        lambda x, z: x.square().sum(1),
        controls,
        T=1.5,
        scheme=scheme,
        running_cost=lambda t, x, u, z: t * x.square().sum(1) + 0.1 * u["W"].square().sum(),
        **more,
    )
    return problem, mfoc.Particles(normal(5, 3, seed=20))


def by_torchdiffeq(problem, cloud, controls, method, h=0.5, **options):
    """The cost of each particle: the running cost is a fourth component, the controls change between the calls."""

    def slope(t, y, u):
        x = y[:, :3]
        drift = torch.tanh(x @ u["W"].mT + u["b"]) * (1 + t) - t * x
        rate = t * x.square().sum(1) + 0.1 * u["W"].square().sum()
        return torch.cat([drift, rate[:, None]], 1)

    y = torch.cat([cloud.state, torch.zeros(len(cloud), 1, dtype=D)], 1)
    for k, u in enumerate(controls):
        times = torch.tensor([k * h, (k + 1) * h], dtype=D)
        y = odeint(lambda t, y, u=u: slope(t, y, u), y, times, method=method, **options)[-1]
    return y[:, 3] + problem.terminal_cost(y[:, :3], None)


PEERS = {
    "euler": (mfoc.euler, {"method": "euler"}),
    "rk38": (mfoc.rk38, {"method": "rk4"}),
    "dopri5": (mfoc.dopri5(1e-12, 1e-13), {"method": "dopri5", "rtol": 1e-12, "atol": 1e-13}),
}


@pytest.mark.parametrize("name", PEERS)
def test_costs_and_gradients_are_those_of_torchdiffeq(name):
    scheme, options = PEERS[name]
    problem, cloud = neural_ode(scheme)
    free = mfoc.tree.detached(problem.controls, requires_grad=True)
    cost = by_torchdiffeq(problem, cloud, free, **options)
    slopes = torch.autograd.grad(cost.mean(), leaves(free))
    assert distance(mfoc.rollout(problem, problem, cloud).cost, cost) < 1e-10
    assert distance(leaves(mfoc.evaluate(problem, problem, cloud).gradient), list(slopes)) < 1e-10


# ---- dopri5


def test_dopri5_is_of_order_five_in_the_length_of_a_step():
    """One step of each length, as a tolerance of everything accepts it, against exp."""
    wide = mfoc.dopri5(rtol=1e6, atol=1e6)
    hs = [0.8, 0.4, 0.2, 0.1]
    errors = []
    for h in hs:
        x = torch.ones(1, 1, dtype=D)
        for k in range(round(1.6 / h)):
            x = wide(lambda t, x, u, z: x * math.cos(t), k * h, x, None, None, h)
        errors.append(abs(float(x) - math.exp(math.sin(1.6))))
    assert observed_order(hs, errors) == pytest.approx(5, abs=0.3)


@pytest.mark.parametrize("rtol", [1e-4, 1e-8])
def test_dopri5_keeps_its_tolerance(rtol):
    """On a stiff-ish van der Pol oscillator the error follows the tolerance, with steps of very different lengths."""

    def drift(t, x, u, z):
        q, v = x["q"], x["v"]
        return {"v": 3 * (1 - q * q) * v - q, "q": v}

    state = {"q": torch.tensor([2.0, 0.5, -1.0], dtype=D), "v": torch.zeros(3, dtype=D)}
    found = mfoc.dopri5(rtol, rtol, max_steps=500)(drift, 0.0, state, None, None, 4.0)
    exact = mfoc.dopri5(1e-12, 1e-12, max_steps=5000)(drift, 0.0, state, None, None, 4.0)
    assert 1e-3 * rtol < distance(found, exact) < 1e2 * rtol  # neither missed, nor met with far too short steps


def test_dopri5_meets_the_tolerance_of_the_worst_particle():
    """A cloud of quiet particles does not hide one that moves: its error is as small as when it is alone."""
    rates = torch.tensor([[30.0], *[[0.1]] * 999], dtype=D)
    scheme = mfoc.dopri5(1e-8, 1e-10)
    crowd = scheme(lambda t, x, u, z: -z * x, 0.0, torch.ones(1000, 1, dtype=D), None, rates, 1.0)
    alone = scheme(lambda t, x, u, z: -z * x, 0.0, torch.ones(1, 1, dtype=D), None, rates[:1], 1.0)
    exact = torch.exp(-rates)
    assert float(crowd[0] - exact[0]) == pytest.approx(0, abs=1e-8)
    assert float(crowd[0] - alone[0]) == pytest.approx(0, abs=1e-12)  # it is the worst: it made the steps
    assert distance(crowd, exact) < 1e-8


def test_dopri5s_gradient_is_that_of_its_steps():
    """Pontryagin, autograd and finite differences agree; two derivatives go through for the certificate."""
    problem, cloud = neural_ode(mfoc.dopri5(1e-6, 1e-8), stages=2)
    mfoc.testing.check_problem(problem, cloud)
    slopes = mfoc.evaluate(problem, problem, cloud).gradient
    assert distance(slopes, gradient(problem, problem.controls, cloud)) < 1e-12

    def value(b):
        controls = [problem.controls[0] | {"b": b}, problem.controls[1]]
        return mfoc.rollout(problem, controls, cloud).cost.mean()

    assert distance(slopes[0]["b"], central_difference(value, problem.controls[0]["b"], 1e-2)) < 1e-3


def test_dopri5_problems_are_solved_and_certified():
    """x' = u with cost int u^2 dt + x(1)^2 has the minimum u = -E x(0) / 2, at which H curves by 2 h."""
    problem = mfoc.continuous(
        lambda t, x, u, z: u.expand_as(x),
        lambda x, z: x.square().sum(1),
        [torch.zeros(2, dtype=D)] * 2,
        running_cost=lambda t, x, u, z: u.square().sum().expand(len(x)),
        scheme=mfoc.dopri5(),
        autonomous=True,
    )
    cloud = mfoc.Particles(1 + normal(6, 2))
    solution = mfoc.solve(problem, mfoc.EMSA(), cloud, steps=30, tol=1e-6)
    for u in solution.controls:
        assert distance(u, -cloud.state.mean(0) / 2) < 1e-5
    certificate = mfoc.certify(problem, solution, cloud, lanczos=3, groups=3)
    assert [stage.curvature.value for stage in certificate.stages] == pytest.approx([1, 1], abs=1e-6)


def test_dopri5s_particles_share_their_steps_and_batches_must_say_so():
    problem, cloud = neural_ode(mfoc.dopri5(1e-3, 1e-3), stages=1)
    assert mfoc.interacting.coupling(problem, cloud)
    batches = mfoc.population(cloud, batch_size=2)
    solver = mfoc.Gradient(lambda leaves: torch.optim.SGD(leaves, lr=0.01))
    with pytest.raises(mfoc.InvalidValue, match='interacting="batch"'):
        mfoc.solve(problem, solver, batches, steps=1)
    problem, _ = neural_ode(mfoc.dopri5(1e-3, 1e-3), stages=1, interacting="batch")
    assert mfoc.solve(problem, solver, batches, steps=1).status is mfoc.Status.MAX_STEPS
    assert problem.kind is None


def test_a_tolerance_that_the_dtype_does_not_resolve_is_refused():
    """In bfloat16 short steps add to nothing: exp(-1) came out as 0.52."""
    drift = lambda t, x, u, z: -x  # noqa: E731
    x = torch.ones(1, 1, dtype=torch.bfloat16)
    with pytest.raises(mfoc.InvalidValue, match=r"rtol is 1e-06 and the state has dtype torch.bfloat16"):
        mfoc.dopri5()(drift, 0.0, x, None, None, 1.0)
    assert float(mfoc.dopri5(2e-2, 1e-2)(drift, 0.0, x, None, None, 1.0)) == pytest.approx(math.exp(-1), rel=0.1)


def test_dopri5_runs_in_single_precision():
    x = torch.ones(3, 1)
    found = mfoc.dopri5(1e-6, 1e-7)(lambda t, x, u, z: -x, 0.0, x, None, None, 1.0)
    assert found.dtype == torch.float32
    assert found.flatten().tolist() == pytest.approx([math.exp(-1)] * 3, rel=2e-6)


@pytest.mark.parametrize("why", ["explodes", "stiff"])
def test_where_dopri5_cannot_go_on_the_solve_ends_with_a_status(why, caplog):
    """x' = x^2 from 2 is infinite at time 1/2."""
    problem = mfoc.continuous(
        (lambda t, x, u, z: x * x + 0 * u) if why == "explodes" else (lambda t, x, u, z: -1e6 * (x - math.cos(t)) + u),
        lambda x, z: x[:, 0],
        [torch.zeros(1, dtype=D)],
        scheme=mfoc.dopri5(),
    )
    solver = mfoc.Gradient(lambda leaves: torch.optim.SGD(leaves, lr=0.01))
    with caplog.at_level(logging.WARNING, "mfoc"):
        solution = mfoc.solve(problem, solver, torch.full((2, 1), 2.0, dtype=D), steps=1)
    assert solution.status is mfoc.Status.NONFINITE
    assert "stage 0" in solution.message
    assert "dopri5 cannot meet rtol=1e-06" in caplog.text


def test_a_drift_of_another_shape_is_refused():
    problem = mfoc.continuous(lambda t, x, u, z: u.expand(1, 2, 2), lambda x, z: x[:, 0], [torch.zeros(1)])
    with pytest.raises(mfoc.InvalidValue, match=r"the drift has shape \(1, 2, 2\); expected the state's, \(2, 2\)"):
        mfoc.rollout(problem, problem, mfoc.Particles(torch.zeros(2, 2)))


@pytest.mark.parametrize("settings", [{"rtol": -1.0}, {"atol": 0.0}, {"max_steps": 0}], ids=lambda s: next(iter(s)))
def test_bad_tolerances_are_refused(settings):
    with pytest.raises(mfoc.InvalidValue, match=next(iter(settings))):
        mfoc.dopri5(**settings)


def test_the_class_in_the_place_of_a_scheme_is_refused():
    with pytest.raises(mfoc.InvalidType, match=r"expected one of .*dopri5\(rtol, atol\)"):
        mfoc.continuous(lambda t, x, u, z: x, lambda x, z: x[:, 0], [torch.zeros(1)], scheme=mfoc.dopri5)


def test_a_diffusion_of_another_brownian_motion_is_refused():
    """One normal for two columns would be the same noise twice."""
    wide = mfoc.euler_maruyama(lambda t, x, u, z: torch.ones(len(x), 1, 2))
    with pytest.raises(mfoc.InvalidValue, match=r"\(3, 1, 2\) and each stage 1 normals; expected 2"):
        wide.increment(0, 0.0, torch.zeros(3, 1), (), {"noise": torch.zeros(3, 4, 1)}, 0.1)
