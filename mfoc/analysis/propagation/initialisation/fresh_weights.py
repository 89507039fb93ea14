"""Fresh weights for a dense or convolution layer, of a given variance: orthogonal or Gaussian."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from mfoc.analysis.propagation.initialisation.orthogonal import delta_orthogonal_, orthogonal_, orthogonal_gain


def weights(layer: Any, variance: float, *, orthogonal: bool, spread: bool, generator: torch.Generator) -> Tensor:
    """Weights with variance ``variance / fan_in`` in the mean, float64 on the CPU.

    Args:
        layer: dense, or a convolution.
        variance: sw2.
        orthogonal: (semi-)orthogonal weights; of a convolution at the centre tap. Gaussian ones otherwise.
        spread: orthogonal over all taps: for a layer that reads data, which few channels at one tap see little of.
        generator: on the CPU.
    """
    drawn = torch.empty(layer.weight.shape, dtype=torch.float64, device="cpu")
    fan_in = drawn[0].numel()
    if not orthogonal:
        return drawn.normal_(0.0, math.sqrt(variance / fan_in), generator=generator)
    groups = 1 if isinstance(layer, nn.Linear) else layer.groups
    rows = len(drawn) // groups
    if drawn.dim() > 2 and not spread and _one_tap(layer):
        gain = orthogonal_gain(variance, rows, drawn.shape[1])
        return delta_orthogonal_(drawn, gain, generator, groups=groups)
    gain = orthogonal_gain(variance, rows, fan_in)
    for part in drawn.view(groups, rows, fan_in):
        orthogonal_(part, gain, generator)
    return drawn


def _one_tap(layer: Any) -> bool:
    """Whether the centre tap sees enough: it exists, and patches overlap, so that no pixel is left out for good."""
    odd = all(size % 2 for size in layer.kernel_size)
    return odd and all(step < size or size == 1 for step, size in zip(layer.stride, layer.kernel_size, strict=True))


def biases(layer: Any, variance: float, *, generator: torch.Generator) -> Tensor:
    """Normal numbers of exactly this mean square, also of a narrow layer; float64 on the CPU."""
    drawn = torch.randn(layer.bias.shape, generator=generator, dtype=torch.float64, device="cpu")
    return drawn * math.sqrt(variance / float(drawn.square().mean()))
