"""Spectral norm of a weight that moves, without a memory of the weights before it.

``torch.nn.utils.parametrizations.spectral_norm`` divides by an estimate of the largest singular value, which each
forward pass in training mode improves by one step of the power method (Miyato et al. 2018, arXiv:1802.05957, sec. 2.1).
Where a forward pass must not advance anything the estimate would stay that of the first weights. In the private copies
the value is the exact one, to which the estimate tends.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm


class ExactSpectralNorm(_SpectralNorm):
    """The weight over its largest singular value; the vectors of the power method have no part in it."""

    def forward(self, weight: Tensor) -> Tensor:
        """``[out, ...]`` to the same shape, with spectral norm 1 when laid out as a matrix ``[out, rest]``."""
        if weight.ndim == 1 or not self.training:
            found: Tensor = super().forward(weight)
            return found
        normal: Tensor = weight / torch.linalg.matrix_norm(self._reshape_weight_to_matrix(weight), 2)
        return normal


def made_exact(module: nn.Module) -> None:
    """Makes every spectral norm of a private copy the exact one."""
    for part in module.modules():
        if type(part) is _SpectralNorm:
            part.__class__ = ExactSpectralNorm


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
