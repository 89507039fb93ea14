"""Two processes give what one gives: expectations go through one all-reduce."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.distributed as dist

import mfoc
from mfoc import distributed
from mfoc.minimisers import LBFGS, Descent
from tests.problems import CATALOGUE, distance, same_bits
from tests.ranks import on_ranks

RUNS = {
    "gradient": (mfoc.Gradient(partial(torch.optim.Adam, lr=0.02)), 6),
    "recompute": (mfoc.Gradient(partial(torch.optim.SGD, lr=0.1, momentum=0.9), recompute=True), 6),
    "lbfgs": (mfoc.Gradient(partial(torch.optim.LBFGS, max_iter=3, lr=0.5)), 3),
    "msa": (mfoc.MSA(Descent(0.05, steps=3)), 4),
    "emsa": (mfoc.EMSA(1.0, 0.5, inner=LBFGS(2, trials=6)), 2),
    "adaptive emsa": (mfoc.EMSA(0.1, inner=LBFGS(3, trials=6), adaptive=True), 3),
}
# 7, 5 and 6 particles; shares are 4 + 3, 2 + 1 and 3 + 3, and the last batch of the second is short.
CASES = {"decayed": 7, "pytrees": 3, "tied": 6}


def everything():
    torch.set_num_threads(1)
    found = {}
    for case, batch in CASES.items():
        problem, particles = CATALOGUE[case]()
        for run, (solver, steps) in RUNS.items():
            source = mfoc.population(particles, batch_size=batch, seed=2)
            solution = mfoc.solve(problem, solver, source, steps=steps)
            found[f"{case} {run}"] = (solution.controls, solution.value, solution.residual)
    return found


def reductions():
    """What the one function promises, in several dtypes."""
    rank, found = dist.get_rank(), {}
    n = [300, 1][rank]  # half precision cannot count to 301
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        value = torch.full((2, 3), [1.0, 302.0][rank], dtype=dtype)
        mixed, scalar = distributed.expectation([value, torch.tensor(float(rank))], n)
        found[str(dtype)] = (mixed, scalar)
    found["any"] = [distributed.any_rank(rank == 1, torch.zeros(1)), distributed.any_rank(0, torch.zeros(1))]
    found["share"] = distributed.share(torch.arange(5))
    found["main"] = torch.tensor(distributed.is_main())
    found["rank"] = [distributed.rank(), distributed.world_size()]
    found["copied"] = distributed.share(torch.arange(1))
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return on_ranks(tmp_path_factory.mktemp("ranks"), everything, reductions)


@pytest.fixture(scope="module")
def alone():
    return everything()


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one(case, run, ranks, alone):
    expected = alone[f"{case} {run}"]
    problem, _ = CATALOGUE[case]()
    first, second = (rank[0][f"{case} {run}"] for rank in ranks)
    assert same_bits(first, second)  # ranks never drift apart
    assert distance(expected[0], problem.controls) > 1e-4
    # A line search amplifies rounding.
    assert distance(first[0], expected[0]) < (1e-12 if run in ("gradient", "recompute", "msa") else 1e-8)
    assert first[1] == pytest.approx(expected[1], rel=1e-8)
    assert first[2] == pytest.approx(expected[2], rel=1e-6, abs=1e-12)


@pytest.mark.slow
def test_expectations_over_ranks(ranks):
    for rank, (_, found) in enumerate(ranks):
        for name in ("torch.float64", "torch.float32", "torch.bfloat16", "torch.float16"):
            mean, scalar = found[name]
            assert str(mean.dtype) == name
            assert mean.shape == (2, 3)
            torch.testing.assert_close(mean.double(), torch.full((2, 3), 2.0).double(), rtol=1e-2, atol=0)
            torch.testing.assert_close(scalar, torch.tensor(1 / 301))
        assert found["any"] == [True, False]
        assert found["share"].tolist() == [[0, 2, 4], [1, 3]][rank]
        assert bool(found["main"]) == (rank == 0)
        assert found["rank"] == [rank, 2]
        assert found["copied"].tolist() == [0]  # no rank is without a particle


def test_without_a_group_nothing_changes():
    assert not distributed.active()
    assert (distributed.world_size(), distributed.rank(), distributed.is_main()) == (1, 0, True)
    means = [torch.ones(2), torch.zeros(())]
    assert all(a is b for a, b in zip(distributed.expectation(means, 3), means, strict=True))
    index = torch.arange(3)
    assert distributed.share(index) is index
    assert distributed.any_rank([1], index)
    assert not distributed.any_rank([], index)
