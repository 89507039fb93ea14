"""Feed-forward networks: layers of every kind, and how they may be held."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

from tests.architectures.entry import Architecture, everywhere, numbers
from tests.architectures.small import Reused

_TRAINING_NORM = everywhere(r"(batch|instance) norm in training mode.*\.eval\(\)", "variational")
TABULAR = numbers(3, classes=2)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


class Plain(nn.Module):
    """The same layers in a module with a forward pass of its own."""

    def __init__(self, first: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4) if first is None else first, nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.tanh(self.first(x)))
        return out


class Normalised(nn.Module):
    """Layers with a norm between them."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Conv1d(1, 2, 2), norm, nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.tanh(self.norm(self.first(x))).flatten(1))
        return out


class Named(nn.Module):
    """Layers in a ModuleDict, taken by name."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({"out": nn.Linear(4, 2), "in": nn.Linear(3, 4)})

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers["out"](self.layers["in"](x).sigmoid())
        return out


class Listed(nn.Module):
    """Residual blocks in a ModuleList."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.head = nn.ModuleList(nn.Linear(3, 3) for _ in range(3)), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + torch.tanh(block(x))
        out: Tensor = self.head(x)
        return out


class Steps(nn.Module):
    """A Python list of its registered modules is what runs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)
        self.steps = [self.a, torch.tanh, self.b]

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)  # type: ignore[operator]
        return x


class Scaled(nn.Module):
    """A parameter without an axis."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(3, 2), nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.scale * self.layer(x)
        return out


def frozen() -> nn.Module:
    net = mlp()
    net[0].requires_grad_(False)
    return net


def frozen_module() -> nn.Module:
    net = Plain()
    net.first.requires_grad_(False)
    return net


def forward_hook() -> nn.Module:
    net = Plain()
    net.first.register_forward_hook(lambda module, args, output: 2 * output)
    return net


def pruned() -> nn.Module:
    net = Plain()
    prune.l1_unstructured(net.first, "weight", 0.5)  # type: ignore[no-untyped-call]
    return net


class Encoded(nn.Module):
    """An autoencoder, whose target is its input."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(3, 2), nn.Tanh())
        self.decoder = nn.Sequential(nn.Linear(2, 3), nn.Softplus(), nn.Linear(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.decoder(self.encoder(x))
        return out


def _itself(n: int, seed: int) -> tuple[Any, Any]:
    x = numbers(3)(n, seed)[0]
    return x, x.clone()


def spectral() -> nn.Module:
    """The power method is near its limit, which it is taken at, in every pass."""
    return Plain(nn.utils.parametrizations.spectral_norm(nn.Linear(3, 4), n_power_iterations=100))


def _pair(
    name: str, build: Any, data: Any, loss: Any = F.cross_entropy, refused: Any = None, **more: Any
) -> list[Architecture]:
    """A network with batch norm, in both modes."""
    refused = refused or {}
    return [
        Architecture(f"{name}, training", build, data, loss, refused=_TRAINING_NORM | refused, **more),
        Architecture(f"{name}, eval", build, data, loss, train=False, refused=refused, **more),
    ]


_SERIES = numbers(1, 4, classes=2)

LAYERS = [
    Architecture("chain of linear layers", mlp, TABULAR),
    Architecture("a bare linear layer", lambda: nn.Linear(3, 2), TABULAR),
    Architecture("module with a forward pass", Plain, TABULAR),
    *_pair(
        "chain with batch norm",
        lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)),
        TABULAR,
    ),
    *_pair("batch norm", lambda: Normalised(nn.BatchNorm1d(2)), _SERIES),
    Architecture("group norm", lambda: Normalised(nn.GroupNorm(2, 2)), _SERIES),
    Architecture("layer norm", lambda: Normalised(nn.LayerNorm([2, 3])), _SERIES),
    Architecture("instance norm", lambda: Normalised(nn.InstanceNorm1d(2, affine=True)), _SERIES),
    *(
        Architecture(
            f"instance norm with averages, {'training' if train else 'eval'}",
            lambda: Normalised(nn.InstanceNorm1d(2, affine=True, track_running_stats=True)),
            _SERIES,
            train=train,
            refused=_TRAINING_NORM if train else {},
        )
        for train in (True, False)
    ),
    Architecture("spectral norm, training", spectral, TABULAR),
    Architecture("spectral norm, eval", spectral, TABULAR, train=False),
    Architecture("weight norm", lambda: Plain(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))), TABULAR),
    Architecture("old weight norm", lambda: Plain(nn.utils.weight_norm(nn.Linear(3, 4))), TABULAR),
    Architecture("pruned", pruned, TABULAR),
    Architecture("frozen backbone, chain", frozen, TABULAR),
    Architecture("frozen backbone", frozen_module, TABULAR),
    Architecture("ModuleList", Listed, TABULAR),
    Architecture("ModuleDict", Named, TABULAR),
    Architecture("Python list of its modules", Steps, TABULAR),
    Architecture("one layer runs twice", Reused, numbers(3, width=3), F.mse_loss),
    Architecture("parameter without an axis", Scaled, TABULAR),
    Architecture("forward hook on a layer", forward_hook, TABULAR),
    Architecture("autoencoder", Encoded, _itself, F.mse_loss),
]
