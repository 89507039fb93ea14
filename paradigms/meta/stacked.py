"""One network with weights of its own for each task, all tasks in one evaluation.

The fast weights are stacked: each parameter is ``[tasks, ...]``, the inputs ``[tasks, shots, ...]``. A chain of known
layers is evaluated directly: linear layers as batched matrix products, convolutions as grouped ones. Known are linear
layers, convolutions (padded with zeros, by numbers), batch, group and layer norm, max, average and adaptive average
pools, ``Flatten()``, elementwise activations and dropout that is off, in nested ``nn.Sequential`` without hooks. One
layer of another kind, a layer with weights that runs twice, or a module with a forward of its own, sends the whole
network through ``torch.func.vmap``, which is exact too and slower; where vmap cannot follow (a forward that branches on
values, recurrent layers, embeddings with a ``padding_idx``) tasks run one after another.

Two layouts are used on the way. Rows: ``[tasks, shots, ...]``. Planes: ``[shots, tasks * channels, ...]``, in which a
channel of one task is a channel of its own, so that convolutions, pools and batch norm run natively and batch norm in
training mode takes its statistics over the shots of one task: nothing leaks between tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mfoc import InvalidType, InvalidValue
from mfoc.checks import check_instance
from mfoc.networks import inspection
from mfoc.networks.inspection import ELEMENTWISE, has_aliases, hooked, is_chain, is_dropout, pure_copy, trainable
from mfoc.seeding import watched
from paradigms.meta.layers import Window, convolve, normalise

Weights = dict[str, Tensor]

# Largest activation of a chunk of tasks, in numbers: on a CPU one that stays in cache is several times faster.
_CACHE = 2**19

_POOLS = {
    nn.MaxPool1d: 1, nn.MaxPool2d: 2, nn.MaxPool3d: 3, nn.AvgPool1d: 1, nn.AvgPool2d: 2, nn.AvgPool3d: 3,
    nn.AdaptiveAvgPool1d: 1, nn.AdaptiveAvgPool2d: 2, nn.AdaptiveAvgPool3d: 3,
}  # fmt: skip
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass
class _Flow:
    """Values on their way through a chain."""

    value: Tensor
    tasks: int
    planes: bool = False

    def as_rows(self) -> Tensor:
        """``[tasks, shots, ...]``."""
        if not self.planes:
            return self.value
        h = self.value
        return h.view(len(h), self.tasks, -1, *h.shape[2:]).transpose(0, 1)

    def as_planes(self, spatial: int | None = None) -> Tensor:
        """``[shots, tasks * channels, ...]``, with so many spatial axes."""
        found = self.value.dim() - (2 if self.planes else 3)
        if spatial is not None and found != spatial:
            raise InvalidValue(
                f"a layer over {spatial} spatial axes was given {found}; a task's inputs must be [shots, channels, ...]"
            )
        if self.planes:
            return self.value
        h = self.value.transpose(0, 1)
        return h.reshape(len(h), self.tasks * h.shape[2], *h.shape[3:])


Layer = Callable[[_Flow, Weights], _Flow]


class StackedNetwork:
    """A network evaluated with stacked weights.

    Args:
        net: the network. It is copied. A submodule may have several names, and run several times.

    Attributes:
        net: the network itself.
        names: names of the parameters that require grad, in the order of the module.
        layers: names of the layers of a chain, in order; empty when the network is no chain of known layers.
        looped: tasks run one after another, as vmap could not follow the network.

    Raises:
        InvalidType: no module.
        InvalidValue: active dropout, lazy parameters, a parameter that two submodules share, nothing to train.
    """

    def __init__(self, net: nn.Module) -> None:
        check_instance(nn.Module, "a torch.nn.Module", net=net)
        inspection.refuse_lazy(net)
        inspection.refuse_sharing(net, aliases=False)
        inspection.refuse_randomness(net)
        if not trainable(net):
            raise InvalidValue("net has no parameter that requires grad; there is nothing to train")
        self.net, self._module = net, pure_copy(net)
        self.names = list(trainable(self._module))
        self._constants = {n: p.detach() for n, p in self._module.named_parameters() if not p.requires_grad}
        self._buffers = dict(self._module.named_buffers())
        chain = list(_chain(self._module, ""))
        made = [_layer(name, module) for name, module in chain]
        direct = [layer for layer in made if layer is not None]
        self._direct = direct if len(direct) == len(made) and not has_aliases(self._module) else []
        self.layers = [name for name, _ in chain] if self._direct else []
        self._largest: dict[Any, int] = {}
        self.looped = any(_pads(part) for part in self._module.modules())

    def initial(self) -> Weights:
        """Copies of the network's own weights, not stacked."""
        return {name: p.detach().clone() for name, p in trainable(self._module).items()}

    def __call__(self, weights: Weights, x: Tensor, *, start: int = 0, stop: int | None = None) -> Tensor:
        """Outputs ``[tasks, shots, ...]``.

        Args:
            weights: each parameter ``[tasks, ...]``.
            x: inputs ``[tasks, shots, ...]``.
            start: layer to begin at, in a chain.
            stop: layer to stop before.
        """
        tasks = len(x)
        weights = self._complete(weights, tasks)
        if self._direct:
            flow = _Flow(x, tasks)
            for layer in self._direct[start:stop]:
                flow = layer(flow, weights)
            return flow.as_rows()

        return self._called(weights, x)

    def _called(self, weights: Weights, x: Tensor) -> Tensor:
        """The module's own forward on each task: through vmap, or in a loop where vmap cannot follow it."""
        like = next(iter(weights.values()))

        def one(weights: Weights, x: Tensor) -> Any:
            # Copies, as a forward may write into its buffers: each evaluation starts from the network's.
            buffers = {
                name: b.to(like, copy=True) if b.is_floating_point() else b.clone() for name, b in self._buffers.items()
            }
            return torch.func.functional_call(self._module, (weights, buffers), (x,))

        if not self.looped:
            try:
                out: Tensor = torch.func.vmap(one)(weights, x)
                return out
            except (RuntimeError, NotImplementedError):
                pass  # a forward that branches on values, has an operation that vmap lacks, or draws random numbers
        drawn = watched()
        found = [one({name: leaf[i] for name, leaf in weights.items()}, x[i]) for i in range(len(x))]
        if not self.looped and drawn():
            raise InvalidValue(
                "net draws random numbers in its forward pass (dropout?); costs must be pure: switch it off"
            )
        if not all(isinstance(part, Tensor) for part in found):
            raise InvalidType(f"net returns a {type(found[0]).__name__}; expected one tensor: wrap it in a module")
        self.looped = True  # a memo
        return torch.stack(found)

    def _complete(self, weights: Weights, tasks: int) -> Weights:
        """With the constants: parameters that do not require grad."""
        if not self._constants:
            return weights
        like = next(iter(weights.values()))
        return {name: c.to(like).expand(tasks, *c.shape) for name, c in self._constants.items()} | weights

    def chunks(self, weights: Weights, x: Tensor, *, start: int = 0, stop: int | None = None) -> list[int]:
        """How many tasks to evaluate at a time: sizes that add up to all tasks; arguments as in a call."""
        tasks = len(x)
        if x.device.type != "cpu" or not self._direct or tasks == 1:
            return [tasks]
        key = (start, stop, *x.shape[1:])
        if key not in self._largest:  # a memo: the chain is run once for each shape of input
            few = {name: leaf[:1].detach() for name, leaf in weights.items()}
            self._largest[key] = self._measure(self._complete(few, 1), x[:1].detach(), start, stop)
        count = max(1, -(-tasks * self._largest[key] // _CACHE))
        size = -(-tasks // count)
        return [min(size, tasks - i) for i in range(0, tasks, size)]

    def _measure(self, weights: Weights, x: Tensor, start: int, stop: int | None) -> int:
        """The size of the largest activation of one task."""
        flow, largest = _Flow(x, 1), 1
        with torch.no_grad():
            for layer in self._direct[start:stop]:
                flow = layer(flow, weights)
                largest = max(largest, flow.value.numel())
        return largest


def _pads(module: nn.Module) -> bool:
    """Whether a row of an embedding is never trained: vmap's embedding forgets which."""
    return isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.padding_idx is not None


def _chain(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    """The layers of nested ``nn.Sequential`` in the order they run; a module that is none is one layer."""
    if is_chain(module) and "forward" not in module.__dict__ and not hooked(module):
        for name, child in module._modules.items():  # a layer that is used twice included
            assert child is not None
            yield from _chain(child, f"{prefix}.{name}" if prefix else name)
    else:
        yield prefix, module


def _layer(name: str, module: nn.Module) -> Layer | None:
    """The layer on stacked weights, or None when it has to go through vmap."""
    kind = type(module)
    if hooked(module) or hasattr(module, "parametrizations"):
        return None
    if kind in ELEMENTWISE:
        return lambda flow, u: _Flow(module(flow.value), flow.tasks, flow.planes)
    if is_dropout(module):  # off, or it would have been refused
        return lambda flow, u: flow
    if kind in _POOLS and not getattr(module, "return_indices", False):
        axes = _POOLS[kind]
        return lambda flow, u: _Flow(module(flow.as_planes(axes)), flow.tasks, True)
    if kind is nn.Flatten and module.start_dim == 1 and module.end_dim == -1:
        return _flatten
    if kind is nn.Linear:
        return _linear(name)
    if kind in _CONVOLUTIONS and module.padding_mode == "zeros" and not isinstance(module.padding, str):
        return _convolution(name, module)
    return _norm(name, module)


def _key(name: str, leaf: str) -> str:
    return f"{name}.{leaf}" if name else leaf


def _flatten(flow: _Flow, u: Weights) -> _Flow:
    if flow.planes:
        h = flow.value
        return _Flow(h.reshape(len(h), flow.tasks, -1).transpose(0, 1), flow.tasks)
    return _Flow(flow.value.flatten(2), flow.tasks)


def _linear(name: str) -> Layer:
    weight, bias = _key(name, "weight"), _key(name, "bias")

    def layer(flow: _Flow, u: Weights) -> _Flow:
        h = flow.as_rows()
        w, b = u[weight].transpose(1, 2), u.get(bias)
        flat = h if h.dim() == 3 else h.flatten(1, -2)
        out = torch.bmm(flat, w) if b is None else torch.baddbmm(b.unsqueeze(1), flat, w)
        return _Flow(out if h.dim() == 3 else out.view(*h.shape[:-1], out.shape[-1]), flow.tasks)

    return layer


def _convolution(name: str, module: Any) -> Layer:
    weight, bias = _key(name, "weight"), _key(name, "bias")

    def layer(flow: _Flow, u: Weights) -> _Flow:
        h = flow.as_planes(len(module.kernel_size))
        window = Window(module.stride, module.padding, module.dilation, module.groups * flow.tasks)
        b = u.get(bias)
        out = convolve(h, u[weight].flatten(0, 1), None if b is None else b.reshape(-1), window)
        return _Flow(out, flow.tasks, True)

    return layer


def _norm(name: str, module: Any) -> Layer | None:
    weight, bias = _key(name, "weight"), _key(name, "bias")
    if type(module) in _BATCH_NORMS:

        def batch_norm(flow: _Flow, u: Weights) -> _Flow:
            h, t = flow.as_planes(), flow.tasks
            scale, shift = (None if key not in u else u[key].reshape(-1) for key in (weight, bias))
            mean, var = (None if s is None else s.to(h).repeat(t) for s in (module.running_mean, module.running_var))
            if mean is None and scale is not None and shift is not None and h.numel() > h.shape[1]:
                return _Flow(normalise(h, scale, shift, module.eps), t, True)
            return _Flow(F.batch_norm(h, mean, var, scale, shift, mean is None, 0.0, module.eps), t, True)

        return batch_norm
    if type(module) is nn.GroupNorm:

        def group_norm(flow: _Flow, u: Weights) -> _Flow:
            scale, shift = (None if key not in u else u[key].reshape(-1) for key in (weight, bias))
            groups = module.num_groups * flow.tasks
            return _Flow(F.group_norm(flow.as_planes(), groups, scale, shift, module.eps), flow.tasks, True)

        return group_norm
    if type(module) is nn.LayerNorm:
        return lambda flow, u: _layer_norm(flow, u.get(weight), u.get(bias), module)
    return None


def _layer_norm(flow: _Flow, scale: Tensor | None, shift: Tensor | None, module: Any) -> _Flow:
    h = flow.as_rows()
    out = F.layer_norm(h, module.normalized_shape, None, None, module.eps)

    def spread(leaf: Tensor) -> Tensor:
        return leaf.view(flow.tasks, *[1] * (h.dim() - leaf.dim()), *leaf.shape[1:])

    out = out if scale is None else out * spread(scale)
    return _Flow(out if shift is None else out + spread(shift), flow.tasks)
