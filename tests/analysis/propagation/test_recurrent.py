"""Recurrent networks: their steps in time are one block, and no chain of maps from what each step reads."""

import pytest
import torch
from torch import nn

from mfoc.analysis.propagation import Finding, diagnose
from tests.architectures import seeded


class OwnCell(nn.Module):
    def __init__(self, entering, width):
        super().__init__()
        self.reads, self.keeps = nn.Linear(entering, width), nn.Linear(width, width)

    def forward(self, x, h):
        return torch.tanh(self.reads(x) + self.keeps(h))


class Loop(nn.Module):
    """A loop over time that a user writes."""

    def __init__(self, cell):
        super().__init__()
        self.cell, self.out = cell(8, 16), nn.Linear(16, 3)

    def forward(self, x):
        h = x.new_zeros(len(x), 16)
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
        return self.out(h)


class Inline(nn.Module):
    """The same without a module for a step."""

    def __init__(self):
        super().__init__()
        self.reads, self.keeps, self.out = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x):
        h = x.new_zeros(len(x), 16)
        for t in range(x.shape[1]):
            h = torch.tanh(self.reads(x[:, t]) + self.keeps(h))
        return self.out(h)


class Layered(nn.Module):
    def __init__(self, kind, layers):
        super().__init__()
        self.rnn, self.out = kind(8, 16, layers, batch_first=True), nn.Linear(16, 3)

    def forward(self, x):
        return self.out(self.rnn(x)[0][:, -1])


@pytest.mark.parametrize("length", [2, 20])
@pytest.mark.parametrize(
    "make",
    [
        lambda: Loop(nn.GRUCell),
        lambda: Loop(nn.RNNCell),
        lambda: Loop(OwnCell),
        lambda: Layered(nn.LSTM, 2),
        lambda: Layered(nn.GRU, 1),
    ],
    ids=["cell", "tanh", "own cell", "two layers", "one layer"],
)
def test_a_recurrence_is_one_block_that_no_depth_is_read_off(make, length):
    found = diagnose(seeded(make), torch.randn(16, length, 8, generator=torch.Generator().manual_seed(0)).double())
    assert len(found.blocks) == 2
    assert found.finding is Finding.ONE_BLOCK
    assert found.verdict.startswith("recurrent: block 1")
    assert found.blocks[0].recurrent
    assert not found.blocks[0].counted


def test_a_recurrence_without_a_module_for_its_steps():
    found = diagnose(seeded(Inline), torch.randn(16, 20, 8, generator=torch.Generator().manual_seed(0)).double())
    assert found.finding is Finding.ONE_BLOCK
    assert found.blocks[0].name == "reads..keeps"


def test_layers_beside_a_recurrence_are_still_judged():
    def make():
        tanhs = [part for _ in range(8) for part in (nn.Linear(8, 8, bias=False), nn.Tanh())]
        return nn.Sequential(*tanhs, Layered(nn.LSTM, 2))

    found = diagnose(seeded(make), torch.randn(16, 20, 8, generator=torch.Generator().manual_seed(0)).double())
    assert found.finding is Finding.VANISHES
    assert "recurrent over time and not counted: block 9" in found.verdict


def test_a_layer_applied_again_to_its_own_output_is_a_chain():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x):
            for _ in range(10):
                x = torch.tanh(self.layer(x))
            return x

    found = diagnose(seeded(Tied), torch.randn(16, 8, generator=torch.Generator().manual_seed(0)).double())
    assert not any(block.recurrent for block in found.blocks)
    assert found.finding is Finding.VANISHES
