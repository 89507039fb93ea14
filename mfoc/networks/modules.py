"""Modules that suit control problems: residual steps, dropout by a mask in the data, batch norm over all ranks."""

from __future__ import annotations

import math
from functools import cache
from typing import Any, TypeVar

from torch import Tensor, nn

from mfoc import law
from mfoc.checks import check_instance, check_non_negative
from mfoc.distributed import active
from mfoc.errors import InvalidValue
from mfoc.networks.inspection import mixes
from mfoc.tree import Tree

Module = TypeVar("Module", bound=nn.Module)
_BatchNorm = nn.modules.batchnorm._BatchNorm


class Residual(nn.Module):
    """x + step * block(x): one Euler step of a residual network.

    Args:
        block: a module that keeps the shape.
        step: the step size.
    """

    def __init__(self, block: nn.Module, step: float = 1.0) -> None:
        super().__init__()
        check_instance(nn.Module, "a module that keeps the shape", block=block)
        self.block, self.step = block, step

    def forward(self, x: Tensor) -> Tensor:
        """``[N, ...]`` to ``[N, ...]``."""
        result: Tensor = x + self.step * self.block(x)
        return result


class MaskedDropout(nn.Module):
    """Dropout whose mask comes from the data, so that the dynamics stay pure: x * z[key] / (1 - p).

    It must be a stage of its own: a layer inside another module is not handed the data.

    Args:
        p: probability that the mask was drawn with (a mask entry is 0 with probability p).
        key: where the mask lies in the data, a dict; the mask has the state's shape ``[N, ...]``.
    """

    def __init__(self, p: float, key: str) -> None:
        super().__init__()
        check_non_negative(p=p)
        if p >= 1:
            raise InvalidValue(f"p is {p!r}; expected a probability in [0, 1)")
        self.p, self.key = p, key

    takes_data = True  # as a stage it is handed the data

    def forward(self, x: Tensor, z: Tree) -> Tensor:
        """``[N, ...]`` and the data to ``[N, ...]``; the identity in evaluation mode."""
        if not self.training:
            return x
        if not isinstance(z, dict) or self.key not in z:
            raise InvalidValue(f"no dropout mask: expected the data to be a dict with key {self.key!r}")
        masked: Tensor = x * z[self.key].to(x.dtype) / (1 - self.p)
        return masked


def over_population(module: Module) -> Module:
    """The same module, whose batch norms on the statistics of the batch take those of all ranks together.

    On one rank they compute what they did. It is written into: give a copy. A norm with a forward pass of its own is
    left as it is.
    """
    for part in module.modules():
        if mixes(part) and type(part).forward in (_BatchNorm.forward, nn.SyncBatchNorm.forward):
            kind: Any = type(part)
            part.__class__ = _over_population(kind)
    return module


@cache
def _over_population(kind: Any) -> Any:
    return type(kind.__name__, (_PopulationNorm, kind), {})


class _PopulationNorm(_BatchNorm):
    """Batch norm by ``mfoc.mean`` where there are ranks; torch's own where there are none."""

    def forward(self, x: Tensor) -> Tensor:
        if not active():
            found: Tensor = super().forward(x)
            return found
        self._check_input_dim(x)  # type: ignore[no-untyped-call]
        axes = tuple(range(2, x.dim()))
        over = (-1, *(1 for _ in axes))
        if math.prod(x.shape[2:]) == 1 and law.is_single(x):
            # As torch says on one rank. Over ranks the mean of equal copies would be taken for that of a population.
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.shape}")

        def average(y: Tensor) -> Tensor:
            return law.mean(y.mean(axes) if axes else y).reshape(over)

        centred = x - average(x)
        normal = centred * (average(centred.square()) + self.eps).rsqrt()
        if self.weight is None:
            return normal
        return normal * self.weight.reshape(over) + self.bias.reshape(over)
