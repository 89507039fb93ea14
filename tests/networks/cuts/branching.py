"""Networks whose forward passes decide as they run, which tracing cannot read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.architectures import seeded


def block(width: int = 3) -> nn.Module:
    """A small layer that keeps the width."""
    return nn.Sequential(nn.Linear(width, width), nn.Tanh())


class Branching(nn.Module):
    """Control flow on values, on None and on lengths; a head that is registered before the blocks it follows."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)
        self.embed = nn.Linear(3, 3)
        self.blocks = nn.ModuleList(block() for _ in range(3))
        self.norm = nn.LayerNorm(3)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        if len(x) == 0:
            return x
        h = self.embed(x)
        if scale is not None and bool((scale > 0).all()):
            h = h * scale
        for layer in self.blocks:
            h = layer(h) if h.mean() > -1e3 else h
        return self.finish(h)

    def finish(self, h: Tensor) -> Tensor:
        out: Tensor = self.head(self.norm(h))
        return out


class Stacked(Branching):
    """The first block's output is used again after the last one, and so is the input."""

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        h = self.embed(x)
        kept = []
        for layer in self.blocks:
            h = layer(h)
            kept.append(h)
        if h.mean() < 1e3:
            h = h + kept[0]
        return self.finish(h + x)


class Answering(Branching):
    """A dict, and blocks that take and return tuples."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Paired() for _ in range(3))

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Any:
        pair = (self.embed(x), torch.ones(len(x), 1, dtype=x.dtype))
        for layer in self.blocks:
            pair = layer(pair, scale=None if scale is None else scale)
        return {"logits": self.finish(pair[0]), "hidden": pair}


class Paired(nn.Module):
    """(h, count) to the next one."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = block()

    def forward(self, pair: tuple[Tensor, Tensor], scale: Any = None) -> tuple[Tensor, Tensor]:
        h, count = pair
        return self.layer(h) + (0 if scale is None else scale), count + 1


class Between(nn.Module):
    """Layers between the blocks, which no source can put in order: an index decides."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(3) for _ in range(2))
        self.blocks = nn.ModuleList(block() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for norm, layer in zip(self.norms, self.blocks, strict=True):
            if x.mean() < 1e3:
                x = layer(norm(x))
        return x


class Shared(Branching):
    """The embedding is added before each block."""

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        e = h = self.embed(x)
        for layer in self.blocks:
            h = layer(h + e) if h.mean() < 1e3 else h
        return self.finish(h)


class Hidden(Branching):
    """What a block sees is handed on by an attribute."""

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        h = self.embed(x)
        memory: list[Tensor] = []
        handle = self.blocks[0][0].register_forward_hook(lambda module, args, out: memory.append(out.detach()))
        for layer in self.blocks:
            h = layer(h) if h.mean() < 1e3 else h
        handle.remove()
        return self.finish(h + (memory[0] if memory else 0))


BLOCKS = ["blocks.0", "blocks.1", "blocks.2"]


def made(kind: type[nn.Module]) -> nn.Module:
    """One of these, with weights that are the same in every run."""
    return seeded(kind)
