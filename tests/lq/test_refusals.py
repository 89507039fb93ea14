"""Bad matrices and bad calls are refused by name."""

import math

import pytest
import torch

import mfoc
from mfoc.lq import LinearQuadratic
from tests.problems import D

EYE, ONE = torch.eye(3, dtype=D), torch.ones(3, 1, dtype=D)


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
        ({"A": torch.tensor(1.0, dtype=D)}, ValueError, r"A has shape \(\); expected"),
        ({"B": torch.ones(2, 1, dtype=D)}, ValueError, r"B has shape \(2, 1\); expected \(..., 3, 1\)"),
        ({"R": EYE}, ValueError, r"R has shape \(3, 3\); expected \(..., 1, 1\)"),
        ({"sigma": torch.ones(2, 5, dtype=D)}, ValueError, r"sigma has shape \(2, 5\); expected \(..., 3, k\)"),
        ({"Abar": EYE.float()}, ValueError, "Abar is torch.float32 on cpu; expected torch.float64 on cpu"),
        ({"Q": EYE * math.nan}, ValueError, "Q holds NaN or infinite values"),
        ({"Q": EYE + torch.ones(3, 3, dtype=D).triu(1)}, ValueError, "Q is not symmetric"),
        ({"QT": torch.ones(3, 3, dtype=D).triu()}, ValueError, "QT is not symmetric"),
        ({"R": -EYE[:1, :1]}, ValueError, "R is not positive definite"),
        ({"Rbar": -EYE[:1, :1]}, ValueError, r"R \+ Rbar is not positive definite"),
        ({"Q": -EYE}, ValueError, "Q is not positive semi-definite"),
        ({"Qbar": -2 * EYE}, ValueError, r"Q \+ Qbar is not positive semi-definite"),
        ({"QT": -EYE}, ValueError, "QT is not positive semi-definite"),
        ({"cross": 9 * ONE}, ValueError, r"weight \[\[Q, cross\], \[cross', R\]\] is not positive"),
        ({"Q": EYE.expand(2, 3, 3), "B": ONE.expand(5, 3, 1)}, ValueError, r"Q has leading axes \(2,\)"),
        ({"Q": EYE.expand(0, 3, 3)}, ValueError, r"Q is empty, of shape \(0, 3, 3\)"),
        ({"horizon": 0}, ValueError, "horizon is 0; expected a positive integer"),
        ({"horizon": 2.0}, TypeError, r"horizon is 2\.0; expected a positive integer"),
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
        (lambda lq: lq.finite_population_gap(EYE, 2.5), TypeError, r"N is 2\.5"),
        (lambda lq: lq.feedback(4, EYE[0]), ValueError, "t is 4; expected an integer from 0 to 3"),
        (lambda lq: lq.feedback(0, EYE[0], EYE[0, :1]), ValueError, "m has shape"),
        (lambda lq: lq.path(ONE), ValueError, "m0 has shape"),
        (lambda lq: lq.discretise(), ValueError, "the problem is discrete"),
    ],
)
def test_bad_calls_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call(make())


def test_bad_times_and_bridges_are_named():
    parts = (EYE, ONE, EYE, EYE[:1, :1])
    for T, error in ((0.0, ValueError), (math.inf, ValueError), ("1", TypeError), (True, TypeError)):
        with pytest.raises(error, match="T is"):
            LinearQuadratic.continuous(*parts, T=T, steps=3)
    with pytest.raises(ValueError, match="steps is 0"):
        LinearQuadratic.continuous(*parts, T=1.0, steps=0)
    lq = LinearQuadratic.continuous(*parts, T=1, steps=3)
    with pytest.raises(ValueError, match=r"discretise\(steps\).problem\(\)"):
        lq.problem()
    with pytest.raises(ValueError, match="leading axes"):
        make(A=EYE.expand(2, 3, 3)).problem()
    with pytest.raises(ValueError, match="varying is True in continuous time"):
        LinearQuadratic.continuous(*parts, T=1.0, steps=3, varying=True)
