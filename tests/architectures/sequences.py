"""Networks of sequences and text: recurrent ones, attention, embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.architectures.entry import GAMES, Architecture, everywhere, numbers, tokens

_SERIES = numbers(3, 4, classes=2)
INTEGERS = everywhere(r"(integer|int64).*at=1", *GAMES)
NO_SECOND = everywhere(r"embedding_bag.*first_order=True", "maml")


class Recurrent(nn.Module):
    """A recurrent layer, read at its end."""

    def __init__(self, kind: Callable[..., nn.Module], **more: Any) -> None:
        super().__init__()
        self.cell, self.head = kind(4, 3, batch_first=True, **more), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.cell(x)[0][:, -1])
        return out


class _Once(torch.autograd.Function):
    """The identity, whose derivative has none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:  # type: ignore[override]
        raise RuntimeError("the derivative for '_cudnn_rnn_backward' is not implemented")


class _Kernel(torch.autograd.Function):
    """The identity, whose derivative is that of recurrent layers of cuDNN: once, and in training mode only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, training: bool) -> Tensor:
        ctx.training = training
        return x.clone()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:  # type: ignore[override]
        if not ctx.training:
            raise RuntimeError("cudnn RNN backward can only be called in training mode")
        return _Once.apply(slope), None  # type: ignore[no-untyped-call]


class OfKernels(nn.GRU):
    """A recurrent layer as it is on a GPU, where cuDNN is not switched off."""

    def forward(self, x: Tensor, *state: Any) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        out, last = super().forward(x, *state)
        if torch.backends.cudnn.enabled:
            out = _Kernel.apply(out, self.training)  # type: ignore[no-untyped-call]
        return out, last


class Native(nn.GRU):
    """The same without cuDNN."""

    def forward(self, x: Tensor, *state: Any) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        with torch.backends.cudnn.flags(enabled=False):
            found: tuple[Tensor, Tensor] = super().forward(x, *state)
        return found


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 1)


class Transformer(nn.Module):
    """An encoder, pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = encoder(), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.encoder(x).mean(1))
        return out


class Masked(nn.Module):
    """An encoder with two inputs: sequences, and where they are padded."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = encoder(), nn.Linear(4, 2)

    def forward(self, x: Tensor, padded: Tensor) -> Tensor:
        hidden = self.encoder(x, src_key_padding_mask=padded).masked_fill(padded[..., None], 0)
        out: Tensor = self.head(hidden.mean(1))
        return out


def padded(n: int, seed: int) -> tuple[Any, Any]:
    x, z = _SERIES(n, seed)
    mask = torch.zeros(n, 3, dtype=torch.bool)
    mask[::2, -1] = True
    return (x, mask), z


def padded_by_name(n: int, seed: int) -> tuple[Any, Any]:
    (x, mask), z = padded(n, seed)
    return {"x": x, "padded": mask}, z


class GPT(nn.Module):
    """Causal blocks; the embedding is the head, too."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(5, 4), nn.Parameter(torch.randn(3, 4))
        self.norms = nn.ModuleList(nn.LayerNorm(4) for _ in range(2))
        self.attentions = nn.ModuleList(nn.MultiheadAttention(4, 2, batch_first=True) for _ in range(2))
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        h, length = self.embed(x) + self.place, x.shape[1]
        causal = torch.triu(torch.ones(length, length, dtype=torch.bool, device=x.device), 1)
        for norm, attention in zip(self.norms, self.attentions, strict=True):
            y = norm(h)
            h = h + attention(y, y, y, attn_mask=causal, need_weights=False)[0]
        out: Tensor = self.head(h).transpose(1, 2)  # classes on the second axis
        return out


def next_tokens(n: int, seed: int) -> tuple[Any, Any]:
    drawn = torch.Generator().manual_seed(seed)
    x = torch.randint(5, (n, 4), generator=drawn)
    return x[:, :-1], x[:, 1:]


class Text(nn.Module):
    """Embeddings, pooled; the first token is padding."""

    def __init__(self, bag: bool) -> None:
        super().__init__()
        kind = nn.EmbeddingBag if bag else nn.Embedding
        self.embed, self.head = kind(5, 3, padding_idx=0), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        out: Tensor = self.head(torch.tanh(h if h.dim() == 2 else h.mean(1)))
        return out


def text_chain() -> nn.Module:
    return nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(9, 4), nn.Tanh(), nn.Linear(4, 2))


_WORDS = tokens(3)

SEQUENCES = [
    Architecture("RNN", lambda: Recurrent(nn.RNN), _SERIES),
    Architecture("GRU", lambda: Recurrent(nn.GRU), _SERIES),
    Architecture("LSTM", lambda: Recurrent(nn.LSTM), _SERIES),
    Architecture("LSTM of two layers", lambda: Recurrent(nn.LSTM, num_layers=2), _SERIES),
    *(
        Architecture(
            f"GRU by kernels as of cuDNN, {'training' if train else 'eval'}",
            lambda: Recurrent(OfKernels),
            _SERIES,
            train=train,
            stand_in=lambda: Recurrent(Native),
        )
        for train in (True, False)
    ),
    Architecture("TransformerEncoder, training", Transformer, _SERIES),
    Architecture("TransformerEncoder, eval", Transformer, _SERIES, train=False),
    Architecture("TransformerEncoder with a mask as input", Masked, padded, part=0),
    Architecture(
        "TransformerEncoder with a mask by name, eval",
        Masked,
        padded_by_name,
        train=False,
        part="x",
    ),
    Architecture("GPT with a tied embedding", GPT, next_tokens, refused=INTEGERS),
    Architecture("Embedding", lambda: Text(bag=False), _WORDS, refused=INTEGERS),
    Architecture("EmbeddingBag", lambda: Text(bag=True), _WORDS, refused=INTEGERS | NO_SECOND, second=False),
    Architecture("chain from tokens", text_chain, _WORDS, refused=INTEGERS),
    Architecture("chain from tokens, disturbed at=1", text_chain, _WORDS, at=1),
]
