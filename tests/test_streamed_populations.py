"""Iterables with a length: batches are those of a list of their items, in order, whatever was asked before."""

import random
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset, IterableDataset

import mfoc
from tests.problems import same_bits


class Counted(IterableDataset):
    """Items that are known by their number; counts how many were read."""

    def __init__(self, size, said=None):
        self.size, self.said, self.read, self.begun = size, size if said is None else said, 0, 0

    def __len__(self):
        return self.said

    def __iter__(self):
        self.begun += 1
        for k in range(self.size):
            self.read += 1
            yield torch.tensor([float(k)]), k


class Listed(Dataset):
    """The plain reference: the same items, each with a place."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, k):
        return torch.tensor([float(k)]), k


def same(one, other):
    assert same_bits([one.state, one.data, one.indices()], [other.state, other.data, other.indices()])


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 23),
    batch=st.one_of(st.none(), st.integers(1, 30)),
    steps=st.lists(st.integers(0, 200), min_size=1, max_size=6),
    keep=st.integers(1, 4),
    loader=st.sampled_from([None, False, True]),
)
def test_batches_are_those_of_a_list_in_order(size, batch, steps, keep, loader):
    def made(source):
        if loader is None:
            return mfoc.population(source, batch_size=batch, shuffle=False)
        return mfoc.population(DataLoader(source, min(batch or size, size), drop_last=loader))

    source, plain = made(Counted(size)), made(Listed(size))
    assert (source.size, source.batch_size) == (plain.size, plain.batch_size)
    assert source.batches_per_epoch == plain.batches_per_epoch
    with mock.patch("mfoc.populations.streamed._BLOCKS", keep):  # so that it looks further back than what is kept
        for step in steps:
            same(source(step), plain(step))
    for one, other in zip(source.epoch(), plain.epoch(), strict=True):
        same(one, other)
    same(source.cloud(), plain.cloud())


def test_anything_that_can_be_iterated_again_and_has_a_length():
    class Plain:
        def __len__(self):
            return 4

        def __iter__(self):
            return iter(torch.arange(4.0))

    assert mfoc.population(Plain(), batch_size=3, shuffle=False)(1).state.tolist() == [3, 0, 1]
    assert mfoc.population({1: torch.ones(1), 2: torch.zeros(1)}.values())(0).state.tolist() == [[1], [0]]


def test_steps_that_follow_one_another_read_each_item_once():
    data = Counted(3000)
    population = mfoc.population(data, batch_size=10)
    for step in range(200):
        population(step)
        population(max(0, step - 32))  # a solve looks back
    assert (data.read, data.begun) == (2000, 1)
    list(population.epoch())  # a certificate reads all of it
    population(200)
    assert (data.read, data.begun) == (2000 + 3000 + 10, 2)


def test_a_step_far_back_begins_again():
    data = Counted(3000)
    population = mfoc.population(data, batch_size=10)
    population(250)
    assert population(3).state[0].item() == 30
    assert (data.read, data.begun) == (2510 + 40, 2)


def test_what_is_kept_is_bounded_in_bytes(monkeypatch):
    monkeypatch.setattr("mfoc.populations.streamed._BYTES", 1000)
    population = mfoc.population(Counted(400), batch_size=10)  # 10 floats and 10 labels: 120 bytes, and their numbers
    for step in range(30):
        population(step)
    assert 2 <= len(population._kept) <= 1000 // 120


def test_a_resumed_solve_is_the_uninterrupted_one():
    problem = mfoc.Problem(lambda t, x, u, z: x * u, lambda x, z: (x[:, 0] - z).square() / 1e4, [torch.ones(1)] * 2)
    solver = mfoc.Gradient(lambda p: torch.optim.Adam(p, lr=0.01))

    def batches():
        return mfoc.population(Counted(50), batch_size=7)

    whole = mfoc.solve(problem, solver, batches(), steps=20)
    half = mfoc.solve(problem, solver, batches(), steps=9)
    rest = mfoc.solve(problem, solver, batches(), steps=20, start=half)
    assert same_bits(whole.controls, rest.controls)


class Drawing(IterableDataset):
    """Draws from every global generator, in another number for each item."""

    def __len__(self):
        return 20

    def __iter__(self):
        for k in range(20):
            random.random()
            np.random.rand(k)  # noqa: NPY002
            yield torch.tensor([k, random.random(), np.random.rand(), float(torch.rand(()))])  # noqa: NPY002


def test_what_draws_from_global_generators_is_a_function_of_the_step():
    before = random.getstate()
    one, other = (mfoc.population(Drawing(), batch_size=3, seed=4) for _ in range(2))
    found = [one(step) for step in range(14)]
    with mock.patch("mfoc.populations.streamed._BLOCKS", 1):
        for step in (13, 5, 6, 0, 12):
            assert same_bits(found[step].state, other(step).state)
    assert random.getstate() == before
    assert not torch.equal(mfoc.population(Drawing(), batch_size=3, seed=5)(0).state, found[0].state)


class Moody(Counted):
    """Another order each time, by a generator of its own."""

    def __iter__(self):
        order = np.random.default_rng(self.begun).permutation(self.size)
        self.begun += 1
        return (torch.tensor([float(k)]) for k in order)


def test_other_items_each_time_are_refused():
    population = mfoc.population(Moody(2000), batch_size=10)
    population(199)
    with pytest.raises(mfoc.InvalidValue, match=r"other items each time.*function n"):
        population(201)


@pytest.mark.parametrize(("said", "words"), [(9, "gave more items.*says 9"), (12, "gave 10 items.*says 12")])
def test_a_length_that_is_not_that_of_the_items_is_refused(said, words):
    population = mfoc.population(Counted(10, said), batch_size=5)
    with pytest.raises(mfoc.InvalidValue, match=words):
        population(1), population(2)


class Endless(IterableDataset):
    def __iter__(self):
        return iter(lambda: torch.ones(1), None)


BAD = {
    "without a length": (lambda: mfoc.population(Endless()), "without a length.*__len__"),
    "a loader without": (lambda: mfoc.population(DataLoader(Endless(), 3)), "without a length.*__len__"),
    "an iterator": (lambda: mfoc.population(Once()), "runs dry.*from the beginning"),
    "none": (lambda: mfoc.population(Counted(0)), "empty"),
    "a set": (lambda: mfoc.population({1.0, 2.0}), "source is a set"),
    "a loader without batches": (lambda: mfoc.population(DataLoader(Counted(4), None)), "batches or a sampler"),
    "places": (lambda: mfoc.population(Counted(4)).fetch(torch.tensor([1]), 0), "no places to be taken from"),
}


class Once:
    def __len__(self):
        return 3

    def __iter__(self):
        return self

    def __next__(self):
        raise StopIteration


@pytest.mark.parametrize("name", BAD)
def test_what_has_no_order_to_be_read_in_is_refused(name):
    make, words = BAD[name]
    with pytest.raises((mfoc.InvalidType, mfoc.InvalidValue), match=words):
        make()


def test_an_error_in_the_iterable_leaves_the_population_as_it_was():
    class Failing(Counted):
        fails = True

        def __iter__(self):
            for k, item in enumerate(super().__iter__()):
                if k == 13 and self.fails:
                    raise OSError("the network is away")
                yield item

    data = Failing(20)
    population = mfoc.population(data, batch_size=5)
    population(1)
    with pytest.raises(OSError, match="away"):
        population(2)
    data.fails = False
    assert population(2).data.tolist() == [10, 11, 12, 13, 14]
