"""Where a network is cut into stages, and by which route."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import combinations

from torch import nn

from mfoc.errors import InvalidValue
from mfoc.networks.arguments import Arguments
from mfoc.networks.cuts.alive import Flow
from mfoc.networks.cuts.hooked import hooked_stages
from mfoc.networks.cuts.segments import Segment, segments
from mfoc.networks.cuts.tracing import Untraceable, trace
from mfoc.networks.inspection import trainable

logger = logging.getLogger(__name__)

Named = list[tuple[str, nn.Module]]
_FEW = 3  # optional arguments of which every choice is traced


def cut(net: nn.Module, names: Sequence[str]) -> Named:
    """Stages of any network: each ends at the output of a named submodule, operations after the last with the last.

    Args:
        net: the network.
        names: submodules in the order they run.

    Returns:
        A name and a module for each stage, which share the parameters of ``net`` under the names they have there. The
        composition of the modules is the network. The state that enters the first is what the network takes: its
        argument, or a tuple or a dict of several. Between stages it is what is alive there: a value, or a dict of them
        in which "value" is the output of the named module.

    Raises:
        InvalidValue: names unknown or repeated, modules that do not run once in this order, or a forward pass that can
            be cut in neither way.
    """
    known = dict(net.named_modules(remove_duplicate=False))
    for name in names:
        if name not in known or not name:
            children = list(dict(net.named_children()))
            raise InvalidValue(f"stages names {name!r}, which is no submodule of the network; it has {children}")
    if not names or len({id(known[name]) for name in names}) != len(names):
        raise InvalidValue(f"stages is {list(names)}; expected distinct submodule names")
    for name in names:
        around = [other for other in names if name.startswith(f"{other}.")]
        if around:
            raise InvalidValue(
                f"stages names {name!r} and {around[0]!r}, which holds it; name its last part in its place"
            )
    return list(zip(names, _parts(net, names), strict=True))


def _parts(net: nn.Module, names: Sequence[str]) -> Sequence[nn.Module]:
    kind, said = type(net).__name__, ""
    for opened in (True, False):
        try:
            parts = _traced(net, names, opened=opened)
        except Untraceable as error:
            said = str(error)
        else:
            logger.info("%s was traced and cut into %d stages", kind, len(parts))
            return parts
    logger.info(
        "%s cannot be traced (%s): each of its %d stages runs it from the input on, without the blocks of other stages",
        kind,
        said,
        len(names),
    )
    return hooked_stages(net, names)


def _traced(net: nn.Module, names: Sequence[str], *, opened: bool) -> list[Segment]:
    """The stages by tracing; a choice of optional arguments that cannot be traced is left out, unless it is none.

    Raises:
        InvalidValue: the modules do not run once in this order, or nothing is handed on.
        Untraceable: the forward pass cannot be read.
    """
    arguments, modules = Arguments.of(net), dict(net.named_modules(remove_duplicate=False))
    flows, constants = {}, {}
    for given in _choices(arguments):
        try:
            traced = trace(net, names, [*arguments.main, *given], opened=opened)
            flow = Flow(traced.graph, modules, names, arguments, given)
            flow.check()
        except (Untraceable, InvalidValue):
            if not given:
                raise
        else:
            flows[frozenset(given)], constants[frozenset(given)] = flow, traced.constants
    return segments(net, flows, constants, arguments)


def _choices(arguments: Arguments) -> Iterator[tuple[str, ...]]:
    """Sets of optional arguments that may be given, none of them first."""
    free = arguments.free
    sizes = range(len(free) + 1) if len(free) <= _FEW else (0, 1)
    return (some for size in sizes for some in combinations(free, size))


def shared_between(parts: Named) -> tuple[str, str, str] | None:
    """The first parameter that two stages use: its name, and theirs. None where there is none."""
    seen: dict[int, str] = {}
    for stage, module in parts:
        for name, parameter in trainable(module).items():
            if seen.setdefault(id(parameter), stage) != stage:
                return name, seen[id(parameter)], stage
    return None
