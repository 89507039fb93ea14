"""Seeds give unrelated streams, and a seeded block leaves the global generators as they were."""

import random
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mfoc import seeding
from mfoc.seeding import mixed_seed, seeded

parts = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4)


def drawn():
    """One number from each global generator."""
    return random.random(), np.random.rand(), float(torch.rand(()))  # noqa: NPY002


def test_seeds_are_well_mixed():
    seeds = {mixed_seed(seed, n) for seed in range(40) for n in range(40)}
    assert len(seeds) == 1600
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_streams_stay_what_they_were():
    """A run that is resumed with a later version draws the same numbers."""
    assert mixed_seed(0) == 7896617691693857887
    assert mixed_seed(1, 2, 3) == 6498626229777268288


@given(parts)
def test_a_seed_is_that_of_seed_sequence(some):
    """The plain reference."""
    assert mixed_seed(*some) == int(np.random.SeedSequence(some).generate_state(2, np.uint64)[0]) >> 1


def test_negative_parts_are_refused():
    with pytest.raises(ValueError, match="non-negative"):
        mixed_seed(1, -2)


@given(parts, parts)
def test_a_seed_is_a_function_of_its_parts_and_their_order(left, right):
    assert mixed_seed(*left) == mixed_seed(*left)
    assert 0 <= mixed_seed(*left) < 2**63
    # Zeros at the end are no parts of their own to NumPy's SeedSequence.
    assert (mixed_seed(*left) == mixed_seed(*right)) == (words(left) == words(right))


def words(parts):
    """What SeedSequence sees: 32-bit words, short sequences filled up with zeros."""
    found = []
    for part in parts:
        found += [part % 2**32] + ([part >> 32] if part >= 2**32 else [])
    return found + [0] * (4 - len(found))


@pytest.mark.parametrize("key", [0, 1, 2**40, 2**63 - 1])
def test_a_block_is_a_function_of_its_seed(key):
    with seeded(key):
        first = drawn()
    drawn()
    with seeded(key):
        assert drawn() == first
    with seeded(key ^ 1):
        assert not set(drawn()) & set(first)


@pytest.mark.parametrize("error", [None, RuntimeError])
def test_the_global_generators_are_put_back(error):
    with seeded(7):  # so that this test leaves them alone too
        expected = drawn()
    with seeded(7):
        try:
            with seeded(8):
                drawn()
                if error is not None:
                    raise error
        except RuntimeError:
            pass
        assert drawn() == expected


def legacy_states():
    """The whole state of NumPy's global generator, and of Python's, in values that compare."""
    state = np.random.get_state(legacy=False)  # noqa: NPY002
    return repr({**state, "state": {k: np.asarray(v).tolist() for k, v in state["state"].items()}}), random.getstate()


# Draws, after each of which a generator is in another kind of state: words used up, half a pair of normal numbers left.
BEFORE = {
    "seeded": lambda: np.random.seed(3),  # noqa: NPY002
    "some words": lambda: np.random.rand(5),  # noqa: NPY002
    "all words but one": lambda: np.random.bytes(4 * 623),  # noqa: NPY002
    "all words": lambda: np.random.bytes(4 * 624),  # noqa: NPY002
    "half a pair": lambda: np.random.randn(3),  # noqa: NPY002
    "whole pairs": lambda: np.random.randn(4),  # noqa: NPY002
    "half a pair of Python's": lambda: random.gauss(0, 1),
    "all words of Python's": lambda: [random.seed(3), random.randbytes(4 * 624)],
}
INSIDE = [
    lambda: None,
    drawn,
    lambda: [random.gauss(0, 1) for _ in range(701)],
    lambda: np.random.randn(1),  # noqa: NPY002
    lambda: np.random.randn(700),  # noqa: NPY002
]


@pytest.mark.parametrize("slowly", [False, True])
@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("inside", INSIDE)
def test_the_whole_state_is_put_back(before, inside, slowly, monkeypatch):
    """NumPy's is copied as it lies in memory; the plain reference goes by its public doors."""
    monkeypatch.setattr(seeding, "_lies_as_expected", lambda: not slowly)
    with _outer():
        BEFORE[before]()
        kept = legacy_states()
        with seeded(4):
            first = np.random.randn(3).tolist()  # noqa: NPY002
            inside()
        assert legacy_states() == kept
        np.random.seed(4)  # noqa: NPY002
        assert np.random.randn(3).tolist() == first  # noqa: NPY002


@contextmanager
def _outer():
    """So that these tests leave the global generators alone, without what they test."""
    states = np.random.get_state(), random.getstate()  # noqa: NPY002
    yield
    np.random.set_state(states[0])  # noqa: NPY002
    random.setstate(states[1])


def test_memory_is_read_as_this_numpy_lays_it_out():
    assert seeding._lies_as_expected()


def test_another_generator_in_the_place_of_numpys():
    own = np.random.get_bit_generator()
    with _outer():
        try:
            np.random.set_bit_generator(np.random.PCG64(3))
            np.random.randn(1)  # noqa: NPY002
            kept = legacy_states()
            with seeded(7):
                first = drawn()
            assert legacy_states() == kept
        finally:
            np.random.set_bit_generator(own)
    with seeded(7):
        assert drawn() == first
