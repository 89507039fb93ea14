"""The two Riccati equations, against recursions, integrators and algebraic equations that share none of their code."""

import numpy as np
import pytest
import torch
from scipy.linalg import solve_continuous_are, solve_discrete_are

from mfoc.lq import LinearQuadratic
from tests.oracles.linear_quadratic import modes, riccati, riccati_flow
from tests.problems import D, continuous_lq, discrete_lq, error, lq_matrices


@pytest.mark.parametrize("full", [False, True])
def test_discrete_riccati_and_gains_match_the_recursion(full):
    spec, _, _ = lq_matrices(1, full=full)
    solution = discrete_lq(spec, 9).riccati()
    for mode, P, K in zip(modes(spec), (solution.P, solution.Pi), (solution.K, solution.Kbar), strict=True):
        expected = riccati(mode, 9)
        assert error(P, expected[0]) < 1e-10
        assert error(K, expected[1]) < 1e-10


def test_continuous_riccati_and_gains_match_an_integrated_equation():
    spec, _, _ = lq_matrices(3)
    solution = continuous_lq(spec, 1.5, 5).riccati()
    for mode, P, K in zip(modes(spec), (solution.P, solution.Pi), (solution.K, solution.Kbar), strict=True):
        expected = riccati_flow(mode, 1.5, 5)
        assert error(P, expected[0]) < 1e-9
        assert error(K, expected[1]) < 1e-9


@pytest.mark.parametrize("full", [False, True])
def test_long_horizon_reaches_the_discrete_algebraic_equation(full):
    spec, _, _ = lq_matrices(1, full=full)
    solution = discrete_lq(spec, 300).riccati()
    for mode, series in zip(modes(spec), (solution.P, solution.Pi), strict=True):
        expected = solve_discrete_are(*(mode[name] for name in "ABQR"), s=mode["cross"])
        assert error(series[0], torch.from_numpy(expected)) < 1e-9


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(("T", "steps"), [(200.0, 400), (1000.0, 3)])
def test_long_horizon_reaches_the_continuous_algebraic_equation(full, T, steps):
    spec, _, _ = lq_matrices(2, full=full)
    solution = continuous_lq(spec, T, steps).riccati()
    for mode, series in zip(modes(spec), (solution.P, solution.Pi), strict=True):
        expected = solve_continuous_are(*(mode[name] for name in "ABQR"), s=mode["cross"])
        assert error(series[0], torch.from_numpy(expected)) < 1e-9


def test_continuous_solution_does_not_depend_on_the_grid():
    spec, m0, _ = lq_matrices(4)
    coarse, fine = continuous_lq(spec, 8.0, 2), continuous_lq(spec, 8.0, 64)
    assert error(coarse.riccati().Pi, fine.riccati().Pi[::32]) < 1e-9
    assert error(coarse.path(m0).states, fine.path(m0).states[::32]) < 1e-9


def test_without_mean_field_terms_the_two_equations_are_the_standard_one():
    spec, m0, cov = lq_matrices(5, full=False)
    zeros = {"Abar": torch.zeros(3, 3, dtype=D), "Qbar": torch.zeros(3, 3, dtype=D)}
    for make in (discrete_lq, continuous_lq):
        plain, zeroed = make(spec), make(spec | zeros)
        solution = zeroed.riccati()
        assert zeroed.mean_field
        assert not plain.mean_field
        assert error(solution.P, solution.Pi) < 1e-10
        assert error(solution.K, solution.Kbar) < 1e-10
        assert error(solution.P, plain.riccati().P) < 1e-10
        assert error(zeroed.value(m0, cov), plain.value(m0, cov)) < 1e-10
        assert error(plain.finite_population_gap(cov, 7), torch.zeros((), dtype=D)) < 1e-10


def test_spread_weight_with_s_the_identity_leaves_the_mean_alone():
    spec, _, _ = lq_matrices(6, full=False)
    Qbar = torch.eye(3, dtype=D)
    found, plain = discrete_lq(spec | {"Qbar": Qbar}).riccati(), discrete_lq(spec).riccati()
    assert error(found.Pi, plain.Pi) < 1e-10
    assert error(found.P, discrete_lq(spec | {"Q": spec["Q"] + Qbar}).riccati().P) < 1e-10
    assert error(found.P, discrete_lq(spec | {"Qbar": Qbar, "S": Qbar}).riccati().P) < 1e-10


def test_one_step_by_hand():
    one = lambda x: torch.tensor([[x]], dtype=D)  # noqa: E731
    lq = LinearQuadratic.discrete(
        one(1.0), one(1.0), one(1.0), one(2.0), one(3.0), horizon=1, Abar=one(1.0), sigma=one(0.5)
    )
    solution = lq.riccati()
    assert error(solution.K, one(3 / 5)[None]) < 1e-10
    assert error(solution.Kbar, one(6 / 5)[None]) < 1e-10
    assert error(solution.P[0], one(1 + 3 - 9 / 5)) < 1e-10
    assert error(solution.Pi[0], one(1 + 12 - 36 / 5)) < 1e-10
    mean, cov = torch.tensor([2.0], dtype=D), one(0.25)
    assert error(lq.value(mean, cov), torch.tensor(4 * 5.8 + 0.25 * 2.2 + 3 * 0.25, dtype=D)) < 1e-10
    assert error(lq.finite_population_gap(cov, 10), torch.tensor(0.1 * 0.25 * (5.8 - 2.2), dtype=D)) < 1e-10


def test_unstable_system_stays_symmetric_over_a_long_horizon():
    spec, m0, _ = lq_matrices(7, n=6, full=False)
    spec["A"] = 1.5 * torch.linalg.qr(spec["A"])[0]
    P = discrete_lq(spec, 500).riccati().P
    assert float((P - P.mT).abs().max() / P.abs().max()) < 1e-13
    assert error(P[0], torch.from_numpy(solve_discrete_are(*(spec[k].numpy() for k in "ABQR")))) < 1e-9
    long = discrete_lq(spec, 500)
    assert error(long.path(m0).cost, long.value(m0) - long.value(torch.zeros_like(m0))) < 1e-9


def test_cheap_and_dear_control_in_continuous_time():
    spec, _, _ = lq_matrices(50, full=False)
    for size, tol in ((1e4, 1e-9), (1e-4, 1e-10), (1e-6, 1e-10), (1e-8, 5e-9)):
        P = continuous_lq(spec | {"R": size * spec["R"]}, 60.0, 30).riccati().P[0].numpy()
        exact = solve_continuous_are(*(spec[k].numpy() for k in "ABQ"), size * spec["R"].numpy())
        assert np.linalg.norm(P - exact) < tol * np.linalg.norm(exact)


def test_time_varying_matrices():
    spec, m0, cov = lq_matrices(25)
    constant = discrete_lq(spec)
    timed = {k: v if k in ("QT", "QbarT", "ST") else v.expand(6, *v.shape) for k, v in spec.items()}
    timed["B"] = timed["B"][:1]
    assert (
        error(constant.value(m0, cov, particles=3), discrete_lq(timed, varying=True).value(m0, cov, particles=3))
        < 1e-10
    )
    assert error(constant.open_loop(m0), discrete_lq(timed, varying=True).open_loop(m0)) < 1e-10
    # Two halves with different matrices: the second half's P_0 is the terminal weight of the first.
    other, _, _ = lq_matrices(26, full=False)
    spec, _, _ = lq_matrices(27, full=False)
    joined = {k: torch.stack([spec[k]] * 2 + [other[k]] * 3) for k in ("A", "B", "Q", "R", "sigma")}
    whole = discrete_lq(joined | {"QT": other["QT"]}, 5, varying=True)
    tail = discrete_lq(other, 3)
    head = discrete_lq(spec | {"QT": tail.riccati().P[0]}, 2)
    assert error(whole.riccati().P[:3], head.riccati().P) < 1e-10
    noise = torch.zeros(3, dtype=D)
    assert error(whole.value(m0, cov), head.value(m0, cov) + tail.value(noise)) < 1e-10
