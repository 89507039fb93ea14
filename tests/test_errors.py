"""Errors: each is also the built-in one that a caller expects."""

import pytest
import torch

import mfoc
from mfoc.errors import require


def test_a_module_that_is_installed_is_imported():
    assert require("torch.nn", "plot") is torch.nn


def test_a_missing_extra_says_how_to_install_it():
    with pytest.raises(mfoc.MissingExtra, match=r"needs 'no_such_module'.*pip install 'mfoc\[plot\]'") as caught:
        require("no_such_module", "plot")
    assert isinstance(caught.value, ImportError)
    assert caught.value.name == "no_such_module"


def test_a_failing_solve_says_where_and_keeps_its_last_iterate():
    error = mfoc.NonFiniteError("it blew up", stage=2, step=5, last="iterate")
    assert (str(error), error.stage, error.step, error.last) == ("it blew up", 2, 5, "iterate")
    assert isinstance(error, ArithmeticError)


def test_every_error_is_also_a_built_in_one():
    for error, builtin in (
        (mfoc.InvalidValue, ValueError),
        (mfoc.InvalidType, TypeError),
        (mfoc.NonFiniteError, ArithmeticError),
        (mfoc.MissingExtra, ImportError),
    ):
        assert issubclass(error, mfoc.MfocError)
        assert issubclass(error, builtin)
