"""Pytrees: what is taken apart is put together again, and dicts are matched by key."""

from collections import OrderedDict
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils import _pytree as general

import mfoc
from mfoc import tree
from tests.problems import D, normal, same_bits


class Pair(NamedTuple):
    first: object
    second: object


shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)
dtypes = st.sampled_from([torch.float64, torch.float32, torch.int64, torch.bool, torch.complex64])
tensors = st.builds(
    lambda shape, dtype: torch.arange(1, 1 + torch.Size(shape).numel()).reshape(shape).to(dtype), shapes, dtypes
)
keys = st.sampled_from("abcd")
trees = st.recursive(
    tensors,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(keys, inner, max_size=3),
        st.dictionaries(keys, inner, max_size=3).map(OrderedDict),
        st.builds(Pair, inner, inner),
    ),
    max_leaves=8,
)


def reordered(value):
    """The same tree, the keys of its dicts in the opposite order."""
    if type(value) is dict:
        return {key: reordered(value[key]) for key in reversed(value)}
    if type(value) in (list, tuple):
        return type(value)(reordered(entry) for entry in value)
    return value


# ---- leaves and structure


@given(trees)
def test_leaves_are_those_of_torch_in_its_order(value):
    assert [id(leaf) for leaf in tree.leaves(value)] == [id(leaf) for leaf in general.tree_leaves(value)]


@given(trees)
def test_rebuilding_from_the_leaves_gives_the_tree(value):
    again = tree.rebuild(value, tree.leaves(value))
    assert tree.same_structure(again, value)
    assert [id(leaf) for leaf in tree.leaves(again)] == [id(leaf) for leaf in tree.leaves(value)]


@given(trees, trees)
def test_two_trees_have_one_structure_when_torch_says_so(left, right):
    same = general.tree_structure(left) == general.tree_structure(right)
    assert tree.same_structure(left, right) == same
    assert tree.same_structure(left, tree.map(lambda leaf: 0, left))


@given(trees)
def test_a_leaf_is_its_own_only_leaf(value):
    assert tree.is_leaf(value) == isinstance(value, torch.Tensor)
    assert all(tree.is_leaf(leaf) for leaf in tree.leaves(value))
    assert tree.is_leaf(1.0)


# ---- map


@given(trees)
def test_mapping_the_identity_changes_nothing(value):
    assert same_bits(tree.map(lambda leaf: leaf, value), value)
    assert tree.same_structure(tree.map(lambda leaf: leaf, value), value)


@given(trees)
def test_dicts_are_matched_by_key(value):
    pairs = []
    tree.map(lambda a, b: pairs.append(a is b), value, reordered(value))
    assert all(pairs)
    assert len(pairs) == len(tree.leaves(value))


def test_the_result_has_the_order_of_the_first_tree():
    found = tree.map(lambda a, b: (a, b), {"a": 1, "b": [2]}, {"b": [20], "a": 10})
    assert list(found) == ["a", "b"]
    assert found == {"a": (1, 10), "b": [(2, 20)]}


@pytest.mark.parametrize(
    ("left", "right"),
    [({"a": 1}, {"b": 1}), ({"a": 1}, {"a": 1, "b": 2}), ([1, 2], [1]), ([1], [[1, 2]]), ({"a": [1]}, {"a": {}})],
    ids=str,
)
def test_trees_that_do_not_match_are_refused(left, right):
    with pytest.raises(mfoc.InvalidValue, match="two trees do not match"):
        tree.map(lambda a, b: a, left, right)


# ---- names


def test_a_leaf_is_named_by_its_path():
    value = {"q": torch.ones(2), "nested": (torch.zeros(1), [torch.ones(3)])}
    named = tree.named_leaves(value, "state")
    assert [name for name, _ in named] == ["state['q']", "state['nested'][0]", "state['nested'][1][0]"]
    assert [leaf.shape for _, leaf in named] == [(2,), (1,), (3,)]
    assert tree.named_leaves(torch.ones(1), "state")[0][0] == "state"
    with pytest.raises(mfoc.InvalidType, match=r"state\[1\] is a float; expected a torch.Tensor"):
        tree.named_leaves([torch.ones(1), 1.0], "state")


def test_a_dotted_path_joins_keys_and_indices():
    value = [{"weight": 1, "bias": 2}, ({"weight": 3},)]
    assert tree.dotted(value) == {"0.weight": 1, "0.bias": 2, "1.0.weight": 3}
    assert tree.dotted(5) == {"": 5}


@given(trees)
def test_dotted_paths_are_in_the_order_of_the_leaves(value):
    assert [id(leaf) for leaf in tree.dotted(value).values()] == [id(leaf) for leaf in tree.leaves(value)]


def test_a_tree_is_described_in_a_line():
    assert tree.describe(torch.ones(2, 3)) == "(2, 3) float32"
    assert tree.describe({"a": torch.ones(2), "b": [torch.arange(3)]}) == "[(2,) float32, (3,) int64]"
    assert tree.describe([]) == "an empty tree"


# ---- numbers


@given(trees)
def test_only_floating_and_complex_leaves_are_differentiable(value):
    expected = [leaf for leaf in tree.leaves(value) if leaf.dtype not in (torch.int64, torch.bool)]
    assert [id(leaf) for leaf in tree.tensors(value)] == [id(leaf) for leaf in expected]
    assert not tree.differentiable(1.0)


@given(st.lists(shapes, min_size=1, max_size=4))
def test_the_pieces_of_a_vector_are_what_it_was_made_of(sizes):
    parts = [normal(*shape, seed=k) for k, shape in enumerate(sizes)]
    vector = tree.ravel(parts)
    assert vector.shape == (sum(part.numel() for part in parts),)
    assert same_bits(tree.pieces(vector, parts), parts)
    assert torch.equal(tree.ravel(tree.pieces(vector, parts)), vector)


def test_a_vector_holds_differentiable_leaves_alone_and_is_new():
    value = {"x": torch.ones(2, dtype=D), "label": torch.arange(3)}
    vector = tree.ravel(value)
    assert vector.tolist() == [1, 1]
    vector.zero_()
    assert value["x"].tolist() == [1, 1]


@given(st.lists(shapes, max_size=4))
def test_the_norm_is_that_of_the_vector(sizes):
    parts = [normal(*shape, seed=k) for k, shape in enumerate(sizes)]
    squares = sum(float(part.square().sum()) for part in parts)
    assert float(tree.norm([*parts, torch.arange(3)])) == pytest.approx(squares**0.5, rel=1e-12)


def test_the_product_is_taken_particle_by_particle():
    left = {"x": normal(4, 2, 3), "i": torch.arange(4), "z": torch.complex(normal(4), normal(4, seed=1))}
    right = {
        "x": normal(4, 2, 3, seed=2),
        "i": torch.arange(4),
        "z": torch.complex(normal(4, seed=3), normal(4, seed=4)),
    }
    real = left["z"].real * right["z"].real + left["z"].imag * right["z"].imag
    expected = (left["x"] * right["x"]).sum((1, 2)) + real
    torch.testing.assert_close(tree.dot(left, right), expected, rtol=1e-13, atol=1e-13)
    with pytest.raises(mfoc.InvalidType, match="no costate"):
        tree.dot(torch.arange(3), torch.arange(3))


# ---- copies


def test_a_copy_is_cut_off():
    x = torch.ones(2, requires_grad=True)
    value = {"x": x, "y": 2 * x, "name": "kept"}
    copy = tree.copy(value)
    copy["y"].add_(1)
    assert value["y"].tolist() == [2, 2]
    assert copy["x"].data_ptr() != x.data_ptr()
    assert not copy["x"].requires_grad
    assert copy["name"] == "kept"


def test_detached_leaves_share_memory_and_may_become_leaves_of_a_new_graph():
    x = torch.ones(2, requires_grad=True)
    value = [2 * x, torch.arange(2)]
    plain, free = tree.detached(value), tree.detached(value, requires_grad=True)
    assert plain[0].data_ptr() == free[0].data_ptr() == value[0].data_ptr()
    assert (plain[0].requires_grad, free[0].requires_grad, free[1].requires_grad) == (False, True, False)
    assert free[0].is_leaf


@pytest.mark.parametrize("like", [[torch.zeros(1)] * 2, {"a": (torch.zeros(1), torch.zeros(1))}], ids=["list", "dict"])
def test_as_many_leaves_as_the_tree_has(like):
    with pytest.raises(mfoc.InvalidValue, match="fewer leaves"):
        tree.rebuild(like, [torch.ones(1)])
    with pytest.raises(mfoc.InvalidValue, match="more leaves"):
        tree.rebuild(like, [torch.ones(1)] * 3)
