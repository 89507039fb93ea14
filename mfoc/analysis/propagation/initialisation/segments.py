"""A network as blocks in the order of their run, each with the layers whose gain can be tuned."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm

from mfoc.analysis.propagation.initialisation.chains import is_plain
from mfoc.analysis.propagation.initialisation.streams import Pass, bottlenecks
from mfoc.errors import InvalidValue


@dataclass(frozen=True, eq=False)
class Segment:
    """What lies between two bottlenecks.

    Attributes:
        name: of the block module, or of its layers.
        start: the event of the bottleneck before; None at the input.
        end: that of the bottleneck after.
        weights: its layers with weight matrices.
        norms: its layers with one number a channel: norms, layer scales.
        knotted: whether signals run side by side in it, as beside a skip connection.
    """

    name: str
    start: int | None
    end: int
    weights: tuple[nn.Module, ...]
    norms: tuple[nn.Module, ...]
    knotted: bool

    @property
    def plain(self) -> Any:
        """The one dense or convolution layer at its end, if it is no more than that; else None."""
        single = len(self.weights) == 1 and not self.norms and not self.knotted
        return self.weights[0] if single and is_plain(self.weights[0]) else None


def own(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that a module itself reads: of attention and of parametrised layers those of its parts, too."""
    if isinstance(module, nn.MultiheadAttention) or parametrize.is_parametrized(module):
        return list(module.parameters())
    return [parameter for parameter in module._parameters.values() if parameter is not None]


def refuse_fixed(net: nn.Module) -> None:
    """Refuses parametrisations under which a weight has no scale: all but weight norm."""
    for name, part in net.named_modules():
        given: Any = getattr(part, "parametrizations", {}) if parametrize.is_parametrized(part) else {}
        for leaf, chain in given.items():
            for step in chain:
                if type(step).__name__ != "_WeightNorm":
                    raise InvalidValue(
                        f"layer {name!r} has a parametrised {leaf} ({type(step).__name__}), whose gain may be fixed; "
                        "initialise before you parametrise it"
                    )
        if any(isinstance(hook, SpectralNorm) for hook in part.__dict__["_forward_pre_hooks"].values()):
            raise InvalidValue(
                f"layer {name!r} has a weight of fixed gain (torch.nn.utils.spectral_norm); initialise before that"
            )


def segments_of(found: Pass) -> list[Segment]:
    """The blocks of a network, from a whole pass through it; those without weights belong to the block after them."""
    first = bottlenecks(found)
    nodes = [event.edge.node if event.edge is not None else None for event in found.events]
    position = {index: first[node] for index, node in enumerate(nodes) if node in first}
    blocks = _knots(found, position)
    cuts = sorted(set(position.values()))
    cuts = [cut for cut in cuts if not any(low < cut < high for low, high in blocks)]
    called = list(_layers(found))
    result: list[Segment] = []
    start: int | None = None
    for low, end in pairwise([-1, *cuts]):
        inside = [(index, part) for index, part in called if low < index <= end]
        if (low, end) in blocks:  # a module of its own, measured from its own input on
            start = low
        weights = tuple(dict.fromkeys(part for _, part in inside if _is_matrix(part)))
        norms = tuple(dict.fromkeys(part for _, part in inside if not _is_matrix(part)))
        previous = result[-1] if result else None
        if not weights and norms and previous and previous.end == start and not previous.knotted:
            merged = Segment(previous.name, previous.start, end, previous.weights, previous.norms + norms, False)
            result[-1], start = merged, end
        elif weights:
            knotted = any(index not in position for index, part in inside if _is_matrix(part))
            whole = [index for index, cut in position.items() if cut == end]
            result.append(Segment(_name(found, whole, inside), start, end, weights, norms, knotted))
            start = end
    return result


def _knots(found: Pass, position: dict[int, int]) -> set[tuple[int, int]]:
    """The innermost modules between bottlenecks in which a layer is none: from where to where they reach."""
    whole = len(found.events) - 1
    spans = []
    for end, event in enumerate(found.events):
        if event.entry is None or end == whole or end not in position or event.entry not in position:
            continue
        inside = [i for i, part in _layers(found) if event.entry < i < end and _is_matrix(part)]
        if any(i not in position for i in inside):
            spans.append((event.entry, end))
    inner = [a for a in spans if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in spans)]
    return {(position[low], position[high]) for low, high in inner}


def _layers(found: Pass) -> Iterator[tuple[int, nn.Module]]:
    """The calls of layers with parameters of their own, at the events where they end."""
    holders = {id(event.module) for event in found.events if event.entry is not None and own(event.module)}
    for index, event in enumerate(found.events):
        if event.entry is None or id(event.module) not in holders:
            continue
        if isinstance(event.module, nn.PReLU | parametrize.ParametrizationList):
            continue
        whole = isinstance(event.module, nn.MultiheadAttention) or parametrize.is_parametrized(event.module)
        parts = [part for part in event.module.modules() if part is not event.module]
        # A container with a bare parameter beside its layers is no layer: nobody knows what the parameter is for.
        if whole or not any(id(part) in holders for part in parts):
            yield index, event.module


def _is_matrix(module: nn.Module) -> bool:
    return any(parameter.dim() > 1 for parameter in own(module))


def _name(found: Pass, ends: list[int], inside: list[tuple[int, nn.Module]]) -> str:
    """That of the smallest module that holds these layers and ends where they do, else of the first and the last."""
    names = [found.events[index].name for index, part in inside if _is_matrix(part)]
    for index in ends if len(names) > 1 else ():
        event = found.events[index]
        if event.entry is not None and event.name and all(event.entry < each for each, _ in inside):
            return event.name
    return names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]}"
