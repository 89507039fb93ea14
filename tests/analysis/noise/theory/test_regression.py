"""The risk of SGD on linear regression against the matrix recursion, and against SGD."""

import math

import pytest
import torch

from mfoc.analysis.noise import linear_regression_excess_risk
from mfoc.errors import InvalidType, InvalidValue


def draw(d, seed):
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(d, d, generator=generator, dtype=torch.float64)
    return factor @ factor.mT / d, torch.randn(d, generator=generator, dtype=torch.float64)


def plain(H, lr, batch_size, variance, M, steps):
    """The slow twin: matrices as they are written."""
    risks, keep = [], torch.eye(len(H)).to(H) - lr * H
    for _ in range(steps + 1):
        risks.append(torch.trace(H @ M) / 2)
        noise = H @ M @ H + torch.trace(H @ M) * H + variance * H
        M = keep @ M @ keep + lr**2 / batch_size * noise
    return torch.stack(risks)


@pytest.mark.parametrize("d", [1, 3, 8])
@pytest.mark.parametrize("lr", [0.05, 0.3, 1.5])
def test_the_diagonal_recursion_is_the_matrix_recursion(d, lr):
    H, w = draw(d, seed=d)
    M = torch.outer(w, w)
    found = linear_regression_excess_risk(H, lr, 4, 0.3, M, 60)
    torch.testing.assert_close(found, plain(H, lr, 4, 0.3, M, 60), rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize(("batch_size", "variance"), [(1, 0.0), (1, 0.5), (8, 0.5)])
def test_sgd_on_linear_regression_has_that_risk(batch_size, variance):
    H, w = draw(3, seed=0)
    lr, steps, runs = 0.15, 12, 40_000
    root = torch.linalg.cholesky(H)
    generator = torch.Generator().manual_seed(1)
    away = w.expand(runs, 3)  # w_k - w*, whose gradient does not know w*
    risks = []
    for _ in range(steps + 1):
        risks.append(((away @ H) * away).sum(1) / 2)
        x = torch.randn(runs, batch_size, 3, generator=generator, dtype=torch.float64) @ root.mT
        e = math.sqrt(variance) * torch.randn(runs, batch_size, generator=generator, dtype=torch.float64)
        residual = torch.einsum("nbd,nd->nb", x, away) - e
        away = away - lr * torch.einsum("nb,nbd->nd", residual, x) / batch_size
    measured = torch.stack(risks)
    error = measured.std(1) / math.sqrt(runs)
    predicted = linear_regression_excess_risk(H, lr, batch_size, variance, torch.outer(w, w), steps)
    assert bool(((measured.mean(1) - predicted).abs() <= 4.5 * error + 1e-12).all())


def test_in_the_long_run_the_risk_is_the_fixed_point():
    H, w = draw(4, seed=2)
    H = H + 0.2 * torch.eye(4).double()
    lr, batch_size, variance = 0.1, 2, 0.7
    h = torch.linalg.eigvalsh(H)
    share = (lr / batch_size * h / (2 - lr * h - lr / batch_size * h)).sum()  # of E = sum h m: E = share (E + s^2)
    found = linear_regression_excess_risk(H, lr, batch_size, variance, torch.outer(w, w), 4000)
    assert float(found[-1]) == pytest.approx(float(variance * share / (1 - share) / 2), rel=1e-6)


def test_a_run_that_diverges_is_infinite_also_where_inputs_are_singular():
    risk = linear_regression_excess_risk(torch.diag(torch.tensor([4.0, 0.0])), 5.0, 1, 1.0, torch.eye(2), 100)
    assert not bool(risk.isnan().any())
    assert float(risk[-1]) == math.inf


def test_singular_inputs_numbers_and_dtypes():
    H = torch.diag(torch.tensor([1.0, 0.0]))
    found = linear_regression_excess_risk(H, 0.1, 1, 0.0, torch.eye(2), 5)
    assert (found.shape, found.dtype) == ((6,), torch.float32)
    assert float(found[0]) == 0.5
    alone = linear_regression_excess_risk(1.0, 0.1, 1, 0.0, 1.0, 5)
    torch.testing.assert_close(found.double(), alone, rtol=1e-5, atol=0)
    torch.testing.assert_close(alone, 0.5 * (0.81 + 0.02) ** torch.arange(6).double())


EYE = torch.eye(2, dtype=torch.float64)
REFUSED = {
    "rate": ((EYE, -0.1, 1, 0.0, EYE, 5), InvalidValue, "lr"),
    "batch": ((EYE, 0.1, 0, 0.0, EYE, 5), InvalidValue, "batch_size"),
    "steps": ((EYE, 0.1, 1, 0.0, EYE, 2.5), InvalidType, "steps"),
    "variance": ((EYE, 0.1, 1, -1.0, EYE, 5), InvalidValue, "noise_variance"),
    "inputs": ((-EYE, 0.1, 1, 0.0, EYE, 5), InvalidValue, "hessian has the eigenvalue"),
    "moment": ((EYE, 0.1, 1, 0.0, -EYE, 5), InvalidValue, "second_moment has the eigenvalue"),
    "vector": ((EYE, 0.1, 1, 0.0, torch.ones(2).double(), 5), InvalidValue, "second_moment has shape"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_arguments_are_refused(name):
    arguments, error, words = REFUSED[name]
    with pytest.raises(error, match=words):
        linear_regression_excess_risk(*arguments)
