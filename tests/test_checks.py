"""Argument checks: what each accepts and refuses, with which error, and what the message says."""

from functools import partial
from math import inf, nan

import numpy as np
import pytest
import torch

import mfoc
from mfoc.checks import (
    check_between,
    check_callable,
    check_choice,
    check_flag,
    check_instance,
    check_integer,
    check_non_negative,
    check_number,
    check_plain,
    check_positive,
    check_signature,
    check_tensor,
    kind_of,
    with_article,
)

NO_NUMBER = [True, False, "1", 1j, [1], np.int64(1), np.float32(0.5)]
CASES = [  # check, accepted, refused for its value, refused for its type, what the message says
    (partial(check_integer, 0), [0, 7], [-1], [0.0], "a non-negative integer"),
    (partial(check_integer, 1), [1, 2**31 - 1], [0, -1], [1.0], "a positive integer"),
    (partial(check_integer, 2), [2], [1], [nan, inf], "an integer from 2 on"),
    (partial(check_integer, 1, 3), [1, 3], [0, 4], [2.0], "an integer from 1 to 3"),
    (check_positive, [1, 1e-300, np.float64(2)], [0, -1, inf, nan], [], "a positive finite number"),
    (partial(check_positive, finite=False), [1, inf], [0, -1, nan, -inf], [], "a positive number"),
    (check_non_negative, [0, -0.0, 2], [-1e-300, inf, nan], [], "a non-negative finite number"),
    (partial(check_non_negative, finite=False), [0, inf], [-1, nan, -inf], [], "a non-negative number"),
    (check_number, [0, -1.5], [nan, inf, -inf], [], "a finite number"),
    (partial(check_between, 0, 1), [0.5, 1e-9], [0.0, 1.0, 0, 1, nan, 95], [], "a number between 0 and 1"),
]


@pytest.mark.parametrize("optional", [False, True])
@pytest.mark.parametrize(("check", "accepted", "out_of_range", "no_number", "expected"), CASES)
def test_numbers(check, accepted, out_of_range, no_number, expected, optional):
    for value in accepted + [None] * optional:
        check(least=value, low=accepted[0], optional=optional)
    wrong_types = no_number + NO_NUMBER + [None] * (not optional)
    for error, values in ((mfoc.InvalidValue, out_of_range), (mfoc.InvalidType, wrong_types)):
        for value in values:
            with pytest.raises(error) as caught:
                check(right=accepted[0], wrong=value, optional=optional)
            assert str(caught.value) == f"wrong is {value!r}; expected {expected}{' or None' if optional else ''}"


@pytest.mark.parametrize(
    ("least", "most"), [(0, 2**64 - 1), (1, 2**31 - 1), (2, 2**31 - 1)], ids=["a seed", "a count", "several"]
)
def test_what_no_machine_holds_is_refused(least, most):
    check_integer(least, number=most)
    for number in (most + 1, 2**80, 10**400):
        with pytest.raises(mfoc.InvalidValue, match=f"number is {str(number)[:30]}.*of at most {most}"):
            check_integer(least, number=number)


@pytest.mark.parametrize("check", [check_positive, check_non_negative])
def test_integers_beyond_the_range_of_a_float_are_not_finite(check):
    check(number=10**308)
    with pytest.raises(mfoc.InvalidValue, match="finite number"):
        check(number=10**309)


REFUSED = [
    (lambda: check_flag(shuffle=1), mfoc.InvalidType, "shuffle is 1; expected True or False"),
    (lambda: check_choice("a", "b", mode="c"), mfoc.InvalidValue, "mode is 'c'; expected one of 'a', 'b'"),
    (lambda: check_choice("a", "b", mode=None), mfoc.InvalidType, "mode is None; expected one of 'a', 'b'"),
    (lambda: check_callable("a function", ramp=3), mfoc.InvalidType, "ramp is an int; expected a function"),
    (
        lambda: check_callable("a function", optional=True, ramp=3),
        mfoc.InvalidType,
        "ramp is an int; expected a function or None",
    ),
    (lambda: check_instance(dict, "a dict", z=[]), mfoc.InvalidType, "z is a list; expected a dict"),
    (
        lambda: check_instance(mfoc.Solver, "a solver", solver=mfoc.MSA),
        mfoc.InvalidType,
        "solver is the class MSA; make an instance. Expected a solver",
    ),
]


@pytest.mark.parametrize(("check", "error", "message"), REFUSED)
def test_what_is_refused(check, error, message):
    with pytest.raises(error) as caught:
        check()
    assert str(caught.value) == message


def test_what_is_accepted():
    check_flag(a=True, b=False)
    check_choice("a", "b", mode="a", other="b")
    check_callable("a function", f=len)
    check_callable("a function", optional=True, f=None)
    check_instance(mfoc.Solver, "a solver", solver=mfoc.MSA())


NAMES = {
    "an": ["int", "ndarray", "SGD", "MSA", "Adam", "OrderedDict", "LBFGS", "RMSprop", "X"],
    "a": ["Tensor", "NoneType", "str", "Union", "UserDict", "float", "list", "Linear", "Sequential"],
}


@pytest.mark.parametrize("words", [f"{article} {name}" for article, names in NAMES.items() for name in names])
def test_the_article_is_the_one_that_is_said(words):
    name = words.split()[1]
    assert with_article(name) == words
    assert kind_of(type(name, (), {})()) == words


RIGHT = ["t, x, u, z", "a, b, c, d", "t, z, u, data", "*args", "t, x, u, z, h=1", "_t, x, u, _"]
SWAPPED = [
    "x, t, u, z",
    "t, u, x, z",
    "t, x, z, u",
    "x, u, z, t",
    "state, t, control, data",
    "x, t, a, b",
    "_x, _t, u, z",
]
ELSEWHERE = ["a, t, b, c"]  # t is nothing but the stage
TOO_FEW_OR_MANY = ["x, u", "a, b, c, d, e", "", "t, x, u, z, *, h"]


@pytest.mark.parametrize("own", RIGHT)
def test_signatures_that_may_be_right(own):
    check_signature(("t", "x", "u", "z"), f=eval(f"lambda {own}: 0"))


@pytest.mark.parametrize("own", [*SWAPPED, *ELSEWHERE, *TOO_FEW_OR_MANY])
def test_signatures_that_cannot_be_right(own):
    with pytest.raises(mfoc.InvalidType, match=r"f takes \(.*called as f\(t, x, u, z\)"):
        check_signature(("t", "x", "u", "z"), f=eval(f"lambda {own}: 0"))


@pytest.mark.parametrize("check", [check_positive, check_non_negative, check_number, partial(check_between, 0, 1)])
def test_an_integer_that_a_float_does_not_hold_is_no_number(check):
    for value in (10**400, -(10**400)):
        with pytest.raises(mfoc.InvalidValue, match=r"lr is .*; expected"):
            check(lr=value)


@pytest.mark.parametrize("check", [check_positive, check_number, partial(check_integer, 1)])
def test_what_python_refuses_to_print_is_refused_all_the_same(check):
    with pytest.raises(mfoc.InvalidValue, match="lr is an integer of thousands of digits"):
        check(lr=10**5000)


X = torch.ones(2, 3)
NOT_PLAIN = {
    "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "quantised": torch.quantize_per_tensor(X, 0.1, 0, torch.qint8),
    "sparse": X.to_sparse(),
    "meta": X.to("meta"),
}


@pytest.mark.parametrize("kind", NOT_PLAIN)
def test_a_tensor_that_most_operations_do_not_know_is_refused_by_its_kind(kind):
    for check in (check_plain, check_tensor):
        check("points [n, d]", x=X)
        with pytest.raises(mfoc.InvalidType, match=rf"x is a {kind} tensor; expected points \[n, d\]: "):
            check("points [n, d]", x=NOT_PLAIN[kind])


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (None, mfoc.InvalidType, "x is a NoneType; expected points"),
        (torch.Tensor, mfoc.InvalidType, "x is the class Tensor"),
        (X.long(), mfoc.InvalidType, "x has dtype torch.int64; expected points, a floating-point tensor"),
        (X.bool(), mfoc.InvalidType, "x has dtype torch.bool"),
        (X.to(torch.complex64), mfoc.InvalidType, "x has dtype torch.complex64"),
        (X[:0], mfoc.InvalidValue, r"x has shape \(0, 3\); expected points"),
        (X[0], mfoc.InvalidValue, r"x has shape \(3,\); expected points"),
        (X.log() / 0, mfoc.InvalidValue, "x holds NaN or infinity"),
    ],
)
def test_a_tensor_of_finite_numbers(value, error, message):
    with pytest.raises(error, match=message):
        check_tensor("points", dim=2, x=value)


def test_a_tensor_may_be_left_out_or_hold_integers_where_that_is_said():
    check_tensor("points", optional=True, x=None)
    check_tensor("points", floating=False, x=X.long())
    with pytest.raises(mfoc.InvalidType, match="expected points, real numbers"):
        check_tensor("points", floating=False, x=X.to(torch.complex64))
