"""The admissible controls of a problem: a set for each leaf of a control tree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mfoc import tree
from mfoc.bounds.sets import AdmissibleSet, Box
from mfoc.checks import kind_of
from mfoc.errors import InvalidType, InvalidValue
from mfoc.tree import Tree

Bounds = (
    Any  # a set, a tree of sets and None whose nodes stand for all leaves below them, or a rule (name, leaf) -> set
)


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

    def face(self, controls: Tree, gradient: Tree, direction: Tree) -> Tree:
        """A direction without what leaves the face that strictly active constraints hold the controls to."""
        return self._each(lambda own, v, u, g: own.face(u, g, v, self.lead), direction, controls, gradient)

    def bend(self, controls: Tree, gradient: Tree, direction: Tree) -> Tree:
        """What the bend of the boundary adds to a product of the Hessian with a direction."""

        def bent(own: AdmissibleSet, v: Tensor, u: Tensor, g: Tensor) -> Tensor:
            factor = own.bend(u, g, self.lead)
            ones = (1,) * (u.dim() - self.lead)
            return torch.zeros_like(v) if factor is None else factor.reshape(*u.shape[: self.lead], *ones) * v

        zero = tree.map(torch.zeros_like, direction)
        found = self._each(bent, direction, controls, gradient)
        leaves = zip(tree.leaves(zero), tree.leaves(found), self.sets, strict=True)
        return tree.rebuild(direction, [nothing if own is None else leaf for nothing, leaf, own in leaves])

    def land(self, controls: Tree, moved: Tree, stationary: Tree) -> Tree:
        """Where a step from the controls to ``moved`` lands; see ``mfoc.bounds.sets``."""
        return self._each(lambda own, v, u, r: own.land(u, v, r, self.lead), moved, controls, stationary)

    def penalty(self, controls: Tree) -> Tensor | None:
        """What is added to J, a scalar; the mean over particles with controls of their own. None: nothing."""
        found = [
            own.penalty(leaf, self.lead)
            for own, leaf in zip(self.sets, tree.leaves(controls), strict=True)
            if own is not None
        ]
        costs = [cost.mean() for cost in found if cost is not None]
        return torch.stack(costs).sum() if costs else None

    def check(self, controls: Tree, *, admissible: bool = True) -> None:
        """Refuses controls that the sets are not made for, and (unless told not to) those outside.

        Raises:
            InvalidValue: says which leaf.
        """
        named = tree.named_leaves(controls, "controls")
        for own, (name, leaf) in zip(self.sets, named, strict=True):
            if own is None:
                continue
            own.check(leaf, self.lead, name)
            away = float((own.project(leaf, self.lead) - leaf).abs().max()) if admissible and leaf.numel() else 0.0
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
            raise InvalidValue(f"{name} has {len(bounds)} entries; the controls there have {len(part)}")
        return [
            own
            for k, (inner, value) in enumerate(zip(bounds, part, strict=True))
            for own in _spread(inner, value, f"{name}[{k}]")
        ]
    raise InvalidType(
        f"{name} is {kind_of(bounds)}; expected Box(low, high), Simplex(), Ball(radius, 'l2'), L1(weight), None, or a "
        "tree of them shaped as the controls"
    )
