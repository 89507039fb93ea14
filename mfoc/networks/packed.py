"""Networks whose weights are stored in one bit or two: what ``mfoc.DiscreteMSA`` has solved for, as it is shipped.

This is below ``DiscreteMSA``: it does not check its arguments.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mfoc.checks import check_instance
from mfoc.errors import InvalidValue
from mfoc.networks.inspection import hooked

_KINDS = (nn.Linear, nn.modules.conv._ConvNd)


class PackedLayer(nn.Module):
    """A linear or convolutional layer whose weight is stored in 1 bit an entry, {-1, 1}, or in 2, {-1, 0, 1}.

    The weight is unpacked at each forward pass, so the output is that of the layer it was made of, to the bit: memory
    is saved, not time. It is a constant, in the dtype that ``module.to`` has last set; the bias is a parameter.

    Attributes:
        layer: the layer without its weight.
        codes: bits of the entries in order, 8 a byte, lowest first, uint8 ``[1 or 2, ceil(entries / 8)]``: the first
            row says whether an entry is 1, the second, where there are zeros, whether it is -1.
        shape: of the weight.
    """

    codes: Tensor
    like: Tensor

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        weight: Tensor = layer.weight.detach()  # type: ignore[operator]
        self.shape = weight.shape
        self.layer = copy.deepcopy(layer)
        self.layer.register_parameter("weight", None)
        self.register_buffer("codes", _packed(weight))
        self.register_buffer("like", weight.new_empty(0), persistent=False)  # its dtype is the weight's
        self.train(layer.training)

    @property
    def bits(self) -> int:
        """Of an entry, 1 or 2."""
        return len(self.codes)

    @property
    def weight(self) -> Tensor:
        """The weight, unpacked; some modules read those of their parts, attention its last layer's."""
        return _unpacked(self.codes, self.shape.numel()).to(self.like.dtype).reshape(self.shape)

    @property
    def bias(self) -> nn.Parameter | None:
        """The layer's."""
        found: nn.Parameter | None = self.layer.bias  # type: ignore[assignment]
        return found

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output."""
        output: Tensor = functional_call(self.layer, {"weight": self.weight}, (x,))
        return output

    def extra_repr(self) -> str:
        """The size of the weight."""
        bits = f"{self.bits} bit{'s' * (self.bits > 1)}"
        return f"weight {tuple(self.shape)} in {bits}, {self.codes.numel():,} bytes"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        found = state_dict.get(f"{prefix}codes")
        if found is not None and len(found) in (1, 2):  # whether there are zeros is a matter of the weights loaded
            self.codes = self.codes.new_empty(len(found), self.codes.shape[1])
        super()._load_from_state_dict(state_dict, prefix, *rest)


def pack(net: nn.Module, *, layers: Sequence[str] | None = None) -> nn.Module:
    """A copy of a network whose discrete weights are packed, eight or four to a byte.

    Args:
        net: a network whose layers hold weights in {-1, 1} or {-1, 0, 1}, as ``mfoc.to_module`` returns after a solve
            with ``mfoc.DiscreteMSA``. It is not changed.
        layers: names of the linear and convolutional layers to pack; when None, all.

    Returns:
        A module that runs as ``net`` does, whose ``state_dict`` holds the packed weights. It loads into what ``pack``
        makes of another network of these layers, whatever its discrete weights; all ones will do.

    Raises:
        InvalidType: ``net`` is no module.
        InvalidValue: a weight has other values, a name is of no linear or convolutional layer, or there is none.
    """
    check_instance(nn.Module, "a torch.nn.Module", net=net)
    packed = copy.deepcopy(net)
    everywhere = packed.named_modules(remove_duplicate=False)  # a layer used twice has two names
    known = {name: part for name, part in everywhere if isinstance(part, _KINDS)}
    if isinstance(layers, str):
        raise InvalidValue(f"layers is {layers!r}; expected a list of names")
    names = list(known) if layers is None else list(layers)
    for name in names:
        if name not in known:
            raise InvalidValue(f"layers names {name!r}; the linear and convolutional layers are {list(known)}")
    if not names:
        raise InvalidValue("there is no linear or convolutional layer to pack")
    for name in names:
        _check_layer(name, known[name])
    if "" in names:  # the network is a single layer
        return PackedLayer(packed)
    made = {id(known[name]): PackedLayer(known[name]) for name in names}
    for name, part in known.items():
        if id(part) in made:
            parent, _, child = name.rpartition(".")
            setattr(packed.get_submodule(parent), child, made[id(part)])
    return packed


def stored_bytes(net: nn.Module) -> int:
    """Bytes of a network's parameters and buffers, each once."""
    held = {id(tensor): tensor for tensor in (*net.parameters(), *net.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in held.values())


def _check_layer(name: str, layer: nn.Module) -> None:
    if "weight" not in layer._parameters or hooked(layer):
        raise InvalidValue(
            f"layer {name!r} has a reparametrised weight or hooks; remove them, or leave it out: layers="
        )
    weight: Tensor = layer.weight  # type: ignore[assignment]
    if not bool(((weight == 1) | (weight == -1) | (weight == 0)).all()):
        raise InvalidValue(
            f"the weight of {name!r} holds other values than -1, 0 and 1; solve with mfoc.DiscreteMSA, or name the "
            "layers that are discrete, layers=[...]"
        )


def _packed(weight: Tensor) -> Tensor:
    entries = weight.flatten()
    rows = torch.stack([entries > 0, entries < 0] if bool((entries == 0).any()) else [entries > 0]).to(torch.uint8)
    eights = nn.functional.pad(rows, (0, -len(entries) % 8)).reshape(len(rows), -1, 8)
    codes: Tensor = (eights << _places(eights)).sum(-1, dtype=torch.uint8)
    return codes


def _unpacked(codes: Tensor, entries: int) -> Tensor:
    """The levels, int8 ``[entries]``."""
    rows = ((codes[..., None] >> _places(codes)) & 1).flatten(1)[:, :entries].to(torch.int8)
    levels: Tensor = 2 * rows[0] - 1 if len(rows) == 1 else rows[0] - rows[1]
    return levels


def _places(codes: Tensor) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=codes.device)
