"""Forward passes, outputs, numbers and wrappers of every other kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.architectures.entry import DOORS, Architecture, everywhere, numbers
from tests.architectures.layers import TABULAR, Plain, mlp

_NUMBERS = numbers(3, width=2)

_SCRIPT = r"TorchScript.*give the module that it was made from"
# The log density is that of the network in evaluation mode.
_RANDOM = everywhere(r"random in training mode.*\.eval\(\)", *(door for door in DOORS if door != "density"))

# ---- forward passes


class Experts(nn.Module):
    """A mixture of experts: where none is asked, it does not run."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(3, 2), nn.ModuleList(nn.Linear(3, 2) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.gate(x).softmax(1)
        chosen = weight.argmax(1)
        out = torch.zeros_like(weight)
        for k, expert in enumerate(self.experts):
            mine = chosen == k
            if mine.any():
                out = out + torch.where(mine[:, None], weight[:, k : k + 1] * torch.tanh(expert(x)), 0)
        return out


class Equilibrium(nn.Module):
    """The fixed point of a layer, by iteration until it stands."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.inside, self.head = nn.Linear(3, 3), nn.Linear(3, 3, bias=False), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        pushed = self.enter(x)
        h = torch.zeros_like(pushed)
        for _ in range(50):
            after = torch.tanh(pushed + 0.5 * self.inside(h))
            done = (after - h).abs().max() < 1e-3
            h = after
            if done:
                break
        out: Tensor = self.head(h)
        return out


class Checkpointed(nn.Module):
    """A part of it is computed again on the way back."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.first, self.last, self.reentrant = nn.Linear(3, 3), nn.Linear(3, 2), reentrant
        self.part = nn.Sequential(nn.Linear(3, 3), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(checkpoint(self.part, self.first(x), use_reentrant=self.reentrant))
        return out


class Optional(nn.Module):
    """A second argument that is not needed, and whose name is that of the data elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        h = torch.tanh(self.first(x))
        out: Tensor = self.last(h if z is None else h + 10 * z)
        return out


class Dropped(nn.Module):
    """With dropout inside."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop, self.last = nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.drop(torch.tanh(self.first(x))))
        return out


# ---- complex numbers


class ComplexWeights(nn.Module):
    """Complex weights, and what is real at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 2, dtype=torch.complex128))
        self.head = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head((x.to(self.weight.dtype) @ self.weight).abs().log1p())
        return out


class Spectrum(nn.Module):
    """Real weights, complex on the way: a filter of frequencies."""

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.head = nn.Parameter(torch.randn(2)), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.fft.irfft(torch.fft.rfft(x) * self.gain, n=3))
        return out


class RealOut(nn.Module):
    """The real part."""

    def forward(self, x: Tensor) -> Tensor:
        return x.real


class ToSpectrum(nn.Module):
    """Frequencies, scaled."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = torch.fft.fft(x) * self.gain
        return found


# ---- outputs


class Named(NamedTuple):
    """An output with names."""

    mean: Tensor
    spread: Tensor


@dataclass
class Record:
    """An output as libraries of transformers have it."""

    mean: Tensor
    spread: Tensor


class Heads(nn.Module):
    """Two outputs, in a container."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.body, self.mean, self.spread = nn.Linear(3, 3), nn.Linear(3, 2), nn.Linear(3, 2)
        self.kind = kind

    def forward(self, x: Tensor) -> Any:
        h = torch.tanh(self.body(x))
        mean, spread = self.mean(h), self.spread(h)
        return (mean, spread) if self.kind is tuple else self.kind(mean=mean, spread=spread)


def pair_loss(output: Any, z: Tensor) -> Tensor:
    """The negative log density of a normal law, up to a constant: (mean, log variance) ``[N, 2]``."""
    if isinstance(output, dict):
        output = output["mean"], output["spread"]
    elif isinstance(output, Record):
        output = output.mean, output.spread
    mean, spread = output
    found: Tensor = 0.5 * ((z - mean).square() * (-spread).exp() + spread).mean(1)
    return found


class LogVariance(nn.Module):
    """A mean and a log variance in one tensor, in halves."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = mlp()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, spread = self.layers(x).chunk(2, 1)
        return mean, spread


def bits(width: int) -> Any:
    """Targets that are zero or one, ``[N, width]``; ``[N]`` when 0."""

    def data(n: int, seed: int) -> tuple[Any, Any]:
        x, z = numbers(3, width=max(width, 1))(n, seed)
        z = (z > 0).to(x.dtype)
        return x, z if width else z[:, 0]

    return data


class OneLogit(nn.Module):
    """A logit for each particle, ``[N]``."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.tanh(self.first(x))).squeeze(1)
        return out


# ---- wrappers


def compiled() -> nn.Module:
    torch._dynamo.reset()  # type: ignore[no-untyped-call]
    made: Any = torch.compile(Plain(), backend="eager")
    return made  # type: ignore[no-any-return]


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(4), nn.Tanh(), nn.Linear(4, 2))


def materialised() -> nn.Module:
    net = lazy()
    net(torch.zeros(1, 3))
    return net


def scripted() -> nn.Module:
    return torch.jit.script(Plain())  # type: ignore[no-any-return,no-untyped-call]


def traced() -> nn.Module:
    return torch.jit.trace(Plain(), torch.zeros(2, 3))  # type: ignore[no-any-return,no-untyped-call]


UNUSUAL = [
    Architecture("mixture of experts, branching on data", Experts, TABULAR),
    Architecture("equilibrium by iteration", Equilibrium, TABULAR),
    Architecture("checkpointed", lambda: Checkpointed(False), TABULAR),
    Architecture("checkpointed, reentrant", lambda: Checkpointed(True), TABULAR, stand_in=lambda: Checkpointed(False)),
    Architecture("optional second argument", Optional, _NUMBERS, F.mse_loss),
    Architecture("dropout, training", Dropped, TABULAR, refused=_RANDOM),
    Architecture("dropout, eval", Dropped, TABULAR, train=False),
    Architecture("float32", Plain, TABULAR, dtype=torch.float32, rtol=1e-4),
    Architecture("bfloat16", Plain, TABULAR, dtype=torch.bfloat16, rtol=3e-2),
    Architecture("complex weights", ComplexWeights, TABULAR, refused=everywhere(r"complex.*view_as_real")),
    Architecture("complex on the way", Spectrum, TABULAR),
    Architecture(
        "chain with a complex state", lambda: nn.Sequential(ToSpectrum(), RealOut(), nn.Linear(3, 2)), TABULAR
    ),
    Architecture("tuple as output", lambda: Heads(tuple), _NUMBERS, pair_loss),
    Architecture("dict as output", lambda: Heads(dict), _NUMBERS, pair_loss),
    Architecture("named tuple as output", lambda: Heads(Named), _NUMBERS, pair_loss),
    Architecture("dataclass as output", lambda: Heads(Record), _NUMBERS, pair_loss),
    Architecture("mean and log variance", LogVariance, numbers(3, width=1), pair_loss),
    Architecture("one logit", OneLogit, bits(0), F.binary_cross_entropy_with_logits),
    Architecture("several labels", Plain, bits(2), nn.BCEWithLogitsLoss()),
    Architecture("compiled", compiled, TABULAR),
    Architecture("lazy", lazy, TABULAR, refused=everywhere(r"lazy.*run the network once")),
    Architecture("lazy, run once", materialised, TABULAR),
    Architecture("DataParallel", lambda: nn.DataParallel(Plain()), TABULAR),
    Architecture("TorchScript, scripted", scripted, TABULAR, refused=everywhere(_SCRIPT)),
    Architecture("TorchScript, traced", traced, TABULAR, refused=everywhere(_SCRIPT)),
]
