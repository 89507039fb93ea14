"""Errors: each is also the built-in one that a caller expects."""

import sys

import pytest
import torch

import mfoc
from mfoc.errors import require
from mfoc.extras import EXTRAS


def test_a_module_that_is_installed_is_imported():
    assert require("torch.nn", "plot") is torch.nn


def test_a_missing_extra_says_how_to_install_it():
    with pytest.raises(
        mfoc.MissingExtra, match=r"needs 'no_such_module'.*pip install 'matplotlib>=3.8,<4' 'rich>=13,<16'$"
    ) as caught:
        require("no_such_module", "plot")
    assert isinstance(caught.value, ImportError)
    assert caught.value.name == "no_such_module"


@pytest.mark.parametrize(
    ("package", "extra", "alone"),
    [
        ("torchattacks", "adversarial", "pip install --no-deps 'torchattacks>=3.5.1,<4'"),
        ("learn2learn", "meta", "--config-settings=--global-option=build_ext learn2learn==0.2.0"),
    ],
)
def test_a_package_with_unsafe_pins_is_installed_alone_after_what_it_needs(package, extra, alone, monkeypatch):
    for name in (package, f"{package}.attack"):  # as if it were not installed
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(mfoc.MissingExtra) as caught:
        require(f"{package}.attack", extra)
    first, second = str(caught.value).split(": ", 1)[1].split(" && ")
    assert first.startswith("pip install ")
    assert all(f"'{each}'" in first for each in EXTRAS[extra])
    assert "mfoc" not in f"{first}{second}"  # which no index serves
    assert "--no-deps" in second
    assert second.endswith(alone)


def test_what_is_missing_may_be_what_an_extra_needs(tmp_path, monkeypatch):
    (tmp_path / "half_there.py").write_text("import not_there_at_all")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(mfoc.MissingExtra, match="'half_there', and that needs 'not_there_at_all'") as caught:
        require("half_there", "plot")
    assert caught.value.name == "not_there_at_all"


@pytest.mark.parametrize("error", ["RuntimeError", "OSError", "ImportError"])
def test_what_is_there_and_does_not_load_is_not_a_raw_error(error, tmp_path, monkeypatch):
    """As torchvision does beside another build of torch."""
    (tmp_path / f"clashes_{error}.py").write_text(f"raise {error}('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(mfoc.MissingExtra, match=r"does not load .*nms does not exist.*mfoc doctor"):
        require(f"clashes_{error}", "plot")


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
