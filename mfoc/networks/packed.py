"""Networks whose weights are stored in one bit or two: what ``mfoc.DiscreteMSA`` has solved for, as it is shipped."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mfoc.checks import check_instance
from mfoc.errors import InvalidValue
from mfoc.networks.inspection import hooked

_KINDS = (nn.Linear, nn.modules.conv._ConvNd)


class PackedLayer(nn.Module):
    """A linear or convolutional layer whose weight is stored in 1 bit an entry, {-1, 1}, or in 2, {-1, 0, 1}.

    The weight is unpacked at each forward pass, so the output is that of the layer it was made of, to the bit, in the
    input's dtype: memory is saved, not time. It is a constant; the bias is a parameter, as it was.

    Attributes:
        layer: the layer without its weight.
        codes: the entries in order, 8 or 4 a byte, lowest bits first, uint8 ``[ceil(entries bits / 8)]``: level + 1
            in 2 bits, or whether it is 1 in one.
        bits: of an entry, 1 or 2.
        shape: of the weight.
    """

    codes: Tensor

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        weight: Tensor = layer.weight.detach()  # type: ignore[operator]
        self.shape, self.bits = weight.shape, 2 if bool((weight == 0).any()) else 1
        self.layer = copy.deepcopy(layer)
        self.layer.register_parameter("weight", None)
        self.register_buffer("codes", _packed(weight, self.bits))
        self.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output, of a floating-point input."""
        weight = _unpacked(self.codes, self.bits, self.shape.numel()).to(x.dtype).reshape(self.shape)
        output: Tensor = functional_call(self.layer, {"weight": weight}, (x,))
        return output

    def extra_repr(self) -> str:
        """The size of the weight."""
        return f"weight {tuple(self.shape)} in {self.bits} bit{'s' * (self.bits > 1)}, {len(self.codes):,} bytes"


def pack(net: nn.Module, *, layers: Sequence[str] | None = None) -> nn.Module:
    """A copy of a network whose discrete weights are packed, eight or four to a byte.

    Args:
        net: a network whose layers hold weights in {-1, 1} or {-1, 0, 1}, as ``mfoc.to_module`` returns after a solve
            with ``mfoc.DiscreteMSA``. It is not changed.
        layers: names of the linear and convolutional layers to pack; when None, all.

    Returns:
        A module that runs as ``net`` does, whose ``state_dict`` holds the packed weights. It loads into what ``pack``
        makes of another such network.

    Raises:
        InvalidType: ``net`` is no module.
        InvalidValue: a weight has other values, a name is of no linear or convolutional layer, or there is none.
    """
    check_instance(nn.Module, "a torch.nn.Module", net=net)
    packed = copy.deepcopy(net)
    known = {name: part for name, part in packed.named_modules() if isinstance(part, _KINDS)}
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
    for name in names:
        parent, _, child = name.rpartition(".")
        setattr(packed.get_submodule(parent), child, PackedLayer(known[name]))
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


def _packed(weight: Tensor, bits: int) -> Tensor:
    codes = (weight.flatten() > 0 if bits == 1 else weight.flatten() + 1).to(torch.uint8)
    codes = nn.functional.pad(codes, (0, -len(codes) % (8 // bits))).reshape(-1, 8 // bits)
    return (codes << _shifts(codes, bits)).sum(1, dtype=torch.uint8)


def _unpacked(codes: Tensor, bits: int, entries: int) -> Tensor:
    """The levels, int8 ``[entries]``."""
    found = ((codes[:, None] >> _shifts(codes, bits)) & (2**bits - 1)).flatten()[:entries].to(torch.int8)
    levels: Tensor = 2 * found - 1 if bits == 1 else found - 1
    return levels


def _shifts(codes: Tensor, bits: int) -> Tensor:
    return torch.arange(0, 8, bits, dtype=torch.uint8, device=codes.device)
