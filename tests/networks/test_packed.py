"""Packed networks run to the bit as the networks they are made of, in an eighth or a quarter of a byte a weight."""

import pytest
import torch
from torch import nn

import mfoc
from mfoc.networks import packed
from tests.problems import D, generator, normal


def discrete_(net, levels):
    for part in net.modules():
        if isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d):
            low = torch.randint(-1, 2, part.weight.shape, generator=generator(1)).to(part.weight)
            part.weight.data = torch.where(low == 0, 1.0, low) if levels == "binary" else low
    return net


def conv_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1, padding_mode="circular"), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 25, 7)
    )


@pytest.mark.parametrize("dtype", [torch.float32, D])
@pytest.mark.parametrize("levels", ["binary", "ternary"])
def test_the_output_is_the_same_to_the_bit(levels, dtype):
    net = discrete_(conv_net().to(dtype), levels)
    x = normal(4, 1, 5, 5).to(dtype).requires_grad_()
    small = packed.pack(net)
    assert torch.equal(small(x), net(x))
    ours, theirs = (torch.autograd.grad(module(x).square().sum(), x)[0] for module in (small, net))
    assert torch.equal(ours, theirs)
    assert net[0].weight.shape == (3, 1, 3, 3)  # the network given is as it was


@pytest.mark.parametrize(("levels", "per_byte"), [("binary", 8), ("ternary", 4)])
def test_sizes(levels, per_byte):
    net = discrete_(nn.Sequential(nn.Linear(31, 17), nn.Linear(17, 3, bias=False)), levels)
    expected = -(-31 * 17 // per_byte) + 4 * 17 + -(-17 * 3 // per_byte)
    small = packed.pack(net)
    assert packed.stored_bytes(small) == expected
    assert packed.stored_bytes(net) == 4 * (31 * 17 + 17 + 17 * 3)
    assert f"weight (17, 31) in {8 // per_byte} bit" in repr(small)


def test_a_state_dict_loads_into_another_packed_network():
    first, second = discrete_(conv_net(), "binary"), discrete_(conv_net(), "binary")
    second[3].weight.data *= -1
    small = packed.pack(second)
    assert not torch.equal(small(x := normal(2, 1, 5, 5).float()), first(x))
    small.load_state_dict(packed.pack(first).state_dict())
    assert torch.equal(small(x), first(x))


def test_named_layers_alone():
    net = discrete_(conv_net(), "binary")
    net[3].weight.data *= 0.5
    with pytest.raises(mfoc.InvalidValue, match=r"the weight of '3' holds other values.*layers="):
        packed.pack(net)
    small = packed.pack(net, layers=["0"])
    assert isinstance(small[0], packed.PackedLayer)
    assert isinstance(small[3], nn.Linear)
    assert torch.equal(small(x := normal(2, 1, 5, 5).float()), net(x))


def test_a_single_layer():
    layer = discrete_(nn.Linear(3, 2), "ternary")
    assert torch.equal(packed.pack(layer)(x := normal(4, 3).float()), layer(x))


@pytest.mark.parametrize(
    ("net", "layers", "error", "message"),
    [
        (nn.Sequential(nn.ReLU()), None, mfoc.InvalidValue, "no linear or convolutional layer"),
        (nn.Sequential(nn.Linear(2, 2)), ["1"], mfoc.InvalidValue, r"layers names '1'; .* are \['0'\]"),
        (nn.Sequential(nn.Linear(2, 2)), "0", mfoc.InvalidValue, "expected a list of names"),
        (3, None, mfoc.InvalidType, "net is an int"),
    ],
    ids=["nothing", "unknown", "string", "no module"],
)
def test_refusals(net, layers, error, message):
    with pytest.raises(error, match=message):
        packed.pack(net, layers=layers)
