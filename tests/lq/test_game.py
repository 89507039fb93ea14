"""The equilibrium of LQ games, against integrators of scipy and against the control problem where the two agree."""

import numpy as np
import pytest
import torch
from scipy.integrate import quad, solve_ivp

import mfoc
from mfoc.lq import LinearQuadratic, equilibrium
from tests.oracles.linear_quadratic import term
from tests.problems import D, continuous_lq, discrete_lq, error, lq_matrices

ONE = torch.ones(1, dtype=D)


def scalar(**numbers):
    return {name: torch.tensor([[number]], dtype=D) for name, number in numbers.items()}


def test_the_scalar_equation_by_scipy():
    a, abar, b, q, qbar, s, r, qT, qbarT, sT = 0.3, 0.4, 1.2, 1.0, 0.7, 0.5, 0.8, 0.5, 0.6, 0.2
    spec = scalar(A=a, Abar=abar, B=b, Q=q, Qbar=qbar, S=s, R=r, QT=qT, QbarT=qbarT, ST=sT)

    def slope(_, G):
        return (2 * a + abar) * G - b**2 / r * G**2 + q + qbar * (1 - s)

    by_scipy = solve_ivp(
        slope, (0, 2), [qT + qbarT * (1 - sT)], rtol=1e-12, atol=1e-13, dense_output=True, method="DOP853"
    ).sol
    found = equilibrium(continuous_lq(spec, 2.0, 8), ONE)
    assert error(found.G[:, 0, 0].flip(0), torch.from_numpy(by_scipy(np.linspace(0, 2, 9))[0])) < 1e-10
    drift = quad(lambda t: a + abar - b**2 / r * by_scipy(2 - t)[0], 0, 2, epsabs=1e-12)[0]
    assert float(found.states[-1]) == pytest.approx(np.exp(drift), rel=1e-10)
    assert error(found.controls[:, 0], -b / r * found.G[:, 0, 0] * found.states[:, 0]) < 1e-12


def by_integration(spec, m0, T):
    """G(0), m(T) and what the mean pays, from the equations of Pontryagin for m and p, with all terms."""
    M = {name: term(spec, name).numpy() for name in ("A", "B", "Q", "R", "QT", "S", "ST", "cross")}
    M |= {f"{name}bar": term(spec, f"{name}bar").numpy() for name in ("A", "B", "Q", "R", "QT", "cross")}
    M["QbarT"], n = term(spec, "QbarT").numpy(), len(m0)
    rest, rest_T = np.eye(n) - M["S"], np.eye(n) - M["ST"]
    both = (M["cross"] + M["crossbar"]).T

    def backward(_, y):
        G = y.reshape(n, n)
        act = -np.linalg.solve(M["R"], both + M["B"].T @ G)
        closed = M["A"] + M["Abar"] + (M["B"] + M["Bbar"]) @ act
        return (M["A"].T @ G + M["Q"] + M["Qbar"] @ rest + M["cross"] @ act + G @ closed).ravel()

    end = M["QT"] + M["QbarT"] @ rest_T
    G = solve_ivp(backward, (0, T), end.ravel(), rtol=1e-12, atol=1e-13, dense_output=True, method="DOP853").sol

    def forward(t, y):
        m = y[:n]
        u = -np.linalg.solve(M["R"], (both + M["B"].T @ G(T - t).reshape(n, n)) @ m)
        pays = m @ M["Q"] @ m + (rest @ m) @ M["Qbar"] @ (rest @ m) + u @ (M["R"] + M["Rbar"]) @ u
        moves = (M["A"] + M["Abar"]) @ m + (M["B"] + M["Bbar"]) @ u
        return np.append(moves, pays + 2 * m @ both.T @ u)

    last = solve_ivp(forward, (0, T), np.append(m0.numpy(), 0.0), rtol=1e-12, atol=1e-13, method="DOP853").y[:, -1]
    m = last[:n]
    paid = last[n] + m @ M["QT"] @ m + (rest_T @ m) @ M["QbarT"] @ (rest_T @ m)
    return G(T).reshape(n, n), m, paid


@pytest.mark.parametrize("seed", [3, 4])
def test_all_terms_by_scipy(seed):
    spec, m0, _ = lq_matrices(seed)
    found = equilibrium(continuous_lq(spec, 1.0, 3), m0)
    G, m, paid = by_integration(spec | {"QTbar": torch.zeros(3, 3, dtype=D)}, m0, 1.0)
    assert error(found.G[0], torch.from_numpy(G)) < 1e-9
    assert error(found.states[-1], torch.from_numpy(m)) < 1e-9
    noise = continuous_lq(spec, 1.0, 3).value(torch.zeros_like(m0))
    assert float(found.value - noise) == pytest.approx(paid, rel=1e-9)
    assert float((found.G[0] - found.G[0].mT).abs().max()) > 1e-2


@pytest.mark.parametrize("make", [discrete_lq, continuous_lq])
def test_without_interaction_the_game_is_the_control_problem(make):
    spec, m0, cov = lq_matrices(5, full=False)
    lq = make(spec)
    found, solution, path = equilibrium(lq, m0, cov), lq.riccati(), lq.path(m0)
    for mine, theirs in zip(
        found, (*path[:2], lq.value(m0, cov), solution.P, solution.Pi, solution.K, solution.Kbar), strict=True
    ):
        assert error(mine, theirs) < 1e-10


@pytest.mark.parametrize("make", [discrete_lq, continuous_lq])
def test_a_batch_is_its_problems_one_by_one(make):
    batch, m0, cov = lq_matrices(6, lead=(2,))
    batch["A"] = batch["A"][:1]
    batch["S"] = batch["S"][0]
    found = equilibrium(make(batch), m0, cov)
    for i in range(2):
        one = {name: x if x.dim() == 2 else x[min(i, len(x) - 1)] for name, x in batch.items()}
        for mine, alone in zip(found, equilibrium(make(one), m0[i], cov[i]), strict=True):
            assert error(mine[i], alone) < 1e-10


def test_matrices_that_vary_in_time():
    spec, m0, cov = lq_matrices(7)
    timed = {k: v if k in ("QT", "QbarT", "ST") else v.expand(6, *v.shape) for k, v in spec.items()}
    for mine, constant in zip(
        equilibrium(discrete_lq(timed, varying=True), m0, cov), equilibrium(discrete_lq(spec), m0, cov), strict=True
    ):
        assert error(mine, constant) < 1e-12


def test_small_stages_are_continuous_time():
    spec, m0, _ = lq_matrices(8)
    exact = equilibrium(continuous_lq(spec, 1.0, 1), m0)
    gaps = []
    for steps in (200, 400):
        h = 1.0 / steps
        short = {k: v if k in ("QT", "QbarT", "S", "ST") else h * v for k, v in spec.items() if k != "sigma"}
        short["A"] = torch.eye(3, dtype=D) + h * spec["A"]
        gaps.append(float((equilibrium(discrete_lq(short, steps), m0).states[-1] - exact.states[-1]).norm()))
    assert gaps[0] / gaps[1] == pytest.approx(2.0, abs=0.1)


def test_it_is_differentiable_and_keeps_dtypes():
    def at(qbar, dtype=D):
        spec = {k: v.to(dtype) for k, v in scalar(A=0.3, B=1.0, Q=1.0, R=1.0, Abar=0.5).items()}
        lq = LinearQuadratic.continuous(**spec, Qbar=qbar.reshape(1, 1).to(dtype), S=0.5 * spec["B"], T=1.0, steps=2)
        return equilibrium(lq, ONE.to(dtype)).value

    qbar = torch.tensor(0.7, dtype=D, requires_grad=True)
    assert torch.autograd.gradcheck(at, (qbar,))
    assert at(qbar, torch.float32).dtype == torch.float32
    assert float(at(qbar.detach(), torch.float32)) == pytest.approx(float(at(qbar.detach())), rel=1e-5)


def test_a_game_that_explodes_is_refused():
    """-G' = -4 - G^2 from 0: G = -2 tan(2 (T - t)), for T < pi / 4 only."""
    spec = scalar(A=0.0, B=1.0, Q=1.0, R=1.0, Qbar=1.0, S=6.0)
    assert float(equilibrium(continuous_lq(spec, 0.7, 2), ONE).G[0]) == pytest.approx(-2 * np.tan(1.4), rel=1e-9)
    with pytest.raises(mfoc.InvalidValue, match="no equilibrium that is linear in the mean"):
        equilibrium(continuous_lq(spec, 1.0, 2), ONE)


def test_bad_arguments():
    spec, m0, _ = lq_matrices(9)
    with pytest.raises(mfoc.InvalidType, match=r"expected mfoc\.lq\.LinearQuadratic"):
        equilibrium(spec, m0)
    with pytest.raises(mfoc.InvalidValue, match="mean0 has shape"):
        equilibrium(discrete_lq(spec), m0[:2])
