"""What a private copy of a network is held against, and what stands in it for a wrapper."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mfoc.errors import InvalidValue

_COMPUTED = "_computed_before"


class Through(nn.Module):
    """Stands for a wrapper: the names of the parameters in it stay."""

    def __init__(self, wrapper: nn.Module) -> None:
        super().__init__()
        self.training = wrapper.training
        self._modules = dict(wrapper._modules)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What is wrapped."""
        (inner,) = self._modules.values()
        assert inner is not None
        return inner(*args, **kwargs)


def computed(value: Tensor) -> Tensor:
    """A copy of a tensor that was computed and kept as an attribute: it does not follow what it came from."""
    made = value.detach().clone()
    setattr(made, _COMPUTED, True)  # which copies of it keep
    return made


def without_computed(module: nn.Module) -> bool:
    """Puts NaN in the place of what ``computed`` has copied; False where there is nothing of the kind."""
    found = False
    for part in module.modules():
        for key, value in part.__dict__.items():
            if isinstance(value, Tensor) and getattr(value, _COMPUTED, False) and value.is_floating_point():
                part.__dict__[key], found = torch.full_like(value, torch.nan), True
    return found


def refuse_other(made: nn.Module, module: nn.Module, name: str) -> None:
    """Refuses a copy that is another network, or no copy: parts may have a ``__deepcopy__`` of their own.

    Raises:
        InvalidValue: says which parameter or buffer is not copied.
    """
    pairs = [(*made.named_parameters(), *made.named_buffers()), (*module.named_parameters(), *module.named_buffers())]
    new, old = (dict(found) for found in pairs)
    for key in {**new, **old}:
        if not _is_copy(new.get(key), old.get(key)):
            called = f"module {name!r}" if name else "net"
            raise InvalidValue(
                f"{called} is not copied by copy.deepcopy: {key!r} of the copy has other values, or is that of the "
                "network; a part has a __deepcopy__ of its own: leave it out, or let it copy parameters and buffers"
            )


def _is_copy(new: Tensor | None, old: Tensor | None) -> bool:
    if new is None or old is None or new is old:
        return False
    if isinstance(old, nn.parameter.UninitializedParameter | nn.parameter.UninitializedBuffer) or old.is_meta:
        return True
    same = (new.shape, new.dtype, new.device) == (old.shape, old.dtype, old.device)
    return same and bool(torch.equal(new, old) or torch.equal(new.nan_to_num(), old.nan_to_num()))
