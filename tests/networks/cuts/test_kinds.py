"""Stages of one kind in a network that was cut: recognised, and solved together with the outcome of one by one."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import mfoc
from mfoc.networks.cuts import cut, fingerprint
from tests.architectures import seeded
from tests.networks.cuts.branching import BLOCKS, Branching
from tests.networks.cuts.networks import GPT, LAYERS, padding, tokens
from tests.problems import distance, normal


def kinds(net, stages):
    """The kinds of a network's stages, as small numbers in the order in which they are met."""
    problem = mfoc.from_module(net, F.mse_loss, stages=stages)
    found = [problem.kind(t) for t in range(problem.stages)]
    return [found.index(kind) for kind in found]


def test_the_layers_of_a_transformer_are_one_kind():
    # The last one needs no mask after it, so the tokens leave the state there.
    assert kinds(seeded(lambda: GPT(6)), [*LAYERS, "encoder.layers.4", "encoder.layers.5", "head"]) == [
        *(0, 1, 1, 1, 1, 5, 6)
    ]


class Blocks(nn.Module):
    """Blocks of the user's own with a bare parameter and a buffer each, cut inside of them."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Block(nn.Module):
    """x + scale * norm(inner(x)) + shift."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm = nn.Linear(3, 3), nn.BatchNorm1d(3)
        self.scale, self.power = nn.Parameter(torch.tensor(0.5)), 2
        self.register_buffer("shift", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.norm(self.inner(x)) + self.shift**self.power


INSIDE = [f"blocks.{k}.norm" for k in range(6)]


def changed(how):
    def make():
        net = Blocks().eval()
        how(net.blocks[3])
        return net

    return seeded(make)


def test_cuts_inside_of_blocks_are_one_kind():
    # The second takes the argument, the last one ends with the network.
    assert kinds(changed(lambda block: None), INSIDE) == [0, 1, 2, 2, 2, 5]


@pytest.mark.parametrize(
    "how",
    [
        lambda block: block.norm.running_mean.add_(1),
        lambda block: setattr(block.norm, "eps", 1e-3),
        lambda block: block.norm.train(),
        lambda block: block.inner.bias.requires_grad_(False),
        lambda block: setattr(block, "inner", nn.Linear(3, 3, bias=False)),
        lambda block: setattr(block, "inner", nn.Sequential(nn.Linear(3, 3))),
    ],
)
def test_a_block_that_differs_is_of_another_kind(how):
    assert kinds(changed(how), INSIDE)[2:4] == [2, 3]


def test_a_constant_of_the_forward_pass_counts():
    def other(block):
        block.power = 3

    def shift(block):
        block.shift += 1

    assert kinds(changed(other), INSIDE)[2:5] == [2, 2, 4]  # a number in the graph of the stage that ends the block
    assert kinds(changed(shift), INSIDE)[2:5] == [2, 2, 4]


@pytest.mark.parametrize(
    ("net", "stages", "x"),
    [
        (seeded(lambda: GPT(6)), LAYERS, tokens(5, 4)),
        (seeded(lambda: GPT(6)), LAYERS, {"x": tokens(5, 4), "pad": padding(5, 4)}),
        (changed(lambda block: None), INSIDE, normal(5, 3)),
    ],
    ids=["transformer", "padded transformer", "inside"],
)
def test_solved_together_is_solved_one_by_one(net, stages, x):
    """One step of E-MSA, whose stages of a kind are minimised in one batch, against the same without kinds."""
    together = mfoc.from_module(net, F.mse_loss, stages=stages)
    alone = dataclasses.replace(together, kind=None)
    with torch.no_grad():
        z = torch.zeros_like(net(**x) if isinstance(x, dict) else net(x))
    particles = mfoc.Particles(x, z)
    with sdpa_kernel(SDPBackend.MATH):  # attention under double differentiation
        found = [mfoc.solve(p, mfoc.EMSA(rho=0.5), particles, steps=1).controls for p in (together, alone)]
    assert distance(*found) < 1e-9
    assert distance(found[0], together.controls) > 1e-3


def test_a_network_that_is_run_again_has_no_kinds():
    assert [fingerprint(part) for _, part in cut(seeded(Branching), BLOCKS)] == [None] * 3
    assert kinds(seeded(Branching), BLOCKS) == [0, 1, 2]
