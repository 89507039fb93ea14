"""One network with weights of its own for each task, all tasks in one evaluation.

The fast weights are stacked: each parameter is ``[tasks, ...]``, the inputs ``[tasks, shots, ...]``. A chain of known
layers is evaluated directly: linear layers as batched matrix products, convolutions as products of patches where
that is faster (see ``columns``) and as grouped ones elsewhere. Known are linear layers, convolutions (padded with
zeros, by numbers), batch, group and layer norm, max, average and adaptive average pools, ``Flatten()``, elementwise
activations and dropout that is off, in nested ``nn.Sequential`` without hooks. One layer of another kind, weights that
are used twice, or a module with a forward of its own, sends the whole network through ``torch.func.vmap``, which is
exact too and slower; where vmap cannot follow (a forward that branches on values, recurrent layers, embeddings with a
``padding_idx``; see ``mfoc.vectorisation``) tasks run one after another.

In which layouts values go through a chain, ``chains`` says.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from mfoc import InvalidValue, tree
from mfoc.checks import check_instance
from mfoc.networks import functional, inspection
from mfoc.networks.arguments import Arguments
from mfoc.networks.inspection import has_aliases, hooked, pure_copy, shared_parameters, trainable  # noqa: F401  (they were public here)
from mfoc.networks.purity import check_pure
from mfoc.vectorisation import Mapper, misled
from paradigms.meta.chains import Layer as Layer
from paradigms.meta.chains import Weights as Weights
from paradigms.meta.chains import _Flow, has_kernel, layer, layers_of
from paradigms.meta.columns import in_place_of, known

# Largest activation of a chunk of tasks, in numbers: on a CPU one that stays in cache is several times faster.
_CACHE = 2**19


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
        chain = list(layers_of(self._module, ""))
        made = [layer(name, module) for name, module in chain]
        direct = [step for step in made if step is not None]
        self._direct = direct if len(direct) == len(made) and not any(shared_parameters(self._module)) else []
        if self._direct:  # a layer of a chain may as well write elsewhere, and the first one would into the tasks
            inspection.without_inplace(self._module)
        self.layers = [name for name, _ in chain] if self._direct else []
        self._kernels = {
            f"{name}.weight" if name else "weight" for name, part in chain if self._direct and has_kernel(part)
        }
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

    def stacked(self, weights: Weights, tasks: int) -> Weights:
        """Weights that all tasks start from, ``[tasks, ...]``, laid out in memory as the layers read them."""
        read = {
            name: in_place_of(leaf) if name in self._kernels and known(leaf) else leaf for name, leaf in weights.items()
        }
        return {name: leaf.expand(tasks, *leaf.shape) for name, leaf in read.items()}

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
            for step in self._direct[start:stop]:
                flow = step(flow, weights)
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
                for step in self._direct[start:stop]:
                    flow = step(flow, few)
                    largest = max(largest, flow.value.numel())
            self._largest[key] = largest
        count = max(1, -(-tasks * self._largest[key] // _CACHE))
        size = -(-tasks // count)
        return [min(size, tasks - i) for i in range(0, tasks, size)]
