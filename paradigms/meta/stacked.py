"""One network with weights of its own for each task, all tasks in one evaluation.

The fast weights are stacked: each parameter is ``[tasks, ...]``, the inputs ``[tasks, shots, ...]``. A chain of known
layers is evaluated directly: linear layers as batched matrix products, convolutions as grouped ones. Known are linear
layers, convolutions (padded with zeros, by numbers), batch, group and layer norm, max, average and adaptive average
pools, ``Flatten()``, elementwise activations and dropout that is off, in nested ``nn.Sequential`` without hooks. One
layer of another kind, weights that are used twice, or a module with a forward of its own, sends the whole
network through ``torch.func.vmap``, which is exact too and slower; where vmap cannot follow (a forward that branches on
values, recurrent layers, embeddings with a ``padding_idx``; see ``mfoc.vectorisation``) tasks run one after another.

Two layouts are used on the way. Rows: ``[tasks, shots, ...]``. Planes: ``[shots, tasks * channels, ...]``, in which a
channel of one task is a channel of its own, so that convolutions, pools and batch norm run natively and batch norm in
training mode takes its statistics over the shots of one task: nothing leaks between tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mfoc import InvalidValue, tree
from mfoc.checks import check_instance
from mfoc.networks import functional, inspection
from mfoc.networks.arguments import Arguments
from mfoc.networks.inspection import has_aliases, hooked, pure_copy, shared_parameters, trainable  # noqa: F401  (they were public here)
from mfoc.networks.purity import check_pure
from mfoc.vectorisation import Mapper, misled
from paradigms.meta.layers import Window, convolve, normalise

Weights = dict[str, Tensor]

# Largest activation of a chunk of tasks, in numbers: on a CPU one that stays in cache is several times faster.
_CACHE = 2**19

_POOLS = {
    nn.MaxPool1d: 1, nn.MaxPool2d: 2, nn.MaxPool3d: 3, nn.AvgPool1d: 1, nn.AvgPool2d: 2, nn.AvgPool3d: 3,
    nn.AdaptiveAvgPool1d: 1, nn.AdaptiveAvgPool2d: 2, nn.AdaptiveAvgPool3d: 3,
}  # fmt: skip


@dataclass(eq=False)
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
        net: the network. It is copied. A submodule may have several names, and run several times; a parameter that
            several submodules share is one weight, under its first name.

    Attributes:
        net: the network itself.
        names: names of the parameters that require grad, in the order of the module.
        layers: names of the layers of a chain, in order; empty when the network is no chain of known layers.

    Raises:
        InvalidType: no module.
        InvalidValue: active dropout, lazy or complex parameters, what cannot be copied, nothing to train.
    """

    def __init__(self, net: nn.Module) -> None:
        check_instance(nn.Module, "a torch.nn.Module", net=net)
        net = inspection.unwrapped(net)
        inspection.refuse_unfit(net)
        if not trainable(net):
            raise InvalidValue("net has no parameter that requires grad; there is nothing to train")
        self.net, self._function = net, functional(net)
        self._module = self._function.module
        self._arguments = Arguments.of(net)
        self.names = list(trainable(self._module))
        self._constants = {n: p.detach() for n, p in self._module.named_parameters() if not p.requires_grad}
        chain = list(_chain(self._module, ""))
        made = [_layer(name, module) for name, module in chain]
        direct = [layer for layer in made if layer is not None]
        self._direct = direct if len(direct) == len(made) and not any(shared_parameters(self._module)) else []
        if self._direct:  # a layer of a chain may as well write elsewhere, and the first one would into the tasks
            inspection.without_inplace(self._module)
        self.layers = [name for name, _ in chain] if self._direct else []
        self._largest: dict[Any, int] = {}
        self._mapper = Mapper("net", "task", unfit=misled(self._module))

    @property
    def looped(self) -> bool:
        """Whether tasks run one after another, as vmap cannot follow the network."""
        return self._mapper.looped

    def check(self, x: Any) -> None:
        """Refuses a network that is another function after it has run, on the inputs of a task ``[shots, ...]``."""
        if not self._direct:
            self._arguments.call(partial(check_pure, self._function, "net", self.initial()), x)

    def initial(self) -> Weights:
        """Copies of the network's own weights, not stacked."""
        return {name: p.detach().clone() for name, p in trainable(self._module).items()}

    def __call__(self, weights: Weights, x: Any, *, start: int = 0, stop: int | None = None) -> Any:
        """Outputs ``[tasks, shots, ...]``: a tensor, or a tree of them where the network returns one.

        Args:
            weights: each parameter ``[tasks, ...]``.
            x: inputs ``[tasks, shots, ...]``; a tuple or a dict of them where the network has several arguments.
            start: layer to begin at, in a chain.
            stop: layer to stop before.
        """
        tasks = len(tree.leaves(x)[0])
        weights = self._complete(weights, tasks)
        if self._direct:
            flow = _Flow(x, tasks)
            for layer in self._direct[start:stop]:
                flow = layer(flow, weights)
            return flow.as_rows()

        return self._called(weights, x)

    def _called(self, weights: Weights, x: Any) -> Any:
        """The module's own forward on each task: through vmap, or in a loop where vmap cannot follow it."""
        return self._mapper(lambda w, x: self._arguments.call(partial(self._function, w), x), weights, x)

    def _complete(self, weights: Weights, tasks: int) -> Weights:
        """With the constants: parameters that do not require grad."""
        if not self._constants:
            return weights
        like = next(iter(weights.values()))
        return {name: c.to(like).expand(tasks, *c.shape) for name, c in self._constants.items()} | weights

    def chunks(self, weights: Weights, x: Any, *, start: int = 0, stop: int | None = None) -> list[int]:
        """How many tasks to evaluate at a time: sizes that add up to all tasks; arguments as in a call."""
        first = tree.leaves(x)[0]
        tasks = len(first)
        if first.device.type != "cpu" or not self._direct or tasks == 1:
            return [tasks]
        key = (start, stop, *x.shape[1:])
        if key not in self._largest:  # a memo: the chain is run once for each shape of input
            few = self._complete({name: leaf[:1].detach() for name, leaf in weights.items()}, 1)
            flow, largest = _Flow(x[:1].detach(), 1), 1
            with torch.no_grad():
                for layer in self._direct[start:stop]:
                    flow = layer(flow, few)
                    largest = max(largest, flow.value.numel())
            self._largest[key] = largest
        count = max(1, -(-tasks * self._largest[key] // _CACHE))
        size = -(-tasks // count)
        return [min(size, tasks - i) for i in range(0, tasks, size)]


def _chain(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    """The layers of nested ``nn.Sequential`` in the order they run; a module that is none is one layer."""
    if inspection.is_chain(module) and "forward" not in module.__dict__ and not hooked(module):
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
    if kind in inspection.ELEMENTWISE:
        return lambda flow, u: _Flow(module(flow.value), flow.tasks, flow.planes)
    if inspection.is_dropout(module):  # off, or it would have been refused
        return lambda flow, u: flow
    if kind in _POOLS and not getattr(module, "return_indices", False):
        axes = _POOLS[kind]
        return lambda flow, u: _Flow(module(flow.as_planes(axes)), flow.tasks, True)
    if kind is nn.Flatten and module.start_dim == 1 and module.end_dim == -1:
        return _flatten
    own = _WEIGHTED.get(kind)
    if own is None or (own is _convolution and (module.padding_mode != "zeros" or isinstance(module.padding, str))):
        return None
    weight, bias = (f"{name}.{leaf}" if name else leaf for leaf in ("weight", "bias"))
    return lambda flow, u: own(module, flow, u.get(weight), u.get(bias))


def _flatten(flow: _Flow, u: Weights) -> _Flow:
    h = flow.value
    rows = h.reshape(len(h), flow.tasks, -1).transpose(0, 1) if flow.planes else h.flatten(2)
    return _Flow(rows, flow.tasks)


# Layers with weights: each takes the module, the flow, and its stacked weight and bias, None where it has none.


def _linear(_module: Any, flow: _Flow, weight: Any, bias: Any) -> _Flow:
    h, w = flow.as_rows(), weight.transpose(1, 2)
    flat = h if h.dim() == 3 else h.flatten(1, -2)
    out = torch.bmm(flat, w) if bias is None else torch.baddbmm(bias.unsqueeze(1), flat, w)
    return _Flow(out if h.dim() == 3 else out.view(*h.shape[:-1], out.shape[-1]), flow.tasks)


def _convolution(module: Any, flow: _Flow, weight: Any, bias: Any) -> _Flow:
    window = Window(module.stride, module.padding, module.dilation, module.groups * flow.tasks)
    h = flow.as_planes(len(module.kernel_size))
    return _Flow(convolve(h, weight.flatten(0, 1), _flat(bias), window), flow.tasks, True)


def _batch_norm(module: Any, flow: _Flow, weight: Any, bias: Any) -> _Flow:
    h, t, scale, shift = flow.as_planes(), flow.tasks, _flat(weight), _flat(bias)
    mean, var = (None if s is None else s.to(h).repeat(t) for s in (module.running_mean, module.running_var))
    if mean is None and scale is not None and shift is not None and h.numel() > h.shape[1]:
        return _Flow(normalise(h, scale, shift, module.eps), t, True)
    return _Flow(F.batch_norm(h, mean, var, scale, shift, mean is None, 0.0, module.eps), t, True)


def _group_norm(module: Any, flow: _Flow, weight: Any, bias: Any) -> _Flow:
    groups = module.num_groups * flow.tasks
    return _Flow(F.group_norm(flow.as_planes(), groups, _flat(weight), _flat(bias), module.eps), flow.tasks, True)


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
