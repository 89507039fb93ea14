"""The admissible controls of a problem: a set for each leaf of a control tree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mfoc import tree
from mfoc.bounds.protocol import AdmissibleSet
from mfoc.bounds.sets import Box
from mfoc.checks import check_signature, kind_of
from mfoc.errors import InvalidType, InvalidValue
from mfoc.tree import Tree

# A set, a tree of sets and None whose nodes stand for all leaves below them, or a rule (name, leaf) -> set.
Bounds = Any


@dataclass(frozen=True, eq=False)
class Region:
    """Where a control tree may lie: one set for each of its leaves.

    Attributes:
        sets: one for each leaf, in order; None where it is free.
        lead: how many leading axes of a leaf index controls of their own (1 for a control of each particle).
    """

    sets: tuple[AdmissibleSet | None, ...]
    lead: int = 0

    def project(self, controls: Tree) -> Tree:
        """The nearest admissible controls."""
        return self._each(lambda own, u: own.project(u, self.lead), controls)

    def stationary(self, controls: Tree, gradient: Tree) -> Tree:
        """The projected gradient: zero where the controls are stationary among the admissible ones."""
        return self._each(lambda own, g, u: own.stationary(u, g, self.lead), gradient, controls)

    def land(self, controls: Tree, moved: Tree, gradient: Tree) -> Tree:
        """Where a step from the controls to ``moved`` lands; see ``mfoc.bounds.protocol``."""
        return self._each(lambda own, v, u, g: own.land(u, v, g, self.lead), moved, controls, gradient)

    def penalty(self, controls: Tree) -> Tensor | None:
        """What is added to J, a scalar; the mean over particles with controls of their own. None: nothing."""
        found = [
            own.penalty(leaf, self.lead)
            for own, leaf in zip(self.sets, tree.leaves(controls), strict=True)
            if own is not None
        ]
        costs = [cost.mean() for cost in found if cost is not None]
        return torch.stack(costs).sum() if costs else None

    def check(self, controls: Tree) -> None:
        """Refuses controls that the sets are not made for, and those outside.

        Raises:
            InvalidValue: says which leaf.
        """
        named = tree.named_leaves(controls, "controls")
        for own, (name, leaf) in zip(self.sets, named, strict=True):
            if own is None:
                continue
            own.check(leaf, self.lead, name)
            away = float((own.project(leaf, self.lead) - leaf).abs().max()) if leaf.numel() else 0.0
            if away > 1e2 * torch.finfo(leaf.dtype).eps * (1 + float(leaf.abs().max() if leaf.numel() else 0.0)):
                raise InvalidValue(
                    f"{name} is not admissible: it lies {away:.3g} outside {own}; start inside "
                    "(problem.region.project(controls) gives the nearest)"
                )

    def limits(self, stage_leaves: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Lower and upper bounds of the flattened leaves ``[m]`` (``[N, m]`` for controls of each particle).

        Raises:
            InvalidValue: a set is no ``Box``.
        """
        pairs = []
        for own, leaf in zip(self.sets, stage_leaves, strict=True):
            if own is not None and not isinstance(own, Box):
                raise InvalidValue(f"bounds hold {own}; expected Box(low, high) here. EMSA() and MSA() respect any set")
            flat = (*leaf.shape[: self.lead], -1)
            free = Box(-torch.inf, torch.inf)
            pairs.append([bound.reshape(flat) for bound in (own or free).limits(leaf)])
        low, high = (torch.cat(parts, -1) for parts in zip(*pairs, strict=True))
        return low, high

    def rows(self, firsts: Sequence[int], leaves: Sequence[Tensor]) -> RowRegion:
        """That of rows, each a flattened stage.

        Args:
            firsts: for each row, the place of its first leaf among those of the controls.
            leaves: the leaves of one row.
        """
        columns = tuple(tuple(self.sets[first + k] for first in firsts) for k in range(len(leaves)))
        return RowRegion(columns, tuple(leaf.shape for leaf in leaves), self.lead)

    def _each(self, function: Any, first: Tree, *others: Tree) -> Tree:
        columns = [tree.leaves(first), *(tree.leaves(other) for other in others)]
        rows = zip(self.sets, *columns, strict=True)
        return tree.rebuild(first, [row[0] if own is None else function(own, *row) for own, *row in rows])


def region(bounds: Bounds, controls: Tree, *, lead: int = 0, per_stage: bool = False) -> Region:
    """The region that bounds describe.

    Args:
        bounds: a set for all leaves; or a tree of sets and None, shaped as the controls from the top down as far as it
            goes: a dict may leave keys out, None is free. With ``per_stage`` it may also be that of every stage. Or a
            rule ``(name, leaf) -> set or None``, with names such as "0.weight".
        controls: the controls, whose leaves are bounded.
        lead: leading axes of a leaf that index controls of their own.
        per_stage: the controls are a list of stages.

    Raises:
        InvalidType: something in it is no set.
        InvalidValue: it does not fit the controls.
    """
    if callable(bounds) and not isinstance(bounds, type):
        rule = bounds
        check_signature(("name", "leaf"), synonyms={}, bounds=rule)
        sets = [_spread(rule(name, leaf), leaf, f"bounds({name!r})")[0] for name, leaf in tree.dotted(controls).items()]
    elif per_stage and not isinstance(bounds, list | tuple):
        sets = [own for stage in controls for own in _spread(_of_stage(bounds, stage, controls), stage, "bounds")]
    else:
        sets = _spread(bounds, controls, "bounds")
    return Region(tuple(sets), lead)


def _of_stage(bounds: Bounds, stage: Tree, controls: Tree) -> Bounds:
    """Those of a stage: a key that some stage has may be missing in others (layers without weights)."""
    if not isinstance(bounds, Mapping) or not isinstance(stage, Mapping):
        return bounds
    known = {key for each in controls if isinstance(each, Mapping) for key in each}
    return {key: value for key, value in bounds.items() if key in stage or key not in known}


def _spread(bounds: Bounds, part: Tree, name: str) -> list[AdmissibleSet | None]:
    """One set (or None) for each leaf of a part of the controls."""
    if hasattr(bounds, "as_bounds"):
        bounds = bounds.as_bounds()
    if bounds is None or (isinstance(bounds, AdmissibleSet) and not isinstance(bounds, type)):
        return [bounds] * len(tree.leaves(part))
    if isinstance(bounds, Mapping) and isinstance(part, Mapping):
        if unknown := sorted(map(str, bounds.keys() - part.keys())):
            raise InvalidValue(f"{name} has {', '.join(unknown)}; the controls there have {sorted(map(str, part))}")
        return [own for key, value in part.items() for own in _spread(bounds.get(key), value, f"{name}[{key!r}]")]
    if isinstance(bounds, list | tuple) and isinstance(part, list | tuple):
        if len(bounds) != len(part):
            pair = len(bounds) == 2 and all(isinstance(bound, int | float) for bound in bounds)
            cure = f"; for bounds of every control: mfoc.Box({bounds[0]}, {bounds[1]})" if pair else ""
            raise InvalidValue(f"{name} has {len(bounds)} entries; the controls there have {len(part)}{cure}")
        return [
            own
            for k, (inner, value) in enumerate(zip(bounds, part, strict=True))
            for own in _spread(inner, value, f"{name}[{k}]")
        ]
    raise InvalidType(
        f"{name} is {kind_of(bounds)}; expected Box(low, high), Simplex(), Ball(radius, 'l2'), L1(weight), None, or a "
        "tree of them shaped as the controls"
    )


@dataclass(frozen=True, eq=False)
class RowRegion:
    """Where the rows ``[G, n]`` of a block may lie: each row is a flattened control tree.

    Attributes:
        columns: for each leaf, the sets of the G rows.
        shapes: the shapes of the leaves.
        lead: as in ``Region``.
    """

    columns: tuple[tuple[AdmissibleSet | None, ...], ...]
    shapes: tuple[torch.Size, ...]
    lead: int = 0

    def project(self, rows: Tensor) -> Tensor:
        """See ``Region.project``."""
        return self._each(lambda own, u, lead: own.project(u, lead), rows)

    def stationary(self, rows: Tensor, slopes: Tensor) -> Tensor:
        """See ``Region.stationary``."""
        return self._each(lambda own, g, u, lead: own.stationary(u, g, lead), slopes, rows)

    def face(self, rows: Tensor, slopes: Tensor, directions: Tensor) -> Tensor:
        """See ``Region.face``."""
        return self._each(lambda own, v, u, g, lead: own.face(u, g, v, lead), directions, rows, slopes)

    def dimension(self, rows: Tensor, slopes: Tensor) -> Tensor:
        """The dimension of each row's face ``[G]``."""

        def count(own: AdmissibleSet, u: Tensor, g: Tensor, lead: int) -> Tensor:
            return own.dimension(u, g, lead).reshape(len(u), -1).sum(1, keepdim=True)

        def all_of(u: Tensor) -> Tensor:
            return u.new_full((len(u), 1), u[0].numel())

        return self._each(count, rows, slopes, free=all_of).sum(1)

    def bend(self, rows: Tensor, slopes: Tensor, directions: Tensor) -> Tensor:
        """See ``Region.bend``."""

        def bent(own: AdmissibleSet, v: Tensor, u: Tensor, g: Tensor, lead: int) -> Tensor:
            factor = own.bend(u, g, lead)
            return torch.zeros_like(v) if factor is None else _shaped(factor, v) * v

        return self._each(bent, directions, rows, slopes, free=torch.zeros_like)

    def land(self, rows: Tensor, moved: Tensor, slopes: Tensor) -> Tensor:
        """See ``Region.land``."""
        return self._each(lambda own, v, u, g, lead: own.land(u, v, g, lead), moved, rows, slopes)

    def penalty(self, rows: Tensor) -> Tensor:
        """What is added to each row's value ``[G]``."""

        def cost(own: AdmissibleSet, u: Tensor, lead: int) -> Tensor:
            found = own.penalty(u, lead)
            return u.new_zeros(len(u), 1) if found is None else found.reshape(len(u), -1).mean(1, keepdim=True)

        return self._each(cost, rows, free=lambda u: u.new_zeros(len(u), 1)).sum(1)

    def _each(self, function: Any, first: Tensor, *others: Tensor, free: Any = None) -> Tensor:
        """The function of each leaf's set and its part of the rows, put together; ``free`` of those without a set."""
        sizes = [shape.numel() for shape in self.shapes]
        parts = zip(*(torch.split(rows, sizes, 1) for rows in (first, *others)), strict=True)
        found = []
        for sets, shape, columns in zip(self.columns, self.shapes, parts, strict=True):
            leaves = [column.reshape(-1, *shape) for column in columns]
            runs = [(0, len(sets))] if all(own is sets[0] for own in sets) else [(g, g + 1) for g in range(len(sets))]
            pieces = []
            for low, high in runs:
                own, held = sets[low], [leaf[low:high] for leaf in leaves]
                if own is None:
                    pieces.append(held[0] if free is None else free(held[0]))
                else:
                    pieces.append(function(own, *held, self.lead + 1))
            found.append(torch.cat(pieces).reshape(len(first), -1))
        return torch.cat(found, 1)


def _shaped(factor: Tensor, v: Tensor) -> Tensor:
    """A factor of leading axes, so that it broadcasts against v."""
    return factor.reshape(*factor.shape, *(1,) * (v.dim() - factor.dim()))
