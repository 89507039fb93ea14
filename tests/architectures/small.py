"""Small networks that several tests use, their weights the same in every run, in float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from mfoc.networks import Residual


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A module whose initial weights are the same in every run, in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not those of GPUs
        return make().double()


def mlp_net() -> nn.Module:
    """Three features, two classes."""
    return seeded(lambda: nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 2)))


def conv_net() -> nn.Module:
    """Images of one channel and 6 x 6 pixels, three classes; one layer works in place."""
    return seeded(
        lambda: nn.Sequential(
            nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2 * 9, 3)
        )
    )


def batch_norm_net() -> nn.Module:
    """Three features, two classes; its particles interact."""
    return seeded(
        lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2), nn.BatchNorm1d(2))
    )


# ---- networks of every kind: how each is made, the shape of its input, the stages it is cut at


class Tiny(nn.Module):
    """Cuts fall inside its forward pass, which flattens, reuses a layer, reads a bare parameter and has an aside."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 2, 3)
        self.relu = nn.ReLU(inplace=True)
        self.body = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Softplus())
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.head = nn.Linear(2 * 4, 3)
        self.aside = nn.Linear(3, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.stem(x))
        x = self.scale * self.relu(self.body(x))
        x = self.head(torch.flatten(x, 1)) + 1
        self.aside(x)
        return x


class Reused(nn.Module):
    """One layer runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared, self.last = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.shared(self.last(self.shared(self.first(x)).tanh()))
        return out


Stages = list[str] | list[list[str]] | None


def nested_net() -> nn.Module:
    """A Sequential in a Sequential in a Sequential."""

    def make() -> nn.Module:
        inside = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 4)))
        return nn.Sequential(inside, nn.Linear(4, 2, bias=False))

    return seeded(make)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Stages]] = {
    "mlp": (mlp_net, (5, 3), None),
    "conv": (conv_net, (5, 1, 6, 6), None),
    "nested": (nested_net, (5, 3), None),
    "residual": (
        lambda: seeded(lambda: nn.Sequential(*(Residual(nn.Linear(3, 3), step=0.5) for _ in range(3)))),
        (5, 3),
        None,
    ),
    "grouped": (mlp_net, (5, 3), [["0", "1"], ["2"], ["3", "4"]]),
    "batch norm": (batch_norm_net, (5, 3), None),
    "batch norm in evaluation": (lambda: batch_norm_net().eval(), (5, 3), None),
    "cut": (lambda: seeded(Tiny), (5, 1, 6, 6), ["stem", "body", "head"]),
    "in place": (
        lambda: seeded(lambda: nn.Sequential(nn.LeakyReLU(0.3, inplace=True), nn.Linear(3, 3), nn.ELU(inplace=True))),
        (5, 3),
        None,
    ),
    "weight norm": (
        lambda: seeded(lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), nn.Tanh())),
        (5, 3),
        None,
    ),
    "attention": (
        lambda: seeded(lambda: nn.Sequential(nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True))),
        (5, 3, 4),
        None,
    ),
}
