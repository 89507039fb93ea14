"""Whether a source gives the same batch when it is asked again."""

import itertools
import time

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

import mfoc
from mfoc.populations import check_repeatable, fingerprint


def cloud(state=None, data=None, index=None):
    return mfoc.Particles(torch.arange(6.0).reshape(3, 2) if state is None else state, data, index)


CHANGES = {
    "a bit of the state": cloud(torch.arange(6.0).reshape(3, 2).nextafter(torch.tensor(9.0))),
    "its dtype": cloud(torch.arange(6).reshape(3, 2)),
    "its shape": cloud(torch.arange(6.0).reshape(3, 2, 1)),
    "minus zero": cloud(torch.tensor([[-0.0, 1], [2, 3], [4, 5]])),
    "its structure": cloud({"x": torch.arange(6.0).reshape(3, 2)}),
    "data": cloud(data=torch.zeros(3)),
    "index": cloud(index=torch.tensor([0, 2, 1])),
}


@pytest.mark.parametrize("changed", CHANGES.values(), ids=CHANGES)
def test_whatever_differs_has_another_fingerprint(changed):
    assert fingerprint(changed) != fingerprint(cloud())


def test_what_is_the_same_has_the_same_fingerprint():
    wide = torch.arange(12.0).reshape(3, 4)
    wide[:, :2] = torch.arange(6.0).reshape(3, 2)
    assert fingerprint(cloud(wide[:, :2])) == fingerprint(cloud())
    assert fingerprint(cloud(index=torch.arange(3))) == fingerprint(cloud())
    nan = torch.full((3, 2), torch.nan)
    assert fingerprint(cloud(nan)) == fingerprint(cloud(nan.clone()))
    z = torch.tensor([1 + 2j, 3j, 0])
    assert fingerprint(cloud(z.conj())) == fingerprint(cloud(z.conj().resolve_conj())) != fingerprint(cloud(z))


class Shaken(Dataset):
    """Items that draw from a generator of the data set's own."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(0)

    def __len__(self):
        return 8

    def __getitem__(self, i):
        return torch.full((2,), float(i)), torch.rand((), generator=self.generator)


class Passes(IterableDataset):
    """Another pass each time."""

    def __init__(self):
        self.passes = itertools.count()

    def __len__(self):
        return 8

    def __iter__(self):
        return iter(torch.arange(8.0)[:, None] + 100 * next(self.passes))


OWN, COUNT = torch.Generator().manual_seed(0), itertools.count()
BROKEN = {
    "the global generator": lambda n: mfoc.Particles(torch.randn(4, 2)),
    "a generator that moves on": lambda n: mfoc.Particles(torch.randn(4, 2, generator=OWN)),
    "a count of calls": lambda n: mfoc.Particles(torch.full((4, 2), float(next(COUNT)))),
    "the clock": lambda n: mfoc.Particles(torch.full((4, 2), time.perf_counter(), dtype=torch.float64)),
    "NumPy's generator": lambda n: mfoc.Particles(torch.from_numpy(np.random.randn(4, 2))),  # noqa: NPY002
    "items with a generator": Shaken(),
    "a loader of such items": DataLoader(Shaken(), batch_size=4, shuffle=True),
}


@pytest.mark.parametrize("source", BROKEN.values(), ids=BROKEN)
def test_a_source_that_gives_another_batch_is_refused(source):
    population = mfoc.population(source)
    assert population.runs_user_code
    with pytest.raises(mfoc.InvalidValue, match=r"another batch when step 2 is asked for again .*manual_seed\(n\)"):
        check_repeatable(population, 2, population(2))


def test_what_differs_is_named():
    population = mfoc.population(Shaken(), batch_size=4)
    with pytest.raises(mfoc.InvalidValue, match=r"\(its data\)"):
        check_repeatable(population, 0, population(0))
    population = mfoc.population(lambda n: mfoc.Particles(torch.randn(3), torch.randn(3), torch.randperm(30)[:3]))
    with pytest.raises(mfoc.InvalidValue, match=r"\(its state and data and index\)"):
        check_repeatable(population, 0, population(0))


def test_an_iterable_is_read_again():
    population = mfoc.population(Passes(), batch_size=4)
    with pytest.raises(mfoc.InvalidValue, match="another batch when step 0"):
        check_repeatable(population, 0, population(0))


def test_a_file_that_changed_has_another_fingerprint(tmp_path):
    rows = np.lib.format.open_memmap(tmp_path / "rows.npy", mode="w+", dtype=np.float32, shape=(8, 2))
    population = mfoc.population(np.load(tmp_path / "rows.npy", mmap_mode="r"), batch_size=4, shuffle=False)
    before = fingerprint(population(0))
    rows[1] = 3
    rows.flush()
    assert fingerprint(population(0)) != before


class Crops(Dataset):
    """Items that draw from torch's generator, which is seeded for them."""

    def __len__(self):
        return 8

    def __getitem__(self, i):
        return torch.rand(2)


def seeded(n):
    return mfoc.Particles(torch.randn(4, 2, generator=torch.Generator().manual_seed(n)))


@pytest.mark.parametrize("source", [seeded, Crops(), DataLoader(Crops(), batch_size=4)], ids=["function", "items", ""])
def test_a_function_of_the_step_passes(source):
    population = mfoc.population(source)
    for step in (0, 5):
        check_repeatable(population, step, population(step))


def test_tensors_are_not_asked_again():
    population = mfoc.population(torch.arange(8.0), batch_size=4)
    assert not population.runs_user_code
    check_repeatable(population, 0, population(1))  # it would be found, were it looked for


def test_what_decides_the_batches_is_described():
    x = torch.arange(8.0)
    plain = mfoc.population(x, batch_size=4, seed=3).described()
    assert plain == {
        "type": "data", "size": 8, "batch_size": 4, "shuffle": True, "seed": 3, "drop_last": False
    }  # fmt: skip
    assert mfoc.population(x, batch_size=4, seed=4).described() != plain
    assert mfoc.population(x, batch_size=2, seed=3).described() != plain
    assert mfoc.population(x, seed=3).described() == mfoc.population(x, seed=4).described()  # all of them, in order
    assert mfoc.population(Crops(), seed=3).described() != mfoc.population(Crops(), seed=4).described()  # it may draw
    assert mfoc.population(seeded).described()["type"] == "function"
    assert mfoc.population(Passes(), batch_size=4).described()["type"] == "iterable"
