"""A network with other weights, tried out before any of its own changes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mfoc.networks.inspection import is_dropout, random_parts
from mfoc.seeding import seeded


class Draft:
    """New values for the parameters of a network, which runs with them; its own change in ``commit`` and not before.

    A parameter of several names has one value, and buffers are private: averages of norms do not advance.

    Args:
        net: the network.
        seed: of what it draws in a forward pass.
    """

    def __init__(self, net: nn.Module, seed: int) -> None:
        self.net, self.seed = net, seed
        self.values: dict[int, Tensor] = {id(p): p.detach().clone() for p in net.parameters()}
        self.changed: dict[int, nn.Parameter] = {}

    def __getitem__(self, parameter: nn.Parameter) -> Tensor:
        return self.values[id(parameter)]

    def __setitem__(self, parameter: nn.Parameter, value: Tensor) -> None:
        self.values[id(parameter)] = value.detach().to(parameter)
        self.changed[id(parameter)] = parameter

    def __call__(self, module: nn.Module, *args: Any) -> Any:
        """The output of the network or of a part of it, with the new values."""
        state = {name: self[parameter] for name, parameter in module.named_parameters()}
        state |= {name: buffer.clone() for name, buffer in module.named_buffers()}
        device = next((value.device for value in state.values()), None)
        with torch.enable_grad(), seeded(self.seed, device):
            return functional_call(module, state, args)

    def commit(self) -> None:
        """Writes the new values into the network."""
        with torch.no_grad():
            for parameter in self.changed.values():
                parameter.copy_(self[parameter])


@contextmanager
def quiet(net: nn.Module) -> Iterator[bool]:
    """Dropout off and no layer writing over its input, for the length of the block; whether there was dropout."""
    loud = [part for _, part in random_parts(net) if is_dropout(part) or hasattr(part, "dropout")]
    writing = [part for part in net.modules() if getattr(part, "inplace", False) is True]
    try:
        for part in loud:
            part.training = False
        for part in writing:
            part.inplace = False  # type: ignore[assignment]
        yield bool(loud)
    finally:
        for part in loud:
            part.training = True
        for part in writing:
            part.inplace = True  # type: ignore[assignment]
