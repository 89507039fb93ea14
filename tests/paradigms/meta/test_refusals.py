"""What is refused at the door of meta-learning: networks, rules, heads, rates and numbers."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mfoc
from paradigms.meta import anil, learned_update, maml, meta_sgd, reptile, tasks
from tests.paradigms.meta.nets import batch, mlp
from tests.problems import D, generator, normal, seeded

LR = 0.1
KINDS = torch.randint(0, 3, (3, 4), generator=generator(1))


def linear(outputs=3):
    return seeded(lambda: nn.Linear(4, outputs))


def cloud(support, query=None):
    """Tasks with these targets."""
    query = support if query is None else query
    return tasks((normal(3, 4, 4), support), (normal(3, 4, 4, seed=5), query))


good = {"inner_steps": 1, "inner_lr": 0.1}
x, y = torch.zeros(2, 3, 1), torch.zeros(2, 3, 1)
CLOUD = SimpleNamespace(support=(x, y), query=(x, y))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inner_steps": 0}, "inner_steps is 0"),
        ({"inner_steps": True}, "inner_steps"),
        ({"inner_lr": -1.0}, "inner_lr"),
        ({"first_order": 1}, "first_order"),
        ({"step_losses": [1.0, 1.0]}, "step_losses"),
        ({"step_losses": 1.0}, "step_losses is a float"),
        ({"net": "net"}, "torch.nn.Module"),
        ({"net": nn.Sequential(nn.Linear(1, 1), nn.Dropout(0.5))}, "Dropout"),
        ({"net": nn.ReLU()}, "nothing to train"),
        ({"net": nn.Linear(2, 1)}, r"cannot run on the support inputs of a task, \(3, 1\)"),
        ({"loss": nn.MSELoss(reduction="none")}, "reduction='none'"),
        ({"loss": nn.MSELoss}, "instance"),
        ({"loss": 3}, "function"),
        ({"loss": lambda a, b: (a - b).square()}, "expected a scalar"),
        ({"tasks": {"support": (x[:, :0], y[:, :0]), "query": (x, y)}}, "support is empty"),
        ({"tasks": {"support": (x, y), "query": (x[:, :0], y[:, :0])}}, "query is empty"),
        ({"tasks": {"support": ([x[0], x[0, :1]], y), "query": (x, y)}}, "stack"),
        ({"tasks": {"support": (x, y[:, :2]), "query": (x, y)}}, "leading axes"),
        ({"tasks": {"support": (x, y[:, :, 0]), "query": (x, y)}}, "broadcast"),
        ({"tasks": {"support": (x, y)}}, "query"),
        ({"tasks": mfoc.Particles(x, y)}, "support"),
    ],
)
def test_refused(change, message):
    given = {"net": nn.Linear(1, 1), "loss": F.mse_loss, "tasks": vars(CLOUD), **good, **change}
    net, loss, law = given.pop("net"), given.pop("loss"), given.pop("tasks")
    with pytest.raises((mfoc.InvalidValue, mfoc.InvalidType), match=message):
        maml(net, loss, law, **given)


def test_head_and_rates_refused():
    with pytest.raises(mfoc.InvalidValue, match="head names"):
        anil(mlp(), F.mse_loss, batch(), head="nose", **good)
    with pytest.raises(mfoc.InvalidValue, match="entries"):
        meta_sgd(mlp(), F.mse_loss, batch(), inner_steps=1, inner_lr=[torch.zeros(1)])
    with pytest.raises(mfoc.InvalidValue, match="shots_per_step is 6 and the support has 5"):
        reptile(mlp(), F.mse_loss, batch(), shots_per_step=6, **good)
    with pytest.raises(mfoc.InvalidType, match="rule"):
        learned_update(mlp(), F.mse_loss, batch(), rule=torch.tanh, inner_steps=1)


@pytest.mark.parametrize("head", [[], "", [""], [3], 5, {"weight"}])
def test_heads_that_name_nothing(head):
    error = mfoc.InvalidValue if head in ([], "", [""]) else mfoc.InvalidType
    with pytest.raises(error, match="head is"):
        anil(linear(), F.cross_entropy, cloud(KINDS), inner_steps=1, inner_lr=LR, head=head)


@pytest.mark.parametrize("rates", [None, "a", torch.ones(3), [], {"weight": 1.0}, [normal(3, 4) / 0, normal(3)]])
def test_rates_that_are_none(rates):
    with pytest.raises((mfoc.InvalidValue, mfoc.InvalidType), match="inner_lr"):
        meta_sgd(linear(), F.cross_entropy, cloud(KINDS), inner_steps=1, inner_lr=rates)
    with pytest.raises(mfoc.InvalidType, match="per_step is 1"):
        meta_sgd(linear(), F.cross_entropy, cloud(KINDS), inner_steps=1, inner_lr=LR, per_step=1)


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.norm = nn.Parameter(torch.tensor(0.1, dtype=D)), nn.Identity()

    def forward(self, slope, weight):
        return self.a * slope


def test_rules_that_share_or_mix_are_refused():
    net, rule, mixing = seeded(lambda: nn.Linear(4, 3)).to(D), Scaled(), Scaled()
    mixing.norm = nn.BatchNorm1d(1)
    with pytest.raises(mfoc.InvalidValue, match="shares parameters"):
        learned_update(
            net, F.cross_entropy, cloud(KINDS), rule=nn.ModuleDict({"weight": rule, "bias": rule}), inner_steps=1
        )
    with pytest.raises(mfoc.InvalidValue, match="mixes tasks"):
        learned_update(net, F.cross_entropy, cloud(KINDS), rule=mixing, inner_steps=1)


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(weight):
    net = linear()
    net.weight.data[0, 0] = weight
    with pytest.raises(mfoc.InvalidValue, match=r"weight.* holds NaN or infinite values"):
        maml(net, F.cross_entropy, cloud(KINDS), inner_steps=1, inner_lr=LR)


def test_networks_of_several_precisions_or_complex_ones():
    with pytest.raises(mfoc.InvalidValue, match="all controls need one dtype"):
        maml(nn.Sequential(linear(), nn.Linear(3, 3)), F.cross_entropy, cloud(KINDS), inner_steps=1, inner_lr=LR)
    with pytest.raises(mfoc.InvalidValue, match=r"complex128.*view_as_real"):
        maml(nn.Linear(4, 3, dtype=torch.complex128), F.cross_entropy, cloud(KINDS), inner_steps=1, inner_lr=LR)


def test_a_network_that_cannot_be_copied():
    net = linear()
    net.handle = (i for i in range(3))
    with pytest.raises(mfoc.InvalidValue, match="cannot be copied"):
        maml(net, F.cross_entropy, cloud(KINDS), inner_steps=1, inner_lr=LR)
