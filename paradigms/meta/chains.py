"""The layers of a chain on stacked weights, and the layouts in which values go through them.

Rows: ``[tasks, shots, ...]``, a layer's own layout for each task. Planes: ``[shots, tasks * channels, ...]``, in which
a channel of one task is a channel of its own, so that convolutions, pools and batch norm run natively and batch norm in
training mode takes its statistics over the shots of one task: nothing leaks between tasks. Last: ``[tasks, shots, ...,
channels]``, in which a convolution is a product of patches with weights (see ``columns``) and statistics of channels
are sums of vectors, several times faster than torch's own kernels with weights of each task's own on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mfoc import InvalidValue
from mfoc.networks import inspection
from mfoc.networks.inspection import hooked
from paradigms.meta.columns import Patch, by_columns, convolve_last, fits, known
from paradigms.meta.layers import Window, convolve, normalise, normalise_last

Weights = dict[str, Tensor]

_POOLS = {
    nn.MaxPool1d: 1, nn.MaxPool2d: 2, nn.MaxPool3d: 3, nn.AvgPool1d: 1, nn.AvgPool2d: 2, nn.AvgPool3d: 3,
    nn.AdaptiveAvgPool1d: 1, nn.AdaptiveAvgPool2d: 2, nn.AdaptiveAvgPool3d: 3,
}  # fmt: skip


@dataclass(eq=False)
class _Flow:
    """Values on their way through a chain."""

    value: Tensor
    tasks: int
    layout: Literal["rows", "planes", "last"] = "rows"

    def as_rows(self) -> Tensor:
        """``[tasks, shots, ...]``."""
        h = self.value
        if self.layout == "planes":
            return h.view(len(h), self.tasks, -1, *h.shape[2:]).transpose(0, 1)
        return h.movedim(-1, 2) if self.layout == "last" else h

    def as_planes(self, spatial: int | None = None) -> Tensor:
        """``[shots, tasks * channels, ...]``, with so many spatial axes."""
        self._check(spatial)
        if self.layout == "planes":
            return self.value
        h = self.as_rows().transpose(0, 1)
        return h.reshape(len(h), self.tasks * h.shape[2], *h.shape[3:])

    def as_last(self, spatial: int | None = None) -> Tensor:
        """``[tasks, shots, ..., channels]``, with so many spatial axes."""
        self._check(spatial)
        return self.value if self.layout == "last" else self.as_rows().movedim(2, -1)

    def with_value(self, value: Tensor) -> _Flow:
        """Another value in the same layout."""
        return _Flow(value, self.tasks, self.layout)

    def _check(self, spatial: int | None) -> None:
        found = self.value.dim() - (2 if self.layout == "planes" else 3)
        if spatial is not None and found != spatial:
            raise InvalidValue(
                f"a layer over {spatial} spatial axes was given {found}; a task's inputs must be [shots, channels, ...]"
            )


Layer = Callable[[_Flow, Weights], _Flow]


def layers_of(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    """The layers of nested ``nn.Sequential`` in the order they run; a module that is none is one layer."""
    if inspection.is_chain(module) and "forward" not in module.__dict__ and not hooked(module):
        for name, child in module._modules.items():  # a layer that is used twice included
            assert child is not None
            yield from layers_of(child, f"{prefix}.{name}" if prefix else name)
    else:
        yield prefix, module


def layer(name: str, module: nn.Module) -> Layer | None:
    """The layer on stacked weights, or None when it has to go through vmap."""
    kind = type(module)
    if hooked(module) or hasattr(module, "parametrizations"):
        return None
    if kind in inspection.ELEMENTWISE:
        return lambda flow, u: flow.with_value(module(flow.value))
    if inspection.is_dropout(module):  # off, or it would have been refused
        return lambda flow, u: flow
    if kind in _POOLS and not getattr(module, "return_indices", False):
        axes = _POOLS[kind]
        return lambda flow, u: _pool(module, flow, axes)
    if kind is nn.Flatten and module.start_dim == 1 and module.end_dim == -1:
        return _flatten
    own = _WEIGHTED.get(kind)
    if own is None or (own is _convolution and (module.padding_mode != "zeros" or isinstance(module.padding, str))):
        return None
    weight, bias = (f"{name}.{leaf}" if name else leaf for leaf in ("weight", "bias"))
    return lambda flow, u: own(module, flow, u.get(weight), u.get(bias))


def has_kernel(module: Any) -> bool:
    """Whether the layer is a convolution that may go by columns."""
    if _WEIGHTED.get(type(module)) is not _convolution or module.groups != 1:
        return False
    return by_columns(_patch(module), module.out_channels)


def _pool(module: nn.Module, flow: _Flow, axes: int) -> _Flow:
    if flow.layout != "last" or axes != 2:
        return _Flow(module(flow.as_planes(axes)), flow.tasks, "planes")
    h = flow.as_last(axes)
    out = module(h.flatten(0, 1).movedim(-1, 1)).movedim(1, -1)  # torch's channels_last
    return flow.with_value(out.unflatten(0, h.shape[:2]))


def _flatten(flow: _Flow, u: Weights) -> _Flow:
    h = flow.value
    planes = flow.layout == "planes"
    return _Flow(h.reshape(len(h), flow.tasks, -1).transpose(0, 1) if planes else flow.as_rows().flatten(2), flow.tasks)


# Layers with weights: each takes the module, the flow, and its stacked weight and bias, None where it has none.


def _linear(_module: Any, flow: _Flow, weight: Any, bias: Any) -> _Flow:
    h, w = flow.as_rows(), weight.transpose(1, 2)
    flat = h if h.dim() == 3 else h.flatten(1, -2)
    out = torch.bmm(flat, w) if bias is None else torch.baddbmm(bias.unsqueeze(1), flat, w)
    return _Flow(out if h.dim() == 3 else out.view(*h.shape[:-1], out.shape[-1]), flow.tasks)


def _convolution(module: Any, flow: _Flow, weight: Any, bias: Any) -> _Flow:
    axes = len(module.kernel_size)
    # What is in planes stays there: to go back and forth costs more than it gains.
    if flow.layout != "planes" and has_kernel(module) and known(flow.value):
        h, patch = flow.as_last(axes), _patch(module)
        if fits(h, weight, patch):
            return _Flow(convolve_last(h, weight, bias, patch), flow.tasks, "last")
    window = Window(module.stride, module.padding, module.dilation, module.groups * flow.tasks)
    h = flow.as_planes(axes)
    return _Flow(convolve(h, weight.flatten(0, 1), _flat(bias), window), flow.tasks, "planes")


def _patch(module: Any) -> Patch:
    return Patch(module.kernel_size, module.stride, module.padding, module.dilation)


def _batch_norm(module: Any, flow: _Flow, weight: Any, bias: Any) -> _Flow:
    if flow.layout == "last" and (found := _batch_norm_last(module, flow.value, weight, bias)) is not None:
        return flow.with_value(found)
    h, t, scale, shift = flow.as_planes(), flow.tasks, _flat(weight), _flat(bias)
    mean, var = (None if s is None else s.to(h).repeat(t) for s in (module.running_mean, module.running_var))
    if mean is None and scale is not None and shift is not None and h.numel() > h.shape[1]:
        return _Flow(normalise(h, scale, shift, module.eps), t, "planes")
    return _Flow(F.batch_norm(h, mean, var, scale, shift, mean is None, 0.0, module.eps), t, "planes")


def _batch_norm_last(module: Any, h: Tensor, weight: Any, bias: Any) -> Tensor | None:
    """Batch norm of ``[tasks, shots, ..., C]``, or None where torch is the one to ask, or to refuse."""
    if weight is None or bias is None or h.shape[-1] != module.num_features or h[0, ..., 0].numel() < 2:
        return None
    if module.running_mean is None:
        return normalise_last(h, weight, bias, module.eps)
    scale = weight * (module.running_var.to(h) + module.eps).rsqrt()
    shift = bias - scale * module.running_mean.to(h)
    spread = [len(h), *[1] * (h.dim() - 2), -1]
    return torch.addcmul(shift.view(spread), h, scale.view(spread))


def _group_norm(module: Any, flow: _Flow, weight: Any, bias: Any) -> _Flow:
    groups = module.num_groups * flow.tasks
    return _Flow(F.group_norm(flow.as_planes(), groups, _flat(weight), _flat(bias), module.eps), flow.tasks, "planes")


def _layer_norm(module: Any, flow: _Flow, weight: Any, bias: Any) -> _Flow:
    h = flow.as_rows()
    out = F.layer_norm(h, module.normalized_shape, None, None, module.eps)

    def spread(leaf: Tensor) -> Tensor:
        return leaf.view(flow.tasks, *[1] * (h.dim() - leaf.dim()), *leaf.shape[1:])

    out = out if weight is None else out * spread(weight)
    return _Flow(out if bias is None else out + spread(bias), flow.tasks)


def _flat(leaf: Tensor | None) -> Tensor | None:
    return None if leaf is None else leaf.reshape(-1)


_WEIGHTED: dict[type[nn.Module], Callable[[Any, _Flow, Any, Any], _Flow]] = {
    nn.Linear: _linear, nn.GroupNorm: _group_norm, nn.LayerNorm: _layer_norm,
    nn.Conv1d: _convolution, nn.Conv2d: _convolution, nn.Conv3d: _convolution,
    nn.BatchNorm1d: _batch_norm, nn.BatchNorm2d: _batch_norm, nn.BatchNorm3d: _batch_norm,
}  # fmt: skip
