"""Minima within sets: rows are independent of one another, and the size of a function is not seen."""

import math

import pytest
import torch

from mfoc.bounds import Box, EuclideanBall, Simplex
from mfoc.bounds.region import RowRegion
from mfoc.minimisers.projected import Settings, minimise_within
from tests.problems import D, normal

ROWS, SIZE = 4, 5
SETS = {"box": Box(-0.5, 0.7), "half-line": Box(0.0, math.inf), "simplex": Simplex(), "ball": EuclideanBall(0.8)}
SETTINGS = Settings(steps=60, history=10, tol=1e-9, trials=20)


def quartics(rows, scale=1.0):
    root, centre = normal(ROWS, SIZE, SIZE, seed=1)[rows], 2 * normal(ROWS, SIZE, seed=2)[rows]

    def evaluate(u):
        away = u - centre
        image = (root @ (root.mT @ away[:, :, None]))[:, :, 0] + 0.1 * away
        return scale * ((away * image).sum(1) / 2 + (away**4).sum(1) / 10), scale * (image + 0.4 * away**3)

    return evaluate


def minimum(name, rows, evaluate):
    region = RowRegion(((SETS[name],) * len(rows),), (torch.Size([SIZE]),))
    start = torch.full((len(rows), SIZE), 1 / SIZE, dtype=D)
    return region, minimise_within(region, evaluate, start, SETTINGS)


@pytest.mark.parametrize("name", SETS)
def test_rows_are_minimised_alone(name):
    region, found = minimum(name, range(ROWS), quartics(range(ROWS)))
    slope = quartics(range(ROWS))(found.point)[1]
    assert float(region.stationary(found.point, slope).abs().max()) < 1e-6
    for i in range(ROWS):
        alone = minimum(name, [i], quartics([i]))[1]
        torch.testing.assert_close(found.point[i : i + 1], alone.point, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("exponent", [-40, 20, 40])
def test_the_size_of_a_function_is_not_seen(name, exponent):
    every = range(ROWS)
    one, other = (minimum(name, every, quartics(every, scale))[1] for scale in (1.0, 2.0**exponent))
    assert torch.equal(one.point, other.point)
    assert not bool(other.unbounded.any())


def test_a_row_that_is_no_number_or_has_no_end_leaves_others_alone():
    whole = quartics(range(ROWS))

    def evaluate(u):
        value, slope = (part.clone() for part in whole(u))
        value[1], value[2], slope[2] = math.nan, -u[2].sum(), -1.0
        return value, slope

    found, expected = minimum("half-line", range(ROWS), evaluate)[1], minimum("half-line", range(ROWS), whole)[1]
    assert found.unbounded.tolist() == [False, False, True, False]
    assert torch.equal(found.point[[0, 3]], expected.point[[0, 3]])
    assert bool((found.point[1] == 1 / SIZE).all())
