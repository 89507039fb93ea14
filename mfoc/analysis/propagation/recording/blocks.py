"""The blocks of any network: containers are unrolled to what they repeat, such as a residual block or a layer.

A module is opened where its children follow one another, so that what leaves one is all that enters the next (a cut of
the autograd graph; see ``cuts``). It is one block where something bypasses its children: the skip of a residual block,
the queries and keys of attention. What lies between two layers without being a module, an activation or an addition
written in a forward pass, belongs to the block before it. A recurrence over time is one block, from all that it reads
to where it ends: its steps are no chain of maps from what each of them reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from mfoc.analysis.propagation.recording.cuts import Cuts, between
from mfoc.analysis.propagation.recording.record import Call, Point, Recording
from mfoc.networks.inspection import ELEMENTWISE, Norm, is_chain, is_dropout

_NORMS = (Norm, nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm, *([nn.RMSNorm] if hasattr(nn, "RMSNorm") else []))
_POOLS = tuple(kind for name, kind in vars(nn.modules.pooling).items() if isinstance(kind, type) and "Pool" in name)
_BRANCHES = 3  # those of a decoder's layer; more of them are a stack


@dataclass(eq=False)
class Block:
    """A part of the network, from where one state stands to where the next one does.

    Attributes:
        name: the path of its module, ``first..last`` where it holds several.
        calls: the calls of modules that it is made of.
        starts: the state that enters it.
        ends: the state that leaves it.
        whole: whether everything passes through both; if not, its gain is that of its own input and output.
        core: the one layer with weights, where there is one and all that enters and leaves the block passes through it.
        recurrent: whether it is a recurrence over time, whose gain is no factor of a product over depth.
    """

    name: str
    calls: list[Call]
    starts: list[Point]
    ends: list[Point]
    whole: bool = True
    core: Call | None = None
    recurrent: bool = False

    def __post_init__(self) -> None:
        self.recurrent = self.recurrent or (self.core is not None and isinstance(self.core.module, nn.RNNBase))

    @property
    def parameters(self) -> dict[int, nn.Parameter]:
        """Its parameters, each once."""
        return {id(p): p for call in self.calls for p in call.module.parameters()}

    @property
    def resizes(self) -> bool:
        """Whether the state that leaves it holds another number of numbers than the one that enters it."""
        return sum(p.tensor.numel() for p in self.ends) != sum(p.tensor.numel() for p in self.starts)

    @property
    def label(self) -> str:
        """Its name, with the number of the call where its module is called again."""
        named = self.core or next(iter(self.calls), None)
        again = 1 if named is None else named.count
        return self.name if again == 1 else f"{self.name} (call {again})"


def find_blocks(recording: Recording) -> list[Block]:
    """The blocks of a recorded network, in the order they run."""
    root = recording.root
    if not root.ends:
        return []
    return _Finder(root, recording.sources).blocks()


def severed(recording: Recording) -> str:
    """Where a network is cut off from its input for autograd, in words; empty where a path leads from end to end."""
    root = recording.root
    if any(point in Cuts(recording.sources, root.ends[0]) for point in recording.sources):
        return ""
    off = next((call for call in root.walk() if call.constant and not call.starts and has_weights(call)), None)
    return f"what enters {off.name!r}" if off is not None and off.name else "the output"


def has_weights(call: Call) -> bool:
    """Whether a call is of more than norms and activations: some matrix, filter or table is in it."""
    if isinstance(call.module, (*_NORMS, *ELEMENTWISE, nn.PReLU)):
        return False
    own = call.module.parameters(recurse=not call.children)
    return any(p.dim() > 1 for p in own) or any(has_weights(child) for child in call.children)


@dataclass(eq=False)
class _Inside:
    """What is inside a call: its children grouped between cuts, those without weights beside those with."""

    groups: list[tuple[Point, list[Call]]]
    bypassed: list[bool]  # whether something bypasses a layer of a group


class _Finder:
    def __init__(self, root: Call, sources: list[Point]) -> None:
        self.root, self.sources = root, sources
        self.known: dict[int, _Inside] = {}
        kinds: dict[type, int] = {}
        for call in root.walk():
            kinds[type(call.module)] = kinds.get(type(call.module), 0) + 1
        self.units: set[type] = set()
        for call in (call for call in root.walk() if call.children):
            if self._is_unit(call, kinds[type(call.module)] > 1):
                self.units.add(type(call.module))

    def blocks(self) -> list[Block]:
        found = self._open(self.root, self.root.name)
        if found:
            return found
        core = None if self.root.children else self.root
        return [Block(type(self.root.module).__name__, [self.root], self.sources, self.root.ends, core=core)]

    def _inside(self, call: Call) -> _Inside:
        if id(call) not in self.known:
            sources = self.sources if call is self.root else call.starts[:1]
            self.known[id(call)] = _inside(call, sources)
        return self.known[id(call)]

    def _is_unit(self, call: Call, repeated: bool) -> bool:
        """Whether something bypasses its layers, and it is no stack of such layers itself."""
        if not call.ends or is_chain(call.module):
            return False
        inside = self._inside(call)
        branches = sum(inside.bypassed)
        return branches > 0 and branches <= _BRANCHES and (repeated or len(inside.groups) < 2)

    def _open(self, call: Call, name: str) -> list[Block]:
        """The blocks inside a call; none where it is better taken whole."""
        if not call.children or not call.ends:
            return []
        if type(call.module) in self.units and call is not self.root:
            return []
        inside = self._inside(call)
        if len(inside.groups) < 2 and any(inside.bypassed or [True]):
            apart = self._apart(call.children)
            return apart if len(apart) > 1 else []
        made: list[Block] = []
        ends = [start for start, _ in inside.groups[1:]] + call.ends
        for k, ((start, calls), end, bypassed) in enumerate(zip(inside.groups, ends, inside.bypassed, strict=True)):
            starts = self.sources if call is self.root and k == 0 else [start]
            made += self._group(calls, starts, [end], bypassed)
        if len(made) == 1 and name:
            made[0].name = name
        return made

    def _group(self, calls: list[Call], starts: list[Point], ends: list[Point], bypassed: bool) -> list[Block]:
        layers = [call for call in calls if has_weights(call)]
        if len(layers) == 1 and not bypassed and (inner := self._open(layers[0], layers[0].name)):
            inner[0].starts, inner[-1].ends = starts, ends
            inner[0].calls = calls[: calls.index(layers[0])] + inner[0].calls
            inner[-1].calls = inner[-1].calls + calls[calls.index(layers[0]) + 1 :]
            return inner
        if bypassed and len(layers) > 1 and len({c.starts[0].key for c in _leaves(layers)}) > _BRANCHES:
            return self._apart(layers)
        core = layers[0] if len(layers) == 1 and not bypassed and not layers[0].children else None
        steps = bypassed and bool(_steps([call for call in layers if call.starts and call.ends]))
        return [Block(_name(layers or calls), calls, starts, ends, core=core, recurrent=steps)]

    def _apart(self, calls: list[Call]) -> list[Block]:
        """The blocks of each call by itself, where nothing between them cuts the graph (skips over all of them)."""
        found: list[Block] = []
        layers = [call for call in calls if has_weights(call) and call.starts and call.ends]
        steps = _steps(layers)
        for call in layers:
            if call in steps:
                if call is steps[0]:
                    entering = list({call.starts[0].key: call.starts[0] for call in steps}.values())
                    names = list(dict.fromkeys(call.name for call in steps))
                    name = names[0] if len(names) == 1 else f"{names[0]}..{names[-1]}"
                    found.append(Block(name, steps, entering, steps[-1].ends, recurrent=True))
                continue
            core = None if call.children else call
            alone = Block(call.name, [call], call.starts[:1], call.ends, core=core)
            found += self._open(call, call.name) or [alone]
        for block in found:
            block.whole = False
        return found


def _inside(call: Call, sources: Sequence[Point]) -> _Inside:
    """The children of a call, grouped between cuts of the graph from its input to its output."""
    cuts = Cuts(sources, call.ends[0])
    groups: list[tuple[Point, list[Call]]] = []
    for child in call.children:
        start = next((point for point in child.starts if point in cuts), None)
        if start is None or not child.ends or child.ends[0] not in cuts:
            continue  # an aside, or what makes the first state
        latest = groups[-1][0] if groups else None
        if latest is None or (cuts.cuts(start) and cuts.of(start) > cuts.of(latest)):
            groups.append((start, [child]))
        else:
            groups[-1][1].append(child)
    merged = _merged(groups)
    bypassed = [any(has_weights(child) and not cuts.cuts(child.ends[0]) for child in calls) for _, calls in merged]
    return _Inside(merged, bypassed)


def _merged(groups: list[tuple[Point, list[Call]]]) -> list[tuple[Point, list[Call]]]:
    """Groups of layers with weights: those without join the one before; pools and what comes first, the one after."""
    merged: list[tuple[Point, list[Call]]] = []
    leading: tuple[Point, list[Call]] | None = None
    for start, calls in groups:
        weights = any(has_weights(call) for call in calls)
        pools = any(isinstance(part.module, _POOLS) for call in calls for part in call.walk())
        if leading is not None:
            start, calls, leading = leading[0], leading[1] + calls, None
        elif merged and not weights and not pools:
            merged[-1][1].extend(calls)
            continue
        if weights:
            merged.append((start, calls))
        else:
            leading = (start, calls)
    if leading is not None and merged:  # after the last layer
        merged[-1][1].extend(leading[1])
    return merged


def _steps(calls: list[Call]) -> list[Call]:
    """The calls that are steps of a recurrence: of modules called again on other data, beside what came of the last."""
    called: dict[int, list[Call]] = {}
    for call in calls:
        called.setdefault(id(call.module), []).append(call)
    again = [made for made in called.values() if len(made) > 1]
    cells = [made for made in called.values() if isinstance(made[0].module, nn.RNNCellBase)]
    reading = [made for made in again if not _leads(made[-2], made[-1].starts[0])]
    carried = any(_leads(made[-2], point) for made in again for point in made[-1].starts)
    if not cells and not (reading and carried):
        return []
    kept = {id(call) for made in again + cells for call in made}
    return [call for call in calls if id(call) in kept]


def _leads(call: Call, point: Point) -> bool:
    """Whether what came of a call leads to a place."""
    return any(end.key == point.key or bool(between(end, point)) for end in call.ends)


def _leaves(calls: list[Call]) -> list[Call]:
    """The layers with weights inside some calls."""
    inside = [part for call in calls for part in call.walk()]
    return [part for part in inside if not part.children and part.starts and has_weights(part)]


def _name(calls: list[Call]) -> str:
    return calls[0].name if len(calls) == 1 else f"{calls[0].name}..{calls[-1].name}"


def is_passive(call: Call) -> bool:
    """Whether a module hands on each number as it is: flattening, dropout that is off."""
    off = is_dropout(call.module) and not is_dropout(call.module, active=True)
    return off or isinstance(call.module, nn.Identity | nn.Flatten | nn.Unflatten)
