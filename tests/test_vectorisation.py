"""What maps a function over a stack: vmap where it is right, a loop elsewhere, and the user's own errors."""

import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import mfoc
from mfoc.vectorisation import Mapper, misled

X = torch.arange(12.0, dtype=torch.float64).view(4, 3) / 10


class Wrong(torch.autograd.Function):
    """A square whose rule for vmap is that of another function."""

    @staticmethod
    def forward(x):
        return x.square()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, g):
        return 2 * g * ctx.saved_tensors[0]

    @staticmethod
    def vmap(info, in_dims, x):
        return x.square() + 1, in_dims[0]


class WrongSlope(Wrong):
    """The right value, and under vmap another slope."""

    @staticmethod
    def vmap(info, in_dims, x):
        return x.square().detach() + x - x.detach(), in_dims[0]


FOLLOWED = {"sine": lambda x: x.sin().sum(), "tree": lambda x: {"a": x.sum(), "b": (x, x * 2)}}
NOT_FOLLOWED = {
    "branch": lambda x: x.sum() if x.sum() > 1 else -x.sum(),
    "item": lambda x: x * x.sum().item(),
    "other values": lambda x: Wrong.apply(x),
    "other slopes": lambda x: WrongSlope.apply(x),
    "checkpoint": lambda x: checkpoint(torch.sin, x, use_reentrant=False),
    "mask": lambda x: x[x >= 0].sum(),
}


@pytest.mark.parametrize("name", FOLLOWED | NOT_FOLLOWED)
def test_values_and_slopes(name, caplog):
    function = (FOLLOWED | NOT_FOLLOWED)[name]
    mapper, x, alone = Mapper("net", "draw"), X.clone().requires_grad_(), X.clone().requires_grad_()
    found, plain = mfoc.tree.leaves(mapper(function, x)), [mfoc.tree.leaves(function(row)) for row in alone]
    columns = [torch.stack(column) for column in zip(*plain, strict=True)]
    torch.testing.assert_close(found, columns)
    sums = [sum(leaf.sin().sum() for leaf in each) for each in (found, columns)]
    slopes = [torch.autograd.grad(total, rows) for total, rows in zip(sums, (x, alone), strict=True)]
    torch.testing.assert_close(*slopes)
    assert mapper.looped == (name in NOT_FOLLOWED)
    mapper(function, x)
    assert len(caplog.records) == (name in NOT_FOLLOWED)


@pytest.mark.parametrize("name", ["sine", "branch"])
def test_gradients_and_values(name):
    function = (FOLLOWED | NOT_FOLLOWED)[name]
    gradient, value = Mapper("net", "draw").gradient_and_value(function, X)
    alone = X.clone().requires_grad_()
    plain = torch.stack([function(row) for row in alone])
    torch.testing.assert_close(value, plain.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(plain.sum(), alone)[0])
    assert not gradient.requires_grad


def test_a_loop_keeps_the_graph_of_any_order():
    x = X.clone().requires_grad_()
    value = Mapper("net", "draw")(lambda x: x.pow(3).sum() if x.sum() > 1 else x.pow(2).sum(), x)
    (slope,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(slope.sum(), x)
    plain = torch.where(x.sum(1, keepdim=True) > 1, 6 * x, 2 * torch.ones_like(x))
    torch.testing.assert_close(second, plain.detach())


def test_within_another_transform():
    """What fails there is looped over there, and says nothing of what is right outside."""
    mapper = Mapper("net", "draw")
    found = torch.func.jacrev(lambda x: mapper(lambda row: row.sin() * (1 if row.sum() > -9 else 2), x))(X)
    torch.testing.assert_close(found, torch.func.jacrev(torch.sin)(X))
    assert not mapper.looped


def test_a_loop_is_said_once_with_its_reason(caplog):
    mapper = Mapper("net", "draw", unfit="because")
    for _ in range(2):
        mapper(torch.sin, X)
        mapper.beside()(NOT_FOLLOWED["branch"], X)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "net runs once for each draw" in record.getMessage()
    assert "because" in record.getMessage()


def test_the_slow_operations_of_vmap_are_no_news(recwarn):
    table = torch.randn(4, 5, 3)
    Mapper("net", "draw")(lambda w: F.embedding_bag(torch.tensor([[0, 1]]), w), table)
    assert not [w for w in recwarn if "performance drop" in str(w.message)]


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda x: x @ torch.ones(2, dtype=x.dtype), RuntimeError, "size"),
        (lambda x: {}["key"], KeyError, "key"),
        (lambda x: x + torch.randn(()), mfoc.InvalidValue, "random numbers"),
        (lambda x: x + float(torch.randn(())), mfoc.InvalidValue, "random numbers"),
        (lambda x: x.tolist(), mfoc.InvalidType, "float"),
        (lambda x: (x, None), mfoc.InvalidType, "expected a tensor"),
        (lambda x: x[x > 0.35], mfoc.InvalidValue, "shapes"),
    ],
)
def test_errors(function, error, message):
    with pytest.raises(error, match=message):
        Mapper("net", "draw")(function, X)


def test_what_cannot_be_differentiated_is_said_where_a_graph_is_asked_for():
    mapper = Mapper("net", "draw")
    inner = nn.Linear(3, 2).double()

    def function(x):
        return checkpoint(inner, x, use_reentrant=True)

    with torch.no_grad():
        torch.testing.assert_close(mapper(function, X), inner(X))
    with pytest.raises(mfoc.InvalidValue, match="use_reentrant"):
        mapper(function, X.clone().requires_grad_())


def test_padding_misleads_vmap():
    assert misled(nn.Sequential(nn.Embedding(3, 2, padding_idx=1)))
    assert not misled(nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 2)))
