"""muP: the role of every kind of parameter, and Table 3 of Tensor Programs V as rates and initial variances."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from mfoc.analysis.propagation import mup_groups, mup_init_
from mfoc.analysis.propagation.mup import roles_of, root_mean_square
from mfoc.errors import InvalidType, InvalidValue


class Every(nn.Module):
    """A parameter of every kind; it is never run."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token = nn.Embedding(7, width)
        self.place = nn.Parameter(torch.randn(5, width))
        self.conv = nn.Conv1d(width, 2 * width, 3)
        self.depthwise = nn.Conv2d(width, width, 3, groups=width)
        self.up = nn.ConvTranspose2d(width, 3, 2)
        self.norm = nn.LayerNorm(width)
        self.recurrent = nn.GRU(4, width)
        self.attention = nn.MultiheadAttention(width, 2)
        self.wide = nn.Linear(width, width**2)
        self.head = nn.Linear(width, 3)
        self.temperature = nn.Parameter(torch.ones(()))


def made(width: int, seed: int = 0, make=Every) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make(width)


# name: role, initial variance, learning rates for SGD and Adam, at four times the base width
TABLE = {
    "place": ("input", 1, 4, 1),
    "temperature": ("fixed", 1, 1, 1),
    "token.weight": ("input", 1, 4, 1),
    "conv.weight": ("hidden", 1 / 4, 1, 1 / 4),
    "conv.bias": ("input", 1, 4, 1),
    "depthwise.weight": ("input", 1, 4, 1),
    "depthwise.bias": ("input", 1, 4, 1),
    "up.weight": ("output", 1 / 16, 1 / 4, 1 / 4),
    "up.bias": ("fixed", 1, 1, 1),
    "norm.weight": ("input", 1, 4, 1),
    "norm.bias": ("input", 1, 4, 1),
    "recurrent.weight_ih_l0": ("input", 1, 4, 1),
    "recurrent.weight_hh_l0": ("hidden", 1 / 4, 1, 1 / 4),
    "recurrent.bias_ih_l0": ("input", 1, 4, 1),
    "recurrent.bias_hh_l0": ("input", 1, 4, 1),
    "attention.in_proj_weight": ("hidden", 1 / 4, 1, 1 / 4),
    "attention.in_proj_bias": ("input", 1, 4, 1),
    "attention.out_proj.weight": ("hidden", 1 / 4, 1, 1 / 4),
    "attention.out_proj.bias": ("input", 1, 4, 1),
    "wide.weight": ("hidden", 1 / 4, 4, 1 / 4),  # fan-out grows by 16
    "wide.bias": ("input", 1, 16, 1),
    "head.weight": ("output", 1 / 16, 1 / 4, 1 / 4),
    "head.bias": ("fixed", 1, 1, 1),
}


def test_the_role_of_every_parameter_and_its_powers():
    found = roles_of(made(16), made(4))
    assert {name: (r.role, r.scale**2, r.rate("sgd"), r.rate("adam")) for name, r in found.items()} == TABLE


@pytest.mark.parametrize(("optimizer", "column"), [("sgd", 2), ("adam", 3)])
def test_groups_hold_each_parameter_once_with_its_rate(optimizer, column):
    net = made(16)
    groups = mup_groups(net, made(4), 0.5, optimizer, weight_decay=0.1)
    rates = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(TABLE)
    for name, parameter in net.named_parameters():
        rate, decay = rates[id(parameter)]
        assert rate == 0.5 * TABLE[name][column]
        assert rate * decay == pytest.approx(0.5 * 0.1)  # what decays in a step is the same at every width
    assert len({group["lr"] for group in groups}) == len(groups)


def test_frozen_parameters_are_in_no_group():
    net = made(16)
    net.head.requires_grad_(False)
    assert sum(len(group["params"]) for group in mup_groups(net, made(4), 1.0)) == len(TABLE) - 2
    assert "weight_decay" not in mup_groups(net, made(4), 1.0)[0]


def test_initial_sizes_are_those_of_the_base_times_the_table():
    base, net = made(4), made(16, seed=1)
    kept = copy.deepcopy(base)
    assert mup_init_(net, base) is net
    weights = dict(base.named_parameters())
    for name, parameter in net.named_parameters():
        if TABLE[name][0] != "fixed":
            expected = root_mean_square(weights[name]) * TABLE[name][1] ** 0.5
            assert root_mean_square(parameter) == pytest.approx(expected, rel=1e-5), name
    assert all(torch.equal(a, b) for a, b in zip(base.parameters(), kept.parameters(), strict=True))


@pytest.mark.parametrize("fill", [nn.init.xavier_normal_, lambda w: nn.init.normal_(w, std=0.02)])
def test_it_mends_whatever_the_weights_were_drawn_with(fill):
    """Xavier's rule shrinks input weights with the fan-out; one deviation for all lets hidden layers grow."""

    def make(width):
        net = nn.Sequential(nn.Linear(8, width), nn.Linear(width, width), nn.Linear(width, 8))
        for layer in net:
            fill(layer.weight)
        return net

    base, net = made(16, make=make), made(64, make=make)
    mup_init_(net, base)
    sizes = [root_mean_square(b.weight) / root_mean_square(a.weight) for a, b in zip(base, net, strict=True)]
    assert sizes == pytest.approx([1, 1 / 2, 1 / 4], rel=1e-5)


def test_zeros_stay_zero_and_nothing_but_weights_changes():
    net = made(16).eval()
    nn.init.zeros_(net.head.weight)
    net.norm.weight.requires_grad_(False)
    mup_init_(net, made(4))
    assert not net.head.weight.any()
    assert not net.training
    assert net.head.weight.requires_grad
    assert not net.norm.weight.requires_grad
    assert all(parameter.is_leaf and parameter.grad is None for parameter in net.parameters())


def test_at_the_base_width_nothing_changes():
    base, net = made(4), made(4, seed=1)
    kept = copy.deepcopy(net)
    mup_init_(net, base)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), kept.parameters(), strict=True))
    assert [group["lr"] for group in mup_groups(net, base, 0.3)] == [0.3]


def test_a_role_can_be_said():
    net, base = made(16), made(4)
    said = roles_of(net, base, {"place": "output", "head.weight": "input", "norm.bias": "fixed"})
    assert (said["place"].role, said["place"].fan_in, said["place"].fan_out) == ("output", 4, 1)
    assert (said["head.weight"].role, said["head.weight"].rate("sgd")) == ("input", 4)
    assert said["norm.bias"].rate("sgd") == 1


def test_a_tied_embedding_is_refused_until_its_role_is_said():
    def make(width):
        net = nn.ModuleDict({"token": nn.Embedding(7, width), "head": nn.Linear(width, 7)})
        net["head"].weight = net["token"].weight
        return net

    with pytest.raises(InvalidValue, match=r"'token\.weight' is shared by an embedding and another layer"):
        mup_groups(make(8), make(4), 0.1)
    assert len(mup_groups(make(8), make(4), 0.1, roles={"token.weight": "input"})) == 1


def test_what_is_refused():
    net, base = made(16), made(4)
    with pytest.raises(InvalidType, match="base_net is an int"):
        mup_groups(net, 4, 0.1)
    with pytest.raises(InvalidValue, match="lr is -1"):
        mup_groups(net, base, -1)
    with pytest.raises(InvalidValue, match="optimizer is 'lion'"):
        mup_groups(net, base, 0.1, "lion")
    with pytest.raises(InvalidValue, match="no parameter 'tail'"):
        mup_groups(net, base, 0.1, roles={"tail": "output"})
    with pytest.raises(InvalidValue, match="expected one of 'input'"):
        mup_groups(net, base, 0.1, roles={"place": "outer"})
    with pytest.raises(InvalidValue, match="'bias' is in one of net and base_net alone"):
        mup_init_(nn.Linear(2, 2), nn.Linear(2, 2, bias=False))
    with pytest.raises(InvalidValue, match="grows along 3 axes"):
        roles_of(nn.Bilinear(4, 4, 4), nn.Bilinear(2, 2, 2))
    with pytest.raises(InvalidValue, match="expected equally many axes"):
        roles_of(nn.Conv1d(2, 2, 3), nn.Conv2d(2, 2, 3))
    with pytest.raises(InvalidValue, match="lazy"):
        roles_of(nn.LazyLinear(4), nn.LazyLinear(2))
    nn.init.constant_(net.head.weight, float("nan"))
    with pytest.raises(InvalidValue, match=r"'head\.weight' is not finite"):
        mup_init_(net, base)
    with pytest.raises(InvalidValue, match="no parameter that requires grad"):
        mup_groups(made(4).requires_grad_(False), base, 0.1)
