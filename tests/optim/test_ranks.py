"""Batch sizes and rates that are measured on several processes are the same on all of them."""

from functools import partial

import pytest
import torch

import mfoc
from mfoc.analysis.noise.scales import noise_scale
from mfoc.optim import CMSGD, CSGD, LearningRateControl
from tests.optim.test_batch import batches, exact, run
from tests.optim.test_batch import bowl as problem
from tests.optim.test_batch import data as cloud
from tests.optim.test_rate import H, bowl, descend, start
from tests.problems import D, distance, same_bits
from tests.ranks import on_ranks


def nearly_exact(problem, controls, particles):
    """Not quite the same number on both ranks, as another order of summation might give."""
    return exact(problem, controls, particles) * (1 + 1e-3 * mfoc.distributed.rank())


def sizes():
    source = batches(scale=nearly_exact)
    solution = run(source, 40)
    return [solution.controls, source.state_dict()["measurements"]]


def measured():
    """By the noise scale itself, with an optimiser that is controlled."""
    source, found = batches(scale=noise_scale), []
    for make in (CSGD, CMSGD):
        solver = mfoc.Gradient(partial(make, lr=0.05))
        found.append(mfoc.solve(problem(), solver, mfoc.population(cloud(), batch_size=10), steps=20).controls)
    return [run(source, 20).controls, source.state_dict()["measurements"], found]


def rates():
    """Each rank has half of the data for the fresh batch, and the gradient of all of them."""
    shift = torch.tensor([1.0, -1.0, 0.5], dtype=D) * (1 if mfoc.distributed.rank() else -1)
    x = start()
    control = LearningRateControl(torch.optim.Adam([x], lr=0.01), every=2)
    for _ in range(10):
        x.grad = H @ x.detach()
        control.step(lambda: bowl(x) + shift @ x)
    return [x.detach(), control.lr]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return on_ranks(tmp_path_factory.mktemp("ranks"), sizes, rates, measured)


@pytest.mark.slow
def test_ranks_agree_on_the_sizes(ranks):
    (one, *_), (two, *_) = ranks
    alone = batches()
    expected = run(alone, 40)
    assert one[1] == two[1]
    assert same_bits(one[0], two[0])
    assert [row[3] for row in one[1]] == pytest.approx([row.batch_size for row in alone.measurements], abs=1)
    assert max(row[3] for row in one[1]) > 20
    assert torch.allclose(one[0][0], expected.controls[0], rtol=0.05)


@pytest.mark.slow
def test_ranks_take_the_same_rate(ranks):
    (_, one, _), (_, two, _) = ranks
    x = start()
    alone = LearningRateControl(torch.optim.Adam([x], lr=0.01), every=2)
    descend(alone, x, bowl, 10)
    assert torch.equal(one[0], two[0])
    assert one[1] == two[1] == pytest.approx(alone.lr, rel=1e-9)
    assert torch.allclose(one[0], x.detach())


@pytest.mark.slow
def test_ranks_measure_and_control_as_one_process_does(ranks):
    (*_, one), (*_, two) = ranks
    alone = measured()
    assert one[1] == two[1]
    assert same_bits([one[0], one[2]], [two[0], two[2]])
    assert distance([one[0], one[2]], [alone[0], alone[2]]) < 1e-9
    assert [row[3] for row in one[1]] == [row[3] for row in alone[1]]
    assert [row[1] for row in one[1]] == pytest.approx([row[1] for row in alone[1]], rel=1e-9)
