"""A cloud of particles: one leading axis, whatever its leaves are."""

import dataclasses
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch

import mfoc
from mfoc.particles import concatenated
from tests.problems import CATALOGUE, mlp, normal, same_bits


def mixed():
    return mfoc.Particles(
        {"x": normal(4, 2), "i": torch.arange(4)}, (torch.arange(4.0), torch.ones(4, dtype=torch.complex64))
    )


def test_a_slice_a_mask_and_an_index_choose_particles():
    cloud = mixed()
    assert len(cloud) == 4
    assert cloud[torch.tensor([True, False, True, False])].state["i"].tolist() == [0, 2]
    assert cloud[1:3].data[0].tolist() == [1, 2]
    assert cloud[torch.tensor([3, 0, 0])].state["i"].tolist() == [3, 0, 0]


def test_a_cloud_is_never_changed():
    with pytest.raises(FrozenInstanceError):
        mixed().state = torch.ones(4)


def test_a_dtype_is_for_floating_point_leaves():
    single = mixed().to(torch.float32)
    assert single.state["x"].dtype == torch.float32
    assert single.state["i"].dtype == torch.int64
    assert single.data[1].dtype == torch.complex64


def test_a_device_is_for_all_leaves():
    for there in (mixed().to("meta"), mixed().to(device="meta"), mixed().to(torch.device("meta"))):
        assert {leaf.device.type for leaf in mfoc.tree.leaves([there.state, there.data])} == {"meta"}


@pytest.mark.parametrize("name", CATALOGUE)
def test_pieces_put_together_are_the_cloud(name):
    _, cloud = CATALOGUE[name]()
    whole = concatenated(cloud[i : i + 2] for i in range(0, len(cloud), 2))
    assert same_bits([whole.state, whole.data], [cloud.state, cloud.data])
    assert mfoc.tree.same_structure(whole.state, cloud.state)
    assert concatenated([cloud]) is cloud


def test_particles_keep_their_numbers():
    cloud = mfoc.Particles(normal(5, 2), index=torch.tensor([7, 3, 9, 0, 4]))
    assert cloud[1:4].index.tolist() == [3, 9, 0]
    assert cloud[torch.tensor([True, False, False, False, True])].index.tolist() == [7, 4]
    assert cloud.to(torch.float32).index.tolist() == [7, 3, 9, 0, 4]
    assert cloud.to("meta").index.device.type == "meta"
    assert dataclasses.replace(cloud, state=normal(5, 3)).index is cloud.index
    assert concatenated([cloud[:2], cloud[2:]]).index.tolist() == [7, 3, 9, 0, 4]
    plain = mfoc.Particles(normal(5, 2))
    assert plain.index is None
    assert plain.indices().tolist() == [0, 1, 2, 3, 4]
    assert plain[2:][1:].index.tolist() == [3, 4]
    assert concatenated([plain, plain]).indices().tolist() == list(range(10))
    game = mfoc.Game.of(mlp()[0], mfoc.Ball(0.1))
    assert game.disturb(cloud, normal(5, 2)).index is cloud.index


@pytest.mark.parametrize(
    ("index", "error", "words"),
    [
        (torch.arange(4), mfoc.InvalidValue, "index is .4,. int64; expected the numbers of 5 particles"),
        (torch.arange(5.0), mfoc.InvalidValue, "float32"),
        (torch.zeros(5, 1, dtype=torch.int64), mfoc.InvalidValue, "5, 1"),
        ([0, 1, 2, 3, 4], mfoc.InvalidType, "index is a list"),
    ],
)
def test_numbers_that_are_none_are_refused(index, error, words):
    with pytest.raises(error, match=words):
        mfoc.Particles(normal(5, 2), index=index)


INDICES = {
    "one place": 0,
    "one place of NumPy": np.int64(1),
    "one place, a tensor": torch.tensor(1),
    "two axes": (slice(0, 2), 0),
    "pairs": torch.zeros(2, 2, dtype=torch.int64),
    "a word": "abc",
    "halves": [0.5],
    "beyond the end": torch.tensor([7]),
    "a short mask": torch.tensor([True, False]),
    "a new axis": None,
}


@pytest.mark.parametrize("name", INDICES)
def test_an_index_that_chooses_no_cloud_is_refused_by_name(name):
    cloud = mfoc.Particles(torch.arange(12.0).reshape(4, 3))
    with pytest.raises((mfoc.InvalidType, mfoc.InvalidValue), match="index"):
        cloud[INDICES[name]]


@pytest.mark.parametrize("index", [slice(1, 3), [1, 2], torch.tensor([1, 2]), torch.tensor([False, True, True, False])])
def test_an_index_chooses_rows_and_their_numbers(index):
    x = torch.arange(12.0).reshape(4, 3)
    chosen = mfoc.Particles(x, x[:, 0])[index]
    assert torch.equal(chosen.state, x[1:3])
    assert torch.equal(chosen.data, x[1:3, 0])
    assert chosen.indices().tolist() == [1, 2]
