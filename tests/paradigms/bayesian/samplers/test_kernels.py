"""Kernels of Stein's method: their directions and the discrepancy, against loops, derivatives and Pyro."""

import math
from functools import partial

import pytest
import torch
from pyro.infer import IMQSteinKernel, RBFSteinKernel

import mfoc
from paradigms.bayesian import IMQ, RBF, PyroIMQ, PyroRBF, discrepancy
from tests.oracles import bayesian as oracles
from tests.paradigms.bayesian.targets import centred
from tests.problems import D, normal


def test_the_direction_is_that_of_a_double_loop():
    x, score = normal(11, 4) + 5, normal(11, 4, seed=1)
    torch.testing.assert_close(
        RBF(1.7).direction(x, score), oracles.stein_direction(x, score, 1.7), rtol=1e-12, atol=1e-12
    )
    pairs = torch.tensor([float((x[i] - x[j]).square().sum()) for i in range(11) for j in range(i)], dtype=D)
    h = pairs.median() / math.log(12)
    torch.testing.assert_close(RBF().direction(x, score), oracles.stein_direction(x, score, h), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", ["univariate", "multivariate"])
@pytest.mark.parametrize(("n", "factor"), [(2, None), (5, None), (20, 2.0)])
@pytest.mark.parametrize(
    ("theirs", "own"),
    [
        (lambda factor: RBFSteinKernel(factor), PyroRBF),
        (lambda factor: IMQSteinKernel(bandwidth_factor=factor), partial(PyroIMQ, 0.5, -0.5)),
        (lambda factor: IMQSteinKernel(1.3, -0.2, factor), partial(PyroIMQ, 1.3, -0.2)),
    ],
)
def test_the_kernels_of_pyro(theirs, own, mode, n, factor):
    x, score = normal(n, 4), normal(n, 4, seed=1)
    log_kernel, slope = theirs(factor).log_kernel_and_grad(x)
    k = log_kernel.sum(-1, keepdim=True).exp() if mode == "multivariate" else log_kernel.exp()
    # Pyro's second factor is that of the loss, minus the log density.
    expected = ((k * score[None]).sum(1) - (k * slope).sum(1)) / n
    torch.testing.assert_close(own(factor, mode).direction(x, score), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("h", [None, 1.7])
def test_the_direction_of_the_multiquadric_is_made_of_its_kernel_and_derivatives(h):
    x, score = normal(7, 3) + 5, normal(7, 3, seed=1)
    pairs = torch.stack([(x[i] - x[j]).square().sum() for i in range(7) for j in range(i)])
    scale = h or pairs.median() / math.log(8)

    def k(a, b):
        return (0.8 + (a - b).square().sum() / scale) ** -0.3

    slope = torch.func.grad(k, argnums=1)
    pulls = [torch.stack([k(a, b) * s + slope(a, b) for b, s in zip(x, score, strict=True)]).mean(0) for a in x]
    found = IMQ(h, alpha=0.8, beta=-0.3).direction(x, score)
    torch.testing.assert_close(found, torch.stack(pulls), rtol=1e-12, atol=1e-12)


def test_in_one_dimension_the_multiquadric_is_that_of_pyro():
    x, score = normal(9, 1), normal(9, 1, seed=1)
    torch.testing.assert_close(IMQ().direction(x, score), PyroIMQ().direction(x, score), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kernel", [IMQ(), PyroIMQ(), PyroIMQ(mode="multivariate")])
def test_particles_in_one_place_are_not_driven_apart_and_nothing_is_divided_by_zero(kernel):
    """The kernel is then alpha^beta for all pairs, in each of two coordinates for a product."""
    x, score = torch.ones(5, 2, dtype=D), torch.full((5, 2), 3.0, dtype=D)
    factor = 0.5 ** (-1.0 if getattr(kernel, "mode", "") == "multivariate" else -0.5)
    torch.testing.assert_close(kernel.direction(x, score), factor * score)


def test_the_discrepancy_against_derivatives_of_the_kernel():
    x, score = normal(6, 3), normal(6, 3, seed=1)

    def k(a, b):
        return (1 + (a - b).square().sum() / 1.3**2) ** -0.4

    expected = torch.zeros(6, dtype=D)
    for i in range(6):
        for j in range(6):
            a, b = x[i].clone().requires_grad_(), x[j].clone().requires_grad_()
            in_a = torch.autograd.grad(k(a, b), a, create_graph=True)[0]
            in_b = torch.autograd.grad(k(a, b), b, create_graph=True)[0]
            mixed = sum(torch.autograd.grad(in_a[m], b, retain_graph=True)[0][m] for m in range(3))
            value = k(a, b) * (score[i] @ score[j]) + score[i] @ in_b + score[j] @ in_a + mixed
            expected[i] += value.detach() / 6
    torch.testing.assert_close(discrepancy(x, score, length=1.3, beta=-0.4), expected, rtol=1e-11, atol=1e-12)


def test_the_discrepancy_vanishes_at_the_target_only():
    density = centred(torch.eye(2, dtype=D))
    x = normal(2000, 2, seed=8)
    right, wide = (float(discrepancy(c * x, density.score(c * x)).mean()) for c in (1.0, 1.3))
    assert right < 0.01 < 0.05 < wide


@pytest.mark.parametrize("kernel", [RBF(), PyroRBF(), PyroRBF(mode="multivariate")])
def test_where_most_particles_coincide_the_positive_distances_give_the_bandwidth(kernel):
    """Seven points in one place and one far off: the median distance is zero; that of the positive ones is not."""
    x = torch.zeros(8, 2, dtype=D)
    x[0] = torch.tensor([1.0, 2.0], dtype=D)
    score = -x
    h = x[0].square() / math.log(9)  # by coordinate
    k = (-x[0].square() / h).exp() if isinstance(kernel, PyroRBF) else torch.exp(-torch.tensor(math.log(9.0), dtype=D))
    if isinstance(kernel, RBF):
        h = x[0].square().sum() / math.log(9)
    elif kernel.mode == "multivariate":
        k = k.prod()
    expected = torch.empty_like(x)
    expected[0] = (score[0] + 7 * k * 2 / h * x[0]) / 8
    expected[1:] = (k * score[0] - k * 2 / h * x[0]) / 8
    torch.testing.assert_close(kernel.direction(x, score), expected)
    together = kernel.direction(torch.ones(5, 2, dtype=D), torch.full((5, 2), 3.0, dtype=D))
    torch.testing.assert_close(together, torch.full((5, 2), 3.0, dtype=D))


def test_rounding_of_points_that_coincide_is_no_distance():
    """In single precision far from the origin, where products of equal rows differ in the last digits."""
    x = (1e3 * normal(2, 60, seed=1)).float()
    cloud = torch.cat([x[:1].expand(2, 60), x[1:].expand(9, 60)])
    found = RBF().direction(cloud, torch.zeros_like(cloud))
    exact = RBF().direction(cloud.double(), torch.zeros_like(cloud).double())
    torch.testing.assert_close(found.double(), exact, rtol=1e-3, atol=1e-3 * float(exact.abs().max()))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: RBF(-1.0), mfoc.InvalidValue, "bandwidth"),
        (lambda: discrepancy(torch.eye(2), torch.eye(2), length="a"), mfoc.InvalidType, "length is 'a'"),
        (lambda: discrepancy(torch.eye(2), torch.eye(2), beta=0.5), mfoc.InvalidValue, "beta is 0.5"),
        (lambda: PyroRBF(mode="both"), mfoc.InvalidValue, "'both'"),
        (lambda: IMQ(bandwidth=0.0), mfoc.InvalidValue, "bandwidth"),
        (lambda: IMQ(alpha=0), mfoc.InvalidValue, "alpha"),
        (lambda: IMQ(beta=0.5), mfoc.InvalidValue, "beta is 0.5"),
        (lambda: PyroIMQ(beta=None), mfoc.InvalidType, "beta is None"),
        (lambda: PyroIMQ(mode="both"), mfoc.InvalidValue, "'both'"),
    ],
)
def test_bad_input_is_refused_with_a_reason(call, error, words):
    with pytest.raises(error, match=words):
        call()
