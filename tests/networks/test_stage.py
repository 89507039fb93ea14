"""One stage: which stages are the same function, which are affine, and hooks that run."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mfoc
from mfoc.networks import Residual
from tests.architectures import seeded
from tests.oracles.training import output
from tests.problems import normal


def kinds(*modules):
    problem = mfoc.from_module(nn.Sequential(*modules), F.mse_loss)
    return [problem.kind(t) for t in range(problem.stages)]


class Scaled(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.linear, self.scale = nn.Linear(4, 4), scale

    def forward(self, x):
        return self.scale * self.linear(x)


class Moody(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return self.linear(x) if self.training else -self.linear(x)


def block(*modules):
    return Residual(nn.Sequential(*modules))


def shifted(norm):
    norm.running_mean += 1
    return norm


def frozen(layer, value=1.0):
    """A layer whose weight is a constant."""
    layer.weight.requires_grad_(False).fill_(value)
    return layer


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (block(nn.Linear(4, 4), nn.LeakyReLU(0.1)), block(nn.Linear(4, 4), nn.LeakyReLU(0.2))),
        (block(nn.Linear(4, 4), nn.ReLU()), block(nn.Linear(4, 4), nn.Tanh())),
        (Residual(nn.Linear(4, 4), 1.0), Residual(nn.Linear(4, 4), 0.5)),
        (nn.Linear(4, 4), nn.Linear(4, 4, bias=False)),
        (nn.Linear(4, 4), nn.Linear(4, 3)),
        (nn.Conv1d(2, 2, 3, padding=1), nn.Conv1d(2, 2, 3, padding=2)),
        (nn.Conv1d(2, 2, 3, padding=1), nn.Conv1d(2, 2, 3, padding=1, padding_mode="circular")),
        (nn.Conv1d(2, 2, 3), nn.Conv1d(2, 2, 3, dilation=2)),
        (nn.LayerNorm(4, eps=1e-5), nn.LayerNorm(4, eps=1e-3)),
        (nn.BatchNorm1d(4, eps=1e-5), nn.BatchNorm1d(4, eps=1e-3)),
        (nn.BatchNorm1d(4).eval(), shifted(nn.BatchNorm1d(4).eval())),
        (nn.BatchNorm1d(4), nn.BatchNorm1d(4).eval()),
        (Scaled(1.0), Scaled(2.0)),
        (Scaled([1.0]), Scaled([1.0])),
        (Scaled(torch.ones(())), Scaled(torch.ones(()))),
        (Moody(), Moody().eval()),
        (nn.Linear(4, 4), nn.Linear(4, 4).requires_grad_(False)),
        (frozen(nn.Linear(4, 4)), frozen(nn.Linear(4, 4), 2.0)),
        (Scaled(1), Scaled(True)),
    ],
)
def test_different_stages_have_different_kinds(left, right):
    first, second = kinds(left, right)
    assert first != second
    assert len({first, second}) == 2


@pytest.mark.parametrize(
    "make",
    [
        lambda: block(nn.Linear(4, 4), nn.LeakyReLU(0.1)),
        lambda: nn.Conv2d(2, 2, 3, padding=1),
        lambda: Scaled(2.0),
        lambda: nn.LayerNorm(4),
        lambda: nn.BatchNorm1d(4),
        lambda: nn.BatchNorm1d(4).eval(),
        lambda: frozen(nn.Linear(4, 4)),
    ],
)
def test_equal_stages_share_their_kind(make):
    assert len(set(kinds(make(), make(), make()))) == 1


def test_hooked_stages_are_not_alike_and_hooks_run():
    seen = []
    net = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3), nn.Tanh()), Residual(nn.Linear(3, 3)))
    net[0].register_forward_hook(lambda module, args, out: seen.append("linear") or 2 * out)
    net[1].register_forward_hook(lambda module, args, out: seen.append("group") or out + 1)
    net[2].block.register_forward_pre_hook(lambda module, args: seen.append("inside") or (args[0] * 3,))
    problem, x = mfoc.from_module(net, F.mse_loss), torch.randn(4, 3)
    output(problem, x)  # the first time each stage is asked whether it says the same again
    seen.clear()
    found = output(problem, x)
    assert seen == ["linear", "group", "inside"]
    assert torch.equal(found, net(x))
    plain, hooked = nn.Linear(3, 3), nn.Linear(3, 3)
    hooked.register_forward_hook(lambda module, args, out: 2 * out)
    assert len(set(kinds(plain, hooked))) == 2


class Bent(nn.Linear):
    def forward(self, x):
        return super().forward(x).tanh()


def hooked():
    layer = nn.Linear(4, 4)
    layer.register_forward_hook(lambda module, args, out: out.tanh())
    return layer


CIRCULAR = partial(nn.Conv1d, 2, 2, 3, padding=1, padding_mode="circular")
AFFINE = {"linear": partial(nn.Linear, 4, 4), "circular": CIRCULAR, "transposed": partial(nn.ConvTranspose1d, 2, 2, 3)}
CURVED = {"subclass": partial(Bent, 4, 4), "hook": hooked, "norm": lambda: nn.LayerNorm(4), "relu": nn.ReLU}


@pytest.mark.parametrize("name", [*AFFINE, *CURVED])
def test_a_stage_is_called_affine_when_it_is(name):
    make = (AFFINE | CURVED)[name]
    nested = seeded(lambda: nn.Sequential(nn.Linear(4, 4), make(), nn.AvgPool1d(2)))
    problem = mfoc.from_module(nn.Sequential(*nested), F.mse_loss, stages=[["0", "1", "2"]])
    x, y = normal(3, 2, 4, seed=1), normal(3, 2, 4, seed=2)
    bend = nested(x) + nested(y) - nested(torch.zeros_like(x)) - nested(x + y)
    assert problem.affine(0) == (name in AFFINE) == (float(bend.detach().abs().max()) < 1e-12)
