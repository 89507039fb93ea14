"""Packed networks run to the bit as the networks they are made of, in an eighth or a quarter of a byte a weight."""

import copy

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


@pytest.mark.parametrize(("levels", "bits"), [("binary", 1), ("ternary", 2)])
def test_sizes(levels, bits):
    net = discrete_(nn.Sequential(nn.Linear(31, 17), nn.Linear(17, 3, bias=False)), levels)
    expected = bits * (-(-31 * 17 // 8) + -(-17 * 3 // 8)) + 4 * 17
    small = packed.pack(net)
    assert packed.stored_bytes(small) == expected
    assert packed.stored_bytes(net) == 4 * (31 * 17 + 17 + 17 * 3)
    assert f"weight (17, 31) in {bits} bit" in repr(small)


@pytest.mark.parametrize("levels", ["binary", "ternary"])
@pytest.mark.parametrize("held", ["binary", "ternary"])
def test_a_state_dict_loads_into_another_packed_network(levels, held):
    net, other = discrete_(conv_net(), levels), discrete_(conv_net(), held)
    other[3].weight.data *= -1
    small = packed.pack(other)
    assert not torch.equal(small(x := normal(2, 1, 5, 5).float()), net(x))
    small.load_state_dict(packed.pack(net).state_dict())
    assert torch.equal(small(x), net(x))
    with pytest.raises(RuntimeError, match="size mismatch for codes"):
        packed.pack(discrete_(nn.Linear(9, 9), levels)).load_state_dict(
            packed.pack(discrete_(nn.Linear(3, 3), held)).state_dict()
        )


def test_the_weight_follows_the_module_to_another_dtype():
    net = discrete_(nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 3)), "ternary")
    small = copy.deepcopy(packed.pack(net)).double()
    assert torch.equal(small(x := normal(4, 5)), net.double()(x))
    assert small[0].codes.dtype is torch.uint8
    assert set(small.state_dict()) == {f"{k}.{name}" for k in (0, 1) for name in ("codes", "layer.bias")}


@pytest.mark.parametrize("training", [True, False])
def test_parts_that_read_their_layers_weights(training):
    """Attention reads the weight of its last layer, a transformer's layer in eval mode all of them."""
    torch.manual_seed(0)
    net = discrete_(nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True), "ternary").train(training)
    x = normal(2, 3, 4).float()
    with torch.no_grad():
        assert torch.equal(packed.pack(net)(x), net(x))


def test_a_layer_that_is_used_twice_is_packed_once():
    layer = discrete_(nn.Linear(4, 4), "binary")
    net = nn.Sequential(layer, nn.ReLU(), layer)
    small = packed.pack(net)
    assert small[0] is small[2]
    assert packed.stored_bytes(small) == 2 + 4 * 4
    assert torch.equal(small(x := normal(2, 4).float()), net(x))


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
