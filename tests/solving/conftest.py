"""A small problem in batches."""

import pytest

import mfoc
from tests.problems import CATALOGUE


@pytest.fixture
def case():
    problem, particles = CATALOGUE["decayed"]()
    return problem, mfoc.population(particles, batch_size=3, seed=1)
