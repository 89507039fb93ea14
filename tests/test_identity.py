"""What things are in plain values: equal for equal things, other for others."""

import enum
import functools
import json
import subprocess
import sys
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from mfoc.identity import described, differences, entries, fingerprint, layout


@dataclass
class Setting:
    rate: float
    inner: object = None


def cost(weight, power=2, *, scale=1.0):
    return lambda x, z: scale * weight * (x**power).sum(1)


class Law:
    def __init__(self, sigma):
        self.sigma = sigma

    def drift(self, t, x, u, z):
        return x


def net(*, slope=0.1, width=3, train=True):
    return nn.Sequential(nn.Linear(2, width), nn.LeakyReLU(slope)).train(train)


def half(x):
    return 0.5 * x


def third(x):
    return x / 3.0


WEIGHT, HEAVIER = 2.0, 3.0


def scaled(factor):
    """A decorator."""

    def decorate(function):
        @functools.wraps(function)
        def inner(x):
            return factor * function(x)

        return inner

    return decorate


class Activated(nn.Module):
    def __init__(self, activation=torch.relu, pair=(torch.relu, 1)):
        super().__init__()
        self.activation, self.pair, self.calls = activation, pair, 0

    def forward(self, x):
        self.calls += 1
        return self.activation(x)


class Cost:
    """An object that is called, and counts it."""

    def __init__(self, weight):
        self._weight, self.calls = weight, 0

    def __call__(self, x, z):
        self.calls += 1
        return self._weight * x

    @functools.cached_property
    def twice(self):
        return 2 * self._weight


class Kind(enum.IntEnum):
    ONE = 1
    TWO = 2


def calls(made):
    return lambda x: made(x, None)


PAIRS = {  # made twice, and one that is another
    "a number": (lambda: 1.5, lambda: 2.5),
    "a class": (lambda: torch.optim.Adam, lambda: torch.optim.AdamW),
    "a function": (lambda: half, lambda: third),
    "what a closure holds": (lambda: cost(1.0), lambda: cost(2.0)),
    "a whole number that it holds": (lambda: cost(1.0, 2), lambda: cost(1.0, 3)),
    "a tensor that it holds": (lambda: cost(torch.ones(3)), lambda: cost(torch.zeros(3))),
    "a network that it holds": (lambda: cost(net()), lambda: cost(net(width=4))),
    "a partial": (lambda: partial(torch.optim.SGD, lr=0.1), lambda: partial(torch.optim.SGD, lr=0.2)),
    "a partial's function": (lambda: partial(half), lambda: partial(third)),
    "a partial within a partial": (lambda: partial(cost, inner=partial(half)), lambda: partial(cost, inner=third)),
    "a setting": (lambda: Setting(0.1), lambda: Setting(0.2)),
    "a setting of a setting": (lambda: Setting(0.1, Setting(1)), lambda: Setting(0.1, Setting(2))),
    "a layer's setting": (net, lambda: net(slope=0.2)),
    "a layer's size": (net, lambda: net(width=4)),
    "a mode that matters": (nn.Dropout, lambda: nn.Dropout().eval()),
    "a loss's setting": (nn.CrossEntropyLoss, lambda: nn.CrossEntropyLoss(label_smoothing=0.1)),
    "a tensor's values": (lambda: torch.arange(5.0), lambda: torch.arange(5.0) + 1),
    "its dtype": (lambda: torch.arange(5.0), lambda: torch.arange(5.0, dtype=torch.float64)),
    "a list": (lambda: [1, {"a": 2}], lambda: [1, {"a": 3}]),
    "its length": (lambda: [1], lambda: [1, 2]),
    "a global variable": (lambda: lambda x: WEIGHT * x, lambda: lambda x: HEAVIER * x),
    "a function that it calls": (lambda: lambda x: half(x), lambda: lambda x: third(x)),
    "a decorator's setting": (lambda: scaled(2.0)(half), lambda: scaled(3.0)(half)),
    "what is decorated": (lambda: scaled(2.0)(half), lambda: scaled(2.0)(third)),
    "a layer's function": (Activated, lambda: Activated(torch.tanh)),
    "one of its functions": (Activated, lambda: Activated(pair=(torch.tanh, 1))),
    "an object that is called": (lambda: Cost(1.0), lambda: Cost(2.0)),
    "one within a function": (lambda: calls(Cost(1.0)), lambda: calls(Cost(2.0))),
    "a bound method": (lambda: Law(1.0).drift, lambda: Law(2.0).drift),
    "a number of NumPy": (lambda: cost(np.float32(1)), lambda: cost(np.float32(2))),
    "an array": (lambda: cost(np.ones(3)), lambda: cost(np.zeros(3))),
    "a member of an enumeration": (lambda: cost(Kind.ONE), lambda: cost(Kind.TWO)),
    "a long integer": (lambda: cost(3**5000), lambda: cost(3**5001)),
    "a dtype": (lambda: cost(torch.float32), lambda: cost(torch.float64)),
    "a set of functions": (lambda: {half}, lambda: {third}),
    "a set": (lambda: {"b", "a"}, lambda: {"c", "a"}),
}


@pytest.mark.parametrize("what", PAIRS)
def test_equal_things_have_equal_descriptions_and_others_have_others(what):
    same, other = PAIRS[what]
    one = described(same())
    assert json.loads(json.dumps(one)) == one  # plain values only
    assert not differences(one, described(same()))
    assert differences(one, described(other()))


def test_a_description_says_nothing_of_addresses_and_of_the_order_of_a_hash():
    code = (
        "import sys, json; sys.path.insert(0, '.');"
        "from tests.test_identity import PAIRS; from mfoc.identity import described;"
        "print(json.dumps({name: described(make()) for name, (make, _) in PAIRS.items()}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) == {name: described(make()) for name, (make, _) in PAIRS.items()}


def test_what_changes_by_itself_is_no_setting():
    """A counter and what is cached are others after a run of the very same thing; so is the mode of most layers."""
    count = 0

    def counting(x):
        nonlocal count
        count += 1
        return x

    def through(x):
        return counting(x)

    made, layer, plain = Cost(1.0), Activated(), net()
    things = [counting, through, made, layer, plain]
    before = [described(one) for one in things]
    assert through(1) == count == 1
    assert made(1.0, None) + made.twice == 3.0
    layer(torch.ones(1))
    plain.eval()
    assert [described(one) for one in things] == before


@pytest.mark.parametrize(
    "value", [np.float64(1), np.str_("a"), np.int64(1), np.bool_(True), Kind.ONE, 3**5000, True, 1j]
)
def test_a_description_is_made_of_pythons_own_values(value):
    assert type(described(value)) in (bool, int, float, str)


def test_objects_without_a_name_are_told_by_their_class():
    class Answering:
        def __getattr__(self, name):
            return object()

    assert described((object(), Answering(), iter([]))) == ["object", "Answering", "list_iterator"]
    assert described({object()}) == described({object()})


def test_where_a_run_is_made_and_on_which_device_does_not_matter():
    def half(x):
        return 0.5 * x

    assert described(half) == described(globals()["half"])
    assert described(cost("cpu")) == described(cost("cuda:1"))


def test_a_function_that_holds_itself_ends():
    def countdown(n):
        return n and countdown(n - 1)

    one, other = {}, {}
    one["other"], other["one"] = other, one
    assert described(countdown) == "countdown"
    assert "dict" in json.dumps(described(one))


def test_entries_are_named_by_their_way():
    found = entries({"solver": {"type": "Gradient", "groups": [{"lr": 0.1}], "rest": {}}})
    assert found == {"solver": "'Gradient'", "solver.groups.0.lr": "0.1", "solver.rest": "{}"}


def test_differences_are_named_with_both_values():
    before, now = {"type": "A", "x": [1]}, {"type": "A", "x": [2, 3]}
    assert differences(before, now) == {"x.0": ("1", "2"), "x.1": ("nothing", "3")}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_a_fingerprint_is_of_the_values_however_they_lie(dtype):
    x = torch.arange(6).reshape(2, 3).to(dtype)
    assert fingerprint([x]) == fingerprint([x.T.contiguous().T])
    assert fingerprint([x]) != fingerprint([x.reshape(3, 2)])
    assert fingerprint([x]) != fingerprint([x.to(torch.float64)])
    assert fingerprint([x, None, 1]) != fingerprint([x, None, 2])


@pytest.mark.parametrize("size", [0, 1, 2, 5])
@pytest.mark.parametrize("step", [2, 3])
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.bool, torch.complex64])
def test_a_fingerprint_of_every_second_row_is_that_of_a_copy(size, step, dtype):
    """A rank's share of a batch is one: of a single row it keeps a stride of which nothing is left."""
    rows = torch.arange(size * step).to(dtype)[::step]
    assert fingerprint([rows]) == fingerprint([rows.clone(memory_format=torch.contiguous_format)])
    assert fingerprint([rows.expand(3, size)]) == fingerprint([rows.expand(3, size).contiguous()])


def test_zero_and_minus_zero_are_two():
    assert fingerprint(torch.tensor([0.0])) != fingerprint(torch.tensor([-0.0]))


def test_a_layout_names_leaves():
    assert layout({"a": torch.zeros(4, 2)}, "state", sizes=False) == {"state['a']": "float32 2d"}
