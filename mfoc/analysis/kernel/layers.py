"""What one layer adds to the empirical kernel, from its inputs and the gradients at its outputs.

The weight of a layer that is linear in it has the gradient sum_s g_s a_s^T, over the positions s at which it is used
(pixels, tokens, calls), with a its input there and g the gradient of one output of the network at its own output. So
its share of Theta(x, x') is either the product of two such gradients, or sum_(s, t) <a_s, a'_t> <g_s, g'_t> without
forming them (Novak, Sohl-Dickstein & Schoenholz 2022, arXiv:2206.08720, sec. 3.2 and 3.3): what is cheaper is taken.
A bias is a weight whose input is one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

# What the weight of a layer that acts on channels, or on the last axes, is multiplied with, number by number.
_NORMAL: dict[type[nn.Module], Callable[[Any, Tensor], Tensor]] = {
    nn.LayerNorm: lambda m, x: F.layer_norm(x, m.normalized_shape, None, None, m.eps),
    nn.RMSNorm: lambda m, x: F.rms_norm(x, m.normalized_shape, None, m.eps),
    nn.PReLU: lambda m, x: x.clamp_max(0),
    nn.GroupNorm: lambda m, x: F.group_norm(x, m.num_groups, None, None, m.eps),
    **dict.fromkeys(
        (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
        lambda m, x: F.batch_norm(x, m.running_mean, m.running_var, None, None, False, 0.0, m.eps),
    ),
    **dict.fromkeys(
        (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
        lambda m, x: F.instance_norm(
            x, m.running_mean, m.running_var, None, None, m.training or m.running_mean is None, 0.0, m.eps
        ),
    ),
}
_OVER_LAST = (nn.LayerNorm, nn.RMSNorm)


def is_known(module: nn.Module) -> bool:
    """Whether the share of a layer is known here; a subclass may have a forward pass of its own, and is not."""
    kind = type(module)
    if kind is nn.Embedding:
        return module.max_norm is None
    return kind is nn.Linear or kind in _CONVOLUTIONS or kind in _NORMAL


def has_sample_axis(module: nn.Module, output: Tensor) -> bool:
    """Whether the output of a known layer has an axis before those that the layer itself asks for."""
    kind: Any = type(module)
    if kind in _CONVOLUTIONS:
        return output.dim() == 2 + len(module.kernel_size)  # type: ignore[arg-type]
    if kind in _OVER_LAST:
        return output.dim() > len(module.normalized_shape)  # type: ignore[arg-type]
    if kind in (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d):
        return output.dim() == 2 + int(kind.__name__[-2])
    return output.dim() >= 2


@dataclass(eq=False)
class Rows:
    """The gradients themselves: ``[n, C, P]``."""

    rows: Tensor


@dataclass(eq=False)
class Factors:
    """Inputs ``[n, G, K, S]`` (tokens ``[n, S]`` of an embedding) and gradients ``[n, C, G, D, S]``, in G groups."""

    inputs: Tensor
    slopes: Tensor
    weight: bool
    bias: bool


Share = Rows | Factors


@dataclass(frozen=True)
class Size:
    """What a layer's share costs for one sample.

    Attributes:
        groups: into which it is cut.
        ins: length of its inputs in each group.
        outs: length of its outputs in each group.
        positions: where it is used.
        parameters: how many are trained.
        entries: of all its outputs.
        always_rows: there is no other form.
    """

    groups: int
    ins: int
    outs: int
    positions: int
    parameters: int
    entries: int
    always_rows: bool = False

    def prefers_rows(self, outputs: int, samples: int, *, trace: bool) -> bool:
        """Whether forming the gradients takes fewer multiplications than not, in a kernel with ``samples`` columns."""
        if self.always_rows:
            return True
        pairs = outputs if trace else outputs**2
        forming = self.positions * outputs * self.groups * self.ins * self.outs
        # The product of the two Grams is bound by memory: it weighs more than its multiplications.
        gram = self.groups * self.positions**2 * (self.ins + pairs * (self.outs + 4))
        return pairs * self.parameters + forming / max(samples, 1) < gram

    def numbers(self, outputs: int, *, rows: bool) -> int:
        """How many numbers are held for one sample."""
        factors = self.groups * self.positions * (self.ins + 2 * outputs * self.outs)
        return factors + outputs * self.parameters * rows


def size(module: Any, entries: int) -> Size:
    """The cost of a known layer whose outputs have so many entries for each sample, over all its calls."""
    parameters = sum(p.numel() for p in module.parameters(recurse=False) if p.requires_grad)
    kind = type(module)
    if kind in _NORMAL:
        return Size(1, 1, 1, entries, parameters, entries, always_rows=True)
    if kind in _CONVOLUTIONS:
        groups, outs = module.groups, module.out_channels // module.groups
        return Size(groups, module.weight[0].numel(), outs, entries // module.out_channels, parameters, entries)
    if kind is nn.Embedding:
        return Size(1, 1, module.embedding_dim, entries // module.embedding_dim, parameters, entries)
    return Size(1, module.in_features, module.out_features, entries // module.out_features, parameters, entries)


def share(module: Any, calls: list[tuple[Tensor, Tensor]], samples: int, *, rows: bool) -> Share:
    """The share of a layer from all calls of it.

    Args:
        module: a known layer.
        calls: of each, its input and the gradients at its output ``[C, ...]``, both with the samples in the next axis;
            that axis may be longer by a factor, with the positions of a sample beside one another.
        samples: n.
        rows: form the gradients.
    """
    weight, bias = module.weight, getattr(module, "bias", None)
    has_weight = weight is not None and weight.requires_grad
    has_bias = bias is not None and bias.requires_grad
    if type(module) in _NORMAL:
        found = [_normal_rows(module, x, g, samples, has_weight, has_bias) for x, g in calls]
        return Rows(torch.stack(found).sum(0) if len(found) > 1 else found[0])
    slopes = _join([_slopes(module, g, samples) for _, g in calls])
    if type(module) is nn.Embedding:
        inputs = _join([x.reshape(samples, -1) for x, _ in calls])
        if module.padding_idx is not None:  # torch gives that row no gradient
            slopes = slopes * (inputs != module.padding_idx)[:, None, None, None]
        found_factors = Factors(inputs, slopes, True, False)
        return Rows(_embedding_rows(found_factors, module.num_embeddings)) if rows else found_factors
    inputs = _join([_inputs(module, x, samples) for x, _ in calls])
    factors = Factors(inputs, slopes, has_weight, has_bias)
    return Rows(dense_rows(factors)) if rows else factors


def _join(parts: list[Tensor]) -> Tensor:
    """Calls side by side, as further positions."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def _inputs(module: Any, x: Tensor, samples: int) -> Tensor:
    """What the weight is multiplied with: ``[n, G, K, S]``."""
    if type(module) is nn.Linear:
        rows: Tensor = x.reshape(samples, -1, module.in_features)
        return rows.mT[:, None]
    windows = _windows(module, x)  # [m, G, K, S]
    windows = windows.reshape(samples, -1, *windows.shape[1:])
    return windows[:, 0] if windows.shape[1] == 1 else windows.permute(0, 2, 3, 1, 4).flatten(3)


def _windows(module: Any, x: Tensor) -> Tensor:
    """The inputs under a convolution's kernel at each place: ``[m, G, K, S]``."""
    dims = len(module.kernel_size)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    sides = _sides(module)
    if any(sides):
        x = F.pad(x, sides, mode=mode)
    for axis, (length, step, gap) in enumerate(zip(module.kernel_size, module.stride, module.dilation, strict=True)):
        x = x.unfold(2 + axis, (length - 1) * gap + 1, step)[..., ::gap]
    kernel, places = range(2 + dims, 2 + 2 * dims), range(2, 2 + dims)
    x = x.permute(0, 1, *kernel, *places)  # [m, channels, kernel, places]
    ins = x.shape[1] // module.groups * x.shape[2 : 2 + dims].numel()
    return x.reshape(x.shape[0], module.groups, ins, -1)


def _sides(module: Any) -> list[int]:
    """The padding of a convolution as ``F.pad`` takes it: the last axis first, before and after."""
    if module.padding == "valid":
        return []
    if module.padding == "same":  # of an even extent, the side after has one more
        extents = [gap * (length - 1) for length, gap in zip(module.kernel_size, module.dilation, strict=True)]
        pairs = [(extent // 2, extent - extent // 2) for extent in extents]
    else:
        pairs = [(width, width) for width in module.padding]
    return list(itertools.chain(*reversed(pairs)))


def _slopes(module: Any, g: Tensor, samples: int) -> Tensor:
    """Gradients at the output ``[C, m, ...]`` as ``[n, C, G, D, S]``."""
    outputs = g.shape[0]
    if type(module) not in _CONVOLUTIONS:
        return g.reshape(outputs, samples, -1, g.shape[-1]).permute(1, 0, 3, 2)[:, :, None]
    g = g.reshape(outputs, samples, -1, module.groups, module.out_channels // module.groups, g[0, 0, 0].numel())
    return g.permute(1, 0, 3, 4, 2, 5).flatten(4)


def dense_rows(factors: Factors) -> Tensor:
    """The gradients themselves: ``[n, C, P]``."""
    a, g = factors.inputs, factors.slopes
    n, outputs, groups, outs, positions = g.shape
    found = []
    if factors.weight:
        product = g.permute(0, 2, 1, 3, 4).reshape(n, groups, outputs * outs, positions) @ a.mT
        found.append(product.reshape(n, groups, outputs, -1).transpose(1, 2).flatten(2))
    if factors.bias:
        found.append(g.sum(-1).flatten(2))
    return found[0] if len(found) == 1 else torch.cat(found, 2)


def _embedding_rows(factors: Factors, words: int) -> Tensor:
    tokens, g = factors.inputs, factors.slopes[:, :, 0]
    n, outputs, outs, positions = g.shape
    place = (tokens + words * torch.arange(n, device=tokens.device)[:, None]).flatten()
    rows = g.new_zeros(n * words, outputs * outs)
    rows.index_add_(0, place, g.permute(0, 3, 1, 2).reshape(n * positions, -1))
    return rows.reshape(n, words, outputs, outs).transpose(1, 2).flatten(2)


def _normal_rows(module: Any, x: Tensor, g: Tensor, samples: int, weight: bool, bias: bool) -> Tensor:
    own = module.weight if module.weight is not None else module.bias
    normal = _NORMAL[type(module)](module, x)
    shape = (samples, -1, own.numel(), 1 if type(module) in _OVER_LAST else normal[0, 0].numel())
    g = g.reshape(g.shape[0], *shape)
    found = [torch.einsum("napb,cnapb->ncp", normal.reshape(shape), g)] if weight else []
    if bias:
        found.append(g.sum((2, 4)).transpose(0, 1))
    return found[0] if len(found) == 1 else torch.cat(found, 2)
