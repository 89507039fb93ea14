"""Laws of tasks: pure functions of the step, with the statistics they say they have."""

import math

import pytest
import torch

import mfoc
from paradigms.meta import few_shot, sinusoids, tasks
from paradigms.meta.task_laws import check_tasks
from tests.problems import same_bits


def labelled(classes=6, each=7):
    """Inputs that name their class and example."""
    y = torch.arange(classes).repeat_interleave(each) * 10 + 3
    x = torch.stack([y.double(), torch.arange(each).repeat(classes).double()], 1)
    return x, y


def test_sinusoids():
    law = sinusoids(tasks=400, shots=30, queries=3, dtype=torch.float64, seed=2)
    batch = law(5)
    (x, y), (a, b) = batch.data["support"], batch.data["query"]
    assert x.shape == y.shape == (400, 30, 1)
    assert a.shape == b.shape == (400, 3, 1)
    assert len(batch) == 400
    assert -5 <= float(x.min()) < -4.9
    assert 4.9 < float(x.max()) <= 5
    # y = c sin x - s cos x with (c, s) = A (cos b, sin b), the same for support and query
    basis = torch.cat([x.sin(), -x.cos()], 2)
    c = torch.linalg.lstsq(basis, y).solution
    torch.testing.assert_close(basis @ c, y, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(torch.cat([a.sin(), -a.cos()], 2) @ c, b, rtol=1e-9, atol=1e-9)
    size, phase = c.square().sum(1).sqrt(), torch.atan2(c[:, 1], c[:, 0])
    for value, low, high in ((size, 0.1, 5.0), (phase, 0.0, math.pi)):
        assert low <= float(value.min()) < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < float(value.max()) <= high
        assert float(value.mean()) == pytest.approx((low + high) / 2, abs=0.1)


@pytest.mark.parametrize("law", [sinusoids(seed=1), few_shot(*labelled(), ways=3, shots=1, queries=2, tasks=4, seed=1)])
def test_pure_functions_of_the_step(law):
    torch.manual_seed(0)
    first = law(3)
    torch.rand(5)
    assert same_bits(first.data, law(3).data)
    assert not same_bits(first.data, law(4).data)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sinusoids(tasks=0), "tasks is 0"),
        (lambda: sinusoids(phase=(1.0, 0.0)), "phase"),
        (lambda: sinusoids(amplitude=3.0), "amplitude is 3.0"),
        (lambda: sinusoids(x=(1, 2, 3)), "x is"),
        (lambda: sinusoids(x=("a", "b")), "x is"),
        (lambda: sinusoids(phase=(0.0, math.inf)), "phase is"),
        (lambda: sinusoids(dtype=torch.int64), "dtype is torch.int64"),
        (lambda: tasks(torch.zeros(1), torch.zeros(1)), "pair"),
        (lambda: check_tasks(mfoc.Particles(torch.zeros(1), torch.zeros(1))), "data is a Tensor; expected a dict"),
        (lambda: check_tasks(mfoc.Particles(torch.zeros(1), {"query": torch.zeros(1)})), r"keys \['query'\]"),
        (lambda: tasks((torch.zeros(1, 1, 2), torch.zeros(1, 1)), (torch.zeros(1, 1, 3), torch.zeros(1, 1))), "shapes"),
    ],
)
def test_refused(make, message):
    with pytest.raises((mfoc.InvalidValue, mfoc.InvalidType), match=message):
        make()
