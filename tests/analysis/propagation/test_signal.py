"""Signal propagation against double sums in extended precision, closed forms, published numbers and random networks."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from mfoc.analysis.gaussian import GaussianMoments
from mfoc.analysis.propagation import SignalPropagation
from mfoc.analysis.propagation.theory.fixed_points import crossing
from mfoc.errors import InvalidType, InvalidValue
from mfoc.statistics import student_t_quantile
from tests.oracles.gaussian import Plain

TANH = Plain(np.tanh, lambda u: 1 / np.cosh(u) ** 2)


def silu_slope(u):
    s = (1 + np.tanh(u / 2)) / 2
    return s * (1 + u * (1 - s))


SILU = Plain(lambda u: u * (1 + np.tanh(u / 2)) / 2, silu_slope)
SINE = Plain(np.sin, np.cos, step=0.25)  # entire: any step will do


@pytest.mark.parametrize(
    ("plain", "name"), [(TANH, "tanh"), (SILU, "silu"), (SINE, "sin")], ids=["tanh", "silu", "sin"]
)
@pytest.mark.parametrize(("sw2", "sb2"), [(0.7, 0.3), (1.3, 0.0), (1.5, 0.05), (1.77, 0.05), (3.0, 1.5), (6.0, 0.001)])
def test_fixed_points_and_slopes(plain, name, sw2, sb2):
    theory = SignalPropagation(name, sw2, sb2)
    if not math.isfinite(theory.q_star) or theory.q_star == 0:
        q = 1.0
        for _ in range(60):
            q = sw2 * plain.length(np.longdouble(q)) + sb2
        assert (q > 50) if theory.q_star else (q < 1e-3)
        return
    q = plain.q_star(sw2, sb2)
    assert theory.q_star == pytest.approx(float(q), abs=1e-11)
    assert theory.chi_1 == pytest.approx(float(sw2 * plain.slope(q)), abs=1e-11)
    assert theory.chi_q == pytest.approx(float(sw2 * plain.growth(q)), abs=1e-11)
    chi = sw2 * plain.slope(q)
    lost = np.longdouble(0)
    if chi > 1:
        lost = plain.lost(q, sw2)
        chi = sw2 * plain.pairs(q, lost)[1]
    assert theory.phase == ("chaotic" if lost else "ordered")
    assert theory.c_star == pytest.approx(float(1 - lost), abs=1e-9)
    assert theory.chi_c == pytest.approx(float(chi), abs=1e-9)
    xi = float(-1 / np.log(chi))
    assert theory.xi_c == pytest.approx(xi, rel=1e-8 * max(1, xi))


def test_correlations_just_inside_the_chaotic_phase():
    """1 - c* is small there and keeps its own digits."""
    theory = SignalPropagation("tanh", 1.7612, 0.05)
    q = TANH.q_star(1.7612, 0.05)
    expected = float(TANH.lost(q, 1.7612))
    assert 1e-5 < expected < 1e-3
    assert theory._lost == pytest.approx(expected, rel=1e-9)


def test_hardtanh():
    """Kinks: E phi^2 and P(|u| < 1) are error functions of 1 / sqrt(2 q); c* makes the correlation map stand still."""
    theory = SignalPropagation(nn.Hardtanh(), 2.0, 0.3)
    q = theory.q_star
    inside = math.erf(1 / math.sqrt(2 * q))
    second = 1 + (q - 1) * inside - math.sqrt(2 * q / math.pi) * math.exp(-1 / (2 * q))
    assert 2 * second + 0.3 == pytest.approx(q, abs=1e-12)
    assert theory.chi_1 == pytest.approx(2 * inside, abs=1e-12)
    assert theory.phase == "chaotic"
    assert 0 < theory.c_star < 1
    assert float(theory.correlation_map(theory.c_star)) == pytest.approx(theory.c_star, abs=1e-12)
    step = 1e-5
    rise = theory.correlation_map(theory.c_star + step) - theory.correlation_map(theory.c_star - step)
    assert theory.chi_c == pytest.approx(float(rise) / (2 * step), abs=1e-7)


@pytest.mark.parametrize(
    "name", ["relu", nn.LeakyReLU(0.2), torch.abs, "linear"], ids=["relu", "leaky", "abs", "linear"]
)
def test_homogeneous_activations(name):
    """q* = sb2 / (1 - chi), chi = sw2 (a^2 + b^2) / 2, and nothing else."""
    rate = float(SignalPropagation(name, 1.0).chi_1)
    stable = SignalPropagation(name, 0.8 / rate, 0.3)
    assert stable.q_star == pytest.approx(0.3 / 0.2)
    assert stable.chi_1 == stable.chi_q == pytest.approx(0.8)
    assert (stable.phase, stable.c_star) == ("ordered", 1)
    critical = SignalPropagation(name, 1 / rate)
    assert (critical.q_star, critical.phase, critical.xi_c) == (1, "critical", math.inf)
    assert "every q is a fixed point" in str(critical)
    beyond = SignalPropagation(name, 1.2 / rate, 0.1)
    assert (beyond.q_star, beyond.phase) == (math.inf, "chaotic")
    assert "diverges with depth" in str(beyond)
    assert math.isnan(beyond.xi_q)


def test_published_numbers():
    """Tanh at sigma_b^2 = 0.05 is critical at sigma_w^2 = 1.76 (Schoenholz et al. 2017, figure 5); SELU stays at
    mean 0, variance 1 (Klambauer et al. 2017); the half-stable points of GELU and SWISH, chi_1 = chi_q = 1, are in
    Roberts, Yaida & Hanin 2022, section 5.3.4."""
    assert SignalPropagation("tanh", 1.76, 0.05).chi_1 == pytest.approx(1, abs=5e-4)
    assert SignalPropagation("selu", 1.0).q_star == pytest.approx(1, abs=1e-7)
    published = [("silu", 14.3, 1.98800468, 0.55514317, 6e-9), ("gelu", 3.56, 1.98305826, 0.172922, 1e-6)]
    for name, around, sw2, sb2, tolerance in published:
        moments = GaussianMoments.of(name)

        def excess(q, moments=moments):
            q = torch.tensor(q, dtype=torch.float64)
            return float(moments.growth(q) / moments.slope_moment(q)) - 1

        q = torch.tensor(crossing(excess, 0.9 * around, 1.1 * around), dtype=torch.float64)
        weights = 1 / float(moments.slope_moment(q))
        assert weights == pytest.approx(sw2, abs=6e-9)
        assert float(q) - weights * float(moments.second_moment(q)) == pytest.approx(sb2, abs=tolerance)


def test_several_fixed_points_are_told():
    """A second activation of an exponential kind: below the unstable point q decays, above it diverges."""
    theory = SignalPropagation("exp", 0.1)
    assert [round(point.q, 6) for point in theory.fixed_points] == [0.129586, 1.271321]
    for point in theory.fixed_points:  # q = 0.1 exp(2 q)
        assert point.q == pytest.approx(0.1 * math.exp(2 * point.q), rel=1e-12)
        assert point.slope == pytest.approx(0.2 * math.exp(2 * point.q), rel=1e-11)
        assert point.stable == (point.slope < 1)
    assert theory.q_star == theory.fixed_points[0].q
    assert "several fixed points" in str(theory)
    assert not SignalPropagation("exp", 0.2).fixed_points  # q = 0.2 exp(2 q) has no root
    assert SignalPropagation("exp", 0.2).q_star == math.inf


def test_two_fixed_points_closer_than_any_grid():
    """q = w exp(2 q) has a double root at w = 1 / (2 e), and two next to it below."""
    weight = 1 / (2 * math.e) * (1 - 1e-7)
    low, high = SignalPropagation("exp", weight).fixed_points
    assert (low.stable, high.stable) == (True, False)
    assert high.q - low.q == pytest.approx(math.sqrt(2e-7), rel=1e-3)


def test_lengths_that_are_not_monotone_settle():
    theory = SignalPropagation(lambda u: torch.exp(-u.square()), 6.0, 0.0)  # V = 1 / sqrt(1 + 4 q)
    assert theory.chi_q < 0
    assert theory.q_star == pytest.approx(6 / math.sqrt(1 + 4 * theory.q_star), rel=1e-12)


@given(
    sw2=st.floats(0.05, 6), sb2=st.floats(0, 2), name=st.sampled_from(["tanh", "erf", "hardtanh", "elu", "gelu", "sin"])
)
@settings(max_examples=25, deadline=None)
def test_every_point_is_converged(sw2, sb2, name):
    theory = SignalPropagation(name, sw2, sb2)
    for point in theory.fixed_points:
        assert float(theory.length_map(point.q)) == pytest.approx(point.q, rel=1e-12, abs=1e-13)
    if 0 < theory.q_star < math.inf:
        assert next(p for p in theory.fixed_points if p.q == theory.q_star).stable
        assert float(theory.correlation_map(theory.c_star)) == pytest.approx(theory.c_star, abs=1e-11)
        assert 0 <= theory.c_star <= 1
        assert abs(theory.chi_c) <= 1 + 1e-9


def test_depth_converges_at_the_rates_the_slopes_say():
    theory = SignalPropagation("tanh", 2.5, 0.1)
    course = theory.iterate(60, q0=2.0, c0=0.9)
    assert course.q[-1].item() == pytest.approx(theory.q_star, abs=1e-12)
    rest = (course.c - theory.c_star).abs()
    rates = rest[1:] / rest[:-1]
    assert rates[59].item() == pytest.approx(theory.chi_c, abs=2e-3)
    assert abs(rates[59] - theory.chi_c) < 0.5 * abs(rates[49] - theory.chi_c)
    off = (course.q - theory.q_star).abs()
    assert (off[10] / off[9]).item() == pytest.approx(theory.chi_q, abs=1e-4)
    assert (course.gradient[50] / course.gradient[51]).item() == pytest.approx(theory.chi_1, abs=1e-9)
    assert course.gradient[-1] == 1
    assert "layer" in str(course)


WIDTH, DEPTH, DRAWS = 2048, 3, 8


def random_course(activation, sw2, sb2, keep, generator):
    """Mean squares, inner products and gradients of one random network, one layer after the other."""

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    x = torch.linalg.qr(normal(WIDTH, 2))[0].T * WIDTH**0.5
    h = torch.stack([x[0], 0.6 * x[0] + 0.8 * x[1]])  # q = 1 and c = .6 exactly
    q, c, layers = [], [], []
    for _ in range(DEPTH + 1):
        q.append(h.square().mean().item())
        c.append((torch.dot(*h) / h.norm(dim=1).prod()).item())
        w, mask = normal(WIDTH, WIDTH) * (sw2 / WIDTH) ** 0.5, (torch.rand(2, WIDTH, generator=generator) < keep) / keep
        layers.append((h, w, mask))
        h = (activation(h) * mask) @ w.T + normal(WIDTH) * sb2**0.5
    g, norms = normal(256, WIDTH), []  # many gradients: their mean square is then no draw of its own
    for h, w, mask in [*reversed(layers[:-1]), (None, None, None)]:
        norms.append(g.square().mean().item())
        if h is not None:
            slope = torch.autograd.functional.jvp(activation, h[:1], torch.ones_like(h[:1]))[1]
            g = (g @ w) * slope * mask[:1]
    return q, c, [norm / norms[0] for norm in reversed(norms)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sw2", "sb2", "dropout"),
    [("tanh", 2.0, 0.1, 0.0), ("relu", 2.0, 0.0, 0.0), ("hardtanh", 1.5, 0.2, 0.2)],
)
def test_random_networks_agree(name, sw2, sb2, dropout):
    """Within three standard errors, widened by what eight draws do not tell of their own spread."""
    bound = student_t_quantile(0.9973, DRAWS - 1)
    function = getattr(torch, name, None) or getattr(torch.nn.functional, name)
    generator = torch.Generator().manual_seed(1)
    runs = [random_course(function, sw2, sb2, 1 - dropout, generator) for _ in range(DRAWS)]
    course = SignalPropagation(name, sw2, sb2, dropout).iterate(DEPTH, 1.0, 0.6)
    for drawn, exact in zip(zip(*runs, strict=True), (course.q, course.c, course.gradient), strict=True):
        draws = torch.tensor(drawn, dtype=torch.float64)
        error = draws.std(0) / DRAWS**0.5
        assert bool(((draws.mean(0) - exact).abs() <= bound * error + 1e-6).all()), (draws.mean(0), exact, error)


def test_dropout_tells_equal_inputs_apart():
    """Criticality is destroyed (Schoenholz et al. 2017, section 5): c = 1 is no fixed point."""
    theory = SignalPropagation("tanh", 1.5, 0.05, dropout=0.1)
    assert theory.c_star < 0.9
    assert theory.length_map(theory.q_star).item() == pytest.approx(theory.q_star, rel=1e-13)
    once = theory.correlation_map(1.0).item()
    assert once == pytest.approx(
        1 - 1.5 / 0.9 * 0.1 * float(theory.moments.second_moment(torch.tensor(theory.q_star))) / theory.q_star
    )


def test_it_prints_a_sentence():
    assert str(SignalPropagation("tanh", 3.0, 0.1)).startswith(
        "tanh, sigma_w^2 = 3, sigma_b^2 = 0.1: chaotic; gradients"
    )


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (("tanh", -1.0), InvalidValue, "weight_variance is -1.0"),
        (("tanh", 0.0), InvalidValue, "weight_variance"),
        (("tanh", float("nan")), InvalidValue, "weight_variance"),
        (("tanh", "2"), InvalidType, "weight_variance"),
        (("tanh", 1.0, -0.1), InvalidValue, "bias_variance"),
        (("tanh", 1.0, 0.0, 1.0), InvalidValue, "dropout"),
        ((torch.sign, 1.0), InvalidValue, "jumps"),
        (("gelu", 2 - 1e-13, 0.1), InvalidValue, "beyond"),
    ],
)
def test_bad_input(arguments, error, words):
    with pytest.raises(error, match=words):
        SignalPropagation(*arguments).q_star  # noqa: B018


@pytest.mark.parametrize("wrong", [{"depth": 0}, {"depth": 3, "q0": 0.0}, {"depth": 3, "c0": 1.1}])
def test_bad_depths(wrong):
    with pytest.raises(InvalidValue, match="expected"):
        SignalPropagation("tanh", 1.0).iterate(**wrong)


def test_a_correlation_map_needs_a_length():
    with pytest.raises(InvalidValue, match="give the variance q"):
        SignalPropagation("tanh", 0.5).correlation_map(0.5)
    with pytest.raises(InvalidValue, match="outside"):
        SignalPropagation("tanh", 2.0).correlation_map(1.5)


@pytest.mark.parametrize("name", ["hardtanh", "tanh", "sin"])
@pytest.mark.parametrize("excess", [1e-6, 1e-5, 0.02])
def test_odd_activations_without_biases_leave_inputs_orthogonal(name, excess):
    """However little chi_1 exceeds one: the correlation map has no constant, so that c* = 0."""
    signal = SignalPropagation(name, 1 + excess, 0.0)
    assert 1 < signal.chi_1 < 1 + excess
    assert signal.c_star == 0
    assert 1 - excess < signal.chi_c < 1
    assert signal.xi_c > 10 / excess


def test_plateaus_of_the_length_map_are_no_double_fixed_points(monkeypatch):
    """Of hardtanh, V(q) / q is one up to rounding for q below .02, in whose dips nothing is to be found."""
    signal, calls = SignalPropagation("hardtanh", 1.02, 0.0), []
    second_moment = GaussianMoments.second_moment

    def counted(self, q):
        calls.append(q)
        return second_moment(self, q)

    monkeypatch.setattr(GaussianMoments, "second_moment", counted)
    assert [round(point.q, 6) for point in signal.fixed_points] == [0, 0.153986]
    assert len(calls) < 500
