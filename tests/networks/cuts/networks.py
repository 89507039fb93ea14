"""Networks whose cuts have more than one value alive: how each is made, what it is given, where it is cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.architectures import seeded
from tests.problems import normal


class UNet(nn.Module):
    """Two skips, joined by channels, with a size read off one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 3, 3, padding=1)
        self.middle = nn.Conv2d(3, 3, 3, padding=1)
        self.up2, self.up1 = nn.Conv2d(6, 2, 3, padding=1), nn.Conv2d(4, 2, 3, padding=1)
        self.pool = nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x).tanh()
        b = self.down2(self.pool(a)).tanh()
        m = self.middle(self.pool(b)).tanh()
        u = self.up2(torch.cat([F.interpolate(m, size=b.shape[2:]), b], 1)).tanh()
        out: Tensor = self.up1(torch.cat([F.interpolate(u, size=(a.size(2), a.size(3))), a], 1))
        return out


class Dense(nn.Module):
    """A block of DenseNet: each layer sees all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(3 + 2 * k, 2) for k in range(3))
        self.head = nn.Linear(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        seen = [x]
        for layer in self.layers:
            seen.append(layer(torch.cat(seen, 1)).tanh())
        out: Tensor = self.head(torch.cat(seen, -1))
        return out


class Skip(nn.Module):
    """An encoder and a decoder; the input is used at the end, after writing in place on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.enc, self.mid, self.dec = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        e = self.enc(x)
        m = self.mid(e.tanh())
        m += e
        m.mul_(0.5)
        out: Tensor = self.dec(m)
        out += x
        return out


class GPT(nn.Module):
    """Tokens, positions, a causal mask of the length, optional padding, and a view by sizes of the input."""

    def __init__(self, layers: int = 4) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(7, 4), nn.Embedding(6, 4)
        layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x: Tensor, pad: Tensor | None = None) -> Tensor:
        b, t = x.shape
        mask = torch.ones(t, t, dtype=torch.bool, device=x.device).triu(1)
        h = self.tokens(x) + self.places(torch.arange(t, device=x.device))
        h = self.encoder(h, mask=mask, src_key_padding_mask=pad)
        out: Tensor = self.head(self.norm(h)[:, 0].view(b, -1))
        return out


class Masked(nn.Module):
    """The same with a mask that has to be given."""

    def __init__(self) -> None:
        super().__init__()
        self.net = GPT(2)

    def forward(self, src: Tensor, mask: Tensor) -> Tensor:
        out: Tensor = self.net(src, mask)
        return out


class Translator(nn.Module):
    """Encoder and decoder of torch: the memory is alive at every cut of the decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Transformer(4, 2, 2, 2, 6, dropout=0.0, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, src: Tensor, tgt: Tensor) -> Tensor:
        memory = self.body.encoder(src)
        out: Tensor = self.head(self.body.decoder(tgt, memory))
        return out


class Recurrent(nn.Module):
    """Outputs and the last hidden state, from a layer that returns a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LSTM(3, 4, batch_first=True), nn.GRU(4, 4, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out, (_, _) = self.first(x)
        out, _ = self.second(out)
        found: Tensor = self.head(out[:, -1])
        return found


class Shapes(nn.Module):
    """Sizes of the input, of what is in between, and a tensor made by a stage of its own size."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(3, 3), nn.Linear(6, 2)
        self.register_buffer("scale", torch.linspace(0.5, 1.5, 8))

    def forward(self, x: Tensor) -> Tensor:
        n, d = x.size()
        y = self.a(x).view(n, 2, -1)
        y = self.b(y).reshape(len_of(x), -1)
        mask = torch.zeros(6, device=x.device, dtype=x.dtype)
        mask[:3] = self.scale[:d].sum()
        y = y + mask + x.new_ones(n, 6) * d
        out: Tensor = self.c(y).view(x.shape[0], -1) * self.scale[: x.size(-1)].mean()
        return out


def len_of(x: Tensor) -> Any:
    """The number of particles by another way."""
    return x.size(0)


class Vision(nn.Module):
    """Patches with a class token that is a parameter, expanded to the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, 4, 2, stride=2)
        self.token, self.places = nn.Parameter(torch.randn(1, 1, 4)), nn.Parameter(torch.randn(1, 5, 4))
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(4, 2, 6, 0.0, batch_first=True) for _ in range(2))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.patch(x).flatten(2).transpose(1, 2)
        y = torch.cat([self.token.expand(x.shape[0], -1, -1), y], 1) + self.places
        for block in self.blocks:
            y = block(y)
        out: Tensor = self.head(y[:, 0])
        return out


class Rotating(nn.Module):
    """Angles of the length that every block takes, and a part of a buffer of the block's as its mask."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.angles = nn.Embedding(7, 4), Angles()
        self.blocks, self.head = nn.ModuleList(Rotated() for _ in range(3)), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        cos, sin = self.angles(h)
        for block in self.blocks:
            h = block(h, cos, sin)
        out: Tensor = self.head(h).mean(1)
        return out


class Angles(nn.Module):
    """Cosines and sines ``[length, 1]``: they have nothing to do with the particles."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        angle = torch.arange(x.shape[1], device=x.device, dtype=x.dtype)[:, None]
        return angle.cos(), angle.sin()


class Rotated(nn.Module):
    """A causal mean of the places, turned."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("mask", torch.ones(1, 9, 9).tril())

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        n, length, width = x.size()
        seen = self.mask[:, :length, :length].expand(n, -1, -1) @ x
        return x + self.layer(seen * cos + x.flip(-1) * sin).view(n, length, width).tanh()


class Careful(nn.Module):
    """Asserts something of sizes before and after its first layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        n, width = x.shape
        assert n <= 4, "a small cloud"
        y = self.a(x)
        assert y.shape[1] == width
        out: Tensor = self.b(y)
        return out


def tokens(n: int, length: int) -> Tensor:
    """Tokens ``[n, length]``, the same in every run."""
    return torch.arange(n * length).reshape(n, length) * 3 % 7


def padding(n: int, length: int) -> Tensor:
    """Which of them count for nothing; never the first."""
    return (torch.arange(n)[:, None] + torch.arange(length)) % length > length - 2


Case = tuple[Callable[[], nn.Module], Any, list[str]]
LAYERS = [f"encoder.layers.{k}" for k in range(4)]

NETWORKS: dict[str, Case] = {
    "u-net": (UNet, normal(3, 1, 8, 8), ["down1", "down2", "middle", "up2", "up1"]),
    "dense": (Dense, normal(3, 3), ["layers.0", "layers.1", "layers.2", "head"]),
    "skip": (Skip, normal(3, 3), ["enc", "mid", "dec"]),
    "shapes": (Shapes, normal(3, 4), ["a", "b", "c"]),
    "gpt": (GPT, tokens(3, 5), [*LAYERS, "head"]),
    "gpt with padding": (GPT, {"x": tokens(3, 5), "pad": padding(3, 5)}, [*LAYERS, "norm", "head"]),
    "two arguments by name": (
        Masked,
        {"mask": padding(3, 5), "src": tokens(3, 5)},
        ["net.encoder.layers.0", "net.encoder.layers.1"],
    ),
    "two arguments in order": (Masked, (tokens(3, 5), padding(3, 5)), ["net.encoder.layers.0", "net.head"]),
    "translator": (
        Translator,
        (normal(3, 4, 4), normal(3, 5, 4, seed=1)),
        ["body.encoder.layers.0", "body.encoder.norm", "body.decoder.layers.0", "body.decoder.layers.1"],
    ),
    "rotating": (Rotating, tokens(3, 5), ["blocks.0", "blocks.1", "blocks.2.layer"]),
    "recurrent": (Recurrent, normal(3, 5, 3), ["first", "second", "head"]),
    "vision": (Vision, normal(3, 1, 4, 4), ["patch", "blocks.0", "blocks.1", "head"]),
}


def made(name: str) -> tuple[nn.Module, Any, list[str]]:
    """A network of the table, with weights that are the same in every run."""
    make, x, stages = NETWORKS[name]
    return seeded(make), x, stages


def answer(net: nn.Module, x: Any) -> Any:
    """What a network says to a state: its arguments are in it."""
    return net(**x) if isinstance(x, dict) else net(*x) if isinstance(x, tuple) else net(x)
