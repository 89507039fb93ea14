"""The critical line: where chi_1 = 1 at a stable fixed point."""

import math

import pytest
import torch

from mfoc.analysis.propagation import SignalPropagation, critical_line
from mfoc.errors import InvalidType, InvalidValue


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("tanh", {"q_star": 0.05}),
        ("tanh", {"bias_variance": 0.05}),
        ("tanh", {"bias_variance": 0.0}),
        ("erf", {"q_star": 2.0}),
        ("hardtanh", {"bias_variance": 0.3}),
        ("elu", {"q_star": 0.3}),
        ("sin", {"bias_variance": 0.1}),
        ("gelu", {"q_star": 5.0}),
        ("silu", {"q_star": 20.0}),
    ],
)
def test_points_on_it_are_critical_and_reached(name, where):
    weight_variance, bias_variance = critical_line(name, **where)
    theory = SignalPropagation(name, weight_variance, bias_variance)
    assert theory.phase == "critical"
    assert theory.chi_q <= 1
    if "q_star" in where:
        assert any(point.q == pytest.approx(where["q_star"], rel=1e-8) for point in theory.fixed_points)
    else:
        assert bias_variance == where["bias_variance"]


def test_known_points():
    assert critical_line("tanh", bias_variance=0.0) == (1.0, 0.0)
    assert critical_line("erf", bias_variance=0.0)[0] == pytest.approx(math.pi / 4, rel=1e-14)
    assert critical_line("relu", q_star=0.3) == (2.0, 0.0)
    assert critical_line(torch.nn.LeakyReLU(0.2), bias_variance=0.0)[0] == pytest.approx(2 / 1.04)
    assert critical_line("tanh", bias_variance=0.05)[0] == pytest.approx(1.76, abs=5e-3)
    assert critical_line("hardtanh", bias_variance=0.0) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("name", "where", "words"),
    [
        ("gelu", {"q_star": 0.05}, r"unstable.*from 3.8\d to infinity"),
        ("silu", {"bias_variance": 0.0}, "no stable critical point"),
        ("sigmoid", {"q_star": 0.05}, "would be -4"),
        ("relu", {"bias_variance": 0.1}, "expected 0"),
        ("softplus", {"q_star": 1.0}, "has no stable critical point"),
        ("tanh", {"q_star": -1.0}, "q_star"),
    ],
)
def test_points_that_do_not_exist_are_refused(name, where, words):
    with pytest.raises(InvalidValue, match=words):
        critical_line(name, **where)


@pytest.mark.parametrize("where", [{}, {"q_star": 0.1, "bias_variance": 0.1}])
def test_one_of_both(where):
    with pytest.raises(InvalidType, match="exactly one"):
        critical_line("tanh", **where)
