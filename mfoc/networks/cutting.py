"""Cutting a network into stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx, nn

from mfoc.errors import InvalidType, InvalidValue
from mfoc.networks.inspection import hooked, is_chain, trainable

Named = list[tuple[str, nn.Module]]


def named_stages(net: nn.Module, stages: Sequence[str | Sequence[str]] | None) -> Named:
    """The stages of a network in order: names, and modules whose composition is the network.

    The modules share their parameters with ``net``.

    Args:
        net: the network.
        stages: see ``mfoc.from_module``.

    Raises:
        InvalidType: ``stages`` is not a list of names.
        InvalidValue: names unknown, repeated or out of order, or a forward pass that cannot be cut there.
    """
    if isinstance(stages, str) or (stages is not None and not isinstance(stages, Sequence)):
        raise InvalidType(f"stages is {stages!r}; expected a list of submodule names")
    if is_chain(net):
        layers = _unrolled(net)
        return layers if stages is None else _grouped(net, stages)
    if stages is None:
        children = [name for name, _ in net.named_children()]
        raise InvalidValue(
            f"net is a {type(net).__name__}, whose order of execution is not declared; name the stages, "
            f"stages=[...], out of {children}"
        )
    return _cut(net, [_single_name(stage) for stage in stages])


def _single_name(stage: Any) -> str:
    if not isinstance(stage, str):
        raise InvalidType(f"stages holds {stage!r}; for a module that is no nn.Sequential each stage is one name")
    return stage


def _children(net: nn.Module) -> Named:
    """Every child, one that is used twice included twice (``named_children`` leaves it out)."""
    return [(name, child) for name, child in net._modules.items() if child is not None]


def _unrolled(net: nn.Module, prefix: str = "") -> Named:
    layers: Named = []
    for name, child in _children(net):
        # Only a Sequential that does nothing else is opened: its hooks would be lost.
        opened = type(child) is nn.Sequential and not hooked(child)
        layers += _unrolled(child, f"{prefix}{name}.") if opened else [(prefix + name, child)]
    if not layers and not prefix:
        raise InvalidValue("net is an empty nn.Sequential; it has no stage")
    return layers


def _grouped(net: nn.Module, stages: Sequence[str | Sequence[str]]) -> Named:
    """Stages of a Sequential: each a child, or consecutive children."""
    children = dict(_children(net))
    for stage in stages:
        if not isinstance(stage, str | Sequence) or not stage:
            raise InvalidType(f"stages holds {stage!r}; expected the name of a child or a list of consecutive names")
    flat: list[str] = [name for stage in stages for name in ([stage] if isinstance(stage, str) else stage)]
    for name in flat:
        if name not in children:
            raise InvalidValue(f"stages names {name!r}, which is no child of the network; it has {list(children)}")
    if flat != list(children):
        raise InvalidValue(f"stages must name every child of an nn.Sequential once, in order: {list(children)}")
    return [
        (stage, children[stage])
        if isinstance(stage, str)
        else ("+".join(stage), nn.Sequential(*(children[name] for name in stage)))
        for stage in stages
    ]


class _Tracer(fx.Tracer):
    """Keeps the named modules whole."""

    def __init__(self, whole: Sequence[str]) -> None:
        super().__init__()
        self.whole = set(whole)

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return name in self.whole or super().is_leaf_module(module, name)


def _cut(net: nn.Module, names: list[str]) -> Named:
    """Stages of any traceable module: each ends at the output of a named submodule."""
    known = dict(net.named_modules())
    for name in names:
        if name not in known:
            children = [child for child, _ in net.named_children()]
            raise InvalidValue(f"stages names {name!r}, which is no submodule of the network; it has {children}")
    if not names or len(set(names)) != len(names):
        raise InvalidValue(f"stages is {names}; expected distinct submodule names")
    try:
        graph = _Tracer(names).trace(net)
    except Exception as error:  # fx raises whatever the traced forward raises
        raise InvalidValue(
            f"the forward pass of {type(net).__name__} cannot be traced ({error}); make it an nn.Sequential of stages"
        ) from error
    pieces = _segments(graph, names)
    output = next(node for node in graph.nodes if node.op == "output").args[0]
    results = [*(piece[-1] for piece in pieces[:-1]), output]
    parts = [(name, _segment(net, *cut)) for name, *cut in zip(names, pieces, results, strict=True)]
    _refuse_reuse(parts)
    return parts


def _refuse_reuse(parts: Named) -> None:
    seen: dict[int, str] = {}
    for stage, module in parts:
        for name, parameter in trainable(module).items():
            if seen.setdefault(id(parameter), stage) != stage:
                raise InvalidValue(
                    f"parameter {name!r} is used in stages {seen[id(parameter)]!r} and {stage!r}; a per-stage control "
                    "cannot be shared. Choose cuts that keep its uses in one stage"
                )


def _segments(graph: fx.Graph, names: list[str]) -> list[list[fx.Node]]:
    pieces: list[list[fx.Node]] = [[]]
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    order = [node.target for node in graph.nodes if node.op == "call_module" and node.target in names]
    if order != names:
        raise InvalidValue(f"stages is {names}; in the forward pass these modules run as {order}")
    for node in graph.nodes:
        if node.op in ("placeholder", "output", "get_attr"):
            continue
        # Weights read directly in the forward pass belong to the piece that uses them.
        pieces[-1] += [s for s in node.all_input_nodes if s.op == "get_attr" and s not in pieces[-1]]
        pieces[-1].append(node)
        if node.op == "call_module" and node.target in names and node.target != names[-1]:
            pieces.append([])
    carried = inputs[0]
    for name, piece in zip(names, pieces, strict=True):
        inside = {carried, *piece}
        for node in piece:
            for source in node.all_input_nodes:
                if source not in inside:
                    raise InvalidValue(
                        f"stage {name!r} also needs {source.name!r}, computed before the previous cut; a stage may use "
                        "only the state that enters it. Choose other cuts"
                    )
        carried = piece[-1]
    for source in next(node for node in graph.nodes if node.op == "output").all_input_nodes:
        if source not in pieces[-1]:
            raise InvalidValue(
                f"the output needs {source.name!r}, computed before the last stage, {names[-1]!r}. Choose other cuts"
            )
    return pieces


def _segment(net: nn.Module, nodes: list[fx.Node], result: Any) -> nn.Module:
    """A module that runs the nodes of one stage and returns ``result``, its parameters at their paths in ``net``."""
    graph = fx.Graph()
    inside = set(nodes)
    entering = [source for node in nodes for source in node.all_input_nodes if source not in inside]
    copied: dict[fx.Node, fx.Node] = {}
    placeholder = graph.placeholder("x")
    for source in entering:
        copied[source] = placeholder
    for node in nodes:
        copied[node] = graph.node_copy(node, lambda source: copied[source])
    graph.output(fx.map_arg(result, lambda source: copied[source]))
    return fx.GraphModule(net, graph)
