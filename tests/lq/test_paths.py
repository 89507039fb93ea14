"""Optimal paths: by doubling spans of time, or stage by stage."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mfoc.lq.paths import stagewise_course, stationary_course
from tests.problems import D, continuous_lq, discrete_lq, error, lq_matrices


def test_many_starts_of_one_problem():
    spec, _, cov = lq_matrices(24)
    starts = torch.randn(5, 4, 3, dtype=D, generator=torch.Generator().manual_seed(0))
    for lq in (discrete_lq(spec), continuous_lq(spec)):
        path = lq.path(starts)
        assert path.states.shape == (5, 4, lq.steps + 1, 3)
        assert error(path.controls[2, 1], lq.open_loop(starts[2, 1])) < 1e-10
        assert error(lq.value(starts, cov)[2, 1], lq.value(starts[2, 1], cov)) < 1e-10


@pytest.mark.parametrize("horizon", [*range(1, 10), 50, 127])
@pytest.mark.parametrize("step", [None, 0.1])
def test_path_by_doubling_is_the_path_stage_by_stage(horizon, step):
    spec, _, _ = lq_matrices(35)
    lq = discrete_lq(spec, horizon) if step is None else continuous_lq(spec, horizon * step, horizon)
    starts = torch.randn(1, 4, 3, dtype=D, generator=torch.Generator().manual_seed(0))
    parts = lq._modes()[1], starts, horizon, step
    quick, slow = stationary_course(*parts), stagewise_course(*parts)
    assert quick is not None
    for left, right in zip(quick, slow, strict=True):
        assert error(left, right) < 1e-10
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
    spec, m0, _ = lq_matrices(seed, full=False)
    spec.pop("sigma")
    spec |= {name: 10**size * spec[name] for name, size in zip(("R", "QT", "A"), sizes, strict=True)}
    lq = discrete_lq(spec, horizon)
    path = lq.path(m0)
    exact = stagewise_course(lq._modes()[1], m0[None, None], horizon, None)
    for found, wanted in ((path.states, exact.states), (path.controls, exact.controls)):
        assert (found - wanted[0, :, 0]).norm() < 1e-9 * wanted.norm()
    assert error(path.cost, lq.value(m0)) < 1e-9


def test_doubling_declines_what_would_cost_digits():
    spec, m0, _ = lq_matrices(36, full=False)
    cheap = discrete_lq(spec | {"R": 1e-9 * spec["R"]}, 40)
    assert stationary_course(cheap._modes()[1], m0[None, None], 40, None) is None
    assert error(cheap.open_loop(m0)[0], -cheap.riccati().K[0] @ m0) < 1e-12
