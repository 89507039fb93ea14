"""Products with Jacobians against dense ones, and the gain against closed forms."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mfoc.analysis import jacobians
from mfoc.errors import InvalidType, InvalidValue


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


W = normal(7, 5, seed=1)
K = normal(3, 2, 3, seed=2)

MAPS = {
    "dense": (lambda x: torch.tanh(x) @ W.mT, (4, 5)),
    "convolution": (lambda x: F.conv1d(torch.sin(x), K, padding=1), (4, 2, 6)),
    "residual": (lambda x: x + torch.tanh(x @ W.mT) @ W, (4, 5)),
    "centred": (lambda x: (x - x.mean(0)) ** 2, (4, 5)),  # particles interact
    "one number": (lambda x: x.sin().sum(1), (4, 5)),
    "a number a particle": (torch.exp, (4,)),
}


def dense(function, x):
    """The Jacobian as a matrix [n_out, n_in]."""
    found = torch.autograd.functional.jacobian(function, x)
    return found.reshape(-1, x.numel())


@pytest.mark.parametrize("name", MAPS)
def test_products_are_those_of_the_dense_jacobian(name):
    function, shape = MAPS[name]
    x = normal(*shape).requires_grad_()
    y, matrix = function(x), dense(function, x.detach())
    v, w = normal(*x.shape, seed=3), normal(*y.shape, seed=4)
    torch.testing.assert_close(jacobians.push(y, x, v)[0].flatten(), matrix @ v.flatten())
    torch.testing.assert_close(jacobians.pull(y, x, w)[0].flatten(), matrix.mT @ w.flatten())


def test_products_of_several_tensors():
    a, b = normal(3, 2).requires_grad_(), normal(3, seed=1).requires_grad_()
    y = (a * b[:, None]).sum(1)
    v, u = normal(3, 2, seed=2), normal(3, seed=3)
    torch.testing.assert_close(jacobians.push(y, [a, b], [v, u])[0], (v * b[:, None] + a * u[:, None]).sum(1))
    torch.testing.assert_close(jacobians.pull([y, a], [b], [u, v])[0], u * a.sum(1))


@pytest.mark.parametrize("name", MAPS)
def test_the_gain_is_the_frobenius_norm_a_unit(name):
    function, shape = MAPS[name]
    x = normal(*shape)
    exact = float(dense(function, x).square().sum()) / function(x).numel()
    found = jacobians.gain_of(function, x, generator=generator(), probes=400)
    assert abs(found.value - exact) < 4 * found.error + 1e-6
    assert found.error < 0.06 * exact


def test_the_gain_from_the_left_is_that_from_the_right():
    """The definition: the mean square of J v a unit, for random v of mean square 1."""
    function, shape = MAPS["convolution"]
    x = normal(*shape).requires_grad_()
    y = function(x)
    readings = [jacobians.push(y, x, normal(*shape, seed=k))[0].square().mean() for k in range(400)]
    right = torch.stack(readings)
    left = jacobians.mean_square_gain(y, x, generator=generator(), probes=400)
    error = math.hypot(left.error, float(right.std()) / len(right) ** 0.5)
    assert abs(left.value - float(right.mean())) < 4 * error


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_wide_dense_layer_has_the_gain_of_theory(dtype):
    """sigma_w^2 E phi'^2: half of sigma_w^2 for ReLU."""
    weight = (normal(400, 500) * math.sqrt(1.6 / 500)).to(dtype)
    x = normal(20, 500, seed=5).to(dtype)
    found = jacobians.gain_of(lambda h: F.linear(F.relu(h), weight), x, generator=generator(), probes=3)
    assert found.value == pytest.approx(0.8, rel=0.03)


def test_the_error_is_as_large_as_it_says():
    function, shape = MAPS["residual"]
    x = normal(*shape)
    exact = float(dense(function, x).square().sum()) / function(x).numel()
    found = [jacobians.gain_of(function, x[:1], generator=generator(k), probes=30) for k in range(60)]
    exact = float(dense(function, x[:1]).square().sum()) / 5
    within = sum(abs(each.value - exact) < 2 * each.error for each in found)
    assert 50 <= within <= 60


def test_an_orthogonal_map_has_gain_one_with_one_probe():
    matrix = torch.linalg.qr(normal(9, 9))[0]
    found = jacobians.gain_of(lambda x: x @ matrix, normal(5, 9, seed=1), generator=generator())
    assert found.value == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("shape", [(6, 3), (6, 1), (6,), (2, 2, 3)])
def test_probes_have_unit_covariance(shape):
    like = torch.empty(shape, dtype=torch.float64)
    g = generator()
    rows = torch.stack([jacobians.random_like(like, g)[0].flatten() for _ in range(3000)])
    torch.testing.assert_close(rows.mT @ rows / 3000, torch.eye(rows.shape[1], dtype=torch.float64), atol=0.09, rtol=0)
    assert float(rows.mean(0).abs().max()) < 0.09


def test_no_path_is_no_gain():
    x = normal(3, 2).requires_grad_()
    y = normal(3, 2, seed=1).requires_grad_()
    assert jacobians.mean_square_gain(y, x, generator=generator()).value == 0
    assert jacobians.gain_of(lambda x: x.detach() * 2, normal(3, 2), generator=generator()).value == 0


def test_attention_in_evaluation_mode():
    """The fast path of torch's layer has no derivative, and other kernels of attention no second one."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).double().eval()
    x = normal(3, 4, 8).requires_grad_()
    with jacobians.twice_differentiable():
        y = layer(x)
    v = normal(3, 4, 8, seed=1)
    step = 1e-6
    with torch.no_grad():
        by_differences = (layer(x + step * v) - layer(x - step * v)) / (2 * step)
    torch.testing.assert_close(jacobians.push(y, x, v)[0], by_differences, rtol=1e-6, atol=1e-8)


def test_nothing_of_the_callers_changes():
    layer = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 3).double())
    x, state = normal(4, 3), torch.get_rng_state()
    kept = x.clone()
    jacobians.gain_of(layer, x, generator=generator())
    assert torch.equal(x, kept)
    assert not x.requires_grad
    assert all(parameter.grad is None for parameter in layer.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_the_same_seed_says_the_same():
    function, shape = MAPS["dense"]
    first, again = (jacobians.gain_of(function, normal(*shape), generator=generator(7)) for _ in range(2))
    assert (first.value, first.error) == (again.value, again.error)


def test_bad_input():
    x = normal(3, 2)
    with pytest.raises(InvalidValue, match="probes"):
        jacobians.gain_of(torch.tanh, x, generator=generator(), probes=0)
    with pytest.raises(InvalidType, match="generator"):
        jacobians.gain_of(torch.tanh, x, generator=3)
    with pytest.raises(InvalidValue, match="floating point"):
        jacobians.gain_of(lambda x: x.argmax(1), x, generator=generator())
    with pytest.raises(InvalidValue, match="no numbers"):
        jacobians.gain_of(torch.tanh, x[:0], generator=generator())
