"""Stationary laws against scipy's Lyapunov solvers, the maps of torch's own optimiser, and closed forms."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import linalg

from mfoc.analysis.noise import (
    momentum_stationary_variance,
    ou_stationary_covariance,
    sgd_stationary_covariance,
    stationary_density,
)
from mfoc.errors import InvalidType, InvalidValue


def pair(d, seed=0):
    """A Hessian with eigenvalues from .1 to 3 and a noise of rank d - 1 that does not commute with it."""
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))[0]
    H = turn @ torch.diag(torch.linspace(0.1, 3, d, dtype=torch.float64)) @ turn.mT
    factor = torch.randn(d, max(1, d - 1), generator=generator, dtype=torch.float64)
    return (H + H.mT) / 2, factor @ factor.mT


@given(st.integers(1, 6), st.integers(0, 100), st.floats(1e-4, 0.66))
def test_sgd_is_the_discrete_lyapunov_equation(d, seed, lr):
    H, S = pair(d, seed)
    expected = linalg.solve_discrete_lyapunov(np.eye(d) - lr * H.numpy(), lr**2 * S.numpy())
    found = sgd_stationary_covariance(H, S, lr)
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-8, atol=1e-12)


@given(st.integers(1, 6), st.integers(0, 100), st.floats(1e-4, 5))
def test_the_limit_is_the_continuous_lyapunov_equation(d, seed, lr):
    H, S = pair(d, seed)
    expected = linalg.solve_continuous_lyapunov(H.numpy(), lr * S.numpy())
    torch.testing.assert_close(ou_stationary_covariance(H, S, lr), torch.tensor(expected), rtol=1e-9, atol=1e-12)


def test_both_agree_for_small_rates_to_first_order():
    H, S = pair(4)
    gaps = [
        float((sgd_stationary_covariance(H, S, lr) / lr - ou_stationary_covariance(H, S, lr) / lr).norm())
        for lr in (1e-3, 5e-4)
    ]
    assert gaps[0] / gaps[1] == pytest.approx(2, rel=1e-2)


def test_sgd_stays_where_it_is_said_to():
    H, S = pair(2)
    lr, n = 0.5, 40_000
    root = torch.linalg.cholesky(S + 1e-12 * torch.eye(2).double())
    generator = torch.Generator().manual_seed(0)
    x = torch.zeros(n, 2, dtype=torch.float64)
    for _ in range(150):
        x = x - lr * (x @ H + torch.randn(n, 2, generator=generator, dtype=torch.float64) @ root.mT)
    C = sgd_stationary_covariance(H, S, lr)
    diagonal = C.diagonal()
    error = ((diagonal[:, None] * diagonal + C.square()) / n).sqrt()  # of a covariance of Gaussians
    assert bool(((x.mT @ x / n - C).abs() < 4 * error).all())


def heavy_ball(h, lr, mu):
    """One step of (x, v), without noise, by torch's own optimiser; x and v are columns."""
    columns = []
    for x, v in ((1.0, 0.0), (0.0, 1.0)):
        weight = torch.tensor(x, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.SGD([weight], lr=lr, momentum=mu)
        optimizer.state[weight]["momentum_buffer"] = torch.tensor(v, dtype=torch.float64)
        (h * weight.square() / 2).backward()
        optimizer.step()
        columns.append([weight.item(), optimizer.state[weight]["momentum_buffer"].item()])
    return np.array(columns).T


@pytest.mark.parametrize("mu", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("h", [0.2, 1.0, 15.0])
def test_momentum_is_the_lyapunov_equation_of_torchs_heavy_ball(h, mu):
    lr, s = 0.13, 0.7
    kick = np.array([[-lr], [1.0]])  # the noise enters v, and x through it
    expected = linalg.solve_discrete_lyapunov(heavy_ball(h, lr, mu), s * kick @ kick.T)[0, 0]
    assert momentum_stationary_variance(h, s, lr, mu) == pytest.approx(expected, rel=1e-9)


def test_momentum_is_stable_exactly_where_it_is_not_refused():
    for mu in (0.1, 0.3, 0.9):
        edge = 2 * (1 + mu) / 1.7
        for lr, stable in ((edge * 0.999, True), (edge * 1.001, False)):
            assert (max(abs(np.linalg.eigvals(heavy_ball(1.7, lr, mu)))) < 1) == stable
        momentum_stationary_variance(1.7, 1.0, edge * 0.999, mu)
        with pytest.raises(InvalidValue, match="too large"):
            momentum_stationary_variance(1.7, 1.0, edge * 1.001, mu)


def test_without_momentum_it_is_sgd():
    h = torch.tensor([0.1, 1.0, 3.0], dtype=torch.float64)
    s = torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64)
    found = momentum_stationary_variance(h, s, 0.3, 0.0)
    torch.testing.assert_close(found, sgd_stationary_covariance(h.diag(), s.diag(), 0.3).diagonal())


def test_results_come_in_the_kind_that_was_given():
    assert sgd_stationary_covariance(2.0, 3.0, 0.1) == pytest.approx(0.3 / (4 - 0.4))
    assert isinstance(ou_stationary_covariance(2.0, 3.0, 0.1), float)
    assert isinstance(momentum_stationary_variance(1.0, 1.0, 0.1, 0.9), float)
    zero = sgd_stationary_covariance(torch.tensor(2.0), torch.tensor(3.0), 0.1)
    assert (zero.shape, zero.dtype) == ((), torch.float32)
    assert sgd_stationary_covariance(torch.eye(1), torch.eye(1), 0.1).shape == (1, 1)
    assert momentum_stationary_variance(torch.ones(3, 1), torch.ones(2), 0.1, 0.5).shape == (3, 2)


EYE = torch.eye(2, dtype=torch.float64)
REFUSED = {
    "large rate": (EYE, EYE, 2.0, InvalidValue, "2 / lambda_max = 2 on"),
    "flat": (torch.diag(torch.tensor([1.0, 0.0])), torch.eye(2), 0.1, InvalidValue, "positive definite"),
    "saddle": (-1.0, 1.0, 0.1, InvalidValue, "positive definite"),
    "negative noise": (EYE, -EYE, 0.1, InvalidValue, "noise has the eigenvalue -1"),
    "not symmetric": (EYE + torch.tensor([[0, 1], [0, 0]]), EYE, 0.1, InvalidValue, "hessian is not symmetric"),
    "not square": (torch.ones(2, 3), torch.ones(2, 3), 0.1, InvalidValue, "shape"),
    "number beside a matrix": (EYE, 1.0, 0.1, InvalidValue, "torch.eye"),
    "integers": (torch.ones(2, 2, dtype=torch.int64), EYE, 0.1, InvalidType, "int64"),
    "two dtypes": (EYE, EYE.float(), 0.1, InvalidValue, "mixed"),
    "not finite": (EYE * math.nan, EYE, 0.1, InvalidValue, "NaN"),
    "empty": (torch.zeros(0, 0), torch.zeros(0, 0), 0.1, InvalidValue, "empty"),
    "no rate": (EYE, EYE, 0.0, InvalidValue, "lr"),
    "half precision": (torch.eye(2).bfloat16(), torch.eye(2).bfloat16(), 0.1, InvalidValue, "eigenvalues"),
    "half precision, number": (torch.tensor(1.0).half(), 1.0, 0.1, InvalidValue, "eigenvalues"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_matrices_are_refused(name):
    hessian, noise, lr, error, words = REFUSED[name]
    with pytest.raises(error, match=words):
        sgd_stationary_covariance(hessian, noise, lr)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((0.0, 1.0, 0.1, 0.9), "flat"),
        ((1.0, -1.0, 0.1, 0.9), "noise"),
        ((1.0, 1.0, -0.1, 0.9), "lr"),
        ((1.0, 1.0, 0.1, 1.0), "momentum"),
    ],
    ids=["flat", "noise", "lr", "momentum"],
)
def test_bad_momentum_is_refused(values, words):
    with pytest.raises(InvalidValue, match=words):
        momentum_stationary_variance(*values)


def test_the_density_on_a_quadratic_is_that_of_the_limit():
    h, s, lr = 1.7, 0.6, 0.05
    grid = torch.linspace(-2, 2, 2001, dtype=torch.float64)
    found = stationary_density(lambda x: h * x.square() / 2, lr, s, grid)
    law = torch.distributions.Normal(torch.zeros(()).double(), math.sqrt(ou_stationary_covariance(h, s, lr)))
    torch.testing.assert_close(found, law.log_prob(grid).exp(), rtol=1e-10, atol=1e-12)


def test_the_density_on_two_axes():
    H, _ = pair(2)
    lr, s = 0.1, 0.8
    axes = [torch.linspace(-8, 8, 301, dtype=torch.float64), torch.linspace(-7, 7, 251, dtype=torch.float64)]
    found = stationary_density(lambda x: ((x @ H) * x).sum(-1) / 2, lr, s * EYE, axes)
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    law = torch.distributions.MultivariateNormal(torch.zeros(2).double(), ou_stationary_covariance(H, s * EYE, lr))
    torch.testing.assert_close(found, law.log_prob(points).exp(), rtol=1e-9, atol=1e-12)


def test_the_density_on_a_double_well_has_no_current():
    """The Fokker-Planck flux -f' p - eta s / 2 p' vanishes; far below the barrier nothing overflows."""
    lr, s = 1e-3, 1.0
    grid = torch.linspace(-2, 2, 40_001, dtype=torch.float64)
    p = stationary_density(lambda x: (x.square() - 1).square(), lr, s, grid)
    slope = (p[2:] - p[:-2]) / (grid[2:] - grid[:-2])
    flux = -4 * grid[1:-1] * (grid[1:-1].square() - 1) * p[1:-1] - lr * s / 2 * slope
    assert float(flux.abs().max()) < 1e-4 * float(p.max())
    assert float(torch.trapezoid(p, grid)) == pytest.approx(1)


def narrow(x, spread):
    """A potential that is narrow along the first axis, and flat along others; the temperature is 1."""
    first = x if x.dim() == 1 else x[:, 0]
    return (first / spread).square() / 2


def test_a_grid_that_steps_over_the_peak_is_refused():
    """With points a standard deviation apart or so the density is exact; further apart it would be wrong."""
    axis = torch.arange(-5.0, 6.0, dtype=torch.float64)
    peak = float(stationary_density(lambda x: narrow(x, 0.9), 0.1, 20.0, axis)[5])
    assert peak == pytest.approx(1 / (0.9 * math.sqrt(2 * math.pi)), rel=1e-5)
    for grid in (axis, [axis, torch.linspace(-5, 5, 101, dtype=torch.float64)]):
        with pytest.raises(InvalidValue, match=r"axis 0 .* closer together"):
            stationary_density(lambda x: narrow(x, 0.1), 0.1, 20.0, grid)


def test_the_density_is_of_the_grids_dtype():
    axis = torch.linspace(-3, 3, 61, dtype=torch.float64)
    assert stationary_density(lambda x: x.float().square(), 0.1, 20.0, axis).dtype == torch.float64


def test_other_densities_are_refused():
    grid = torch.linspace(-1, 1, 5, dtype=torch.float64)
    for noise in (torch.diag(torch.tensor([1.0, 2.0]).double()), 0.0, torch.eye(3).double()):
        with pytest.raises(InvalidValue, match="multiple of the identity"):
            stationary_density(lambda x: x.square().sum(-1), 0.1, noise, [grid, grid])
    with pytest.raises(InvalidValue, match="increase"):
        stationary_density(torch.square, 0.1, 1.0, grid.flip(0))
    with pytest.raises(InvalidValue, match="expected a tensor of shape"):
        stationary_density(lambda x: x.sum(), 0.1, 1.0, grid)
    with pytest.raises(InvalidValue, match="NaN"):
        stationary_density(lambda x: x.sqrt(), 0.1, 1.0, grid)
    with pytest.raises(InvalidType, match="grid"):
        stationary_density(torch.square, 0.1, 1.0, 3.0)
