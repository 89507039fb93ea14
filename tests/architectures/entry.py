"""An entry of the catalogue: a network, what it is trained on, and what is expected of it at every door."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# What a door is called, and what goes through it.
DOORS = {
    "train": "`from_module`, `Gradient`, `to_module`",
    "emsa": "`EMSA`",
    "certify": "`certify`",
    "pgd": "`game`, `PGD`",
    "yopo": "`game`, `YOPO`",
    "variational": "`variational`",
    "density": "`log_density`",
    "maml": "`maml`",
}

GAMES = ("pgd", "yopo")

Data = Callable[[int, int], tuple[Any, Any]]  # (how many, seed) -> inputs and targets


@dataclass(frozen=True, eq=False)
class Architecture:
    """A network and what becomes of it.

    Attributes:
        name: what it is called in the table.
        build: makes the network, its weights from torch's generator.
        data: ``data(n, seed)``: n inputs and n targets. Inputs are a tensor, a tuple in the order of the arguments of
            the network, or a dict by their names.
        loss: what it is trained with: a loss of torch, or ``(output, targets) -> [N]``. It is the negative log
            likelihood, too.
        dtype: of the weights, and of inputs and targets that are floats.
        train: its mode.
        at: the stage whose incoming state an adversary disturbs.
        part: which of several inputs, an argument's place or name.
        refused: door -> a regular expression of the message, cure included; every other door is equal to torch.
        on_gpu: the same on a GPU, beside ``refused``: torch has fewer second derivatives there.
        second: torch has second derivatives of it.
        stand_in: what plain torch is asked for where ``torch.autograd.grad`` cannot follow the network: one of the same
            weights that computes the same.
        lr: of a step of SGD.
        rtol: how near to torch.
        slow: marks its tests.
        device: where its tensors are.
    """

    name: str
    build: Callable[[], nn.Module]
    data: Data
    loss: Callable[..., Tensor] | nn.Module = F.cross_entropy
    dtype: torch.dtype = torch.float64
    train: bool = True
    at: int = 0
    part: int | str | None = None
    refused: Mapping[str, str] = field(default_factory=dict)
    on_gpu: Mapping[str, str] = field(default_factory=dict)
    second: bool = True
    stand_in: Callable[[], nn.Module] | None = None
    lr: float = 0.1
    rtol: float = 1e-9
    slow: bool = False
    device: str = "cpu"

    def on(self, device: str) -> Architecture:
        """The same on another device.

        The fused weight norm that torch has on a GPU, and its power method there, are right to about eight digits.
        """
        computed = "weight norm" in self.name or "spectral norm" in self.name
        if device == "cpu":
            return self
        rtol = max(self.rtol, 1e-6) if computed else self.rtol
        return replace(self, device=device, rtol=rtol, refused={**self.refused, **self.on_gpu})

    def make(self) -> nn.Module:
        """The network, its weights the same in every run."""
        return self._seeded(self.build)

    def plain(self) -> nn.Module:
        """The network that plain torch is asked for."""
        return self._seeded(self.stand_in or self.build)

    def _seeded(self, build: Callable[[], nn.Module]) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(zlib.crc32(self.name.encode()))  # not those of GPUs
            net = build()
        for tensor in [*net.parameters(), *net.buffers()]:
            if tensor.is_floating_point() and not isinstance(
                tensor, nn.parameter.UninitializedParameter | nn.parameter.UninitializedBuffer
            ):
                tensor.data = tensor.data.to(self.dtype)  # complex ones stay
        if self.device == "cpu":
            for part in net.modules():  # which takes every accelerator of the machine
                if isinstance(part, nn.DataParallel):
                    part.device_ids = []
        return net.to(self.device).train(self.train)

    def batch(self, n: int = 4, seed: int = 0) -> tuple[Any, Any]:
        """Inputs and targets in its dtype, on its device."""
        x, z = self.data(n, seed)
        return self.cast(x), self.cast(z)

    def cast(self, leaf: Any) -> Any:
        """Tensors on its device, floats in its dtype."""
        if isinstance(leaf, dict):
            return {key: self.cast(value) for key, value in leaf.items()}
        if isinstance(leaf, tuple):
            return tuple(self.cast(value) for value in leaf)
        return leaf.to(self.device, self.dtype if leaf.is_floating_point() else None)


def everywhere(message: str, *doors: str) -> dict[str, str]:
    """The same refusal at these doors; at all of them when none is named."""
    return dict.fromkeys(doors or DOORS, message)


# Networks of several inputs: what is shared by draws is one tensor.

# ---- data


def numbers(*shape: int, classes: int = 0, width: int = 2) -> Data:
    """Normal inputs of this shape with labels of so many classes, or with ``width`` numbers as targets."""

    def data(n: int, seed: int) -> tuple[Tensor, Tensor]:
        drawn = torch.Generator().manual_seed(seed)
        x = torch.randn(n, *shape, generator=drawn, dtype=torch.float64)
        if classes:
            return x, torch.randint(classes, (n,), generator=drawn)
        return x, torch.randn(n, width, generator=drawn, dtype=torch.float64)

    return data


def tokens(length: int, vocabulary: int = 5, classes: int = 2) -> Data:
    """Sequences of tokens, with a label each."""

    def data(n: int, seed: int) -> tuple[Tensor, Tensor]:
        drawn = torch.Generator().manual_seed(seed)
        x = torch.randint(vocabulary, (n, length), generator=drawn)
        return x, torch.randint(classes, (n,), generator=drawn)

    return data
