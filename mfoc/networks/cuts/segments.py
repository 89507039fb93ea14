"""The stages of a traced network as modules."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from mfoc import tree
from mfoc.errors import InvalidValue
from mfoc.networks.arguments import Arguments
from mfoc.networks.cuts.alive import Flow
from mfoc.networks.cuts.axes import Axes
from mfoc.networks.cuts.operations import is_count
from mfoc.tree import Tree


@dataclass(frozen=True)
class Ref:
    """The place of a value among those of a run."""

    place: int


@dataclass(frozen=True, eq=False)
class Step:
    """One operation: ``op`` and ``target`` as in torch.fx, or "count", the number of particles."""

    op: str
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    place: int
    last: tuple[int, ...]  # places that nothing later needs
    grad: bool = True  # whether derivatives go through it


@dataclass(frozen=True, eq=False)
class Program:
    """What a stage does.

    Attributes:
        given: the optional arguments that the network was given.
        entering: the names of the values that enter, at places 0, 1, ...
        copied: places of those it writes into.
        steps: its operations in order.
        result: the state that leaves, a tree whose leaves are places.
        last: whether that is the network's output.
    """

    given: frozenset[str]
    entering: tuple[str, ...]
    copied: tuple[int, ...]
    steps: tuple[Step, ...]
    result: Tree
    last: bool


def filled(value: Any, change: Callable[[Any], Any], kind: type) -> Any:
    """A nest of tuples, lists, dicts and slices with ``change`` applied to what is of this kind."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, tuple):
        made = [filled(item, change, kind) for item in value]
        return type(value)(*made) if hasattr(value, "_fields") else tuple(made)
    if isinstance(value, list):
        return [filled(item, change, kind) for item in value]
    if isinstance(value, dict):
        return {key: filled(item, change, kind) for key, item in value.items()}
    if isinstance(value, slice):
        return slice(*(filled(item, change, kind) for item in (value.start, value.stop, value.step)))
    return value


class Segment(nn.Module):
    """One stage of a network: it shares the network's modules, under their names there.

    A network with optional arguments has a program for each set of them that may be given; the state holds those that
    are, at every stage. Attributes are private, as those of the network have their names here.
    """

    def __init__(
        self, net: nn.Module, programs: Mapping[frozenset[str], Program], arguments: Arguments, axes: Axes, index: int
    ) -> None:
        super().__init__()
        self._programs, self._axes, self._index = dict(programs), axes, index
        self._first = None if index else arguments
        self.training = net.training

    def _chosen(self, x: Tree) -> Program:
        """What this stage does with a state.

        Raises:
            InvalidValue: the state holds arguments that the network could not be traced with.
        """
        if self._first is None:
            keys = set(x) if isinstance(x, dict) else set()
            return next(
                (own for own in self._programs.values() if own.given and set(own.entering) == keys), self._plain
            )
        given = frozenset(self._first.named(x)) - set(self._first.main)
        if given not in self._programs:
            raise InvalidValue(
                f"the network cannot be cut where its arguments {sorted(given)} are given (its forward pass decides by "
                "them); wrap it in a module whose forward pass takes them as required arguments"
            )
        return self._programs[given]

    @property
    def _plain(self) -> Program:
        return self._programs[frozenset()]

    @property
    def _called(self) -> list[str] | None:
        """The modules that are called one after another, where this is all that it does (``inspection.is_affine``)."""
        program = self._plain
        chain = [step.args == (Ref(k),) and not step.kwargs for k, step in enumerate(program.steps)]
        ends = isinstance(program.result, Ref) and program.result.place == len(chain)
        calls = all(step.op == "call_module" for step in program.steps)
        single = len(program.entering) == len(self._programs) == 1
        return [step.target for step in program.steps] if single and ends and calls and all(chain) else None

    def forward(self, x: Tree) -> Tree:
        """The state that enters to the one that leaves."""
        program = self._chosen(x)
        move = partial(self._moved, program)
        return self._axes.step(self._index, program.given, move, x, last=program.last)

    def _moved(self, program: Program, x: Tree, particles: int) -> Tree:
        if self._first is not None:
            held = self._first.named(x)
            values = {k: held[name] for k, name in enumerate(program.entering)}
        elif len(program.entering) > 1:
            values = {k: x[name] for k, name in enumerate(program.entering)}
        else:
            values = {0: x}
        for place in program.copied:
            values[place] = tree.map(Tensor.clone, values[place])
        for step in program.steps:
            with nullcontext() if step.grad else torch.no_grad():
                values[step.place] = self._outcome(step, values, particles)
            for place in step.last:
                del values[place]
        return filled(program.result, lambda ref: values[ref.place], Ref)

    def _outcome(self, step: Step, values: Mapping[int, Any], particles: int) -> Any:
        if step.op == "count":
            return particles
        if step.op == "get_attr":
            return operator.attrgetter(step.target)(self)
        args = filled(step.args, lambda ref: values[ref.place], Ref)
        kwargs = filled(step.kwargs, lambda ref: values[ref.place], Ref)
        if step.op == "call_method":
            return getattr(args[0], step.target)(*args[1:], **kwargs)
        function = self.get_submodule(step.target) if step.op == "call_module" else step.target
        return function(*args, **kwargs)


def segments(
    net: nn.Module,
    flows: Mapping[frozenset[str], Flow],
    constants: Mapping[frozenset[str], Mapping[str, Any]],
    arguments: Arguments,
) -> list[Segment]:
    """The stages of a network, given its forward pass for each set of optional arguments; the first is for none."""
    stages = next(iter(flows.values())).stages
    programs = {given: [_program(flow, k) for k in range(stages)] for given, flow in flows.items()}
    axes = Axes()
    parts: dict[frozenset[str], list[Segment]] = {}
    for given, own in programs.items():
        parts[given] = [
            _attached(Segment(net, {given: program}, arguments, axes, 0), net, [program], constants[given])
            for program in own
        ]
    plain = next(iter(parts))
    fit = [given for given in flows if all(map(_same_parameters, parts[given], parts[plain]))]
    made = []
    for k in range(stages):
        chosen = {given: programs[given][k] for given in fit}
        segment = Segment(net, chosen, arguments, axes, k)
        for given in fit:
            _attached(segment, net, [chosen[given]], constants[given])
        made.append(segment)
    return made


def _same_parameters(left: nn.Module, right: nn.Module) -> bool:
    return {id(p) for p in left.parameters()} == {id(p) for p in right.parameters()}


def _program(flow: Flow, stage: int) -> Program:
    entering, run = flow.entering(stage), flow.runs[stage]
    copied = flow.overwritten(stage)
    place = {node: k for k, node in enumerate([*entering, *run])}
    result = flow.leaving(stage)
    kept = set(_nodes(result))
    user = {source: node for node in run for source in _sources(node)}  # the last one
    spent: dict[fx.Node, list[int]] = {node: [] for node in run}
    for node in place:
        end = user.get(node, node)
        if node not in kept and end in spent:
            spent[end].append(place[node])
    return Program(
        flow.given,
        tuple(flow.labels(entering, stage - 1)),
        tuple(place[node] for node in entering if node in copied),
        tuple(_step(node, place, tuple(spent[node])) for node in run),
        filled(result, lambda node: Ref(place[node]), fx.Node),
        stage == flow.stages - 1,
    )


def _step(node: fx.Node, place: Mapping[fx.Node, int], spent: tuple[int, ...]) -> Step:
    if is_count(node):
        return Step("count", None, (), {}, place[node], spent)
    args, kwargs = (filled(part, lambda n: Ref(place[n]), fx.Node) for part in (node.args, node.kwargs))
    return Step(node.op, node.target, tuple(args), kwargs, place[node], spent, not node.meta.get("no_grad"))


def _sources(node: fx.Node) -> list[fx.Node]:
    return [] if is_count(node) else node.all_input_nodes


def _nodes(nest: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    filled(nest, found.append, fx.Node)
    return found


def _attached(segment: Segment, net: nn.Module, programs: Sequence[Program], constants: Mapping[str, Any]) -> Segment:
    """The same segment with what its programs use, at its path in the network and in the order of use."""
    steps = [step for program in programs for step in program.steps if step.op in ("call_module", "get_attr")]
    modules = [step.target for step in steps if step.op == "call_module"]
    for path in sorted(dict.fromkeys(modules), key=lambda path: (path.count("."), modules.index(path))):
        _attach(segment, net, path, net.get_submodule(path))
    for step in steps:
        if step.op == "get_attr":
            path = step.target
            found = constants[path] if path in constants else operator.attrgetter(path)(net)
            _attach(segment, net, path, found)
    return segment


def _attach(segment: nn.Module, net: nn.Module, path: str, value: Any) -> None:
    owner, original = segment, net
    *around, leaf = path.split(".")
    for name in around:
        original = getattr(original, name)
        if name not in owner._modules:
            owner.add_module(name, nn.Module().train(original.training))
        owner = owner._modules[name]  # type: ignore[assignment]
        if owner is original:  # a whole module has it
            return
    if isinstance(value, nn.Module):
        owner.add_module(leaf, value)
    elif isinstance(value, nn.Parameter):
        owner.register_parameter(leaf, value)
    elif isinstance(value, Tensor):
        owner.register_buffer(leaf, value, persistent=False)
    else:
        setattr(owner, leaf, value)
