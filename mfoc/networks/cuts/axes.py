"""Along which axis the particles lie in a value that crosses a cut: recurrent layers may have them second.

A state has the particles first. A value that has them elsewhere is turned when it leaves a stage, and back when it
enters the next one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mfoc import tree
from mfoc.tree import Tree

Turn = Callable[[Tensor, int], Tensor]


class Axes:
    """What is known of the cuts of one network: for each leaf of a state, the axis of the particles.

    Its stages share it, copies of them included: it says something of the network's shapes, not of its weights.
    """

    def __init__(self) -> None:
        self.found: dict[Any, list[int]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Axes:
        return self

    def step(self, cut: int, key: Any, move: Callable[[Tree, int], Tree], x: Tree, *, last: bool) -> Tree:
        """The state that leaves a stage, its particles first.

        Args:
            cut: the number of the stage.
            key: what distinguishes states of another structure at the same cut.
            move: the stage ``(state, number of particles) -> state`` on values as the network has them.
            x: the state that enters, its particles first.
            last: whether the stage is the last one: the output is what the network says.
        """

        def run(x: Tree) -> Tree:
            back = self.found.get((cut - 1, key)) if cut else None
            return move(turned(x, back, _back), len(tree.leaves(x)[0]))

        if last:
            return run(x)
        if (cut, key) not in self.found and not any(map(hidden, tree.leaves(x))):
            self.found[cut, key] = axes_of(run, x)
        return particles_first(run(x), self.found.get((cut, key)))


def hidden(leaf: Any) -> bool:
    """Whether the values of a leaf cannot be looked at: it is no tensor, has no values, or stands for many."""
    functional = torch._C._functorch  # noqa: SLF001  (there is no public way to ask)
    return not isinstance(leaf, Tensor) or leaf.is_meta or functional.is_functorch_wrapped_tensor(leaf)


@torch.no_grad()
def axes_of(run: Callable[[Tree], Tree], x: Tree) -> list[int]:
    """The axis whose length is the number of particles, of each leaf of what leaves; 0 where there is none."""
    try:
        few, more = (tree.leaves(run(tree.map(lambda leaf: leaf[:1].repeat_interleave(n, 0), x))) for n in (2, 3))  # noqa: B023
    except Exception:  # whatever a forward pass says to so small a cloud: nothing is known then
        return []
    return [_axis(a, b) for a, b in zip(few, more, strict=True)]


def _axis(few: Any, more: Any) -> int:
    if not isinstance(few, Tensor) or few.dim() != more.dim():
        return 0
    grown = [k for k, sizes in enumerate(zip(few.shape, more.shape, strict=True)) if sizes == (2, 3)]
    return grown[0] if len(grown) == 1 else 0


def turned(x: Tree, axes: list[int] | None, turn: Turn) -> Tree:
    """The leaves with their axes turned."""
    if not axes or not any(axes):
        return x
    return tree.rebuild(x, [turn(leaf, k) if k else leaf for leaf, k in zip(tree.leaves(x), axes, strict=True)])


def particles_first(x: Tree, axes: list[int] | None) -> Tree:
    """The leaves with the axes of the particles first."""
    return turned(x, axes, _front)


def _front(leaf: Tensor, axis: int) -> Tensor:
    return leaf.movedim(axis, 0)


def _back(leaf: Tensor, axis: int) -> Tensor:
    return leaf.movedim(0, axis)
