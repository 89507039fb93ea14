"""mfoc.lq against references that share none of its code: scipy, dense QPs, moments, the N-particle problem."""

import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from scipy.linalg import expm, solve_continuous_are, solve_discrete_are

import mfoc
from mfoc.lq import LinearQuadratic
from mfoc.lq.paths import stagewise_course, stationary_course
from mfoc.particles import Particles
from mfoc.pontryagin import rollout

F64 = torch.float64


def matrices(seed=0, n=3, m=2, lead=(), full=True):
    """Random matrices of a mean-field problem; all terms when full, else those of an ordinary LQ problem."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*lead, *shape, generator=rng, dtype=F64)

    def weight(k):
        x = normal(k, k)
        return x @ x.mT / k

    spec = {"A": 0.6 * normal(n, n), "B": normal(n, m), "Q": weight(n), "R": weight(m) + torch.eye(m, dtype=F64)}
    spec |= {"QT": weight(n), "sigma": 0.5 * normal(n, 2)}
    if full:
        spec |= {"Abar": 0.3 * normal(n, n), "Bbar": 0.4 * normal(n, m), "Rbar": 0.3 * weight(m), "Qbar": weight(n)}
        spec |= {"QbarT": weight(n), "S": 0.7 * normal(n, n), "ST": 0.7 * normal(n, n)}
        spec |= {"cross": 0.1 * normal(n, m), "crossbar": 0.1 * normal(n, m)}
        spec["Q"] = spec["Q"] + 0.2 * torch.eye(n, dtype=F64)
    start = normal(n)
    return spec, start, weight(n)


def discrete(spec, horizon=6, **more):
    return LinearQuadratic.discrete(**spec, horizon=horizon, **more)


def continuous(spec, horizon=1.5, steps=40):
    return LinearQuadratic.continuous(**spec, horizon=horizon, steps=steps)


def term(spec, name):
    """The matrix, zero when absent, the identity for S and ST."""
    n, m = spec["B"].shape[-2:]
    if spec.get(name) is not None:
        return spec[name]
    shapes = {"S": (n, n), "ST": (n, n), "B": (n, m), "c": (n, m), "R": (m, m), "n": (n, n), "sigma": (n, 1)}
    zero = torch.zeros(shapes.get(name, shapes.get(name[0], (n, n))), dtype=spec["A"].dtype)
    return torch.eye(n, dtype=spec["A"].dtype) if name in ("S", "ST") else zero


def closed_loop_cost(spec, K, Kbar, m, V, push=None):
    """The cost of u = -K (x - m) - Kbar m + push_t in discrete time, from the mean and covariance of the state."""
    at = lambda name: term(spec, name)  # noqa: E731
    noise = spec["noise"] if spec.get("noise") is not None else at("sigma") @ at("sigma").mT
    rest, rest_T = (torch.eye(len(m), dtype=m.dtype) - at(name) for name in ("S", "ST"))
    total = torch.zeros((), dtype=m.dtype)
    for t in range(len(K)):
        v = -Kbar[t] @ m + (0 if push is None else push[t])
        spread = at("Q") + at("Qbar") + K[t].mT @ at("R") @ K[t] - 2 * at("cross") @ K[t]
        total = total + (spread * V).sum() + m @ at("Q") @ m + (rest @ m) @ at("Qbar") @ (rest @ m)
        total = total + v @ (at("R") + at("Rbar")) @ v + 2 * m @ (at("cross") + at("crossbar")) @ v
        closed = at("A") - at("B") @ K[t]
        m = (at("A") + at("Abar")) @ m + (at("B") + at("Bbar")) @ v
        V = closed @ V @ closed.mT + noise
    total = total + ((at("QT") + at("QbarT")) * V).sum() + m @ at("QT") @ m
    return total + (rest_T @ m) @ at("QbarT") @ (rest_T @ m) + len(K) * spec.get("offset", 0)


def close(left, right, tol=1e-10):
    torch.testing.assert_close(left, right, rtol=tol, atol=tol)


def effective(spec):
    """The pair of problems (A, B, Q, R) that P and Pi solve, as numpy arrays, without the cross terms."""
    at = lambda name: term(spec, name).numpy()  # noqa: E731
    rest = np.eye(len(at("A"))) - at("S")
    return (
        (at("A"), at("B"), at("Q") + at("Qbar"), at("R")),
        (at("A") + at("Abar"), at("B") + at("Bbar"), at("Q") + rest.T @ at("Qbar") @ rest, at("R") + at("Rbar")),
    ), (at("cross"), at("cross") + at("crossbar"))


# ---- the Riccati equations ----


@pytest.mark.parametrize("full", [False, True])
def test_long_horizon_reaches_the_discrete_algebraic_equation(full):
    spec, _, _ = matrices(1, full=full)
    solution = discrete(spec, 300).riccati()
    pairs, crosses = effective(spec)
    for series, pair, cross in zip((solution.P, solution.Pi), pairs, crosses, strict=True):
        close(series[0], torch.from_numpy(solve_discrete_are(*pair, s=cross)), 1e-9)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(("horizon", "steps"), [(200.0, 400), (1000.0, 3)])
def test_long_horizon_reaches_the_continuous_algebraic_equation(full, horizon, steps):
    spec, _, _ = matrices(2, full=full)
    solution = continuous(spec, horizon, steps).riccati()
    pairs, crosses = effective(spec)
    for series, pair, cross in zip((solution.P, solution.Pi), pairs, crosses, strict=True):
        close(series[0], torch.from_numpy(solve_continuous_are(*pair, s=cross)), 1e-9)


def test_continuous_riccati_and_gains_match_an_integrated_equation():
    spec, _, _ = matrices(3)
    solution = continuous(spec, 1.5, 5).riccati()
    pairs, crosses = effective(spec)
    at = lambda name: term(spec, name).numpy()  # noqa: E731
    rest = np.eye(3) - at("ST")
    ends = at("QT") + at("QbarT"), at("QT") + rest.T @ at("QbarT") @ rest
    found = (solution.P, solution.K), (solution.Pi, solution.Kbar)
    for (A, B, Q, R), N, end, (P, K) in zip(pairs, crosses, ends, found, strict=True):

        def slope(_, y, A=A, B=B, Q=Q, R=R, N=N):
            p = y.reshape(A.shape)
            gain = np.linalg.solve(R, B.T @ p + N.T)
            return (A.T @ p + p @ A + Q - gain.T @ R @ gain).ravel()

        grid = solve_ivp(slope, (0, 1.5), end.ravel(), rtol=1e-12, atol=1e-12, t_eval=np.linspace(0, 1.5, 6))
        series = grid.y.T.reshape(6, 3, 3)[::-1].copy()
        close(P, torch.from_numpy(series), 1e-9)
        close(K, torch.from_numpy(np.linalg.solve(R, B.T @ series + N.T)), 1e-9)


def test_continuous_solution_does_not_depend_on_the_grid():
    spec, m0, _ = matrices(4)
    coarse, fine = continuous(spec, 8.0, 2), continuous(spec, 8.0, 64)
    close(coarse.riccati().Pi, fine.riccati().Pi[::32], 1e-9)
    close(coarse.path(m0).states, fine.path(m0).states[::32], 1e-9)


def test_without_mean_field_terms_the_two_equations_are_the_standard_one():
    spec, m0, cov = matrices(5, full=False)
    zeros = {"Abar": torch.zeros(3, 3, dtype=F64), "Qbar": torch.zeros(3, 3, dtype=F64)}
    for make in (discrete, continuous):
        plain, zeroed = make(spec), make(spec | zeros)
        solution = zeroed.riccati()
        assert zeroed.mean_field
        assert not plain.mean_field
        close(solution.P, solution.Pi)
        close(solution.K, solution.Kbar)
        close(solution.P, plain.riccati().P)
        close(zeroed.value(m0, cov), plain.value(m0, cov))
        close(plain.finite_population_gap(cov, 7), torch.zeros((), dtype=F64))


def test_spread_weight_with_s_the_identity_leaves_the_mean_alone():
    spec, _, _ = matrices(6, full=False)
    Qbar = torch.eye(3, dtype=F64)
    found, plain = discrete(spec | {"Qbar": Qbar}).riccati(), discrete(spec).riccati()
    close(found.Pi, plain.Pi)
    close(found.P, discrete(spec | {"Q": spec["Q"] + Qbar}).riccati().P)
    close(found.P, discrete(spec | {"Qbar": Qbar, "S": Qbar}).riccati().P)


def test_one_step_by_hand():
    one = lambda x: torch.tensor([[x]], dtype=F64)  # noqa: E731
    lq = LinearQuadratic.discrete(
        one(1.0), one(1.0), one(1.0), one(2.0), one(3.0), horizon=1, Abar=one(1.0), sigma=one(0.5)
    )
    solution = lq.riccati()
    close(solution.K, one(3 / 5)[None])
    close(solution.Kbar, one(6 / 5)[None])
    close(solution.P[0], one(1 + 3 - 9 / 5))
    close(solution.Pi[0], one(1 + 12 - 36 / 5))
    mean, cov = torch.tensor([2.0], dtype=F64), one(0.25)
    close(lq.value(mean, cov), torch.tensor(4 * 5.8 + 0.25 * 2.2 + 3 * 0.25, dtype=F64))
    close(lq.finite_population_gap(cov, 10), torch.tensor(0.1 * 0.25 * (5.8 - 2.2), dtype=F64))


def test_unstable_system_stays_symmetric_over_a_long_horizon():
    spec, m0, _ = matrices(7, n=6, full=False)
    spec["A"] = 1.5 * torch.linalg.qr(spec["A"])[0]
    P = discrete(spec, 500).riccati().P
    assert float((P - P.mT).abs().max() / P.abs().max()) < 1e-13
    close(P[0], torch.from_numpy(solve_discrete_are(*(spec[k].numpy() for k in "ABQR"))), 1e-9)
    long = discrete(spec, 500)
    close(long.path(m0).cost, long.value(m0) - long.value(torch.zeros_like(m0)), 1e-9)


# ---- the value ----


@pytest.mark.parametrize("full", [False, True])
def test_value_and_open_loop_match_the_dense_quadratic_programme(full):
    spec, m0, _ = matrices(8, full=full)
    spec.pop("sigma")
    lq, zero = discrete(spec), torch.zeros(6, 2, 3, dtype=F64)
    flat = torch.zeros(3, 3, dtype=F64)

    def cost(u):
        return closed_loop_cost(spec, zero, zero, m0, flat, u.view(6, 2))

    origin = torch.zeros(12, dtype=F64)
    hessian, slope = torch.autograd.functional.hessian(cost, origin), torch.func.grad(cost)(origin)
    best = -torch.linalg.solve(hessian, slope)
    path = lq.path(m0)
    close(path.controls.flatten(), best)
    close(path.cost, cost(best))
    close(lq.value(m0), cost(best))
    close(lq.open_loop(m0), path.controls)
    feedback = torch.stack([lq.feedback(t, path.states[t]) for t in range(6)])
    close(feedback, path.controls)


def test_value_matches_the_moments_of_the_closed_loop():
    spec, m0, cov = matrices(9)
    lq = discrete(spec)
    close(lq.value(m0, cov), closed_loop_cost(spec, lq.riccati().K, lq.riccati().Kbar, m0, cov))
    none = torch.zeros(6, 2, 3, dtype=F64)
    close(lq.value(m0, cov, shared=True), closed_loop_cost(spec, none, none, m0, cov, lq.open_loop(m0)))
    assert lq.value(m0, cov) < lq.value(m0, cov, shared=True)


def test_value_matches_monte_carlo():
    spec, m0, cov = matrices(10)
    lq, count = discrete(spec), 100_000
    rng = torch.Generator().manual_seed(0)
    x = m0 + torch.randn(count, 3, generator=rng, dtype=F64) @ torch.linalg.cholesky(cov).mT
    mean, total = m0, 0.0
    for t in range(6):
        u, v = lq.feedback(t, x, mean), lq.feedback(t, mean)
        quad = lambda y, W: ((y @ W) * y).sum(-1)  # noqa: E731
        total = total + quad(x, spec["Q"]) + quad(x - spec["S"] @ mean, spec["Qbar"]) + quad(u, spec["R"])
        total = total + quad(v, spec["Rbar"]) + 2 * ((x @ spec["cross"]) * u).sum(-1)
        total = total + 2 * (mean @ spec["crossbar"]) @ v
        w = torch.randn(count, 2, generator=rng, dtype=F64)
        x = x @ spec["A"].mT + u @ spec["B"].mT + spec["Abar"] @ mean + spec["Bbar"] @ v + w @ spec["sigma"].mT
        mean = (spec["A"] + spec["Abar"]) @ mean + (spec["B"] + spec["Bbar"]) @ v
    total = total + quad(x, spec["QT"]) + quad(x - spec["ST"] @ mean, spec["QbarT"])
    error = total.std() / math.sqrt(count)
    assert abs(total.mean() - lq.value(m0, cov)) < 4 * error
    assert error < 0.01 * total.mean()


def test_continuous_value_matches_integrated_moments():
    spec, m0, cov = matrices(11)
    lq = continuous(spec, 1.0, 200)
    solution = lq.riccati()
    at = lambda name: term(spec, name)  # noqa: E731
    quadrature = torch.tensor([1.0, *([4.0, 2.0] * 99), 4.0, 1.0], dtype=F64) / 600  # Simpson
    noise = at("sigma") @ at("sigma").mT
    integral = (quadrature * (solution.P * noise).sum((-2, -1))).sum()
    expected = m0 @ solution.Pi[0] @ m0 + (solution.P[0] * cov).sum() + integral
    close(lq.value(m0, cov), expected, 1e-9)
    gap = ((solution.Pi - solution.P)[0] * cov).sum()
    gap = gap + (quadrature * ((solution.Pi - solution.P) * noise).sum((-2, -1))).sum()
    close(lq.finite_population_gap(cov, 5), gap / 5, 1e-8)


def test_noise_quadrature_is_of_order_six():
    spec, m0, cov = matrices(12)
    exact = continuous(spec, 1.0, 400).value(m0, cov)
    errors = [abs(float(continuous(spec, 1.0, steps).value(m0, cov) - exact)) for steps in (8, 16, 32)]
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert min(orders) > 5.5, orders


# ---- N particles ----


def big_system(spec, N):
    """The N-particle problem as one ordinary LQ problem of dimension N n, in total (not mean) cost."""
    eye, ones = torch.eye(N, dtype=F64), torch.ones(N, N, dtype=F64) / N
    at = lambda name: term(spec, name)  # noqa: E731

    def lift(S):
        return torch.kron(eye, torch.eye(len(S), dtype=F64)) - torch.kron(ones, S)

    def weight(Q, Qbar, S):
        return torch.kron(eye, Q) + lift(S).mT @ torch.kron(eye, Qbar) @ lift(S)

    both = lambda x, y: torch.kron(eye, x) + torch.kron(ones, y)  # noqa: E731
    return {
        "A": both(at("A"), at("Abar")),
        "B": both(at("B"), at("Bbar")),
        "Q": weight(at("Q"), at("Qbar"), at("S")),
        "R": both(at("R"), at("Rbar")),
        "QT": weight(at("QT"), at("QbarT"), at("ST")),
        "cross": both(at("cross"), at("crossbar")),
        "sigma": torch.kron(eye, at("sigma")),
    }


@pytest.mark.parametrize("N", [1, 2, 5])
def test_finite_population_law_is_exact(N):
    spec, m0, cov = matrices(13)
    lq, big = discrete(spec), big_system(spec, N)
    solution, eye, ones = lq.riccati(), torch.eye(N, dtype=F64), torch.ones(N, N, dtype=F64) / N
    K = torch.stack([torch.kron(eye - ones, k) + torch.kron(ones, kbar) for k, kbar in zip(*solution[2:], strict=True)])
    start, spread = m0.repeat(N), torch.kron(eye, cov)
    J_N = closed_loop_cost(big, K, K, start, spread) / N
    close(J_N - lq.value(m0, cov), lq.finite_population_gap(cov, N))
    close(J_N, lq.value(m0, cov, particles=N))
    # The feedback is optimal for the N particles: an ordinary LQ solver finds no better one.
    close(discrete(big).value(start, spread) / N, J_N)
    none, push = torch.zeros_like(K), lq.open_loop(m0).repeat(1, N)
    close(closed_loop_cost(big, none, none, start, spread, push) / N, lq.value(m0, cov, particles=N, shared=True))


def test_continuous_finite_population_law_is_exact():
    spec, m0, cov = matrices(14)
    lq, big = continuous(spec, 1.0, 100), continuous(big_system(spec, 3), 1.0, 100)
    close(big.value(m0.repeat(3), torch.kron(torch.eye(3, dtype=F64), cov)) / 3, lq.value(m0, cov, particles=3), 1e-9)


def test_sampled_finite_population_law_is_exact():
    spec, m0, cov = matrices(15)
    lq, big = continuous(spec, 1.0, 4).discretise(), continuous(big_system(spec, 3), 1.0, 4).discretise()
    close(big.value(m0.repeat(3), torch.kron(torch.eye(3, dtype=F64), cov)) / 3, lq.value(m0, cov, particles=3), 1e-9)


def test_simulated_gap_falls_as_one_over_n():
    spec, m0, cov = matrices(16)
    lq, rng = discrete(spec, 4), torch.Generator().manual_seed(1)
    problem, solution = lq.problem(feedback=True), lq.riccati()
    gains = [{"K": K, "Kbar": Kbar} for K, Kbar in zip(solution.K, solution.Kbar, strict=True)]
    limit, root = float(lq.value(m0, cov)), torch.linalg.cholesky(cov)
    for N, clouds in ((2, 3000), (8, 2000)):
        x = m0 + torch.randn(clouds, N, 3, generator=rng, dtype=F64) @ root.mT
        z = torch.randn(clouds, N, 4, 2, generator=rng, dtype=F64)
        costs = torch.func.vmap(lambda x, z: rollout(problem, gains, Particles(x, z)).cost.mean())(x, z)
        error = float(costs.std()) / math.sqrt(clouds)
        gap = float(lq.finite_population_gap(cov, N))
        assert abs(float(costs.mean()) - limit - gap) < 4 * error
        if N == 2:
            assert abs(gap) > 4 * error  # the simulation would notice if the gap were forgotten


# ---- sampling ----


@pytest.mark.parametrize("shared", [True, False])
def test_discretised_value_converges_from_above(shared):
    spec, m0, cov = matrices(17)
    lq, noiseless = continuous(spec), continuous({k: v for k, v in spec.items() if k != "sigma"})
    for problem, order in ((noiseless, 2), (lq, 2 if shared else 1)):
        exact = problem.value(m0, cov, shared=shared)
        errors = [float(problem.discretise(steps).value(m0, cov, shared=shared) - exact) for steps in (64, 128, 256)]
        assert min(errors) > 0
        orders = [math.log2(a / b) for a, b in pairwise(errors)]
        assert all(abs(found - order) < 0.1 for found in orders), orders


def held_moments(pair, cross, gain, h, noise, second):
    """Cost and moments over one step with u = -gain x held, by integrating the moments of (x, u)."""
    A, B, Q, R = pair
    n, k = B.shape
    drift = np.block([[A, B], [np.zeros((k, n + k))]])
    weight = np.block([[Q, cross], [cross.T, R]])
    diffusion = np.zeros_like(drift)
    diffusion[:n, :n] = noise
    lift = np.vstack([np.eye(n), -gain])
    second = lift @ second @ lift.T

    def slope(_, y):
        M = y[1:].reshape(n + k, n + k)
        return np.concatenate([[np.sum(weight * M)], (drift @ M + M @ drift.T + diffusion).ravel()])

    end = solve_ivp(slope, (0, h), np.concatenate([[0.0], second.ravel()]), rtol=1e-12, atol=1e-13).y[:, -1]
    return end[0], end[1:].reshape(n + k, n + k)[:n, :n]


@pytest.mark.parametrize("mode", [0, 1])
def test_zero_order_hold_is_exact(mode):
    """Second moments of one mode under held feedback, by integration, against the sampled problem's matrices."""
    spec, m0, cov = matrices(18)
    sampled = continuous(spec, 1.2, 3).discretise()
    rng = np.random.default_rng(0)
    gain = rng.normal(size=(2, 3))
    pairs, crosses = effective(spec)
    noise = (spec["sigma"] @ spec["sigma"].mT).numpy()
    M = np.outer(m0, m0) + cov.numpy()
    cost, second = held_moments(pairs[mode], crosses[mode], gain, 0.4, noise, M)
    fields = {name: getattr(sampled, name) for name in ("A", "B", "Q", "R", "Abar", "Bbar", "Qbar", "Rbar")}
    (A, B, Q, R) = effective(fields)[0][mode]
    N = (sampled.cross + mode * sampled.crossbar).numpy()
    W = (sampled.noise + mode * sampled.noisebar).numpy()
    offset = float(sampled.offset + mode * sampled.offsetbar)
    expected = np.sum((Q + gain.T @ R @ gain - 2 * N @ gain) * M) + offset
    closed = A - B @ gain
    np.testing.assert_allclose(expected, cost, rtol=1e-9)
    np.testing.assert_allclose(closed @ M @ closed.T + W, second, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(A, expm(0.4 * pairs[mode][0]), rtol=1e-11, atol=1e-12)


def test_sampling_a_long_step_loses_no_digits():
    spec, _, _ = matrices(19, full=False)
    spec["A"] = spec["A"] - 3 * torch.eye(3, dtype=F64)  # stable: the weights over a long step reach a limit
    once, pieces = continuous(spec, 40.0, 1).discretise(), continuous(spec, 40.0, 64).discretise()
    Q, A = torch.zeros(3, 3, dtype=F64), torch.eye(3, dtype=F64)
    for _ in range(64):
        Q, A = Q + A.mT @ pieces.Q @ A, pieces.A @ A
    close(once.Q, Q)
    close(once.A, A)
    noise = torch.zeros(3, 3, dtype=F64)
    for _ in range(64):
        noise = pieces.A @ noise @ pieces.A.mT + pieces.noise
    close(once.noise, noise)


def test_shared_control_costs_the_same_in_both_clocks():
    """With no control worth taking, sampling changes nothing at all: noise within steps is accounted for."""
    spec, m0, cov = matrices(20)
    spec |= {"B": torch.zeros(3, 2, dtype=F64), "Bbar": None, "cross": None, "crossbar": None}
    lq = continuous(spec, 1.0, 200)
    close(lq.discretise(3).value(m0, cov), lq.value(m0, cov))
    close(lq.discretise(3).finite_population_gap(cov, 4), lq.finite_population_gap(cov, 4))


# ---- optimality, gradients, batching ----


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), size=st.floats(1e-3, 3.0))
def test_no_other_control_costs_less(seed, size):
    spec, m0, cov = matrices(seed)
    lq, rng = discrete(spec, 4), torch.Generator().manual_seed(seed)
    value, solution = lq.value(m0, cov), lq.riccati()

    def shake(x):
        return x + size * torch.randn(x.shape, generator=rng, dtype=F64)

    slack = 1e-12 * value
    push = size * torch.randn(4, 2, generator=rng, dtype=F64)
    assert closed_loop_cost(spec, shake(solution.K), shake(solution.Kbar), m0, cov) >= value - slack
    assert closed_loop_cost(spec, solution.K, solution.Kbar, m0, cov, push) >= value - slack
    none = torch.zeros_like(solution.K)
    shared = closed_loop_cost(spec, none, none, m0, cov, shake(lq.open_loop(m0)))
    assert shared >= lq.value(m0, cov, shared=True) - slack >= value - 2 * slack


@pytest.mark.parametrize("make", [lambda s: discrete(s, 3), lambda s: continuous(s, 0.7, 3)])
def test_value_is_differentiable(make):
    spec, m0, cov = matrices(21, n=2, m=1)
    names = [name for name in spec if name not in ("Q", "R", "QT", "Qbar", "Rbar", "QbarT")]
    roots = {name: torch.linalg.cholesky(spec[name]) for name in ("Q", "R", "Qbar", "QbarT")}

    def value(mean, *tensors):
        given = dict(zip([*names, *roots], tensors, strict=True))
        weights = {name: given[name] @ given[name].mT for name in roots}
        lq = make(spec | given | weights)
        return lq.value(mean, cov, particles=3), lq.value(mean, cov, shared=True), lq.open_loop(mean)

    inputs = [x.clone().requires_grad_() for x in (m0, *(spec[name] for name in names), *roots.values())]
    assert torch.autograd.gradcheck(value, inputs, atol=1e-6, fast_mode=True)


def test_sampling_is_differentiable():
    spec, m0, cov = matrices(22, n=2, m=1)

    def value(A, sigma, Abar):
        lq = continuous(spec | {"A": A, "sigma": sigma, "Abar": Abar}, 2.0, 2).discretise()
        return lq.value(m0, cov, particles=3)

    inputs = [spec[name].clone().requires_grad_() for name in ("A", "sigma", "Abar")]
    assert torch.autograd.gradcheck(value, inputs, atol=1e-6, fast_mode=True)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(
    "make", [discrete, partial(continuous, steps=5), lambda s: continuous(s, steps=5).discretise()]
)
def test_a_batch_equals_a_loop(make, full):
    spec, m0, cov = matrices(23, lead=(2, 3), full=full)
    spec["A"], spec["sigma"] = spec["A"][:, :1], spec["sigma"][0, 0]  # leading axes that only broadcast
    lq = make(spec)
    assert lq.batch == (2, 3)
    batched = (*lq.riccati(), *lq.path(m0), lq.value(m0, cov), lq.value(m0, cov, shared=True, particles=4))
    batched += (lq.feedback(1, m0, 2 * m0), lq.finite_population_gap(cov, 3))
    for i in range(2):
        for j in range(3):
            single = {k: v if k == "sigma" else v[i, 0 if k == "A" else j] for k, v in spec.items() if v is not None}
            one, m, c = make(single), m0[i, j], cov[i, j]
            alone = (*one.riccati(), *one.path(m), one.value(m, c), one.value(m, c, shared=True, particles=4))
            alone += (one.feedback(1, m, 2 * m), one.finite_population_gap(c, 3))
            for left, right in zip(batched, alone, strict=True):
                close(left[i, j], right, 1e-9)


def test_many_starts_of_one_problem():
    spec, _, cov = matrices(24)
    starts = torch.randn(5, 4, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    for lq in (discrete(spec), continuous(spec)):
        path = lq.path(starts)
        assert path.states.shape == (5, 4, lq.steps + 1, 3)
        close(path.controls[2, 1], lq.open_loop(starts[2, 1]))
        close(lq.value(starts, cov)[2, 1], lq.value(starts[2, 1], cov))


@pytest.mark.parametrize("horizon", [*range(1, 10), 50, 127])
@pytest.mark.parametrize("step", [None, 0.1])
def test_path_by_doubling_is_the_path_stage_by_stage(horizon, step):
    spec, _, _ = matrices(35)
    lq = discrete(spec, horizon) if step is None else continuous(spec, horizon * step, horizon)
    starts = torch.randn(1, 4, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    parts = lq._modes()[1], starts, horizon, step
    quick, slow = stationary_course(*parts), stagewise_course(*parts)
    assert quick is not None
    for left, right in zip(quick, slow, strict=True):
        close(left, right)
    assert quick.controls.shape == (1, horizon + (step is not None), 4, 2)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    horizon=st.integers(2, 70),
    sizes=st.tuples(st.floats(-12, 6), st.floats(-6, 9), st.floats(-3, 1)),
)
@example(200, 3, (-2.0, 7.0, 0.3))  # a weight at the horizon that the last joint does not feel
@example(918, 11, (-3.0, 9.0, 0.0))
def test_path_keeps_its_digits_in_any_units(seed, horizon, sizes):
    spec, m0, _ = matrices(seed, full=False)
    spec.pop("sigma")
    spec |= {name: 10**size * spec[name] for name, size in zip(("R", "QT", "A"), sizes, strict=True)}
    lq = discrete(spec, horizon)
    path = lq.path(m0)
    exact = stagewise_course(lq._modes()[1], m0[None, None], horizon, None)
    for found, wanted in ((path.states, exact.states), (path.controls, exact.controls)):
        assert (found - wanted[0, :, 0]).norm() < 1e-9 * wanted.norm()
    close(path.cost, lq.value(m0), 1e-9)


def test_doubling_declines_what_would_cost_digits():
    spec, m0, _ = matrices(36, full=False)
    cheap = discrete(spec | {"R": 1e-9 * spec["R"]}, 40)
    assert stationary_course(cheap._modes()[1], m0[None, None], 40, None) is None
    close(cheap.open_loop(m0)[0], -cheap.riccati().K[0] @ m0, 1e-12)


def test_cheap_and_dear_control_in_continuous_time():
    spec, _, _ = matrices(50, full=False)
    for size, tol in ((1e4, 1e-9), (1e-4, 1e-10), (1e-6, 1e-10), (1e-8, 5e-9)):
        P = continuous(spec | {"R": size * spec["R"]}, 60.0, 30).riccati().P[0].numpy()
        exact = solve_continuous_are(*(spec[k].numpy() for k in "ABQ"), size * spec["R"].numpy())
        assert np.linalg.norm(P - exact) < tol * np.linalg.norm(exact)


def test_time_varying_matrices():
    spec, m0, cov = matrices(25)
    constant = discrete(spec)
    timed = {k: v if k in ("QT", "QbarT", "ST") else v.expand(6, *v.shape) for k, v in spec.items()}
    timed["B"] = timed["B"][:1]
    close(constant.value(m0, cov, particles=3), discrete(timed, varying=True).value(m0, cov, particles=3))
    close(constant.open_loop(m0), discrete(timed, varying=True).open_loop(m0))
    # Two halves with different matrices: the second half's P_0 is the terminal weight of the first.
    other, _, _ = matrices(26, full=False)
    spec, _, _ = matrices(27, full=False)
    joined = {k: torch.stack([spec[k]] * 2 + [other[k]] * 3) for k in ("A", "B", "Q", "R", "sigma")}
    whole = discrete(joined | {"QT": other["QT"]}, 5, varying=True)
    tail = discrete(other, 3)
    head = discrete(spec | {"QT": tail.riccati().P[0]}, 2)
    close(whole.riccati().P[:3], head.riccati().P)
    noise = torch.zeros(3, dtype=F64)
    close(whole.value(m0, cov), head.value(m0, cov) + tail.value(noise))


def test_dtype_is_kept_and_inputs_are_left_alone():
    spec, m0, cov = matrices(28)
    before = {k: v.clone() for k, v in spec.items()}
    single = {k: v.float() for k, v in spec.items()}
    for make in (discrete, continuous, lambda s: continuous(s).discretise()):
        exact, rough = make(spec), make(single)
        value = rough.value(m0.float(), cov.float(), particles=5)
        assert value.dtype == torch.float32
        close(value.double(), exact.value(m0, cov, particles=5), 1e-4)
        assert all(x.dtype == torch.float32 for x in (*rough.riccati(), *rough.path(m0.float())))
        close(rough.open_loop(m0.float()).double(), exact.open_loop(m0), 1e-4)
    assert all(torch.equal(before[k], spec[k]) for k in spec)


def test_feedback_keeps_no_graph():
    spec, m0, _ = matrices(29)
    A = spec["A"].clone().requires_grad_()
    lq = discrete(spec | {"A": A})
    for _ in range(2):  # a graph kept from the first call would be freed by its backward
        lq.feedback(0, m0).sum().backward()
    fixed = discrete(spec)
    with torch.inference_mode():
        fixed.feedback(0, m0)
    x = m0.clone().requires_grad_()
    fixed.feedback(0, x).sum().backward()
    close(x.grad, -fixed.riccati().Kbar[0].sum(0))


# ---- the bridge to the solvers ----


@pytest.mark.parametrize("feedback", [False, True])
@pytest.mark.parametrize("full", [False, True])
def test_problem_has_the_riccati_optimum(feedback, full):
    spec, _, _ = matrices(30, full=full)
    spec.pop("sigma")
    lq, x = discrete(spec), torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    problem = lq.problem(feedback=feedback)
    mean, cov = x.mean(0), torch.cov(x.mT, correction=0)
    solution = lq.riccati()
    best = (
        [{"K": K, "Kbar": Kbar} for K, Kbar in zip(solution.K, solution.Kbar, strict=True)]
        if feedback
        else list(lq.open_loop(mean))
    )
    problem.validate(Particles(x))
    # Without noise the cloud is a population of its own: its cost is the value, and its gradient vanishes.
    close(rollout(problem, best, Particles(x)).cost.mean(), lq.value(mean, cov, shared=not feedback))
    at = mfoc.evaluate(problem, best, Particles(x))
    flat = [leaf for u in at.gradient for leaf in (u.values() if feedback else [u])]
    assert max(float(leaf.abs().max()) for leaf in flat) < 1e-10
    start = mfoc.evaluate(problem, problem.controls, Particles(x))
    assert start.value > at.value
    assert problem.kind is not None


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("feedback", [False, True])
def test_problem_with_noise_has_the_value_exactly(sampled, feedback):
    """The cost is quadratic in start and noise, so that its Gaussian expectation follows from its second derivative."""
    spec, m0, cov = matrices(31)
    lq = continuous(spec, 1.0, 3).discretise() if sampled else discrete(spec, 3)
    problem, N, k, root = lq.problem(feedback=feedback), 3, 3 if sampled else 2, torch.linalg.cholesky(cov)
    solution = lq.riccati()
    gains = [{"K": K, "Kbar": Kbar} for K, Kbar in zip(solution.K, solution.Kbar, strict=True)]
    controls = gains if feedback else list(lq.open_loop(m0))

    def cost(normal):
        start, noise = normal[: 3 * N].view(N, 3), normal[3 * N :].view(N, 3, k)
        return rollout(problem, controls, Particles(m0 + start @ root.mT, noise)).cost.mean()

    origin = torch.zeros(3 * N + 3 * N * k, dtype=F64)
    expected = cost(origin) + torch.autograd.functional.hessian(cost, origin).trace() / 2
    close(expected, lq.value(m0, cov, particles=N, shared=not feedback))
    assert problem.kind is None
    with pytest.raises(ValueError, match=r"data is NoneType; expected normal variables of shape \(N, 3"):
        rollout(problem, controls, Particles(m0.expand(N, 3)))


def test_problem_follows_matrices_in_time():
    spec, other = matrices(33, full=True)[0], matrices(34, full=True)[0]
    fixed = ("QT", "QbarT", "ST")
    timed = {k: v if k in fixed else torch.stack([v, other[k], v + other[k]]) for k, v in spec.items()}
    timed["B"] = timed["B"][:1]
    timed.pop("sigma")
    lq, x = discrete(timed, 3, varying=True), torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    cost = rollout(lq.problem(), list(lq.open_loop(x.mean(0))), Particles(x)).cost.mean()
    close(cost, lq.value(x.mean(0), torch.cov(x.mT, correction=0), shared=True))
    assert lq.problem().kind is None


@pytest.mark.parametrize("feedback", [False, True])
def test_gradient_solver_finds_the_riccati_solution(feedback):
    spec, _, _ = matrices(32, n=2, m=1)
    spec.pop("sigma")
    lq, x = discrete(spec, 3), torch.randn(9, 2, generator=torch.Generator().manual_seed(3), dtype=F64)
    lbfgs = partial(torch.optim.LBFGS, max_iter=60, tolerance_grad=1e-12, tolerance_change=0, history_size=20)
    found = mfoc.solve(lq.problem(feedback=feedback), mfoc.Gradient(lbfgs), x, steps=5).controls
    cost = rollout(lq.problem(feedback=feedback), found, Particles(x)).cost.mean()
    close(cost, lq.value(x.mean(0), torch.cov(x.mT, correction=0), shared=not feedback))
    if feedback:
        close(torch.stack([u["K"] for u in found]), lq.riccati().K, 1e-6)
    else:
        close(torch.stack(found), lq.open_loop(x.mean(0)), 1e-6)


# ---- at the door ----

EYE, ONE = torch.eye(3, dtype=F64), torch.ones(3, 1, dtype=F64)


def make(**changes):
    given = {"A": EYE, "B": ONE, "Q": EYE, "R": EYE[:1, :1], "horizon": 4} | changes
    return LinearQuadratic.discrete(**given)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"A": [[1.0]]}, TypeError, "A is a list; expected a tensor"),
        ({"Q": None}, TypeError, "Q is a NoneType; expected a tensor"),
        ({"A": torch.eye(3, dtype=torch.int64)}, TypeError, "A has dtype torch.int64; expected a floating-point"),
        ({"A": ONE}, ValueError, r"A has shape \(3, 1\); expected \(..., 1, 1\)"),
        ({"A": torch.tensor(1.0, dtype=F64)}, ValueError, r"A has shape \(\); expected"),
        ({"B": torch.ones(2, 1, dtype=F64)}, ValueError, r"B has shape \(2, 1\); expected \(..., 3, 1\)"),
        ({"R": EYE}, ValueError, r"R has shape \(3, 3\); expected \(..., 1, 1\)"),
        ({"sigma": torch.ones(2, 5, dtype=F64)}, ValueError, r"sigma has shape \(2, 5\); expected \(..., 3, k\)"),
        ({"Abar": EYE.float()}, ValueError, "Abar is torch.float32 on cpu; expected torch.float64 on cpu"),
        ({"Q": EYE * math.nan}, ValueError, "Q holds NaN or infinite values"),
        ({"Q": EYE + torch.ones(3, 3, dtype=F64).triu(1)}, ValueError, "Q is not symmetric"),
        ({"QT": torch.ones(3, 3, dtype=F64).triu()}, ValueError, "QT is not symmetric"),
        ({"R": -EYE[:1, :1]}, ValueError, "R is not positive definite"),
        ({"Rbar": -EYE[:1, :1]}, ValueError, r"R \+ Rbar is not positive definite"),
        ({"Q": -EYE}, ValueError, "Q is not positive semi-definite"),
        ({"Qbar": -2 * EYE}, ValueError, r"Q \+ Qbar is not positive semi-definite"),
        ({"QT": -EYE}, ValueError, "QT is not positive semi-definite"),
        ({"cross": 9 * ONE}, ValueError, r"weight \[\[Q, cross\], \[cross', R\]\] is not positive"),
        ({"Q": EYE.expand(2, 3, 3), "B": ONE.expand(5, 3, 1)}, ValueError, r"Q has leading axes \(2,\)"),
        ({"Q": EYE.expand(0, 3, 3)}, ValueError, r"Q is empty, of shape \(0, 3, 3\)"),
        ({"horizon": 0}, ValueError, "horizon is 0; expected a positive integer"),
        ({"horizon": 2.0}, TypeError, "horizon is a float; expected a positive integer"),
        ({"S": EYE}, ValueError, "S is given without Qbar"),
        ({"sigma": ONE, "noise": EYE}, ValueError, "sigma and noise are both given"),
        ({"varying": True}, ValueError, r"A has shape \(3, 3\); expected \(..., 4, 3, 3\)"),
    ],
)
def test_bad_matrices_are_named(changes, error, message):
    with pytest.raises(error, match=message) as caught:
        make(**changes)
    assert isinstance(caught.value, mfoc.MfocError)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda lq: lq.value(EYE[0, :2]), ValueError, r"mean0 has shape \(2,\); expected \(..., 3\)"),
        (lambda lq: lq.value([1.0]), TypeError, "mean0 is a list"),
        (lambda lq: lq.value(EYE[0].float()), ValueError, "mean0 is torch.float32"),
        (lambda lq: lq.value(EYE[0], ONE), ValueError, r"cov0 has shape \(3, 1\); expected \(..., 3, 3\)"),
        (lambda lq: lq.value(EYE[0], particles=0), ValueError, "particles is 0"),
        (lambda lq: lq.finite_population_gap(EYE, 2.5), TypeError, "N is a float"),
        (lambda lq: lq.feedback(4, EYE[0]), ValueError, "t is 4; expected a stage from 0 to 3"),
        (lambda lq: lq.feedback(0, EYE[0], EYE[0, :1]), ValueError, "m has shape"),
        (lambda lq: lq.path(ONE), ValueError, "m0 has shape"),
        (lambda lq: lq.discretise(), ValueError, "the problem is discrete"),
    ],
)
def test_bad_calls_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call(make())


def test_bad_horizons_and_bridges_are_named():
    parts = (EYE, ONE, EYE, EYE[:1, :1])
    for horizon, error in ((0.0, ValueError), (math.inf, ValueError), ("1", TypeError), (True, TypeError)):
        with pytest.raises(error, match="horizon is"):
            LinearQuadratic.continuous(*parts, horizon=horizon, steps=3)
    with pytest.raises(ValueError, match="steps is 0"):
        LinearQuadratic.continuous(*parts, horizon=1.0, steps=0)
    lq = LinearQuadratic.continuous(*parts, horizon=1, steps=3)
    with pytest.raises(ValueError, match=r"discretise\(steps\).problem\(\)"):
        lq.problem()
    with pytest.raises(ValueError, match="leading axes"):
        make(A=EYE.expand(2, 3, 3)).problem()
    with pytest.raises(ValueError, match="varying is True in continuous time"):
        LinearQuadratic.continuous(*parts, horizon=1.0, steps=3, varying=True)
