"""Which blocks a network has, whatever it is written like, and what is measured of them."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mfoc.analysis.propagation import Finding, diagnose
from mfoc.networks import Residual
from tests.architectures import seeded


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Functional(nn.Module):
    """Activations are functions."""

    def __init__(self, function):
        super().__init__()
        self.layers, self.function = nn.ModuleList([nn.Linear(32, 32) for _ in range(5)]), function

    def forward(self, x):
        for layer in self.layers[:-1]:
            x = self.function(layer(x))
        return self.layers[-1](x)


@pytest.mark.parametrize(
    ("function", "module"),
    [
        (torch.tanh, nn.Tanh()),
        (lambda h: F.gelu(h, approximate="tanh"), nn.GELU(approximate="tanh")),
        (lambda h: F.leaky_relu(h, 0.3), nn.LeakyReLU(0.3)),
        (lambda h: F.relu(h, inplace=True), nn.ReLU(inplace=True)),
        (F.hardtanh, nn.Hardtanh()),
    ],
    ids=["tanh", "gelu", "leaky relu", "relu in place", "hardtanh"],
)
def test_activations_in_a_forward_pass_are_those_of_modules(function, module):
    net = seeded(lambda: Functional(function))
    chain = nn.Sequential(*[part for layer in net.layers for part in (layer, module)][:-1])
    x = normal(8, 32)
    one, other = diagnose(net, x), diagnose(chain, x)
    assert [block.name for block in one.blocks] == [f"layers.{k}" for k in range(5)]
    for a, b in zip(one.blocks, other.blocks, strict=True):
        assert (a.chi, a.q, a.c) == pytest.approx((b.chi, b.q, b.c), rel=1e-12)
        assert a.chi_theory == pytest.approx(b.chi_theory, rel=1e-9)
        assert math.isfinite(a.chi_theory)


class Stream(nn.Module):
    """Token embeddings, and a residual stream that is written in place, without modules for its layers."""

    def __init__(self):
        super().__init__()
        self.tokens, self.places = nn.Embedding(11, 16), nn.Embedding(6, 16)
        self.norms = nn.ModuleList([nn.LayerNorm(16) for _ in range(6)])
        self.parts = nn.ModuleList([nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)) for _ in range(6)])
        self.head = nn.Linear(16, 3)

    def forward(self, tokens):
        x = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1]))
        for norm, part in zip(self.norms, self.parts, strict=True):
            x = x + part(norm(x))
        return {"logits": self.head(x.mean(1))}


class UNet(nn.Module):
    """Skips over everything: there is no cut."""

    def __init__(self):
        super().__init__()
        one, two = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.down = nn.Sequential(one, nn.ReLU(), two, nn.ReLU())
        self.bottom, self.up, self.out = (
            nn.Conv2d(4, 8, 3, padding=1),
            nn.Conv2d(12, 4, 3, padding=1),
            nn.Conv2d(5, 1, 1),
        )

    def forward(self, x):
        fine = self.down(x)
        coarse = F.relu(self.bottom(F.max_pool2d(fine, 2)))
        joined = torch.cat([fine, F.interpolate(coarse, scale_factor=2)], 1)
        return self.out(torch.cat([F.relu(self.up(joined)), x], 1))


class Recurrent(nn.Module):
    """One layer, three times."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        for _ in range(3):
            x = torch.tanh(self.layer(x))
        return x


class Basic(nn.Module):
    """A residual block with the activation after the sum."""

    def __init__(self, before, after):
        super().__init__()
        stride = 1 if before == after else 2
        self.conv1, self.bn1 = nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after)
        self.conv2, self.bn2 = nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after)
        self.relu = nn.ReLU(inplace=True)
        self.down = nn.Identity() if stride == 1 else nn.Conv2d(before, after, 1, 2)

    def forward(self, x):
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += self.down(x)
        return self.relu(out)


def resnet():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True),
        nn.Sequential(Basic(4, 4), Basic(4, 4)), nn.Sequential(Basic(4, 8), Basic(8, 8)),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2),
    )  # fmt: skip


def nested():
    return nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.ReLU(), nn.Linear(6, 2))))


def weight_norm():
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 6)), nn.Tanh(), nn.Linear(6, 2))


def convolutions():
    return nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))


PAIR = {"src": normal(2, 3, 8), "tgt": normal(2, 4, 8)}
CODERS = ["encoder.layers.0", "encoder.layers.1", "decoder.layers.0", "decoder.layers.1"]
RESNET = ["0", "3.0", "3.1", "4.0", "4.1", "7"]

# How each is made, its input, and its blocks.
NETWORKS = {
    "nested": (nested, normal(4, 2, 3), ["1.0", "1.1"]),
    "stream": (Stream, torch.arange(24).reshape(4, 6) % 11, [*(f"parts.{k}" for k in range(6)), "head"]),
    "residual": (lambda: nn.Sequential(*[Residual(nn.Linear(6, 6)) for _ in range(3)]), normal(4, 6), ["0", "1", "2"]),
    "U-net": (UNet, normal(2, 1, 8, 8), ["down.0", "down.2", "bottom", "up", "out"]),
    "recurrent": (Recurrent, normal(4, 8), ["layer", "layer (call 2)", "layer (call 3)"]),
    "resnet": (resnet, normal(4, 3, 8, 8), RESNET),
    "weight norm": (weight_norm, normal(4, 6), ["0", "2"]),
    "two inputs": (lambda: nn.Bilinear(3, 4, 5), (normal(4, 3), normal(4, 4)), ["Bilinear"]),
    "named inputs": (lambda: nn.Transformer(8, 2, 2, 2, 16, batch_first=True), PAIR, CODERS),
    "recurrent layer": (lambda: nn.LSTM(3, 4, 2, batch_first=True), normal(2, 5, 3), ["LSTM"]),
    "one dimension": (convolutions, normal(3, 2, 5), ["0", "3"]),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_blocks(name):
    make, x, names = NETWORKS[name]
    found = diagnose(seeded(make), x)
    assert [block.name for block in found.blocks] == names
    assert all(math.isfinite(block.chi) and block.chi > 0 for block in found.blocks)
    assert all(math.isfinite(block.q) for block in found.blocks)
    assert "tensor(" not in str(found)
    assert len(repr(found)) < 100


def test_gradients_that_arrive_over_skips_count():
    """Also where nothing cuts the graph: the gradient at a layer's input is that of all its paths."""
    net, x = seeded(UNet), normal(2, 1, 8, 8)
    kept = {}

    def keep(module, args, output):
        kept[module] = args[0], output
        args[0].retain_grad()
        output.retain_grad()

    found = diagnose(net, x, lambda out: out.square().sum())
    for part in (net.bottom, net.up):
        part.register_forward_hook(keep)
    net(x).square().sum().backward()
    rows = {block.name: block for block in found.blocks}
    for name, part in (("bottom", net.bottom), ("up", net.up)):
        before, after = (float(tensor.grad.norm()) for tensor in kept[part])
        assert rows[name].arriving == pytest.approx(after, rel=1e-9)
        assert rows[name].chi_backward == pytest.approx((before / after) ** 2, rel=1e-9)


def test_a_residual_block_has_the_gain_of_its_stream():
    """x + W x: chi = ||1 + W||_F^2 / n, within its error."""
    net = seeded(lambda: nn.Sequential(*[Residual(nn.Linear(6, 6)) for _ in range(3)]))
    found = diagnose(net, normal(64, 6), probes=20)
    for block, layer in zip(found.blocks, net, strict=True):
        exact = float((torch.eye(6) + layer.block.weight.detach()).square().sum()) / 6
        assert block.chi == pytest.approx(exact, abs=4 * block.chi_error)
        assert block.chi_error < 0.02
        assert math.isnan(block.chi_theory)


@pytest.mark.slow
def test_torchvision():
    models = pytest.importorskip("torchvision").models
    found = diagnose(seeded(lambda: models.resnet18(num_classes=5)).float(), normal(4, 3, 48, 48).float())
    names = [f"layer{k}.{j}" for k in range(1, 5) for j in range(2)]
    assert [block.name for block in found.blocks] == ["conv1", *names, "fc"]
    assert found.finding is Finding.TRAINS
