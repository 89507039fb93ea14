"""Networks as people and libraries write them: equal to plain torch at other weights, or refused with the cure."""

from __future__ import annotations

import collections
import copy
import functools
import weakref
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mfoc
from tests.architectures.small import seeded


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X, Y, Z = normal(6, 3), normal(6, 3, seed=1), normal(6, 2, seed=2)


def squares(output, z):
    return (output - z).square().mean(1)


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x)))


def agrees(make, x, loss, call, **options):
    """J and its gradient at weights that are not those of the network, and after them the user's input, untouched."""
    problem = mfoc.from_module(seeded(make), loss, **options)
    drawn = torch.Generator().manual_seed(3)
    there = mfoc.tree.map(lambda w: w + 0.1 * torch.randn(w.shape, generator=drawn, dtype=w.dtype), problem.controls)
    kept = copy.deepcopy(x)
    with torch.no_grad():
        problem.validate(mfoc.Particles(x, Z), there)
    value, gradient = mfoc.evaluate(problem, there, (x, Z))
    twin = problem.readout(there, (x, Z))
    expected = loss(call(twin, copy.deepcopy(kept)), Z).mean()
    expected.backward()
    assert value == pytest.approx(expected.item(), rel=1e-12)
    controls = [gradient] if isinstance(gradient, dict) else gradient
    found = {}
    for own, (_, part) in zip(controls, mfoc.networks.named_stages(twin, options.get("stages")), strict=True):
        found |= {id(p): own[name] for name, p in part.named_parameters() if name in own}
    for parameter in twin.parameters():
        slope = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(found[id(parameter)], slope, rtol=1e-10, atol=1e-12)
    for given, before in zip(mfoc.tree.leaves(x), mfoc.tree.leaves(kept), strict=True):
        assert torch.equal(given, before)
        assert not given.requires_grad


# ---- how a network is called


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(3, 2), nn.Linear(3, 2)

    def product(self, x, y):
        return self.left(x) * torch.tanh(self.right(y))


class Star(Two):
    def forward(self, *inputs):
        return self.product(*inputs)


class FirstAndStar(Two):
    def forward(self, x, *others):
        return self.product(x, *others)


class ByPosition(Two):
    def forward(self, x, y, /):
        return self.product(x, y)


class OneByPosition(Two):
    def forward(self, x, /, y):
        return self.product(x, y)


class Names(Two):
    def forward(self, **inputs):
        return self.product(inputs["x"], inputs["y"])


class OneAndNames(Two):
    def forward(self, x, **others):
        return self.product(x, others["y"])


@pytest.mark.parametrize("kind", [Star, FirstAndStar, ByPosition, OneByPosition])
def test_a_tuple_is_given_by_position(kind):
    agrees(kind, (X, Y), squares, lambda net, x: net(*x))


@pytest.mark.parametrize("kind", [OneByPosition, ByPosition])
def test_a_dict_names_what_is_given_by_position(kind):
    agrees(kind, {"y": Y, "x": X}, squares, lambda net, x: net(x["x"], x["y"]))


@pytest.mark.parametrize("kind", [Names, OneAndNames])
def test_a_dict_is_given_by_name(kind):
    agrees(kind, {"x": X, "y": Y}, squares, lambda net, x: net(**x))


class Called(Plain):
    def __call__(self, x):
        return 2 * super().__call__(x)


def test_a_call_of_its_own_is_what_runs():
    agrees(Called, X, squares, lambda net, x: net(x))
    agrees(lambda: nn.Sequential(Called(), nn.Linear(2, 2)), X, squares, lambda net, x: net(x))
    with pytest.raises(mfoc.InvalidValue, match=r"__call__.*leave stages out"):
        mfoc.from_module(Called(), F.mse_loss, stages=["first", "last"])


# ---- what it returns


class Pair(NamedTuple):
    y: torch.Tensor
    nothing: torch.Tensor | None


RETURNS = {
    "tuple": (lambda y: (y, None), lambda o: o[0]),
    "dict": (lambda y: {"y": y, "loss": None, "layers": 3, "kind": "net"}, lambda o: o["y"]),
    "nested": (lambda y: [y, [y * 2, (None, True)]], lambda o: o[0] + o[1][1][1] * o[1][0]),
    "named tuple": (lambda y: Pair(y, None), lambda o: o.y if o.nothing is None else o.nothing),
    "ordered dict": (lambda y: collections.OrderedDict(aux=None, y=y), lambda o: o["y"]),
}


@pytest.mark.parametrize("name", RETURNS)
@pytest.mark.parametrize("stages", [None, ["first", "last"]])
def test_what_is_no_tensor_stands_beside_the_tensors(name, stages):
    made, read = RETURNS[name]

    class Net(Plain):
        def forward(self, x):
            return made(super().forward(x))

    agrees(Net, X, lambda o, z: squares(read(o), z), lambda net, x: net(x), stages=stages)


def test_other_things_are_refused_with_the_cure():
    class Net(Plain):
        def forward(self, x):
            return super().forward(x), object()

    problem = mfoc.from_module(Net().double(), lambda o, z: squares(o[0], z))
    with pytest.raises(mfoc.InvalidType, match=r"returns an object.*Switch off"):
        mfoc.evaluate(problem, problem, (X, Z))


class Record(collections.OrderedDict):
    """As the outputs of model libraries: a dict whose entries are attributes, too."""

    def __getattr__(self, key):
        if key.startswith("__"):
            raise AttributeError(key)
        return self[key]


def test_a_kind_of_dict_keeps_its_kind_through_cuts():
    class Net(Plain):
        def forward(self, x):
            return Record(y=super().forward(x))

    torch.utils._pytree.register_pytree_node(
        Record, lambda r: (list(r.values()), list(r)), lambda values, keys: Record(zip(keys, values, strict=True))
    )
    agrees(Net, X, lambda o, z: squares(o.y, z), lambda net, x: net(x), stages=["first", "last"])


# ---- gradients in a forward pass


class InInput(Plain):
    def forward(self, x):
        x = x.requires_grad_()
        h = super().forward(x)
        (slope,) = torch.autograd.grad(h.sum(), x, create_graph=True)
        return h + slope[:, :2]


class InWeights(Plain):
    def forward(self, x):
        weights = dict(self.named_parameters())
        inner = super().forward(x).square().mean()
        slopes = torch.autograd.grad(inner, list(weights.values()), create_graph=True)
        moved = [w - 0.1 * s for w, s in zip(weights.values(), slopes, strict=True)]
        return F.linear(torch.tanh(F.linear(x, *moved[:2])), *moved[2:])


@pytest.mark.parametrize("kind", [InInput, InWeights])
def test_gradients_are_taken_where_torch_has_none_to_take(kind):
    agrees(kind, X.clone(), squares, lambda net, x: net(x))
    problem = mfoc.from_module(seeded(kind), squares)
    states = mfoc.rollout(problem, problem, (X, Z))
    assert not states.states[-1].requires_grad
    assert len(mfoc.costates(problem, problem, states, (X, Z))) == 2


# ---- what a network holds


class Holder:
    __slots__ = ("layer",)

    def __init__(self, layer):
        self.layer = layer


class Held(Plain):
    def __init__(self):
        super().__init__()
        self.slot, self.queue = Holder(self.first), collections.deque([self.last])

    def forward(self, x):
        return self.queue[0](torch.tanh(self.slot.layer(x)))


def test_layers_are_found_wherever_they_are_held():
    agrees(Held, X, squares, lambda net, x: net(x))


def by_reference(net):
    net.reference = weakref.ref(net.last)


def by_a_dict_of_references(net):
    net.references = weakref.WeakValueDictionary(last=net.last)


def from_below(net):
    net.last.__dict__["parent"] = weakref.ref(net)


def by_a_cache(net):
    net.cached = functools.lru_cache(net.last.forward)


def by_a_builtin(net):
    net.times = net.last.weight.matmul


@pytest.mark.parametrize("hold", [by_reference, by_a_dict_of_references, from_below, by_a_cache, by_a_builtin])
def test_what_a_copy_would_go_on_sharing_is_refused(hold):
    net = Plain()
    hold(net)
    with pytest.raises(
        mfoc.InvalidValue, match=r"holds a part of the network.*(Hold the part|Leave the cache|Make it)"
    ):
        mfoc.from_module(net, F.mse_loss)


def test_recurrent_layers_have_references_of_their_own():
    mfoc.from_module(nn.Sequential(nn.LSTM(3, 2)), lambda o, z: squares(o[0], z))


@pytest.mark.parametrize("made", [lambda net: net, lambda net: Plain()])
def test_a_copy_that_is_no_copy_is_refused(made):
    class Net(Plain):
        def __deepcopy__(self, memo):
            return made(self)

    with pytest.raises(mfoc.InvalidValue, match="__deepcopy__ of its own"):
        mfoc.from_module(Net(), F.mse_loss)


def test_slots_and_networks_without_values_are_refused():
    class Slots(Plain):
        __slots__ = ("gain",)

    with pytest.raises(mfoc.InvalidValue, match=r"__slots__, \['gain'\].*ordinary attributes"):
        mfoc.from_module(Slots(), F.mse_loss)
    with pytest.raises(mfoc.InvalidValue, match=r"meta device.*to_empty"):
        mfoc.from_module(Plain().to("meta"), F.mse_loss)


# ---- what a forward pass does beside its output


class FirstBatch(Plain):
    """Its scale is set by the first batch."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.register_buffer("done", torch.tensor(False))

    def forward(self, x):
        h = self.first(x)
        if not self.done:
            self.scale.data.copy_(1 / h.detach().std(0))
            self.done.fill_(True)
        return self.last(torch.tanh(h * self.scale))


def test_weights_that_are_written_are_refused_and_the_cure_works():
    net = seeded(FirstBatch)
    problem = mfoc.from_module(net, squares)
    with pytest.raises(mfoc.InvalidValue, match=r"writes into its weight 'scale'.*once on a batch"):
        mfoc.evaluate(problem, problem, (X, Z))
    net(X)
    problem = mfoc.from_module(net, squares)
    assert mfoc.evaluate(problem, problem, (X, Z)).value == pytest.approx(squares(net(X), Z).mean().item(), rel=1e-12)


class Watching(Plain):
    """It hooks its layers in its first pass, and remembers that it has."""

    watched = False

    def forward(self, x):
        if not self.watched:
            self.seen, self.watched = [], True
            self.first.register_forward_hook(self.note)
        self.seen = []
        y = super().forward(x)
        return y, *self.seen

    def note(self, module, args, output):
        self.seen.append(output)


def test_hooks_that_a_forward_pass_registers_are_not_kept():
    agrees(Watching, X, lambda o, z: squares(o[0], z) + o[1].square().mean(1), lambda net, x: net(x))
    problem = mfoc.from_module(seeded(Watching), lambda o, z: squares(o[0], z))
    assert all(len(problem.dynamics(0, X, problem.controls[0], None)) == 2 for _ in range(3))


class StochasticDepth(nn.Module):
    def __init__(self, p):
        super().__init__()
        self.p, self.layer = p, nn.Linear(3, 2)

    def forward(self, x):
        return self.layer(x)


def test_what_drops_with_probability_zero_is_not_random():
    mfoc.from_module(StochasticDepth(0.0), F.mse_loss)
    with pytest.raises(mfoc.InvalidValue, match="random in training mode"):
        mfoc.from_module(StochasticDepth(0.1), F.mse_loss)


class NormTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.last = nn.BatchNorm1d(3), nn.Linear(3, 2)

    def forward(self, x):
        return self.last(self.norm(self.norm(x) ** 3 + x))


def test_averages_of_a_norm_that_is_met_twice_are_those_of_update_bn():
    net = seeded(NormTwice)
    problem = mfoc.from_module(net, squares)
    solved = problem.readout(problem.controls, (X, Z))
    torch.optim.swa_utils.update_bn([X], net)
    for found, expected in zip(solved.buffers(), net.buffers(), strict=True):
        torch.testing.assert_close(found, expected)


class RunAgain(nn.Module):
    """A tied head, and a branch that no trace reads."""

    def __init__(self):
        super().__init__()
        self.embed, self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(3, 4, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        h = self.embed(x)
        h = self.body(h if float(h.detach().sum()) > 1e9 else torch.tanh(h))
        return self.head(torch.tanh(h)[:, :3])[:, :2]


def test_a_tied_weight_is_the_same_one_in_every_stage_that_is_run_again():
    with pytest.raises(mfoc.InvalidValue, match=r"'embed\.weight' is used in stages 'body' and 'head'.*tied=True"):
        mfoc.from_module(seeded(RunAgain), squares, stages=["body", "head"])
    problem = mfoc.from_module(seeded(RunAgain), squares, stages=["body", "head"], tied=True)
    there = {key: 1.5 * weight for key, weight in problem.controls.items()}
    value, gradient = mfoc.evaluate(problem, there, (X, Z))
    twin = problem.readout(there)
    expected = squares(twin(X), Z).mean()
    expected.backward()
    assert value == pytest.approx(expected.item(), rel=1e-12)
    for name, parameter in twin.named_parameters():
        torch.testing.assert_close(gradient[name], parameter.grad, rtol=1e-10, atol=1e-12)
