"""Networks with something hidden in them: hooks, random numbers, functions of one's own, many arguments."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.architectures.entry import DOORS, Architecture, everywhere, numbers
from tests.architectures.layers import TABULAR, Plain
from tests.architectures.unusual import Record, pair_loss

_IMAGES = numbers(1, 4, 4, classes=2)
_NOT_DENSITY = tuple(door for door in DOORS if door != "density")
_RANDOM = r"random.*(mask|\.eval\(\)|switch it off|data z)"


class Counting(nn.Module):
    """A buffer that each pass advances, and that counts."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.calls = Plain(), nn.Buffer(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1  # type: ignore[misc]
        out: Tensor = self.layers(x) + 0.1 * self.calls * x[:, :2]
        return out


class Centred(nn.Module):
    """Particles that interact: the batch is centred."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        out: Tensor = self.last(h - h.mean(0))
        return out


class Functional(nn.Module):
    """Dropout by a function."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(F.dropout(self.first(x), 0.5, self.training))
        return out


class Noisy(nn.Module):
    """Noise in every pass, whatever the mode."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        out: Tensor = self.last(h + torch.randn_like(h))
        return out


class _Sign(torch.autograd.Function):
    """A straight-through sign."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sign()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return slope / (1 + x.square())


class Straight(nn.Module):
    """An autograd function of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(_Sign.apply(self.first(x)) + torch.tanh(x.sum(1, keepdim=True)))  # type: ignore[no-untyped-call]
        return out


class Stopped(nn.Module):
    """A branch that no gradient passes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.side, self.last = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        out: Tensor = self.last(h * self.side(x) + h.detach())
        return out


class Autocast(nn.Module):
    """Half the numbers on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            out: Tensor = self.last(torch.tanh(self.first(x)))
        return out.float()


class Siamese(nn.Module):
    """Two inputs through one encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = nn.Linear(3, 3), nn.Bilinear(3, 3, 2)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.encoder(left)), torch.tanh(self.encoder(right)))
        return out


def two(n: int, seed: int) -> tuple[Any, Any]:
    x, z = TABULAR(n, seed)
    return (x, numbers(3)(n, seed + 100)[0]), z


class ByName(nn.Module):
    """Arguments by name with defaults, and a record as output, as libraries of transformers have them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.mean, self.spread = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, inputs: Tensor | None = None, mask: Tensor | None = None, labels: Tensor | None = None) -> Record:
        assert inputs is not None
        assert labels is None, "labels were handed in"
        h = torch.tanh(self.first(inputs if mask is None else inputs * mask))
        return Record(self.mean(h), self.spread(h))


def by_name(n: int, seed: int) -> tuple[Any, Any]:
    x, z = numbers(3, width=2)(n, seed)
    return {"inputs": x, "mask": (x > -1).to(x.dtype)}, z


class Warped(nn.Module):
    """A spatial transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.where, self.head = nn.Linear(16, 6), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        theta = 0.1 * self.where(x.flatten(1)).view(-1, 2, 3) + torch.eye(2, 3, dtype=x.dtype, device=x.device)
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        out: Tensor = self.head(F.grid_sample(x, grid, align_corners=False).flatten(1))
        return out


class Adapted(nn.Module):
    """A frozen layer with an adapter of low rank."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.down, self.up = nn.Linear(3, 4), nn.Linear(3, 1, bias=False), nn.Linear(1, 4, bias=False)
        self.head = nn.Linear(4, 2)
        self.base.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.base(x) + self.up(self.down(x))))
        return out


class LastOf(nn.Module):
    """The last output of a recurrent layer."""

    def forward(self, x: Any) -> Tensor:
        out: Tensor = x[0][:, -1]
        return out


def hook_on_the_network() -> nn.Module:
    net = Plain()
    net.register_forward_hook(lambda module, args, output: 2 * output)
    return net


def hook_on_the_way_back() -> nn.Module:
    net = Plain()
    net.last.register_full_backward_hook(
        lambda module, inward, outward: tuple(None if g is None else 2 * g for g in inward)  # type: ignore[attr-defined]
    )
    return net


def hook_on_a_parameter() -> nn.Module:
    net = Plain()
    net.last.weight.register_hook(lambda slope: 3 * slope)
    return net


def orthogonal() -> nn.Module:
    return Plain(nn.utils.parametrizations.orthogonal(nn.Linear(3, 4)))


def old_spectral() -> nn.Module:
    return Plain(nn.utils.spectral_norm(nn.Linear(3, 4)))


HIDDEN = [
    Architecture(
        "buffer that counts", Counting, TABULAR, refused=everywhere(r"another function after it has run.*\.eval\(\)")
    ),
    Architecture("centred by the batch", Centred, TABULAR),
    Architecture("functional dropout, training", Functional, TABULAR, refused=everywhere(_RANDOM, *_NOT_DENSITY)),
    Architecture("functional dropout, eval", Functional, TABULAR, train=False),
    Architecture("noise in every pass", Noisy, TABULAR, train=False, refused=everywhere(_RANDOM)),
    Architecture("autograd function of one's own", Straight, TABULAR),
    Architecture("stopped gradient", Stopped, TABULAR),
    Architecture("autocast", Autocast, TABULAR, dtype=torch.float32, rtol=3e-2),
    Architecture("two inputs, one encoder", Siamese, two, part=1),
    Architecture("arguments by name, a record out", ByName, by_name, pair_loss, part="inputs"),
    Architecture(
        "spatial transformer",
        Warped,
        _IMAGES,
        on_gpu={"emsa": r"grid_sampler_2d.*costate_rho=0", "maml": r"grid_sampler_2d.*first_order=True"},
    ),
    Architecture("frozen layer with an adapter", Adapted, TABULAR),
    Architecture(
        "chain with an LSTM",
        lambda: nn.Sequential(nn.LSTM(4, 3, batch_first=True), LastOf(), nn.Linear(3, 2)),
        numbers(3, 4, classes=2),
        refused=everywhere(r"leading axis.*stages", *(d for d in DOORS if d not in ("density", "maml"))),
    ),
    Architecture(
        "batch norm without averages, eval",
        lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 2)),
        TABULAR,
        train=False,
    ),
    Architecture("forward hook on the network", hook_on_the_network, TABULAR),
    Architecture("backward hook on a layer", hook_on_the_way_back, TABULAR),
    Architecture("hook on a parameter", hook_on_a_parameter, TABULAR, refused=everywhere(r"hook")),
    Architecture("orthogonal weights", orthogonal, TABULAR),
    Architecture(
        "old spectral norm",
        old_spectral,
        TABULAR,
        refused=everywhere(r"remembers the weights.*parametrizations\.spectral_norm", *_NOT_DENSITY),
    ),
]
