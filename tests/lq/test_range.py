"""Numbers of any size: an LQ problem is right, or refused by name; and moments that are none are refused."""

import math
import random
from fractions import Fraction

import pytest
import torch

import mfoc
from mfoc.lq import LinearQuadratic, equilibrium
from tests.problems import D

EYE, ONES = torch.eye(2, dtype=D), torch.ones(2, dtype=D)


def scalar_value(A: float, B: float, Q: float, R: float, horizon: int) -> float:
    """P_0 of the scalar problem in rational numbers, in the form without differences."""
    a, b, q, r = map(Fraction, (A, B, Q, R))
    P = Fraction(0)
    for _ in range(horizon):
        P = q + a * a * P * r / (r + b * b * P)
    return float(P)


def test_the_value_is_right_or_refused():
    draw, right = random.Random(0), 0
    for _ in range(60):
        given = [10.0 ** draw.uniform(-40, 40) if draw.random() < 0.5 else 1.0 for _ in range(4)]
        parts = [torch.full((1, 1), size, dtype=D) for size in given]
        try:
            found = float(LinearQuadratic.discrete(*parts, horizon=4).value(torch.ones(1, dtype=D)))
        except mfoc.InvalidValue as error:
            assert "range" in str(error)  # noqa: PT017  either is right
            continue
        right += 1
        assert found == pytest.approx(scalar_value(*given, 4), rel=0.5)
    assert right > 30


@pytest.mark.parametrize("name", ["A", "B", "Q", "R"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("time", [{"horizon": 8}, {"T": 1.0, "steps": 4}])
def test_no_answer_is_infinite_or_nan(name, dtype, time):
    largest = torch.finfo(dtype).max
    make = LinearQuadratic.discrete if "horizon" in time else LinearQuadratic.continuous
    for size in (largest**0.3, largest**0.6, largest**0.95):
        parts = {key: EYE.to(dtype) * (size if key == name else 1.0) for key in "ABQR"}
        for answer in (
            lambda lq: [lq.value(ONES.to(dtype))],
            lambda lq: list(lq.path(ONES.to(dtype))),
            lambda lq: list(equilibrium(lq, ONES.to(dtype))),
        ):
            try:
                found = answer(make(**parts, **time))
            except mfoc.InvalidValue as error:
                assert "range" in str(error)  # noqa: PT017  either is right
                continue
            assert all(bool(each.isfinite().all()) for each in found)


def lq(**changes):
    return LinearQuadratic.discrete(**{"A": EYE, "B": EYE, "Q": EYE, "R": EYE, "horizon": 3, **changes})


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_moments_that_are_not_finite_are_refused(bad):
    for call in (
        lambda: lq().value(ONES * bad),
        lambda: lq().value(ONES, EYE * bad),
        lambda: lq().path(ONES * bad),
        lambda: lq().open_loop(ONES * bad),
        lambda: lq().feedback(0, ONES * bad),
        lambda: lq().finite_population_gap(EYE * bad, 3),
        lambda: equilibrium(lq(), ONES * bad),
        lambda: equilibrium(lq(), ONES, EYE * bad),
    ):
        with pytest.raises(mfoc.InvalidValue, match="holds NaN or infinite"):
            call()


@pytest.mark.parametrize(
    ("covariance", "message"),
    [
        (-EYE, "not positive semi-definite"),
        (torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=D), "not positive semi-definite"),
        (torch.stack([EYE, -1e-3 * EYE]), "not positive semi-definite"),
        (EYE + torch.ones(2, 2, dtype=D).triu(1), "not symmetric"),
    ],
)
def test_what_is_no_covariance_is_refused(covariance, message):
    for call in (
        lambda: lq().value(ONES, covariance),
        lambda: lq().finite_population_gap(covariance, 3),
        lambda: equilibrium(lq(), ONES, covariance),
        lambda: lq(noise=covariance),
        lambda: lq(noise=EYE, noisebar=covariance - EYE),
    ):
        with pytest.raises(mfoc.InvalidValue, match=message):
            call()


def test_a_covariance_that_is_singular_or_zero_is_one():
    singular = torch.ones(2, 2, dtype=D)
    for covariance in (singular, 0 * EYE, 1e-300 * singular, 1e200 * singular):
        assert lq(noise=covariance).value(ONES, covariance).isfinite()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused(dtype):
    with pytest.raises(mfoc.InvalidType, match=r"A has dtype .*float16.*A\.float\(\)"):
        lq(A=EYE.to(dtype))


def test_sparse_and_nested_matrices_are_refused():
    with pytest.raises(mfoc.InvalidType, match="dense"):
        lq(Q=EYE.to_sparse())
