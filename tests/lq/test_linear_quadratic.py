"""What a problem and its answers are as objects: batches, dtypes, autograd, equality and print."""

from functools import partial

import pytest
import torch

from mfoc.lq import LinearQuadratic
from tests.problems import continuous_lq, discrete_lq, error, lq_matrices


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(
    "make", [discrete_lq, partial(continuous_lq, steps=5), lambda s: continuous_lq(s, steps=5).discretise()]
)
def test_a_batch_equals_a_loop(make, full):
    spec, m0, cov = lq_matrices(23, lead=(2, 3), full=full)
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
                assert error(left[i, j], right) < 1e-9


def test_dtype_is_kept_and_inputs_are_left_alone():
    spec, m0, cov = lq_matrices(28)
    before = {k: v.clone() for k, v in spec.items()}
    single = {k: v.float() for k, v in spec.items()}
    for make in (discrete_lq, continuous_lq, lambda s: continuous_lq(s).discretise()):
        exact, rough = make(spec), make(single)
        value = rough.value(m0.float(), cov.float(), particles=5)
        assert value.dtype == torch.float32
        assert error(value.double(), exact.value(m0, cov, particles=5)) < 1e-4
        assert all(x.dtype == torch.float32 for x in (*rough.riccati(), *rough.path(m0.float())))
        assert error(rough.open_loop(m0.float()).double(), exact.open_loop(m0)) < 1e-4
    assert all(torch.equal(before[k], spec[k]) for k in spec)


def test_feedback_keeps_no_graph():
    spec, m0, _ = lq_matrices(29)
    A = spec["A"].clone().requires_grad_()
    lq = discrete_lq(spec | {"A": A})
    for _ in range(2):  # a graph kept from the first call would be freed by its backward
        lq.feedback(0, m0).sum().backward()
    fixed = discrete_lq(spec)
    with torch.inference_mode():
        fixed.feedback(0, m0)
    x = m0.clone().requires_grad_()
    fixed.feedback(0, x).sum().backward()
    assert error(x.grad, -fixed.riccati().Kbar[0].sum(0)) < 1e-10


@pytest.mark.parametrize("answer", [LinearQuadratic.riccati, lambda lq: lq.path(lq.A[0]), lambda lq: lq])
def test_equality_is_identity(answer):
    lq = discrete_lq(lq_matrices()[0])
    left, right = answer(lq), answer(discrete_lq(lq_matrices()[0]))
    assert (left == left, left != left, left in [left]) == (True, False, True)
    assert (left == right, left != right, left in [right]) == (False, True, False)
    assert {left: 1}[left] == 1


def test_the_printed_form_shows_shapes():
    spec, m0, _ = lq_matrices(full=False)
    lq = discrete_lq(spec)
    assert repr(lq.path(m0)) == "Path(states=float64[7, 3], controls=float64[6, 2], cost=float64[])"
    assert repr(lq.riccati()).startswith("Riccati(P=float64[7, 3, 3], Pi=float64[7, 3, 3], K=float64[6, 2, 3], Kbar=")
    assert repr(lq).startswith(
        "LinearQuadratic(A=float64[3, 3], B=float64[3, 2], Q=float64[3, 3], R=float64[2, 2], steps"
    )
    assert "Abar" not in repr(lq)  # what is not given is not printed


def test_the_end_time_had_another_name():
    spec, m0, _ = lq_matrices()
    with pytest.warns(DeprecationWarning, match="horizon= is now T=") as caught:
        old = LinearQuadratic.continuous(**spec, horizon=1.5, steps=4)
    assert caught[0].filename == __file__
    assert torch.equal(old.value(m0), continuous_lq(spec, 1.5, 4).value(m0))
