"""The optimal learning rate on a noisy quadratic against the equation itself, and against numerical optimal control."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from scipy.optimize import minimize

from mfoc.analysis.noise import annealing_control, momentum_control, optimal_annealing
from mfoc.errors import InvalidType, InvalidValue

CASES = {
    "far": (1.3, 0.8, 5.0, 0.1),
    "near": (0.7, 2.0, 0.05, 0.2),
    "at the switch": (1.0, 1.0, 0.05, 0.1),
    "without noise": (1.0, 0.0, 2.0, 0.1),
    "without curvature": (0.0, 1.0, 0.0, 0.1),
    "concave": (-0.8, 1.0, -0.3, 0.1),
    "at the minimum": (1.0, 1.0, 0.0, 0.1),
}


def rate(a, s, eta, u, m):
    return -2 * a * u * m + a * eta * s * u**2 / 2


@pytest.mark.parametrize("name", CASES)
def test_the_loss_solves_the_equation_under_the_control(name):
    a, s, m0, eta = CASES[name]
    found = optimal_annealing(a, s, m0, eta)
    times = np.linspace(0, 6, 40)
    ends = [0, *([found.switch] if 0 < found.switch < 6 else []), 6]
    m = m0
    for left, right in pairwise(ends):  # the control is smooth on either side of the switch
        inside = times[(times >= left) & (times <= right)]
        path = solve_ivp(
            lambda t, m: rate(a, s, eta, found.control(float(t)), m),
            (left, right),
            [m],
            rtol=1e-11,
            atol=1e-13,
            dense_output=True,
        )
        exact = torch.tensor(path.sol(inside)[0])
        torch.testing.assert_close(found.loss(torch.tensor(inside)), exact, rtol=1e-8, atol=1e-10)
        m = path.y[0, -1]


@pytest.mark.parametrize("name", CASES)
def test_the_schedule_is_the_greedy_law_along_its_own_loss(name):
    a, s, m0, eta = CASES[name]
    found = optimal_annealing(a, s, m0, eta)
    times = torch.linspace(0, 6, 50, dtype=torch.float64)
    greedy = annealing_control(a, s, found.loss(times), eta)
    torch.testing.assert_close(found.control(times), greedy, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["far", "near", "concave"])
def test_no_schedule_found_by_numerical_optimal_control_ends_lower(name):
    a, s, m0, eta = CASES[name]
    T, steps = 3.0, 30
    h = T / steps

    def end(u):  # exact for a control that is constant on each interval
        m = m0
        for each in u:
            decay = math.exp(-2 * a * each * h)
            m = m * decay + eta * s * each / 4 * (1 - decay)
        return m

    best = optimal_annealing(a, s, m0, eta).loss(T)
    for start in (np.full(steps, 0.3), np.linspace(1, 0.1, steps)):
        result = minimize(
            end, start, bounds=[(0, 1)] * steps, method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-10}
        )
        assert best <= result.fun + 1e-12  # constant pieces can only do worse
        assert result.fun == pytest.approx(best, rel=2e-3)  # and not by much


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.sampled_from(sorted(CASES)))
def test_no_schedule_has_a_lower_loss_at_any_time(controls, name):
    a, s, m0, eta = CASES[name]
    found, m, h = optimal_annealing(a, s, m0, eta), m0, 0.2
    for k, u in enumerate(controls, start=1):
        decay = math.exp(-2 * a * u * h)
        m = m * decay + eta * s * u / 4 * (1 - decay)
        assert found.loss(k * h) <= m + 1e-10 * (1 + abs(m))


def test_switch_time():
    assert optimal_annealing(2.0, 1.0, 1.0, 0.1).switch == pytest.approx(math.log(39) / 4)
    assert optimal_annealing(2.0, 1.0, 0.05, 0.1).switch == 0
    assert optimal_annealing(2.0, 0.0, 1.0, 0.1).switch == math.inf
    assert optimal_annealing(-2.0, 1.0, -1.0, 0.1).switch == math.inf
    assert optimal_annealing(2.0, 1.0, 0.01, 0.1).control(0.0) == pytest.approx(0.2)
    assert optimal_annealing(2.0, 1.0, 0.01, 0.1).control(3.0) == pytest.approx(1 / (5 + 6))


def test_sgd_under_the_schedule_has_the_predicted_loss():
    """Draws: the modified equation is within O(eta) of SGD."""
    a, s, m0, eta, steps, n = 1.0, 2.0, 0.5, 0.02, 400, 20_000
    plan = optimal_annealing(a, s, m0, eta)
    generator = torch.Generator().manual_seed(0)
    x = torch.full((n,), math.sqrt(2 * m0 / a), dtype=torch.float64)
    for k in range(steps):
        noise = math.sqrt(s) * torch.randn(n, generator=generator, dtype=torch.float64)
        x = x - plan.control(k * eta) * eta * (a * x + noise)
    loss = a / 2 * x.square()
    error = 4 * float(loss.std()) / math.sqrt(n)
    assert float(loss.mean()) == pytest.approx(plan.loss(steps * eta), abs=error + 0.05 * plan.loss(steps * eta))


@pytest.mark.parametrize("a", [0.3, 2.0])
def test_momentum_far_off_has_the_fastest_decay(a):
    eta = 0.04

    def slowest(mu):  # of x' = v, v' = -(1 - mu) / sqrt(eta) v - a x, in units of sqrt(eta) a step
        return max(np.linalg.eigvals(np.array([[0, 1], [-a, -(1 - mu) / math.sqrt(eta)]])).real)

    mu = momentum_control(a, 0.0, 1.0, eta)
    assert mu == pytest.approx(1 - 2 * math.sqrt(eta * a))
    assert all(slowest(mu) <= slowest(other) + 1e-7 for other in np.linspace(0, 0.99, 100))


def test_momentum_near_the_minimum_keeps_the_noise_at_the_present_loss():
    a, s, m, eta = 1.0, 3.0, 0.01, 0.01
    mu = momentum_control(a, s, m, eta)
    assert 0 < mu < 1 - 2 * math.sqrt(eta * a)
    assert eta * s / (4 * (1 - mu)) == pytest.approx(m)
    assert momentum_control(a, s, 1e-9, eta) == 0


def test_laws_are_elementwise_and_follow_dtype():
    a = torch.tensor([1.0, -1.0, 0.0, 1.0, 1.0], dtype=torch.float32)
    m = torch.tensor([0.01, 0.01, 0.01, -0.5, 9.0], dtype=torch.float32)
    u = annealing_control(a, 1.0, m, 0.1)
    assert u.dtype == torch.float32
    torch.testing.assert_close(u, torch.tensor([0.2, 1, 1, 0, 1]))
    mu = momentum_control(a, 1.0, m, 0.1)
    torch.testing.assert_close(mu, torch.tensor([0, 1, 1, 0, 1 - 2 * 0.1**0.5]))
    assert annealing_control(torch.ones(2, 1), torch.ones(3), 1.0, 0.1).shape == (2, 3)
    assert isinstance(annealing_control(1.0, 1.0, 1.0, 0.1), float)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((1.0, -1.0, 1.0, 0.1), InvalidValue, "noise"),
        ((1.0, 1.0, 1.0, 0.0), InvalidValue, "lr"),
        ((math.nan, 1.0, 1.0, 0.1), InvalidValue, "curvature is nan"),
        (("1", 1.0, 1.0, 0.1), InvalidType, "curvature is a str"),
        ((True, 1.0, 1.0, 0.1), InvalidType, "curvature is a bool"),
    ],
    ids=["noise", "lr", "nan", "word", "flag"],
)
@pytest.mark.parametrize("law", [optimal_annealing, annealing_control, momentum_control])
def test_bad_arguments_are_refused(law, arguments, error, words):
    with pytest.raises(error, match=words):
        law(*arguments)


def test_other_bad_arguments_are_refused():
    with pytest.raises(InvalidValue, match="sign"):
        optimal_annealing(1.0, 1.0, -1.0, 0.1)
    with pytest.raises(InvalidType, match="numbers"):
        optimal_annealing(torch.ones(2), 1.0, 1.0, 0.1)
    with pytest.raises(InvalidValue, match="negative times"):
        optimal_annealing(1.0, 1.0, 1.0, 0.1).loss(-1.0)
    with pytest.raises(InvalidValue, match="broadcast"):
        annealing_control(torch.ones(2), torch.ones(3), 1.0, 0.1)
    with pytest.raises(InvalidType, match="int64"):
        annealing_control(torch.ones(2, dtype=torch.int64), 1.0, 1.0, 0.1)
    with pytest.raises(InvalidValue, match="mixed"):
        annealing_control(torch.ones(2), torch.ones(2).double(), 1.0, 0.1)


def test_the_verdict_says_when_to_turn_down():
    assert "fall as 1/t from t = 0.9159 (9 steps) on" in repr(optimal_annealing(2.0, 1.0, 1.0, 0.1))
    assert "no noise" in optimal_annealing(2.0, 0.0, 1.0, 0.1).verdict
    assert "start at the learning rate 0.05 and" in optimal_annealing(2.0, 4.0, 0.1, 0.1).verdict
    assert "take no step" in optimal_annealing(2.0, 4.0, 0.0, 0.1).verdict
    assert "no minimum" in optimal_annealing(-2.0, 1.0, -1.0, 0.1).verdict


def test_figure():
    pytest.importorskip("matplotlib")
    left, right = optimal_annealing(2.0, 1.0, 1.0, 0.1).plot(3.0).axes
    assert len(left.lines) == len(right.lines) == 2  # the curve, and where the rate is turned down
    assert right.lines[0].get_ydata()[0] == pytest.approx(1.0)
