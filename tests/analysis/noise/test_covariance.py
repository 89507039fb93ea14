"""The covariance of one sample's gradient, and how it lies to the Hessian."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import mfoc
from mfoc import tree
from mfoc.analysis.noise import gradient_noise
from mfoc.errors import InvalidType, InvalidValue
from tests.analysis.noise.cases import (
    Location,
    classifier,
    dense_hessian,
    normal,
    plain_gradients,
    quadratic,
    regression,
)


def test_of_linear_regression_it_is_the_closed_form():
    net, x, y = regression()
    slopes = 2 * (x @ net.weight[0] - y[:, 0])[:, None].detach() * x
    found = gradient_noise(net, F.mse_loss, (x, y), covariance="full")
    assert torch.allclose(found.covariance, torch.cov(slopes.mT))
    assert torch.allclose(found.mean["weight"][0], slopes.mean(0))
    assert found.trace == pytest.approx(float(torch.cov(slopes.mT).trace()))
    assert found.signal == pytest.approx(float(slopes.mean(0).square().sum()) - found.trace / len(x))


def test_full_diagonal_and_trace_are_one_covariance():
    net, x, y = classifier()
    full, diagonal, trace = (
        gradient_noise(net, F.cross_entropy, (x, y), covariance=kind, batch_size=size)
        for kind, size in (("full", 4), ("diagonal", 30), ("trace", 1))
    )
    expected = torch.cov(plain_gradients(net, x, y).mT)
    assert torch.allclose(full.covariance, expected, atol=1e-13)
    assert torch.allclose(tree.ravel(diagonal.covariance), expected.diagonal(), atol=1e-13)
    assert diagonal.covariance.keys() == dict(net.named_parameters()).keys()
    assert trace.covariance is None
    assert full.trace == pytest.approx(trace.trace) == pytest.approx(float(expected.trace()))
    assert full.trace_error == pytest.approx(trace.trace_error)


def test_alignment_is_exact_where_the_covariance_is_full():
    net, x, y = classifier()
    hessian, sigma = dense_hessian(net, x, y), torch.cov(plain_gradients(net, x, y).mT)
    found = gradient_noise(net, F.cross_entropy, (x, y), covariance="full", curvature=True).alignment
    met = float((hessian * sigma).sum())
    assert found.noise_curvature == pytest.approx(met)
    assert found.cosine == pytest.approx(met / float(hessian.norm() * sigma.norm()))
    assert found.anisotropy == pytest.approx(met * len(sigma) / float(hessian.trace() * sigma.trace()))
    assert torch.allclose(found.hessian_eigenvalues, torch.linalg.eigvalsh(hessian), atol=1e-12)


def test_probes_estimate_the_same_traces_within_their_error():
    net, x, y = classifier()
    exact = gradient_noise(net, F.cross_entropy, (x, y), covariance="full", curvature=True).alignment
    found = gradient_noise(
        net, F.cross_entropy, (x, y), covariance="trace", curvature=True, probes=800, seed=1
    ).alignment
    assert found.noise_curvature == pytest.approx(exact.noise_curvature, rel=0.1)
    assert found.hessian_trace == pytest.approx(exact.hessian_trace, rel=0.1)
    assert 0 < found.error < 0.1 * exact.anisotropy
    assert abs(found.anisotropy - exact.anisotropy) < 4 * found.error


def test_isotropic_noise_has_anisotropy_one():
    u, x = normal(4), normal(500, 4)
    x = (x - x.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.mT)).mT)  # of covariance one, exactly
    h = torch.ones(500, 4, dtype=torch.float64)
    found = gradient_noise(Location(u), quadratic, (x, h), covariance="full", curvature=True)
    assert torch.allclose(found.covariance, torch.eye(4, dtype=torch.float64), atol=1e-12)
    assert found.alignment.anisotropy == pytest.approx(1)
    assert "as isotropic noise would" in found.verdict


@given(scale=st.floats(0.01, 100))
@settings(max_examples=10)
def test_a_loss_times_c_has_noise_times_c_squared(scale):
    net, x, y = regression(10)
    one = gradient_noise(net, F.mse_loss, (x, y), covariance="full")
    other = gradient_noise(net, lambda out, z: scale * (out - z).square()[:, 0], (x, y), covariance="full")
    assert torch.allclose(other.covariance, scale**2 * one.covariance)


def test_the_error_of_the_trace_is_that_of_repeated_draws():
    u, h = torch.zeros(3, dtype=torch.float64), torch.ones(200, 3, dtype=torch.float64)
    draws = [
        gradient_noise(Location(u), quadratic, (normal(200, 3, seed=k), h), covariance="trace") for k in range(200)
    ]
    traces = torch.tensor([draw.trace for draw in draws])
    assert float(traces.mean()) == pytest.approx(3, abs=0.05)
    assert float(traces.std()) == pytest.approx(sum(draw.trace_error for draw in draws) / 200, rel=0.2)
    assert sum(draw.signal for draw in draws) / 200 == pytest.approx(0, abs=3 * math.sqrt(6 / 200) / 200)


def test_of_a_problem_it_is_shaped_as_the_controls():
    net, x, y = classifier()
    problem = mfoc.from_module(net, F.cross_entropy)
    found = gradient_noise(problem, problem.controls, (x, y))
    assert tree.same_structure(found.mean, problem.controls)
    expected = gradient_noise(net, F.cross_entropy, (x, y))
    assert torch.allclose(tree.ravel(found.covariance), tree.ravel(expected.covariance))


def test_it_follows_the_dtype_of_the_network():
    net, x, y = classifier()
    found = gradient_noise(net.float(), F.cross_entropy, (x.float(), y), covariance="full")
    assert found.covariance.dtype == found.mean["0.weight"].dtype == torch.float32


def test_it_prints_and_draws():
    net, x, y = classifier()
    found = gradient_noise(net, F.cross_entropy, (x, y), covariance="full", curvature=True)
    assert "standard deviation" in str(found)
    assert "cosine" in str(found)
    assert len(found.plot().axes[0].lines) == 2
    assert len(gradient_noise(net, F.cross_entropy, (x, y)).plot().axes[0].lines) == 1
    with pytest.raises(InvalidValue, match="only the trace"):
        gradient_noise(net, F.cross_entropy, (x, y), covariance="trace").plot()


@pytest.mark.parametrize(
    ("setting", "kind"),
    [({"covariance": "half"}, InvalidValue), ({"curvature": 1}, InvalidType), ({"probes": 1}, InvalidValue)],
    ids=str,
)
def test_settings_are_refused(setting, kind):
    net, x, y = classifier()
    with pytest.raises(kind):
        gradient_noise(net, F.cross_entropy, (x, y), **setting)


def test_a_covariance_that_is_too_large_is_refused_with_the_cure():
    net = torch.nn.Linear(50, 50).double()
    with pytest.raises(InvalidValue, match=r'2550 parameters.*take "diagonal"'):
        gradient_noise(net, F.mse_loss, (normal(4, 50), normal(4, 50)), covariance="full")
