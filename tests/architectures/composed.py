"""Networks that are put together in other ways: cells in loops, parts made by parts, chains of every layer."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tests.architectures.entry import DOORS, Architecture, everywhere, numbers
from tests.architectures.layers import TABULAR, Plain

_SERIES = numbers(3, 4, classes=2)
_IMAGES = numbers(1, 4, 4, classes=2)


class Cells(nn.Module):
    """A cell in a loop over time."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(4, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 3)
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
        out: Tensor = self.head(h)
        return out


class Packed(nn.Module):
    """Both directions of packed sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTM(4, 2, batch_first=True, bidirectional=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, torch.full((len(x),), 2), batch_first=True)
        out: Tensor = self.head(pad_packed_sequence(self.cell(packed)[0], batch_first=True)[0].mean(1))
        return out


class Translator(nn.Module):
    """An encoder and a decoder with a learned query."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 2, 4))
        self.layers = nn.Transformer(4, 2, 1, 1, 4, dropout=0.0, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.layers(x, self.query.expand(len(x), -1, -1)).mean(1))
        return out


class Weighted(nn.Module):
    """Bare weights in a list and in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ParameterList(torch.randn(3, 3) for _ in range(2))
        self.heads = nn.ParameterDict({"out": torch.randn(3, 2), "bias": torch.randn(2)})

    def forward(self, x: Tensor) -> Tensor:
        for weight in self.layers:
            x = torch.tanh(x @ weight)
        out: Tensor = x @ self.heads["out"] + self.heads["bias"]
        return out


class Symmetric(nn.Module):
    """A parametrisation of one's own."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight.triu() + weight.triu(1).mT


def symmetric() -> nn.Module:
    layer = nn.Linear(3, 3)
    parametrize.register_parametrization(layer, "weight", Symmetric())
    return nn.Sequential(layer, nn.Tanh(), nn.Linear(3, 2))


class Hyper(nn.Module):
    """Weights of a layer are the output of another."""

    def __init__(self) -> None:
        super().__init__()
        self.maker, self.layer = nn.Linear(3, 8), nn.Linear(3, 2)
        self.layer.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.maker(x.mean(0)).split([6, 2])
        made = {"weight": weight.view(2, 3), "bias": bias}
        out: Tensor = torch.func.functional_call(self.layer, made, (x,))
        return out


class Doubled(nn.Sequential):
    """A chain with a forward pass of its own."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = super().forward(x)
        return 2 * out


def one_layer_twice() -> nn.Module:
    layer = nn.Linear(3, 3)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(3, 2))


class Alias(nn.Module):
    """One layer under two names, and a weight of another beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.again = nn.Linear(3, 3)
        self.last = nn.Linear(3, 2)
        self.held = self.last.weight

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.again(torch.tanh(self.first(x))))
        out: Tensor = self.last(h) + h @ self.held.mT
        return out


class Captured(nn.Module):
    """A function that holds a layer is what runs."""

    def __init__(self) -> None:
        super().__init__()
        layer = self.layer = nn.Linear(3, 2)
        self.run = lambda x: layer(x)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.run(x)
        return out


class Cached(nn.Module):
    """The last hidden layer is kept as an attribute, and read once."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.hidden = nn.Linear(3, 4), nn.Linear(4, 2), None

    def forward(self, x: Tensor) -> Tensor:
        self.hidden: Any = torch.tanh(self.first(x))  # type: ignore[no-redef, assignment]
        out: Tensor = self.last(self.hidden)
        return out


class Written(nn.Module):
    """Rows of a tensor are written one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_empty(len(x), 4)
        h[:, :2] = self.first(x)[:, 2:].sin()
        h[:, 2:] = self.first(x)[:, :2].cos()
        out: Tensor = self.last(h)
        return out


class Scored(nn.Module):
    """A loop as long as the data say, and an output that is nested."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.heads = nn.Linear(3, 3), nn.ModuleList(nn.Linear(3, 2) for _ in range(2))

    def forward(self, x: Tensor) -> Any:
        for _ in range(int(x.abs().mean() > 0) + 1):
            x = torch.tanh(self.layer(x))
        return {"all": [head(x) for head in self.heads], "mean": x.mean(1)}


def nested_loss(output: Any, z: Tensor) -> Tensor:
    first, second, mean = output if isinstance(output, tuple) else (*output["all"], output["mean"])
    found: Tensor = (first - z).square().sum(1) + (second * z).sum(1) + mean
    return found


def volumes() -> nn.Module:
    return nn.Sequential(nn.Conv3d(1, 2, 2), nn.PReLU(2), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(2, 2))


def upsampled() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.GELU(), nn.PixelShuffle(2), nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.AvgPool2d(8), nn.Flatten(), nn.Linear(4, 2),
    )  # fmt: skip


_OF_WEIGHTS = ("density", "maml")  # doors that know no stages

COMPOSED = [
    Architecture("cell in a loop", Cells, _SERIES),
    Architecture("packed sequences, both directions", Packed, _SERIES),
    Architecture("Transformer, encoder and decoder", Translator, _SERIES),
    Architecture("ParameterList and ParameterDict", Weighted, TABULAR),
    Architecture("parametrisation of one's own", symmetric, TABULAR),
    Architecture("hypernetwork", Hyper, TABULAR),
    Architecture("chain with a forward pass of its own", lambda: Doubled(nn.Linear(3, 4), nn.Linear(4, 2)), TABULAR),
    Architecture(
        "chain in which one layer stands twice",
        one_layer_twice,
        TABULAR,
        refused=everywhere(r"stages '0' and '2'.*(tied=True|one stage)", *(d for d in DOORS if d not in _OF_WEIGHTS)),
    ),
    Architecture("one layer under two names", Alias, TABULAR),
    Architecture("function that holds a layer", Captured, TABULAR, refused=everywhere(r"holds a part.*a method")),
    Architecture("attribute written in each pass", Cached, TABULAR),
    Architecture("rows written in place", Written, TABULAR),
    Architecture("loop as long as the data say, a nested output", Scored, numbers(3, width=2), nested_loss),
    Architecture("chain of volumes", volumes, numbers(1, 3, 3, 3, classes=2)),
    Architecture("chain with upsampling", upsampled, _IMAGES),
    Architecture("log probabilities", lambda: nn.Sequential(Plain(), nn.LogSoftmax(1)), TABULAR, F.nll_loss),
]
