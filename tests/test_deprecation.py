"""Old names still work, and the warning points at the line that uses one."""

import dataclasses
import importlib
import importlib.util
import sys
import types
import warnings
from dataclasses import dataclass

import pytest

import mfoc
from mfoc import deprecation


@pytest.fixture
def module(monkeypatch):
    """Makes modules of one name and some members, gone after the test."""

    def make(name, /, **members):
        made = types.ModuleType(name)
        vars(made).update(members)
        monkeypatch.setitem(sys.modules, name, made)
        return made

    return make


@pytest.fixture
def moved(monkeypatch):
    """``deprecation.moved``, undone after the test."""

    def move(modules, names=None):
        for old in modules:
            monkeypatch.setitem(sys.modules, old, None)
        deprecation.moved(modules, names)

    return move


def line():
    """The number of the line that calls."""
    return sys._getframe(1).f_lineno


# ---- modules


def test_a_module_that_has_moved_finds_its_names_in_their_new_homes(module, moved):
    module("new_one", a=1)
    module("new_two", b=2, c=3)
    moved({"old_home": ["new_one", "new_two"]}, {"old_home.before": "c"})
    old = importlib.import_module("old_home")
    for name, value, now in (("a", 1, "new_one.a"), ("b", 2, "new_two.b"), ("before", 3, "new_two.c")):
        with pytest.warns(DeprecationWarning, match=f"^old_home.{name} has moved to {now}$") as caught:
            assert getattr(old, name) == value
        assert caught[0].filename == __file__
    assert {"a", "b", "c"} <= set(dir(old))
    with pytest.raises(AttributeError, match="'old_home' has no attribute 'd'"):
        old.d  # noqa: B018


def test_importing_a_name_from_a_moved_module_warns_at_the_import(module, moved):
    module("new_home", name="value")
    moved({"old_home": ["new_home"]})
    with pytest.warns(DeprecationWarning, match="has moved") as caught:
        from old_home import name
    assert (name, caught[0].filename) == ("value", __file__)
    with pytest.raises(ImportError, match="nothing"):
        from old_home import nothing  # noqa: F401


def test_nothing_is_imported_or_said_before_a_name_is_used(moved):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        moved({"old_home": ["a_module_that_does_not_exist"]})
        old = importlib.import_module("old_home")
        assert not hasattr(old, "__path__")
    with pytest.raises(ModuleNotFoundError):
        old.name  # noqa: B018


# ---- members


def test_an_alias_is_what_the_name_is_now(module):
    module("new_home", name="value")
    home = module("home", __getattr__=deprecation.aliases("home", {"before": "new_home.name"}))
    with pytest.warns(DeprecationWarning, match="^home.before is now new_home.name$") as caught:
        assert home.before == "value"
    assert caught[0].filename == __file__
    with pytest.raises(AttributeError, match="module 'home' has no attribute 'other'"):
        home.other  # noqa: B018


def test_a_moved_module_is_an_attribute_of_its_package(module, moved):
    module("new_home", name="value")
    moved({"package.old": ["new_home"]})
    package = module("package", __getattr__=deprecation.aliases("package"))
    with pytest.warns(DeprecationWarning, match="package.old.name has moved to new_home.name"):
        assert package.old.name == "value"
    with pytest.raises(AttributeError, match="no attribute 'other'"):
        package.other  # noqa: B018


# ---- arguments and attributes


@deprecation.renamed(inner="adversary", T="horizon")
def function(adversary, *, horizon=3):
    """Says what it was given."""
    return adversary, horizon


@deprecation.renamed(inner="adversary")
@dataclass(frozen=True)
class Solver:
    """Holds an adversary."""

    adversary: int
    seed: int = 0


class Made:
    @classmethod
    @deprecation.renamed(horizon="T")
    def make(cls, *, T):
        return cls, T


def test_an_old_keyword_is_the_new_one():
    for call in (lambda: function(inner=1), lambda: function(1, T=3), lambda: function(inner=1, T=3)):
        with pytest.warns(DeprecationWarning, match="= is now "):
            assert call() == (1, 3)
    expected = line() + 2
    with pytest.warns(DeprecationWarning, match="^T= is now horizon=$") as caught:
        function(1, T=5)
    assert (caught[0].filename, caught[0].lineno) == (__file__, expected)


def test_the_new_names_come_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert function(1, horizon=2) == (1, 2)
        assert Solver(adversary=1) == Solver(1)
        assert Solver(1).adversary == 1
        assert Made.make(T=2) == (Made, 2)


@pytest.mark.parametrize("call", [lambda: function(inner=1, adversary=2), lambda: Solver(inner=1, adversary=2)])
def test_both_names_at_once_are_refused(call):
    with pytest.raises(TypeError, match="inner is the old name of adversary; both were given"):
        call()


def test_a_decorated_function_keeps_its_name_and_docstring():
    assert (function.__name__, function.__doc__) == ("function", "Says what it was given.")
    assert (Solver.__name__, Solver.__doc__) == ("Solver", "Holds an adversary.")


def test_a_class_keeps_its_old_keyword_and_its_old_attribute():
    expected = line() + 2
    with pytest.warns(DeprecationWarning, match="^inner= is now adversary=$") as caught:
        solver = Solver(inner=4)
    assert (caught[0].filename, caught[0].lineno) == (__file__, expected)
    assert solver == Solver(4)
    with pytest.warns(DeprecationWarning, match=r"^\.inner is now \.adversary$") as caught:
        assert solver.inner == solver.adversary == 4
    assert caught[0].filename == __file__
    assert Solver.inner.__doc__ == "Now ``adversary``."


def test_a_class_method_keeps_its_old_keyword():
    expected = line() + 2
    with pytest.warns(DeprecationWarning, match="^horizon= is now T=$") as caught:
        found = Made.make(horizon=2)
    assert found == (Made, 2)
    assert (caught[0].filename, caught[0].lineno) == (__file__, expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_module_that_has_moved_is_a_module_in_every_respect():
    assert importlib.util.find_spec("mfoc.game").name == "mfoc.game"
    names: dict[str, object] = {}
    exec("from mfoc.game import *", names)
    assert names["Ball"] is mfoc.Ball
    assert "Game" in dir(importlib.import_module("mfoc.game"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_replacing_a_field_by_its_old_name():
    solver = mfoc.Gradient(len)
    assert dataclasses.replace(solver, schedule=abs).lr_schedule is abs
    with pytest.raises(mfoc.InvalidType, match="schedule is the old name of lr_schedule"):
        dataclasses.replace(dataclasses.replace(solver, lr_schedule=abs), schedule=max)
