"""One forward pass of any network, with what entered and left each of its modules, and where on the autograd graph.

A place on the graph is kept as an edge (a node and the number of its output), not as the tensor alone: a later layer
may write over the tensor (``x += f(x)``), which moves the tensor along the graph, never the edge.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn.utils import parametrize

from mfoc import tree
from mfoc.analysis.propagation.recording.statistics import Statistics, statistics
from mfoc.checks import check_plain
from mfoc.errors import InvalidType, InvalidValue
from mfoc.networks.inspection import pure_copy, unwrapped, without_inplace
from mfoc.seeding import seeded
from mfoc.tree import Tree

Key = tuple[Any, int]
_IMAGES = (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm)


@dataclass(eq=False)
class Point:
    """A tensor that was seen in the forward pass, and its place on the autograd graph.

    Attributes:
        edge: the place.
        tensor: the tensor; later written over where ``version`` is no longer its own.
        version: that of the tensor when it was seen.
        seen: its statistics when it was seen.
    """

    edge: GradientEdge
    tensor: Tensor
    version: int
    seen: Statistics

    @property
    def key(self) -> Key:
        """What tells places apart."""
        return self.edge.node, self.edge.output_nr

    @property
    def end(self) -> Any:
        """What ``torch.autograd.grad`` differentiates: the tensor, or where it was written over its former place."""
        return self.tensor if self.tensor._version == self.version else self.edge


@dataclass(eq=False)
class Call:
    """A call of a module.

    Attributes:
        name: the module's path; empty for the network itself.
        module: the module, of the private copy that was run.
        starts: the floating-point tensors that entered, in the order of its arguments.
        ends: those that left.
        children: the calls inside it, in the order they were made.
        count: how often the module has been called, this time included.
        constant: whether a floating-point tensor entered that carries no derivative.
    """

    name: str
    module: nn.Module
    starts: list[Point] = field(default_factory=list)
    ends: list[Point] = field(default_factory=list)
    children: list[Call] = field(default_factory=list)
    count: int = 1
    constant: bool = False
    sources: list[Tensor] = field(default_factory=list)  # of integers, which have no place on the graph

    def walk(self) -> Iterator[Call]:
        """The call and all inside it."""
        yield self
        for child in self.children:
            yield from child.walk()


@dataclass(eq=False)
class Recording:
    """A forward pass.

    Attributes:
        root: the call of the network.
        output: what it returned.
        sources: where the data enters: the inputs, or for those of integers what their embeddings made of them.
        entering: the inputs that are floating point.
        trainable: the parameters of the copy whose counterparts require grad.
        size: the number of inputs N.
    """

    root: Call
    output: Any
    sources: list[Point]
    entering: list[Point]
    trainable: set[int]
    size: int


def record(net: nn.Module, x: Tree, *, seed: int = 0) -> Recording:
    """Runs a private copy of a network once and records every module's call.

    Args:
        net: any module; it is not touched. Its mode is kept, so batch norm and dropout act as it says.
        x: its input ``[N, ...]``; a tuple or list is several arguments, a dict keyword arguments.
        seed: of what the network draws (dropout).

    Raises:
        InvalidType: an input that is no tensor, an output that carries no derivative.
        InvalidValue: an empty input, a lazy or parameterless network, or one that fails on x.
    """
    size = _check_input(net, x)
    with torch.inference_mode(False), torch.enable_grad(), seeded(seed, tree.leaves(x)[0].device):
        private = without_inplace(pure_copy(unwrapped(net), type(net).__name__))  # what is recorded is kept
        trainable = {id(p) for p in private.parameters() if p.requires_grad}
        for parameter in private.parameters():  # so that the graph reaches all of them
            parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
        leaves = tree.map(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, x)
        inputs = [leaf.requires_grad_() for leaf in tree.tensors(leaves)]
        observer = _Observer(private)
        entering = [observer.point(leaf, nn.Identity()) for leaf in inputs]
        # The layers may write over their inputs, which leaves of the graph refuse.
        given = tree.map(lambda leaf: leaf.view_as(leaf) if tree.differentiable(leaf) else leaf, leaves)
        with observer.watching():
            output = _run(private, given)
        root = observer.root
        sources = entering or _embedded(root, tree.leaves(leaves))
    root.ends = root.ends or [observer.point(leaf, root.module) for leaf in _first_tensors(output)]
    if not root.ends:
        raise InvalidType(
            f"net returned {tree.describe(output)}, which has no derivative; expected floating-point numbers that "
            "depend on the parameters (no argmax, detach or torch.no_grad at the end): diagnose the part before it"
        )
    return Recording(root, output, sources, entering, trainable, size)


def _check_input(net: nn.Module, x: Tree) -> int:
    for name, parameter in net.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise InvalidValue(f"parameter {name!r} is lazy and has no shape yet; call net(x) once before diagnose")
    if not any(True for _ in net.parameters()):
        raise InvalidValue(f"net, {type(net).__name__}, has no parameters; there is no block to diagnose")
    named = tree.named_leaves(x, "x")
    if not named:
        raise InvalidType("x holds no tensor; expected a batch of inputs [N, ...], or a tuple of them")
    for name, leaf in named:
        check_plain("a batch of inputs [N, ...]", **{name: leaf})
        if leaf.numel() == 0:
            raise InvalidValue(f"{name} is empty, {tuple(leaf.shape)}; expected at least one input, [N, ...]")
    return int(named[0][1].shape[0]) if named[0][1].dim() else 1


def _run(net: nn.Module, given: Tree) -> Any:
    try:
        if isinstance(given, Mapping):
            return net(**given)
        return net(*given) if isinstance(given, tuple | list) else net(given)
    except Exception as error:  # whatever the forward pass raises
        raise InvalidValue(f"net failed on x, {tree.describe(given)}: {error}") from error


def _first_tensors(value: Any) -> list[Tensor]:
    """The first tensor that carries a derivative, of whatever a module returned."""
    values = list(value.values()) if isinstance(value, Mapping) else value
    return [leaf for leaf in tree.leaves(values) if carries(leaf)][:1]


def carries(leaf: Any) -> bool:
    """Whether it is a tensor that carries a derivative."""
    return tree.differentiable(leaf) and bool(leaf.requires_grad)


def _embedded(root: Call, given: list[Any]) -> list[Point]:
    """Where inputs of integers become numbers: the outputs of modules that took them, and nothing else, in."""
    made = [call for call in root.walk() if not call.children and not call.starts and call.ends and call.sources]
    own = {leaf.data_ptr() for leaf in given if isinstance(leaf, Tensor)}
    of_data = [call for call in made if any(source.data_ptr() in own for source in call.sources)]
    return [point for call in of_data or made for point in call.ends]


class _Observer:
    """Hooks on every module of a network."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self.points: dict[Key, Point] = {}
        self.stack: list[Call] = []
        self.counts: dict[int, int] = {}
        self.root = Call("", net)
        attention = [part for part in net.modules() if isinstance(part, nn.MultiheadAttention)]
        self.sequence_first = bool(attention) and not any(part.batch_first for part in attention)

    @contextmanager
    def watching(self) -> Iterator[None]:
        handles = []
        for name, module in self.net.named_modules():
            if "parametrizations" in name.split(".") or isinstance(module, parametrize.ParametrizationList):
                continue  # they map parameters to parameters
            try:
                handles.append(module.register_forward_pre_hook(self._enter(name), prepend=True, with_kwargs=True))
                handles.append(module.register_forward_hook(self._leave, with_kwargs=True))
            except RuntimeError:  # parts of scripted modules take none
                continue
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            self.counts[id(module)] = self.counts.get(id(module), 0) + 1
            call = Call(name, module, count=self.counts[id(module)])
            given = [leaf for leaf in tree.leaves([list(args), kwargs]) if isinstance(leaf, Tensor)]
            call.starts = [self.point(leaf, module) for leaf in given if carries(leaf)]
            call.constant = any(tree.differentiable(leaf) and not leaf.requires_grad for leaf in given)
            call.sources = [leaf for leaf in given if not tree.differentiable(leaf)]
            if self.stack:
                self.stack[-1].children.append(call)
            else:
                self.root = call
            self.stack.append(call)

        return hook

    def _leave(self, module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
        call = self.stack.pop()
        call.ends = [self.point(leaf, module) for leaf in _first_tensors(output)]

    def point(self, tensor: Tensor, module: nn.Module) -> Point:
        """The place of a tensor, made once however often it is met."""
        edge = get_gradient_edge(tensor)
        key = (edge.node, edge.output_nr)
        if key not in self.points:
            images = tensor.dim() > 3 or (tensor.dim() == 3 and self._of_images(module))
            seen = statistics([tensor], unit_axis=1 if images else -1, sequence_first=self.sequence_first)
            self.points[key] = Point(edge, tensor, tensor._version, seen)
        return self.points[key]

    def _of_images(self, module: nn.Module) -> bool:
        """Whether ``[N, a, b]`` has channels on axis 1: inside a convolution, or a network without any other layer."""
        if isinstance(module, _IMAGES):
            return True
        kinds = [type(part) for part in self.net.modules()]
        return any(issubclass(kind, nn.Conv1d) for kind in kinds) and nn.LayerNorm not in kinds
