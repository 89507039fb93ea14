"""The lowest eigenvalue of many symmetric matrices at once, by products with vectors."""

import pytest
import torch

from mfoc.certificate.lanczos import lowest_eigenpair
from tests.problems import D, generator, normal


def symmetric(rows, n):
    a = normal(rows, n, n, seed=2)
    return a + a.mT


def product(a):
    return lambda v: torch.einsum("gij,gj->gi", a, v)


@pytest.mark.parametrize("iterations", [12, 100])
def test_lanczos_rows_do_not_interact(iterations):
    a = symmetric(3, 12)
    a[1] = torch.eye(12, dtype=D)  # a Krylov space of dimension one
    found = lowest_eigenpair(product(a), a[:, 0], iterations=iterations, generator=generator())
    assert torch.allclose(found.value, torch.linalg.eigvalsh(a)[:, 0], atol=1e-10)
    assert (found.error < 1e-8).all()


@pytest.mark.parametrize("iterations", [1, 2, 4, 8])
def test_a_few_products_bound_an_eigenvalue_from_above_and_know_how_well(iterations):
    a = symmetric(5, 20)
    exact = torch.linalg.eigvalsh(a)
    found = lowest_eigenpair(product(a), a[:, 0], iterations=iterations, generator=generator())
    assert found.products == iterations
    assert bool((found.value >= exact[:, 0] - 1e-12).all())
    assert bool(((exact - found.value[:, None]).abs().amin(1) <= found.error + 1e-12).all())
    residual = product(a)(found.vector) - found.value[:, None] * found.vector
    assert torch.allclose(residual.norm(dim=1), found.error, rtol=1e-9, atol=1e-12)
    assert torch.allclose(found.vector.norm(dim=1), torch.ones(5, dtype=D))


def test_the_bound_holds_where_rounding_ends_the_search():
    """In single precision the lowest eigenvalue's component is lost: an exhausted space may have missed it."""
    eigenvalues = torch.cat([torch.tensor([-0.05]), torch.zeros(50), torch.full((50,), 1e4)])
    found = lowest_eigenpair(lambda v: v * eigenvalues, torch.zeros(20, 101), iterations=30, generator=generator())
    assert bool((found.value - found.bound <= -0.05).all())


@pytest.mark.parametrize("below", [0.05, 0.3])
@pytest.mark.parametrize("confidence", [0.5, 0.95])
def test_the_bound_holds_as_often_as_it_says(below, confidence):
    """A bulk that Lanczos resolves slowly, and one eigenvalue below it of which a random start knows little."""
    bulk = torch.cos(torch.pi * (torch.arange(999, dtype=D) + 0.5) / 999)
    eigenvalues = torch.cat([torch.tensor([-1 - below], dtype=D), bulk])
    found = lowest_eigenpair(
        lambda v: v * eigenvalues,
        torch.zeros(100, 1000, dtype=D),
        iterations=10,
        generator=generator(),
        confidence=confidence,
    )
    missed = found.value - found.bound > -1 - below
    assert float(missed.to(D).mean()) <= 1 - confidence
