"""Which operations of a forward pass each stage runs, and which values are alive between two of them.

What depends on values of the input is carried: it is computed in the stage where it stands, and is part of the state as
long as a later stage needs it. All else (sizes, masks of sizes, buffers, parameters) is computed again where it is
needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import chain, count
from typing import Any

from torch import fx, nn

from mfoc.errors import InvalidValue
from mfoc.networks.arguments import Arguments
from mfoc.networks.cuts.operations import is_count, is_getitem, is_metadata, is_needless, is_view, written
from mfoc.networks.cuts.tracing import Untraceable


class Flow:
    """A forward pass, cut after each of the named modules but the last."""

    def __init__(
        self,
        graph: fx.Graph,
        modules: Mapping[str, nn.Module],
        names: Sequence[str],
        arguments: Arguments,
        given: Iterable[str] = (),
    ) -> None:
        self.arguments, self.given = arguments, frozenset(given)
        for node in reversed(graph.nodes):
            if is_needless(node):
                graph.erase_node(node)
        self.nodes = [node for node in graph.nodes if node.op != "output"]
        self.output = next(node for node in graph.nodes if node.op == "output")
        self.place = {node: k for k, node in enumerate(self.nodes)}
        self.modules = modules
        whole = {id(modules[name]): name for name in names}
        self.ends = [n for n in self.nodes if n.op == "call_module" and id(modules[str(n.target)]) in whole]
        order = [whole[id(modules[str(node.target)])] for node in self.ends]
        if order != list(names):
            raise InvalidValue(f"stages is {list(names)}; in the forward pass these modules run as {order}")
        for node, name in zip(self.ends, names, strict=True):
            if node not in self.carried:
                raise InvalidValue(
                    f"stages names {name!r}, which is given nothing that depends on the input; leave it out: it "
                    "belongs to the stage that uses it"
                )

    @property
    def stages(self) -> int:
        """How many there are."""
        return len(self.ends)

    def check(self) -> None:
        """Refuses cuts that hand on nothing, and says where writing in place stands in the way.

        Raises:
            InvalidValue: nothing is alive at a cut.
            Untraceable: see ``overwritten``.
        """
        for stage in range(self.stages):
            self.entering(stage)
            self.overwritten(stage)

    # ---- who shares memory with whom

    @cached_property
    def base(self) -> dict[fx.Node, fx.Node]:
        """For each node the one whose memory it may share."""
        found: dict[fx.Node, fx.Node] = {}
        for node in self.nodes:
            source = node.args[0] if node.args else None
            shares = isinstance(source, fx.Node) and is_view(node, self.modules)
            found[node] = found[source] if shares else node  # type: ignore[index]
        return found

    @cached_property
    def writes(self) -> dict[fx.Node, list[fx.Node]]:
        """For each base the nodes that write into its memory."""
        found: dict[fx.Node, list[fx.Node]] = {}
        for node in self.nodes:
            target = written(node)
            if target is not None:
                found.setdefault(self.base[target], []).append(node)
        return found

    # ---- what is carried, and where it is computed

    @cached_property
    def carried(self) -> set[fx.Node]:
        """The nodes whose values depend on values of the input."""
        found: set[fx.Node] = set()
        size = -1
        while len(found) > size:  # a write makes what it is written into depend on the data, too
            size = len(found)
            for node in self.nodes:
                depends = node.op == "placeholder" or (
                    not is_metadata(node) and any(source in found for source in node.all_input_nodes)
                )
                if depends:
                    found.add(node)
                    target = written(node)
                    if target is not None:
                        found.add(self.base[target])
                        found.add(target)
        return found

    @cached_property
    def piece(self) -> dict[fx.Node, int]:
        """The stage in which each node stands; the parts of a tuple are taken where the tuple is computed."""
        found: dict[fx.Node, int] = {}
        stage = 0
        for node in self.nodes:
            taken = is_getitem(node) and node.args[0] in self.carried
            found[node] = found[node.args[0]] if taken else stage
            if node in self.ends:
                stage = min(stage + 1, self.stages - 1)
        return found

    # ---- what each stage runs, and needs

    def needs(self, stage: int) -> tuple[list[fx.Node], list[fx.Node]]:
        """What a stage runs, in order, and what it takes from the state that enters."""
        run: set[fx.Node] = set()
        entering: set[fx.Node] = set()
        waiting = [node for node in self.carried if self.piece[node] == stage and node.op != "placeholder"]
        waiting += [node for node in self.nodes if not node.users and self.piece[node] == stage]  # asides, assertions
        waiting += self.output.all_input_nodes if stage == self.stages - 1 else []
        while waiting:
            node = waiting.pop()
            if node in run or node in entering:
                continue
            if node in self.carried and (node.op == "placeholder" or self.piece[node] < stage):
                entering.add(node)
                continue
            run.add(node)
            waiting += [] if is_count(node) else node.all_input_nodes
            waiting += [
                write
                for write in self.writes.get(self.base[node], [])
                if write not in self.carried and self.piece[write] <= stage
            ]
        return sorted(run, key=self.place.__getitem__), sorted(entering, key=self.place.__getitem__)

    @cached_property
    def runs(self) -> list[list[fx.Node]]:
        """The nodes of each stage, in order."""
        return [self.needs(stage)[0] for stage in range(self.stages)]

    @cached_property
    def live(self) -> list[list[fx.Node]]:
        """The values that leave each stage but the last; optional arguments that are given say so everywhere."""
        needed = [self.needs(stage)[1] for stage in range(self.stages)]
        asked = {node for node in self.nodes if node.op == "placeholder" and node.target in self.given}
        found = []
        for k in range(self.stages - 1):
            alive = {node for later in needed[k + 1 :] for node in later if self.piece[node] <= k}
            if not alive:
                raise InvalidValue(f"nothing that is computed up to {self.ends[k].target!r} is used after it")
            found.append(sorted(alive | asked, key=self.place.__getitem__))
        return found

    def entering(self, stage: int) -> list[fx.Node]:
        """The values that enter a stage: for the first one the arguments."""
        return self.live[stage - 1] if stage else [node for node in self.nodes if node.op == "placeholder"]

    def leaving(self, stage: int) -> Any:
        """The state that leaves a stage: the output, what is alive, or a dict where several values are."""
        if stage == self.stages - 1:
            return self.output.args[0]
        alive = self.live[stage]
        return alive[0] if len(alive) == 1 else dict(zip(self.labels(alive, stage), alive, strict=True))

    def labels(self, nodes: Sequence[fx.Node], stage: int) -> list[str]:
        """Names of values after a stage: "value" is the output of its module, others are called as what made them.

        They are the same after each of several equal blocks.
        """
        found: list[str] = []
        for node in nodes:
            label = self._label(node, stage)
            taken = (*self.arguments.main, *self.arguments.free, *found) if node.op != "placeholder" else ()
            found.append(
                next(name for name in chain([label], map(f"{label}.{{}}".format, count(1))) if name not in taken)
            )
        return found

    def _label(self, node: fx.Node, stage: int) -> str:
        if node.op == "placeholder":
            return str(node.target)
        if stage >= 0 and node is self.ends[stage]:
            return "value"
        if is_getitem(node):
            return f"{self._label(node.args[0], stage)}.{node.args[1]}"  # type: ignore[arg-type]
        if node.op == "call_module":
            return next((part for part in reversed(str(node.target).split(".")) if not part.isdigit()), "layer")
        return re.sub(r"_\d+$", "", node.name)

    def overwritten(self, stage: int) -> set[fx.Node]:
        """The values entering a stage that it writes into: it has to work on copies.

        Raises:
            Untraceable: two of them share memory, so that writing into one would change the other.
        """
        bases = [self.base[node] for node in self.entering(stage)]
        hit = {self.base[t] for node in self.runs[stage] if (t := written(node)) is not None}
        for base in hit:
            if bases.count(base) > 1:
                raise Untraceable(f"it writes into {base.name!r}, of which two views cross a cut")
        return {node for node in self.entering(stage) if self.base[node] in hit}
