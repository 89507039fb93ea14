"""Few-shot classification: its batches and the data they are drawn from, and the task sets of learn2learn."""

import random

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch.utils.data import Dataset

import mfoc
from paradigms.meta import few_shot, from_taskset
from tests.problems import same_bits

IMAGES, DIGITS = np.random.default_rng(0).normal(size=(20, 3)), np.arange(20) % 4


def labelled(classes=6, each=7):
    """Inputs that name their class and example."""
    y = torch.arange(classes).repeat_interleave(each) * 10 + 3
    x = torch.stack([y.double(), torch.arange(each).repeat(classes).double()], 1)
    return x, y


def test_few_shot():
    x, y = labelled()
    law = few_shot(x, y, ways=4, shots=2, queries=3, tasks=50)
    (a, b), (c, d) = law(0).data["support"], law(0).data["query"]
    assert a.shape == (50, 8, 2)
    assert c.shape == (50, 12, 2)
    classes = set()
    for i in range(50):
        names = [a[i][b[i] == k, 0].unique() for k in range(4)]
        assert all(len(name) == 1 for name in names)  # one class behind each label
        assert len({float(name) for name in names}) == 4  # and another for each
        for k in range(4):
            assert (c[i][d[i] == k, 0] == names[k]).all()
            drawn = [*a[i][b[i] == k, 1].tolist(), *c[i][d[i] == k, 1].tolist()]
            assert len(set(drawn)) == 5  # no example twice
        classes |= {float(name) for name in names}
    assert classes == set(y.unique().double().tolist())


def test_classes_of_different_sizes():
    x, y = labelled()
    keep = torch.ones(len(y), dtype=torch.bool)
    keep[:4] = False  # three examples of the first class are left
    x, y = x[keep], y[keep]
    law = few_shot(x, y, ways=6, shots=1, queries=2, tasks=200)
    (a, _), (c, _) = law(0).data["support"], law(0).data["query"]
    rows = torch.cat([a, c], 1).flatten(0, 1)
    mine = rows[rows[:, 0] == 3]
    assert set(mine[:, 1].tolist()) == {4.0, 5.0, 6.0}


def test_rotations_are_classes():
    x = torch.zeros(2 * 3, 1, 4, 4)
    x[:, :, 0, 1] = 1.0  # one bright pixel, which a rotation moves
    x[3:] *= 2
    law = few_shot(x, torch.arange(2).repeat_interleave(3), ways=8, shots=1, queries=2, tasks=3, rotations=True)
    (a, _), (c, d) = law(0).data["support"], law(0).data["query"]
    assert len(a[0].flatten(1).unique(dim=0)) == 8
    for i in range(3):
        for k in range(8):
            assert (c[i][d[i] == k] == a[i, k]).all()


class Listed(Dataset):
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i], int(self.y[i])


def test_arrays_and_datasets():
    images, labels = load_digits(return_X_y=True)
    settings = {"ways": 5, "shots": 1, "queries": 2, "tasks": 3}
    first = few_shot(torch.tensor(images), torch.tensor(labels), **settings)(0)
    assert same_bits(first.data, few_shot(images, labels, **settings)(0).data)
    assert same_bits(first.data, few_shot(Listed(torch.tensor(images), labels), **settings)(0).data)
    assert first.data["support"][1].dtype == torch.int64
    bright = few_shot(images.astype(np.uint8), labels, **settings)(0).data["support"][0]
    assert bright.dtype == torch.get_default_dtype()
    assert float(bright.max()) == pytest.approx(16 / 255)


class Task:
    """What a Taskset is to us."""

    def __init__(self, sizes=(4, 4)):
        self.sizes = sizes

    def __getitem__(self, i):
        return self.sample()

    def sample(self):
        y = torch.cat([torch.full((n,), k) for k, n in enumerate(self.sizes)])
        return torch.randn(len(y), 2), y[torch.randperm(len(y))]


def test_task_sets():
    law = from_taskset(Task(), shots=1, tasks=3)
    state = torch.get_rng_state()
    first = law(2)
    assert torch.equal(state, torch.get_rng_state())
    assert same_bits(first.data, law(2).data)
    (x, y), (a, b) = first.data["support"], first.data["query"]
    assert x.shape == (3, 2, 2)
    assert a.shape == (3, 6, 2)
    assert (y == torch.tensor([0, 1])).all()
    assert (b == torch.tensor([0, 0, 0, 1, 1, 1])).all()


class Finite(Task):
    """A finite set describes a task when it is first asked for it, and keeps the description."""

    def __init__(self, count=7):
        super().__init__()
        self.num_tasks, self.sampled_descriptions = count, {}

    def sample_task_description(self):
        return random.random()

    def get_task(self, description):
        y = torch.arange(2).repeat_interleave(3)
        return torch.stack([torch.full((6,), description), torch.randn(6)], 1).double(), y

    def sample(self):
        i = random.randrange(self.num_tasks)
        return self.get_task(self.sampled_descriptions.setdefault(i, self.sample_task_description()))


def test_finite_task_sets_are_functions_of_the_step():
    """Asked in another order, by another process, beside other users of the set: the same batches."""
    source = Finite()
    law = from_taskset(source, shots=1, tasks=3, seed=4)
    assert (law.size, law.batches_per_epoch) == (7, 3)
    batches = [law(step) for step in range(6)]
    assert source.sampled_descriptions == {}
    source.sample()
    again = from_taskset(Finite(), shots=1, tasks=3, seed=4)
    for step in (5, 2, 0):
        assert same_bits(batches[step].data, again(step).data)
        assert same_bits(batches[step].data, law(step).data)
    seen = torch.cat([batch.data["query"][0][:, 0, 0] for batch in batches[:3]])
    assert len(seen.unique()) == 7  # each task once an epoch
    other = torch.cat([batch.data["query"][0][:, 0, 0] for batch in batches[3:]])
    assert torch.equal(seen.sort().values, other.sort().values)
    assert not torch.equal(seen, other)
    assert (
        len(torch.unique(torch.cat([seen, from_taskset(Finite(), shots=1, tasks=7)(0).data["query"][0][:, 0, 0]]))) > 7
    )


def test_descriptions_that_are_there_are_kept():
    source = Finite(2)
    source.sampled_descriptions = {0: 10.0, 1: 20.0}
    x = from_taskset(source, shots=1, tasks=2)(0).data["support"][0]
    assert set(x[:, 0, 0].tolist()) == {10.0, 20.0}


def test_few_shot_batches_depend_on_the_seed_and_the_step_alone():
    images, kinds = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32), np.arange(40) % 8
    batches = few_shot(images, kinds, ways=3, shots=1, queries=2, tasks=4, seed=3)
    before = batches(5).data["support"][0].clone()
    try:
        torch.set_default_dtype(torch.float64)
        assert torch.equal(batches(5).data["support"][0], before)
    finally:
        torch.set_default_dtype(torch.float32)
    images[:] = 0
    assert torch.equal(batches(5).data["support"][0], before)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (IMAGES[:0], DIGITS, "none of them empty"),
        (IMAGES[:, :0], DIGITS, "none of them empty"),
        (IMAGES[:, 0], DIGITS, r"expected examples \[N, ...\]"),
        (np.array(1.0), DIGITS, "expected examples"),
        (np.where(np.arange(20)[:, None] == 7, np.nan, IMAGES), DIGITS, "first in example 7"),
        (IMAGES * 1j, DIGITS, "real numbers"),
        (np.array([[None]] * 20), DIGITS, "x makes no array"),
        (IMAGES, DIGITS * 1.0, "labels of dtype torch.float64"),
        (IMAGES, DIGITS[:, None], "one integer for each input"),
        (IMAGES, np.array(3), "one integer for each input"),
        (IMAGES, np.array(list("abcd") * 5), "y makes no array"),
        ([], None, "x is empty"),
        ([torch.ones(3)] * 3, None, "expected pairs"),
        ([(torch.ones(i + 1), i) for i in range(3)], None, "tensors of one size"),
        ({"a": 1}, None, "map-style"),
    ],
)
def test_odd_data_for_few_shot(x, y, message):
    with pytest.raises((mfoc.InvalidValue, mfoc.InvalidType), match=message):
        few_shot(x, y, ways=2, shots=1, queries=1, tasks=1)


@pytest.mark.parametrize(
    "change", [{"ways": 0}, {"ways": 1}, {"shots": 0}, {"queries": 0}, {"tasks": 0}, {"ways": 2.0}]
)
def test_odd_counts_for_few_shot(change):
    name = next(iter(change))
    with pytest.raises((mfoc.InvalidValue, mfoc.InvalidType), match=f"{name} is {change[name]}"):
        few_shot(IMAGES, DIGITS, **{"ways": 2, "shots": 1, "queries": 1, "tasks": 1, **change})


class Counted(Task):
    """No function of the generators."""

    calls = 0

    def sample(self):
        self.calls += 1
        return torch.full((8, 2), float(self.calls)), torch.arange(2).repeat_interleave(4)


class Closed(Task):
    """A finite set that tells nothing of its descriptions."""

    num_tasks = 5


class Fixed(Task):
    """A set of one task."""

    def __init__(self, *task):
        super().__init__()
        self.task = task

    def sample(self):
        return self.task


X = torch.ones(6, 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: few_shot(*labelled(), ways=7, shots=1, queries=1, tasks=1), "ways is 7 and the data have 6"),
        (lambda: few_shot(*labelled(), ways=2, shots=4, queries=4, tasks=1), "has 7 examples"),
        (lambda: few_shot(*labelled(), ways=2, shots=0, queries=4, tasks=1), "shots is 0"),
        (lambda: few_shot(*labelled(), ways=2, shots=1, queries=1, tasks=1, seed=-1), "seed"),
        (lambda: few_shot(*labelled(), ways=2, shots=1, queries=1, tasks=1, rotations=True), "square"),
        (lambda: few_shot(labelled()[0], None, ways=2, shots=1, queries=1, tasks=1), "labels"),
        (lambda: few_shot(labelled()[0], labelled()[1][1:], ways=2, shots=1, queries=1, tasks=1), "one integer"),
        (lambda: few_shot(iter([]), ways=2, shots=1, queries=1, tasks=1), "dataset"),
        (lambda: from_taskset(Fixed(X, X), shots=1, tasks=2), r"shape \(6, 1\)"),
        (lambda: from_taskset(Fixed(X, X[:, 0]), shots=1, tasks=2), "for regression"),
        (lambda: from_taskset(Fixed(X, torch.arange(4) % 2), shots=1, tasks=2), "for each of its examples"),
        (lambda: from_taskset(Fixed(X[:0], X[:0, 0].long()), shots=1, tasks=2), "for each of its examples"),
        (lambda: from_taskset(Fixed(X.numpy(), np.arange(6) % 2), shots=1, tasks=2), "made of ndarray, ndarray"),
        (lambda: from_taskset(Fixed(X), shots=1, tasks=2), "made of Tensor"),
        (lambda: from_taskset(Task(), shots=4, tasks=2), "none is left"),
        (lambda: from_taskset([], shots=4, tasks=2), "Taskset"),
        (lambda: from_taskset(Counted(), shots=1, tasks=2), "seeded alike"),
        (lambda: from_taskset(Closed(), shots=1, tasks=2), "cannot be read"),
        (lambda: from_taskset(Finite(3), shots=1, tasks=4), "tasks is 4 and the task set has 3"),
        (lambda: from_taskset(Finite(3), shots=3, tasks=2), "none is left"),
    ],
)
def test_data_and_task_sets_that_are_refused(make, message):
    with pytest.raises((mfoc.InvalidValue, mfoc.InvalidType), match=message):
        make()
