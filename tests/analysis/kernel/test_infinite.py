"""Infinite kernels against recursions in mpmath, two-dimensional quadrature and networks of width 2048."""

from __future__ import annotations

import itertools
import math
import pickle

import mpmath as mp
import numpy as np
import pytest
import torch
from torch import nn

import mfoc
from mfoc.analysis.kernel import infinite, infinite_kernels
from mfoc.analysis.kernel.infinite import InfiniteNetwork

FORMULAS = ["relu", "leaky_relu", "linear", "erf", "gelu"]


def inputs(n=4, d=5, seed=0):
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def special():
    """Inputs that are equal, opposite, parallel, zero and 1e-9 apart."""
    x = inputs(3)
    rows = [x[0], x[1], x[1], -x[1], 3 * x[1], 0 * x[1], x[1] + 1e-9 * x[2], 1e-5 * x[2]]
    return torch.stack(rows)


# ---- the equations once more, in mpmath with closed forms


def homogeneous(below):
    below = mp.mpf(below)

    def moments(a, b, k):
        if a * b == 0:
            return mp.mpf(0), (1 + below**2) / 2
        c = max(mp.mpf(-1), min(mp.mpf(1), k / mp.sqrt(a * b)))
        angle = mp.acos(c)

        def relus(angle, c):
            return mp.sqrt(a * b) * (mp.sin(angle) + (mp.pi - angle) * c) / (2 * mp.pi), (mp.pi - angle) / (2 * mp.pi)

        same, opposite = relus(angle, c), relus(mp.pi - angle, -c)  # leaky = relu(u) - below * relu(-u)
        return (
            (1 + below**2) * same[0] - 2 * below * opposite[0],
            (1 + below**2) * same[1] + 2 * below * opposite[1],
        )

    return moments


def erf(a, b, k):
    rest = mp.sqrt((1 + 2 * a) * (1 + 2 * b))
    return 2 / mp.pi * mp.asin(2 * k / rest), 4 / mp.pi / mp.sqrt(rest**2 - 4 * k**2)


def gelu(a, b, k):
    def value(k):
        p, q = 1 + a, 1 + b
        rest = p * q - k**2
        bulk = (a * (b - k**2 / p) + k**2 / q) / (2 * mp.pi * mp.sqrt(rest))
        return k * (mp.mpf(1) / 4 + mp.asin(k / mp.sqrt(p * q)) / (2 * mp.pi)) + bulk

    return value(k), mp.diff(value, k)


MOMENTS = {
    "relu": homogeneous(0),
    "leaky_relu": homogeneous(0.01),
    "linear": homogeneous(1),
    "erf": erf,
    "gelu": gelu,
}


def recursion(x, y, moments, depth, sw2, sb2, residual=False):
    """(nngp, ntk) of two inputs, with 25 digits."""
    x, y = ([mp.mpf(float(entry)) for entry in row] for row in (x, y))
    sw2, sb2 = mp.mpf(sw2), mp.mpf(sb2)
    a, b, k = (
        sw2 * mp.fsum(p * q for p, q in zip(*pair, strict=True)) / len(x) + sb2 for pair in ((x, x), (y, y), (x, y))
    )
    theta = k
    for layer in range(1, depth):
        skip = 1 if residual and layer < depth - 1 else 0
        value, slope = moments(a, b, k)
        theta = sw2 * value + sb2 + (sw2 * slope + skip) * theta
        a, b, k = (
            sw2 * moments(*law)[0] + sb2 + skip * old for law, old in (((a, a, a), a), ((b, b, b), b), ((a, b, k), k))
        )
    return k, theta


def error_of(x, kernels, moments, *settings):
    """The largest error, relative to the largest entry."""
    worst, size = 0.0, [max(1.0, float(kernel.abs().max())) for kernel in kernels]
    with mp.workdps(40):
        for i, j in itertools.combinations_with_replacement(range(len(x)), 2):
            exact = recursion(x[i], x[j], moments, *settings)
            for kernel, value, scale in zip(kernels, exact, size, strict=True):
                worst = max(worst, abs(float(mp.mpf(float(kernel[i, j])) - value)) / scale)
    return worst


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(("sw2", "sb2"), [(2.0, 0.0), (1.3, 0.4)])
@pytest.mark.parametrize("name", FORMULAS)
def test_ten_digits_at_any_inputs(name, sw2, sb2, residual):
    """Equal, opposite, parallel, zero and nearly equal inputs among them."""
    x, depth = special(), 4
    settings = {"activation": name, "depth": depth, "weight_variance": sw2, "bias_variance": sb2, "residual": residual}
    kernels = infinite_kernels(x, **settings)
    if name == "gelu":  # its derivative in mpmath is slow
        x, kernels = x[1:6], infinite_kernels(x[1:6], **settings)
    assert error_of(x, kernels, MOMENTS[name], depth, sw2, sb2, residual) < 1e-10


def test_digits_are_kept_through_a_hundred_layers_at_criticality():
    x = special()[:3]
    kernels = infinite_kernels(x, activation="relu", depth=100, weight_variance=2.0)
    assert error_of(x, kernels, MOMENTS["relu"], 100, 2.0, 0.0) < 1e-12


def sine(a, b, k):
    shrunk = mp.exp(-(a + b) / 2)
    return shrunk * mp.sinh(k), shrunk * mp.cosh(k)


def test_chaos_tells_inputs_apart_that_differ_in_the_ninth_digit():
    """A distance of 1e-18 grows by twelve orders; as a correlation it would be lost in the first layer."""
    x = torch.stack([inputs(2)[0], inputs(2)[0] + 1e-9 * inputs(2)[1]])
    settings = {"activation": "sin", "depth": 30, "weight_variance": 6.0}
    k = infinite_kernels(x, **settings).nngp
    with mp.workdps(60):
        law = [
            recursion(one, other, sine, 30, 6.0, 0.0)[0] for one, other in ((x[0], x[0]), (x[1], x[1]), (x[0], x[1]))
        ]
        apart = float(law[0] + law[1] - 2 * law[2])
    assert 1e-6 < apart < 1
    assert float(k[0, 0] + k[1, 1] - 2 * k[0, 1]) == pytest.approx(apart, rel=1e-5)


# ---- activations without closed form: a plain rule in other coordinates


def pieces(breaks, longest, reach=9.5, order=20):
    """Gauss-Legendre nodes between breaks [n, k], and weights that hold the normal density: [n, nodes]."""
    grid = np.linspace(-reach, reach, 1 + math.ceil(2 * reach / longest))
    edges = np.concatenate([np.tile(grid, (len(breaks), 1)), np.clip(breaks, -reach, reach)], 1)
    edges.sort(1)
    low, length = edges[:, :-1, None], np.diff(edges)[:, :, None]
    node, weight = np.polynomial.legendre.leggauss(order)
    z = (low + length * (node + 1) / 2).reshape(len(breaks), -1)
    return z, (length * weight / 2).reshape(z.shape) * np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)


def plain_moments(function, slope, kinks):
    """E phi phi' and E phi' phi', by z1 first and z2 given z1."""
    kinks = np.array(kinks, dtype=float)

    def moments(a, b, k):
        root1, root2 = math.sqrt(a), math.sqrt(b)
        c = min(1.0, max(-1.0, k / (root1 * root2)))
        s = math.sqrt(1 - c * c)
        longest = min(1.0, 2.5 / max(root1, root2))
        (z1,), (w1,) = pieces(kinks[None] / root1, max(0.1, min(longest, 5 * s)))  # a kink is smoothed over s
        if s < 1e-8:
            u, v = root1 * z1, root2 * math.copysign(1, c) * z1
            return float(w1 @ (function(u) * function(v))), float(w1 @ (slope(u) * slope(v)))
        z2, w2 = pieces((kinks / root2 - c * z1[:, None]) / s, longest)
        v = root2 * (c * z1[:, None] + s * z2)
        return tuple(float(w1 @ (phi(root1 * z1) * (phi(v) * w2).sum(1))) for phi in (function, slope))

    return moments


def sigmoid(u):
    return 1 / (1 + np.exp(-u))


QUADRATURE = {
    "tanh": (np.tanh, lambda u: 1 / np.cosh(u) ** 2, ()),
    "silu": (lambda u: u * sigmoid(u), lambda u: sigmoid(u) * (1 + u * (1 - sigmoid(u))), ()),
    "hardtanh": (lambda u: np.clip(u, -1, 1), lambda u: (np.abs(u) < 1) * 1.0, (-1.0, 1.0)),
    "elu": (lambda u: np.where(u > 0, u, np.expm1(np.minimum(u, 0))), lambda u: np.exp(np.minimum(u, 0)), (0.0,)),
}


def plain_recursion(x, y, moments, depth, sw2, sb2, residual):
    """(nngp, ntk) in floats, step by step as the equations are written."""
    a, b, k = (sw2 * float(p @ q) / len(p) + sb2 for p, q in ((x, x), (y, y), (x, y)))
    theta = k
    for layer in range(1, depth):
        skip = float(residual and layer < depth - 1)
        (value, slope), one, two = moments(a, b, k), moments(a, a, a)[0], moments(b, b, b)[0]
        theta = sw2 * value + sb2 + (sw2 * slope + skip) * theta
        a, b, k = sw2 * one + sb2 + skip * a, sw2 * two + sb2 + skip * b, sw2 * value + sb2 + skip * k
    return k, theta


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("name", QUADRATURE)
def test_any_activation_agrees_with_plain_quadrature(name, residual):
    x = inputs(2)
    x = torch.stack([x[0], x[1], -1.2 * x[0], x[0] + 0.05 * x[1]])  # far, nearly opposite, near
    depth, sw2, sb2 = 3, 1.7, 0.1
    settings = {"depth": depth, "weight_variance": sw2, "bias_variance": sb2, "residual": residual}
    nngp, ntk = infinite_kernels(x, activation=name, **settings)
    for i, j in [(0, 0), (0, 1), (0, 2), (0, 3)]:
        exact = plain_recursion(x[i], x[j], plain_moments(*QUADRATURE[name]), depth, sw2, sb2, residual)
        assert (float(nngp[i, j]), float(ntk[i, j])) == pytest.approx(exact, abs=1e-10)


PRECISE = {
    "tanh": (mp.tanh, lambda u: mp.sech(u) ** 2),
    "silu": (lambda u: u / (1 + mp.exp(-u)), lambda u: (1 + mp.exp(-u) * (1 + u)) / (1 + mp.exp(-u)) ** 2),
    "hardtanh": (lambda u: max(mp.mpf(-1), min(mp.mpf(1), u)), lambda u: mp.mpf(abs(u) < 1)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PRECISE)
def test_one_layer_agrees_with_mpmath_in_two_dimensions(name):
    kinks = QUADRATURE[name][2]
    x = torch.tensor([[1.1, 0.3], [0.4, -0.8]], dtype=torch.float64)
    k = x @ x.mT / 2
    one, two = mp.sqrt(float(k[0, 0])), mp.sqrt(float(k[1, 1]))
    c = float(k[0, 1]) / (one * two)
    s = mp.sqrt(1 - c * c)

    def integral(f, places):
        ends = sorted({-8, -4, 0, 4, 8, *(place for place in places if abs(place) < 8)})
        return mp.quad(f, ends, method="gauss-legendre", maxdegree=3)

    def mean(phi):
        def inner(z):
            breaks = [(kink / two - c * z) / s for kink in kinks]
            return phi(one * z) * integral(lambda w: phi(two * (c * z + s * w)) * mp.exp(-w * w / 2), breaks)

        total = integral(lambda z: inner(z) * mp.exp(-z * z / 2), [kink / one for kink in kinks])
        return float(total / (2 * mp.pi))

    nngp, ntk = infinite_kernels(x, activation=name, depth=2)
    value, slope = (mean(phi) for phi in PRECISE[name])
    assert float(nngp[0, 1]) == pytest.approx(value, abs=1e-10)
    assert float(ntk[0, 1]) == pytest.approx(value + slope * float(k[0, 1]), abs=1e-10)


@pytest.mark.parametrize("name", ["tanh", "hardtanh"])
def test_large_variances(name):
    """Beyond what Mehler's series reaches with its terms."""
    x = 8 * inputs(2)
    nngp, ntk = infinite_kernels(x, activation=name, depth=2)
    exact = plain_recursion(x[0], x[1], plain_moments(*QUADRATURE[name]), 2, 1.0, 0.0, False)
    assert float(nngp[0, 1]) == pytest.approx(exact[0], abs=1e-10)
    assert float(ntk[0, 1]) == pytest.approx(exact[1], abs=1e-10)


# ---- networks


class Wide(nn.Module):
    """The network of the equations, in NTK parametrisation."""

    def __init__(self, d, width, depth, activation, sw2, sb2, residual, generator):
        super().__init__()
        sizes = [d, *[width] * (depth - 1), 1]
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for n_in, n_out in itertools.pairwise(sizes):
            draw = {"generator": generator, "dtype": torch.float64}
            self.weights.append(torch.randn(n_out, n_in, **draw))
            self.biases.append(torch.randn(n_out, **draw))
        self.activation, self.scale, self.shift, self.residual = activation, sw2**0.5, sb2**0.5, residual

    def forward(self, x):
        h = x
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            source = self.activation(h) if layer else h
            new = self.scale / source.shape[1] ** 0.5 * source @ weight.mT + self.shift * bias
            h = h + new if self.residual and 0 < layer < len(self.weights) - 1 else new
        return h[:, 0]


def within(sample, exact, errors=3.0):
    """Whether the mean of a sample [draws, ...] is within that many standard errors."""
    error = sample.std(0) / len(sample) ** 0.5
    return bool(((sample.mean(0) - exact).abs() <= errors * error).all())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "residual"), [("relu", False), ("tanh", True)])
def test_networks_of_width_2048_have_these_kernels(name, residual):
    """The NTK by jacrev; the NNGP kernel is its share of the last layer's weights and bias."""
    x, generator = inputs(2), torch.Generator().manual_seed(0)
    shape = {"sw2": 1.6, "sb2": 0.2, "residual": residual}
    sample = []
    for _ in range(6):
        net = Wide(5, 2048, 3, getattr(torch, name), generator=generator, **shape)
        values = {key: value.detach() for key, value in net.named_parameters()}
        jacobian = torch.func.jacrev(lambda values, net=net: torch.func.functional_call(net, values, (x,)))(values)
        shares = {key: j.flatten(1) @ j.flatten(1).mT for key, j in jacobian.items()}
        sample.append(torch.stack([shares["weights.2"] + shares["biases.2"], sum(shares.values())]))
    settings = {"depth": 3, "weight_variance": 1.6, "bias_variance": 0.2, "residual": residual}
    exact = torch.stack(list(infinite_kernels(x, activation=name, **settings)))
    assert within(torch.stack(sample), exact)
    assert not within(torch.stack(sample), 1.1 * exact)  # it is sharp enough to tell


# ---- what holds of every kernel


def test_one_layer_is_a_linear_model():
    x, y = inputs(3), inputs(4, seed=1)
    nngp, ntk = infinite_kernels(x, y, activation="tanh", depth=1, weight_variance=1.5, bias_variance=0.3)
    assert torch.allclose(nngp, 1.5 * x @ y.mT / 5 + 0.3, atol=1e-14)
    assert torch.equal(nngp, ntk)


@pytest.mark.parametrize("name", ["relu", "tanh", "hardtanh"])
def test_two_sets_are_a_part_of_their_union(name):
    x = special()
    settings = {"activation": name, "depth": 3, "weight_variance": 1.5, "bias_variance": 0.1}
    whole = infinite_kernels(x, **settings)
    for kernel, part in zip(whole, infinite_kernels(x[:3], x[2:], **settings), strict=True):
        assert torch.allclose(kernel[:3, 2:], part, atol=1e-13)
        assert torch.equal(kernel, kernel.mT)
        assert float(torch.linalg.eigvalsh(kernel).min()) > -1e-12


@pytest.mark.parametrize("name", ["gelu", "elu"])
def test_blocks_change_nothing(name, monkeypatch):
    x, y = inputs(9), inputs(7, seed=1)
    settings = {"activation": name, "depth": 3, "weight_variance": 2.0, "bias_variance": 0.1}
    alone, across = infinite_kernels(x, **settings), infinite_kernels(x, y, **settings)
    monkeypatch.setattr(infinite, "_BLOCK", 20)
    for kernel, other in zip(alone, infinite_kernels(x, **settings), strict=True):
        assert torch.allclose(kernel, other, atol=1e-13)
    for kernel, other in zip(across, infinite_kernels(x, y, **settings), strict=True):
        assert torch.allclose(kernel, other, atol=1e-13)


@pytest.mark.parametrize("name", ["relu", "silu", "selu"])
def test_the_diagonal_is_had_without_the_matrix(name):
    x = special()
    network = InfiniteNetwork.of(name, 4, 1.5, 0.2, True)
    for kernel, diagonal in zip(network.kernels(x, None), network.diagonals(x), strict=True):
        assert torch.allclose(kernel.diagonal(), diagonal, rtol=1e-13)


def test_an_activation_is_named_or_called_or_a_module():
    x = inputs(3)
    named = infinite_kernels(x, activation="silu", depth=2)
    for same in (torch.nn.functional.silu, nn.SiLU(), lambda u: u * torch.sigmoid(u)):
        for kernel, other in zip(named, infinite_kernels(x, activation=same, depth=2), strict=True):
            assert torch.allclose(kernel, other, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_any_floating_point_type(dtype):
    x = inputs(3).to(dtype)
    exact = infinite_kernels(x.double(), activation="gelu", depth=3, weight_variance=2.0)
    for kernel, wide in zip(infinite_kernels(x, activation="gelu", depth=3, weight_variance=2.0), exact, strict=True):
        assert torch.equal(kernel, wide.to(dtype))


def test_inputs_are_flattened_and_left_alone():
    x = inputs(4, 12).reshape(4, 3, 2, 2).requires_grad_()
    before, state = x.detach().clone(), torch.random.get_rng_state()
    kernels = infinite_kernels(x, activation="tanh", depth=2)
    flat = infinite_kernels(x.detach().reshape(4, 12), activation="tanh", depth=2)
    assert all(torch.equal(one, other) for one, other in zip(kernels, flat, strict=True))
    assert not any(kernel.requires_grad for kernel in kernels)
    assert torch.equal(x.detach(), before)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_numbers_in_a_row_are_inputs_of_one_number():
    x = torch.linspace(-1, 1, 5, dtype=torch.float64)
    assert torch.equal(
        infinite_kernels(x, activation="relu", depth=2).ntk,
        infinite_kernels(x[:, None], activation="relu", depth=2).ntk,
    )


def test_no_weights_leave_the_bias():
    nngp, ntk = infinite_kernels(inputs(3), activation="tanh", depth=3, weight_variance=0.0, bias_variance=0.7)
    assert torch.allclose(nngp, torch.full((3, 3), 0.7, dtype=torch.float64))
    assert torch.allclose(ntk, nngp)


def test_a_network_survives_a_pickle():
    network = InfiniteNetwork.of(nn.ELU(), 3, 1.5, 0.1, False)
    again = pickle.loads(pickle.dumps(network))
    assert torch.equal(network.kernels(inputs(3), None)[1], again.kernels(inputs(3), None)[1])
    assert str(again) == "3 dense layers, ELU, weight variance 1.5, bias variance 0.1"


# ---- refusals


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x1": [[1.0]]}, mfoc.InvalidType, "x1 is a list"),
        ({"x1": torch.ones(2, 3, dtype=torch.long)}, mfoc.InvalidType, "floating-point"),
        ({"x1": torch.ones(2, 3, dtype=torch.complex64)}, mfoc.InvalidType, "floating-point"),
        ({"x1": torch.ones(0, 3)}, mfoc.InvalidValue, "at least one sample"),
        ({"x1": torch.ones(3, 0)}, mfoc.InvalidValue, "at least one sample"),
        ({"x1": torch.tensor(1.0)}, mfoc.InvalidValue, "at least one sample"),
        ({"x1": torch.full((2, 3), math.nan)}, mfoc.InvalidValue, "NaN"),
        ({"x2": torch.ones(2, 4)}, mfoc.InvalidValue, "x1 has samples of shape"),
        ({"x2": torch.ones(2, 3).double()}, mfoc.InvalidValue, "dtype"),
        ({"depth": 0}, mfoc.InvalidValue, "depth is 0"),
        ({"depth": 2.0}, mfoc.InvalidType, "depth is 2.0"),
        ({"depth": True}, mfoc.InvalidType, "depth is True"),
        ({"weight_variance": -1.0}, mfoc.InvalidValue, "weight_variance is -1.0"),
        ({"bias_variance": -1.0}, mfoc.InvalidValue, "bias_variance is -1.0"),
        ({"weight_variance": math.inf}, mfoc.InvalidValue, "weight_variance is inf"),
        ({"bias_variance": "0"}, mfoc.InvalidType, "bias_variance"),
        ({"residual": 1}, mfoc.InvalidType, "residual is 1"),
        ({"activation": "no such"}, mfoc.InvalidValue, "activation"),
        ({"activation": 3}, mfoc.InvalidType, "activation"),
        ({"activation": nn.Softmax(-1)}, mfoc.InvalidValue, "every entry"),
        ({"memory": 10}, mfoc.InvalidValue, "would take"),
        ({"weight_variance": 1e300, "depth": 9}, mfoc.InvalidValue, "overflow"),
    ],
)
def test_what_is_no_network_or_no_input_is_refused(change, error, words):
    arguments = {"x1": torch.ones(2, 3), "activation": "relu", "depth": 2} | change
    with pytest.raises(error, match=words):
        infinite_kernels(**arguments)


def test_kernels_beyond_memory_are_refused_before_they_are_made():
    x = torch.ones(1, 1).expand(10**7, 1)
    with pytest.raises(mfoc.InvalidValue, match="TiB"):
        infinite_kernels(x, activation="relu", depth=2)


def test_kernels_beyond_the_range_of_a_type_are_refused():
    with pytest.raises(mfoc.InvalidValue, match=r"float16.*float64"):
        infinite_kernels(torch.ones(2, 3).half(), activation="relu", depth=12, weight_variance=8.0)
