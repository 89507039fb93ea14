"""What a checkpoint holds comes back as it was; what would not is refused after the first step, by the path to it."""

import collections
import enum
import math
import warnings
from contextlib import suppress
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mfoc
from mfoc import hooks
from tests.problems import mlp

DTYPES = sorted(
    {value for name in dir(torch) if isinstance(value := getattr(torch, name), torch.dtype)}
    - {torch.qint8, torch.quint8, torch.qint32, torch.quint4x2, torch.quint2x4},
    key=str,
)


class Colour(enum.IntEnum):
    RED = 1


class Words(dict):
    pass


class Kind(torch.Tensor):
    pass


Pair = collections.namedtuple("Pair", "a b")


def round_trip(state, path, controls=()):
    hooks.Checkpoint(path, every=1)(mfoc.Iterate(1, list(controls) or [torch.ones(1)], state))
    return hooks.load(path)


def equal(left, right):
    """Equal to the bit, types included."""
    if type(left) is not type(right):
        return False
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and left.shape == right.shape and torch.equal(bits(left), bits(right))
    if isinstance(left, dict):
        return list(left) == list(right) and all(equal(left[key], right[key]) for key in left)
    if type(left) in (list, tuple):
        return len(left) == len(right) and all(map(equal, left, right))
    return left == right or (isinstance(left, float) and math.isnan(left) and math.isnan(right))


def bits(tensor):
    return (
        tensor.resolve_conj().resolve_neg().contiguous().flatten().view(torch.uint8)
        if tensor.numel()
        else tensor.new_empty(0)
    )


PLAIN = {
    "none": None,
    "flag": True,
    "large": -(2**2038),
    "nan": math.nan,
    "complex": 1 - 2j,
    "string": "a\ud800\0é",
    "bytes": b"\0a",
    "list": [1, [2, []]],
    "tuple": (1, (2, ())),
    "keys": {1: 2, (1, "b"): 3, None: 4, 1.5: 5, torch.float64: 6},
    "ordered": collections.OrderedDict([("b", 1), ("a", [2])]),
    "counter": collections.Counter("aab"),
    "set": {1, "a", (2, 3)},
    "size": torch.Size([2, 3]),
    "dtype": torch.bfloat16,
    "device": torch.device("cuda:1"),
}


@pytest.mark.parametrize("name", PLAIN)
def test_plain_values(name, tmp_path):
    assert equal(round_trip({name: PLAIN[name]}, tmp_path / "run").state, {name: PLAIN[name]})


def tensors():
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(6, 4, generator=generator)
    complex_one = torch.complex(one, -one)
    return {
        "empty": one[:0],
        "scalar": one[0, 0],
        "expanded": one[:1].expand(6, 4),
        "view": one[1:3, ::2],
        "transposed": one.t(),
        "channels last": one.reshape(1, 2, 3, 4).to(memory_format=torch.channels_last),
        "conjugate": complex_one.conj(),
        "negative": complex_one.conj().imag,
        "signs": torch.tensor([0.0, -0.0, math.inf, math.nan]),
    }


@pytest.mark.parametrize("name", tensors())
def test_tensors_come_back_alone(name, tmp_path):
    tensor = tensors()[name]
    found = round_trip({"a": tensor, "b": tensor}, tmp_path / "run").state
    assert equal(found["a"], tensor)
    assert equal(found["b"], tensor)
    assert found["a"].untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    if tensor.numel():
        assert found["a"].data_ptr() != found["b"].data_ptr()


def test_the_layout_in_memory_is_kept(tmp_path):
    """Last bits of what is computed depend on it."""
    for name in ("transposed", "channels last"):
        assert round_trip({"a": tensors()[name]}, tmp_path / "run").state["a"].stride() == tensors()[name].stride()


def test_what_is_saved_is_left_as_it_was(tmp_path):
    leaf = torch.ones(3, requires_grad=True)
    state = {"leaf": leaf, "parameter": torch.nn.Parameter(torch.ones(2)), "result": leaf * 2}
    found = round_trip(state, tmp_path / "run").state
    assert all(type(value) is torch.Tensor and not value.requires_grad for value in found.values())
    assert leaf.requires_grad
    assert state["result"].grad_fn is not None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(dtype, tmp_path):
    size = torch.empty(0, dtype=dtype).element_size()
    tensor = torch.arange(8 * size, dtype=torch.uint8).view(dtype)
    found: object = None
    with suppress(mfoc.InvalidType):  # some of torch's have no way to a file
        found = round_trip({"a": tensor}, tmp_path / "run").state["a"]
    assert equal(found, tensor) or (found is None and dtype.itemsize == 1 and not list(tmp_path.iterdir()))


def odd():
    """Values that come back as something else, or not at all."""
    circle: list = []
    circle.append(circle)
    deep: list = []
    for _ in range(500):
        deep = [deep]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "a slice": slice(1),
            "a deque": collections.deque([1]),
            "a defaultdict": collections.defaultdict(list),
            "a frozenset": frozenset([1]),
            "a range": range(3),
            "an ellipsis": ...,
            "a float64": np.float64(0.5),
            "an int64": np.int64(1),
            "an ndarray": np.ones(2),
            "a Colour": Colour.RED,
            "a Words": Words(a=1),
            "a Pair": Pair(1, 2),
            "a type": float,
            "a function": equal,
            "a Generator": torch.Generator(),
            "a Kind": torch.ones(2).as_subclass(Kind),
            "a sparse_coo tensor": torch.eye(2).to_sparse(),
            "a sparse_csr tensor": torch.eye(2).to_sparse_csr(),
            "a nested tensor": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
            "a quantized tensor": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
            "meta device": torch.ones(2, device="meta"),
            "an int": 2**3000,
            "bytes of length 0": b"",
            "holds itself": circle,
            "deep": deep,
        }


@pytest.mark.parametrize("what", odd())
@pytest.mark.parametrize("around", [lambda v: v, lambda v: [v], lambda v: {"k": (0, v)}], ids=["bare", "list", "dict"])
def test_what_would_not_come_back_is_refused_by_its_path(what, around, tmp_path):
    where = {"bare": "", "list": r"\[0\]", "dict": r"\['k'\]\[1\]"}
    state = {"memory": [{"window": around(odd()[what])}]}
    path = where[{type(None): "bare", list: "list", dict: "dict"}.get(type(around(None)), "bare")]
    with pytest.raises(
        mfoc.InvalidType, match=rf"state\['memory'\]\[0\]\['window'\]{path}.* is .*{what}.*checkpoint holds"
    ):
        round_trip(state, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("odd_key", [np.int64(1), b"", 2**3000, frozenset([1]), Colour.RED, torch.ones(1)], ids=type)
def test_odd_keys_and_entries_of_sets_are_refused(odd_key, tmp_path):
    for state in ({odd_key: 1}, {"a": {odd_key}}, {"a": {(1, odd_key): 2}}):
        with pytest.raises(mfoc.InvalidType, match=r"a key of state|an entry of state"):
            round_trip(state, tmp_path / "run")


class Odd(torch.optim.SGD):
    """An optimiser of the user's own, whose memory and settings hold what comes to hand."""

    def __init__(self, parameters, lr=0.1, *, memory=None, setting=0):
        super().__init__(parameters, lr=lr)
        self.memory = memory
        for group in self.param_groups:
            group["setting"] = setting

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["window"] = self.memory
        return super().step(closure)


@pytest.mark.parametrize("what", ["a slice", "a deque", "a float64", "a Colour", "an ndarray"])
@pytest.mark.parametrize("place", ["memory", "setting"])
def test_the_memory_of_an_optimiser_is_refused_after_the_first_step(what, place, tmp_path):
    problem, cloud = mlp()
    solver = mfoc.Gradient(partial(Odd, **{place: odd()[what]}))
    seen = []
    watching = [hooks.Checkpoint(tmp_path / "run", every=100), lambda it: seen.append(it.step)]
    with pytest.raises(mfoc.InvalidType, match=rf"state\['(memory|groups)'\]\[0\]\['(window|setting)'\] is {what}"):
        mfoc.solve(problem, solver, cloud, steps=200, hooks=watching)
    assert seen in ([], [1])
    assert list(tmp_path.iterdir()) == []


def test_a_memory_of_plain_values_resumes(tmp_path):
    problem, cloud = mlp()
    solver = mfoc.Gradient(partial(Odd, memory={"a": [1, (2.5, None)], "b": torch.ones(2)}, setting=(1, "x")))
    mfoc.solve(problem, solver, cloud, steps=2, hooks=[hooks.Checkpoint(tmp_path / "run")])
    start = hooks.load(tmp_path / "run")
    whole, resumed = (mfoc.solve(problem, solver, cloud, steps=4, start=at) for at in (None, start))
    assert equal(resumed.controls, whole.controls)
    assert equal(resumed.last.state, whole.last.state)


KEYS = st.one_of(st.text(max_size=3), st.integers(), st.booleans(), st.none())
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.binary(min_size=1, max_size=5),
    st.complex_numbers(allow_nan=False),
    st.lists(st.floats(), max_size=4).map(lambda numbers: torch.tensor(numbers, dtype=torch.float64)),
    st.integers(0, 3).map(lambda n: torch.arange(8.0)[n : 2 * n + 1]),
)
TREES = st.recursive(
    VALUES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(KEYS, inner, max_size=3),
        st.dictionaries(KEYS, inner, max_size=3).map(collections.OrderedDict),
        st.sets(KEYS, max_size=3),
    ),
    max_leaves=10,
)


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(TREES)
def test_trees_of_what_is_allowed_come_back_equal(tmp_path_factory, tree):
    assert equal(round_trip({"tree": tree}, tmp_path_factory.getbasetemp() / "tree").state, {"tree": tree})
