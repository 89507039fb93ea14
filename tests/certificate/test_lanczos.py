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
