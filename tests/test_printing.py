"""Results that hold tensors are printed in a line and compared by identity."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch

import mfoc
from mfoc.printing import by_identity, short


@by_identity
class Pair(NamedTuple):
    left: object
    right: object = None


@by_identity
@dataclass(frozen=True)
class Record:
    left: object
    right: object = None


@pytest.mark.parametrize("kind", [Pair, Record])
def test_equality_is_identity_and_never_fails(kind):
    x = torch.ones(2)
    one, other = kind(x, x), kind(x.clone(), x)
    assert (one == one, one != one) == (True, False)
    assert (one == other, one != other) == (False, True)
    assert (one == 3, one != 3, one == None) == (False, True, False)  # noqa: E711
    assert [other, one].index(one) == 1
    assert {one: "found"}[one] == "found"


def test_a_named_tuple_is_no_tuple_of_equal_entries():
    pair = Pair(torch.ones(2), torch.ones(2))
    assert pair != tuple(pair)
    assert tuple(pair) != pair
    assert pair != (torch.zeros(2), torch.zeros(2))
    left, right = pair
    assert left is pair[0]
    assert right is pair.right


def test_a_named_tuple_is_still_a_tree():
    pair = Pair(torch.ones(2), {"a": torch.zeros(1)})
    doubled = mfoc.tree.map(lambda leaf: 2 * leaf, pair)
    assert type(doubled) is Pair
    assert doubled.left.tolist() == [2, 2]
    assert mfoc.tree.same_structure(pair, doubled)


@pytest.mark.parametrize("kind", [Pair, Record])
def test_the_printed_form_names_the_fields_that_are_given(kind):
    assert repr(kind(torch.ones(2, 3), 0.5)) == f"{kind.__name__}(left=float32[2, 3], right=0.5)"
    assert repr(kind(torch.ones(2, 3))) == f"{kind.__name__}(left=float32[2, 3])"
    assert (
        repr(kind(kind(1), [kind("x")])) == f"{kind.__name__}(left={kind.__name__}(left=1), right=[{kind(chr(120))}])"
    )


@pytest.mark.parametrize(
    ("value", "printed"),
    [
        (torch.zeros((), dtype=torch.int64), "int64[]"),
        (torch.nn.Parameter(torch.ones(2)), "float32[2]"),
        ([1, 2, 3], "[1, 2, 3]"),
        ((1, 2, 3, 4), "(1, ... 2 more ..., 4)"),
        ((1,), "(1)"),
        ([torch.ones(i) for i in range(11)], "[float32[0], ... 9 more ..., float32[10]]"),
        ({"w": torch.ones(2), "b": (torch.ones(1),)}, "{'w': float32[2], 'b': (float32[1])}"),
        (OrderedDict((i, i) for i in range(9)), "{0: 0, ... 7 more ..., 8: 8}"),
        ([], "[]"),
        ({}, "{}"),
        (None, "None"),
    ],
    ids=str,
)
def test_a_value_in_a_few_words(value, printed):
    assert short(value) == printed


def test_how_much_is_printed_can_be_chosen():
    assert short(list(range(6)), most=6) == "[0, 1, 2, 3, 4, 5]"
    assert short([[1, 2, 3]], most=2) == "[[1, ... 1 more ..., 3]]"


def _walls():
    """What prints a line or a few, however many numbers it holds."""
    many = torch.ones(3000)
    problem = mfoc.Problem(
        lambda t, x, u, z: x + u, lambda x, z: x.square().sum(1), [torch.zeros(3000)] * 50,
        bounds=mfoc.Box(-many, many),
    )  # fmt: skip
    cloud = mfoc.Particles(torch.ones(40, 3000), torch.ones(40, 9))
    formulation = mfoc.Formulation(problem, mfoc.population(cloud), lambda solution: solution)
    solution = formulation.solve(mfoc.Gradient(lambda params: torch.optim.SGD(params, lr=0.01)), steps=1)
    return [
        problem, cloud, formulation, solution, solution.last, problem.bounds, mfoc.DDP(states=[many] * 3),
        mfoc.rollout(problem, problem.controls, cloud), mfoc.evaluate(problem, problem.controls, cloud),
        mfoc.population(cloud), mfoc.Game.of(problem, mfoc.Ball(0.1)),
    ]  # fmt: skip


def test_nothing_prints_a_wall_of_numbers():
    for result in _walls():
        for text in (str(result), repr(result)):
            assert len(text.splitlines()) <= 6, text
            assert "tensor(" not in text
            assert " object at 0x" not in text
            assert max(map(len, text.splitlines())) < 250, text


def test_an_error_shows_no_wall_of_numbers_either():
    with pytest.raises(mfoc.InvalidType) as caught:
        mfoc.Ball(0.1, bounds=(torch.zeros(3000), torch.ones(3000)))
    assert len(str(caught.value)) < 200
