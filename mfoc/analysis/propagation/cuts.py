"""Cuts of an autograd graph: places that everything which leads from one end to the other passes through.

Between two cuts lies a map of its own, whatever it is made of: a layer, or a block with its residual stream. In a
topological order of the graph between its ends, a node is a cut if and only if no edge passes over it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mfoc.analysis.propagation.recording import Point


class Cuts:
    """The part of the graph between some places.

    Args:
        sources: where it begins.
        end: where it ends.
    """

    def __init__(self, sources: Iterable[Point], end: Point) -> None:
        begun = {point.edge.node for point in sources}
        order = _inside(begun, end.edge.node)
        self.place = {node: k for k, node in enumerate(order)}
        self._begun = begun
        self._numbers: dict[Any, set[int]] = {end.edge.node: {end.edge.output_nr}}
        covers = [0] * (len(order) + 2)
        for node, k in self.place.items():
            if node in begun:  # as if all of them followed one node before the first
                covers[0] += 1
                covers[k] -= 1
                continue
            for before, number in node.next_functions:
                if before in self.place:
                    self._numbers.setdefault(before, set()).add(number)
                    covers[self.place[before] + 1] += 1
                    covers[k] -= 1
        self._cut, passing = set(), 0
        for k, node in enumerate(order):
            passing += covers[k]
            if passing == 0:
                self._cut.add(node)

    def __contains__(self, point: Point) -> bool:
        """Whether a place lies between the ends."""
        return point.edge.node in self.place

    def of(self, point: Point) -> int:
        """Where in the order a place lies."""
        return self.place[point.edge.node]

    def cuts(self, point: Point) -> bool:
        """Whether everything passes through a place."""
        numbers = self._numbers.get(point.edge.node, set())
        return point.edge.node in self._cut and numbers <= {point.edge.output_nr}


def between(first: Point, last: Point) -> list[Any]:
    """The nodes after one place up to another, on paths between them; none where no path leads there."""
    order = _inside({first.edge.node}, last.edge.node)
    return [node for node in order if node is not first.edge.node]


def _inside(begun: set[Any], end: Any) -> list[Any]:
    """The nodes on paths from where it begins to the end, each after those it depends on."""
    order: list[Any] = []
    inside: dict[Any, bool] = {}
    waiting = [(end, False)]
    while waiting:
        node, done = waiting.pop()
        if done:
            inside[node] = node in begun or any(inside.get(before, False) for before, _ in node.next_functions)
            if inside[node]:
                order.append(node)
        elif node not in inside:
            inside[node] = False
            waiting.append((node, True))
            if node not in begun:
                waiting += [(before, False) for before, _ in node.next_functions if before and before not in inside]
    return order
