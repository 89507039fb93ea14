"""Weights that are computed from others, in private copies: without a memory, and twice differentiable.

``torch.nn.utils.parametrizations.spectral_norm`` divides by an estimate of the largest singular value, which each
forward pass in training mode improves by one step of the power method (Miyato et al. 2018, arXiv:1802.05957, sec. 2.1).
Where a forward pass must not advance anything the estimate would stay that of the first weights. In the private copies
the value is the exact one, to which the estimate tends.

Weight norm is g v / |v| (Salimans & Kingma 2016, arXiv:1602.07868, eq. 2). torch computes it by one fused operation
whose second derivative is not that of the function; in private copies it is written out.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm, _WeightNorm
from torch.nn.utils.weight_norm import WeightNorm


class ExactSpectralNorm(_SpectralNorm):
    """The weight over its largest singular value; the vectors of the power method have no part in it."""

    def forward(self, weight: Tensor) -> Tensor:
        """``[out, ...]`` to the same shape, with spectral norm 1 when laid out as a matrix ``[out, rest]``."""
        if weight.ndim == 1 or not self.training:
            found: Tensor = super().forward(weight)
            return found
        normal: Tensor = weight / torch.linalg.matrix_norm(self._reshape_weight_to_matrix(weight), 2)
        return normal


class PlainWeightNorm(_WeightNorm):
    """Weight norm written out."""

    def forward(self, weight_g: Tensor, weight_v: Tensor) -> Tensor:
        """The length ``g`` along one axis, and the direction ``[...]``, to the weight ``[...]``."""
        return _scaled(weight_g, weight_v, self.dim)


class PlainWeightNormHook(WeightNorm):
    """The same for ``torch.nn.utils.weight_norm``."""

    def compute_weight(self, module: nn.Module) -> Any:
        """The weight of a layer."""
        return _scaled(getattr(module, f"{self.name}_g"), getattr(module, f"{self.name}_v"), self.dim)


def _scaled(g: Tensor, v: Tensor, dim: int) -> Tensor:
    return v * (g / torch.norm_except_dim(v, 2, dim))


_OWN: dict[type, type] = {
    _SpectralNorm: ExactSpectralNorm, _WeightNorm: PlainWeightNorm, WeightNorm: PlainWeightNormHook
}  # fmt: skip


def made_exact(module: nn.Module) -> None:
    """Makes every spectral norm of a private copy the exact one, and every weight norm twice differentiable."""
    for part in module.modules():
        if type(part) in _OWN:
            part.__class__ = _OWN[type(part)]
        hooks = part.__dict__["_forward_pre_hooks"]
        if any(type(hook) in _OWN for hook in hooks.values()):  # a shell shares them with the module it is of
            part.__dict__["_forward_pre_hooks"] = OrderedDict((key, _exact(hook)) for key, hook in hooks.items())


def _exact(hook: Any) -> Any:
    if type(hook) not in _OWN:
        return hook
    made = copy.copy(hook)
    made.__class__ = _OWN[type(hook)]
    return made


@torch.no_grad()
def settle(module: nn.Module) -> None:
    """Sets the power method of every spectral norm in training mode to its limit at the module's weights."""
    for part in module.modules():
        chains = part.parametrizations.values() if parametrize.is_parametrized(part) else ()  # type: ignore[operator]
        for chain in chains:
            steps: list[nn.Module] = list(chain)
            weight: Any = getattr(chain, "original", None)
            if not any(isinstance(step, _SpectralNorm) and step.training for step in steps):
                continue
            for step in steps:
                if isinstance(step, _SpectralNorm) and step.training and weight.ndim > 1:
                    matrix = step._reshape_weight_to_matrix(weight)  # noqa: SLF001  a private class of torch throughout
                    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
                    step.get_buffer("_u").copy_(left[:, 0])
                    step.get_buffer("_v").copy_(right[0])
                weight = step(weight)
