"""The cloud of particles a problem is solved on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mfoc import printing, tree
from mfoc.checks import check_instance
from mfoc.errors import InvalidValue
from mfoc.tree import Tree


@dataclass(frozen=True, eq=False)
class Particles:
    """A cloud: pytrees of tensors whose leaves share the leading axis N.

    Attributes:
        state: initial states ``[N, ...]``.
        data: what dynamics and costs receive as z (labels, noise, masks) ``[N, ...]``, or None.
        index: which particles of their population these are, int64 ``[N]``; 0 .. N-1 when None. What is drawn for a
            particle, as an adversary's random start is, is a function of it: so batches and ranks change nothing.
    """

    state: Tree
    data: Tree = None
    index: Tensor | None = None

    def __post_init__(self) -> None:
        if not _fit(tree.leaves(self.state), [] if self.data is None else tree.leaves(self.data)):
            self._explain()
        if self.index is not None:
            shape = tree.leaves(self.state)[0].shape[:1]
            check_instance(Tensor, f"the numbers of {shape[0]} particles, an int64 tensor, or None", index=self.index)
            if self.index.dtype != torch.int64 or self.index.shape != shape:
                raise InvalidValue(
                    f"index is {tree.describe(self.index)}; expected the numbers of {shape[0]} particles, int64 [N]"
                )

    def _explain(self) -> None:
        """Says which leaf does not fit. A cloud is made at each step, and the names of leaves are dear."""
        named = tree.named_leaves(self.state, "state")
        if not named:
            raise InvalidValue("state has no tensor; a cloud needs at least one, with leading axis N")
        if self.data is not None:
            named += tree.named_leaves(self.data, "data")
        name, first = named[0]
        for label, leaf in named:
            if leaf.dim() == 0:
                raise InvalidValue(f"{label} is a scalar; expected a leading particle axis, [N, ...]")
            if len(leaf) != len(first):
                raise InvalidValue(
                    f"{label} holds {len(leaf)} particles and {name} holds {len(first)}; "
                    "every leaf needs the same leading axis N"
                )
        if len(first) == 0:
            raise InvalidValue(f"{name} is empty; a cloud needs at least one particle")

    def __repr__(self) -> str:
        data = "no data" if self.data is None else f"data {printing.short(self.data)}"
        return f"Particles({len(self)}: state {printing.short(self.state)}, {data})"

    def __len__(self) -> int:
        leaf: Tensor = tree.leaves(self.state)[0]
        return leaf.shape[0]

    def __getitem__(self, index: Any) -> Particles:
        """The particles chosen by a slice, a mask or an index tensor."""
        return self._map(lambda leaf: leaf[index], self.indices())

    def indices(self) -> Tensor:
        """The particles' global indices ``[N]``, on the device of the state."""
        if self.index is not None:
            return self.index
        return torch.arange(len(self), device=tree.leaves(self.state)[0].device)

    def to(self, *args: Any, **kwargs: Any) -> Particles:
        """The cloud on another device or in another float dtype; integer and complex leaves keep their dtype."""

        def move(leaf: Tensor) -> Tensor:
            if leaf.is_floating_point():
                return leaf.to(*args, **kwargs)
            device = kwargs.get("device", next((a for a in args if isinstance(a, str | torch.device)), leaf.device))
            return leaf.to(device)

        return self._map(move, self.index)

    def _map(self, function: Callable[[Tensor], Tensor], index: Tensor | None) -> Particles:
        data = None if self.data is None else tree.map(function, self.data)
        return Particles(tree.map(function, self.state), data, None if index is None else function(index))


def _fit(states: list[Any], data: list[Any]) -> bool:
    """Whether all leaves are tensors of one leading axis, which is not empty."""
    first = states[0] if states else None
    if not isinstance(first, Tensor) or first.dim() == 0 or first.shape[0] == 0:
        return False
    n = first.shape[0]
    return all(isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == n for leaf in (*states, *data))


def concatenated(clouds: Iterable[Particles]) -> Particles:
    """Several clouds of one structure as a single one, their particles in order."""
    parts = list(clouds)
    if len(parts) == 1:
        return parts[0]
    state = tree.map(lambda *leaves: torch.cat(leaves), *(cloud.state for cloud in parts))
    data, index = None, None
    if parts[0].data is not None:
        data = tree.map(lambda *leaves: torch.cat(leaves), *(cloud.data for cloud in parts))
    if any(cloud.index is not None for cloud in parts):
        index = torch.cat([cloud.indices() for cloud in parts])
    return Particles(state, data, index)
