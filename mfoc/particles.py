"""The cloud of particles a problem is solved on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mfoc import printing, tree
from mfoc.checks import check_instance, check_plain, is_plain, kind_of
from mfoc.errors import InvalidType, InvalidValue, MfocError
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
        found = tree.leaves(self.state)
        if found and self.data is not None:
            found += tree.leaves(self.data)
        if not _share_an_axis(found):
            self._refuse()
        if any(leaf.is_inference() for leaf in found):  # autograd refuses those where it needs them, deep in a solve
            for name in ("state", "data"):
                object.__setattr__(self, name, _plain(getattr(self, name)))
        if self.index is not None:
            first = found[0]
            check_instance(Tensor, f"the numbers of {len(first)} particles, an int64 tensor, or None", index=self.index)
            if self.index.dtype != torch.int64 or self.index.shape != first.shape[:1]:
                raise InvalidValue(
                    f"index is {tree.describe(self.index)}; expected the numbers of {len(first)} particles, int64 [N]"
                )

    def _refuse(self) -> None:
        """Says which leaf does not fit. The paths to the leaves are sought only then: they take the most time."""
        named = tree.named_leaves(self.state, "state")
        if not named:
            raise InvalidValue("state has no tensor; a cloud needs at least one, with leading axis N")
        if self.data is not None:
            named += tree.named_leaves(self.data, "data")
        name, first = named[0]
        for label, leaf in named:
            if not is_plain(leaf, on_meta=True):
                check_plain("a tensor with leading axis N", **{label: leaf})
            if leaf.dim() == 0:
                raise InvalidValue(f"{label} is a scalar; expected a leading particle axis, [N, ...]")
            if len(leaf) != len(first):
                raise InvalidValue(
                    f"{label} holds {len(leaf)} particles and {name} holds {len(first)}; "
                    "every leaf needs the same leading axis N"
                )
        if len(first) == 0:
            raise InvalidValue(f"{name} is empty; a cloud needs at least one particle")

    @classmethod
    def of_fitting(cls, state: Tree, data: Tree, index: Tensor | None) -> Particles:
        """The same without a look at the leaves: for rows of a cloud that was looked at, of which there are some."""
        made = object.__new__(cls)
        made.__dict__.update(state=state, data=data, index=index)
        return made

    def __repr__(self) -> str:
        data = "no data" if self.data is None else f"data {printing.short(self.data)}"
        return f"Particles({len(self)}: state {printing.short(self.state)}, {data})"

    def __len__(self) -> int:
        leaf: Tensor = tree.leaves(self.state)[0]
        return leaf.shape[0]

    def __getitem__(self, index: Any) -> Particles:
        """The particles chosen by a slice, a mask or an index tensor.

        Raises:
            InvalidType: ``index`` is none of these.
            InvalidValue: it is a single place, which would leave no cloud, or chooses particles that there are not.
        """
        chosen = _chosen(self.indices(), index)
        data = None if self.data is None else tree.map(lambda leaf: leaf[index], self.data)
        return Particles(tree.map(lambda leaf: leaf[index], self.state), data, chosen)

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


def _chosen(numbers: Tensor, index: Any) -> Tensor:
    """The numbers ``[M]`` of the particles that an index chooses."""
    expected = "expected a slice, a mask [N] or a tensor of places [M]"
    try:
        # Of a list of floats torch would take the integer parts.
        if not isinstance(index, slice | Tensor) and np.asarray(index).dtype.kind not in "biu":
            raise InvalidType(f"index is {kind_of(index)}; {expected}")
        chosen: Tensor = numbers[index]
    except (IndexError, OverflowError) as error:
        raise InvalidValue(f"index does not fit {len(numbers)} particles: {error}; {expected}") from error
    except MfocError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:  # NotImplementedError is one of the last
        raise InvalidType(f"index is {kind_of(index)} that torch cannot index by: {error}; {expected}") from error
    if chosen.dim() != 1:
        kind = f"a tensor {list(index.shape)}" if isinstance(index, Tensor) else kind_of(index)
        cure = "; cloud[k : k + 1] holds particle k alone" if not chosen.dim() else ""
        raise InvalidValue(f"index is {kind}; {expected}{cure}")
    return chosen


def _share_an_axis(leaves: list[Any]) -> bool:
    """Whether these are tensors, at least one, of one leading axis that is not empty."""
    if not leaves or not all(is_plain(leaf, on_meta=True) for leaf in leaves) or leaves[0].dim() == 0:
        return False
    count = leaves[0].shape[0]
    return count > 0 and all(leaf.dim() and leaf.shape[0] == count for leaf in leaves)


def _plain(part: Tree) -> Tree:
    """The same with copies of tensors that were made in inference mode, unless it is still on."""
    return None if part is None else tree.map(tree.plain, part)


def usable(cloud: Particles) -> Particles:
    """The cloud as autograd takes it: a copy of one that was made in inference mode, others as they are."""
    held = tree.leaves((cloud.state, cloud.data))
    made = any(isinstance(leaf, Tensor) and leaf.is_inference() for leaf in held)
    return Particles(cloud.state, cloud.data, cloud.index) if made and type(cloud) is Particles else cloud


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
