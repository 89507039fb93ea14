"""Particles from a map-style ``Dataset``: its items, collated as a DataLoader would."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from mfoc.errors import InvalidValue
from mfoc.particles import Particles
from mfoc.populations.conversion import converted
from mfoc.populations.stored import Key
from mfoc.seeding import seeded
from mfoc.tree import Tree

Collate = Callable[[list[Any]], Tree]


class Items:
    """A dataset as a source: anything with ``__getitem__`` and ``__len__``."""

    device, runs_user_code = torch.device("cpu"), True

    def __init__(self, dataset: Any, collate: Collate) -> None:
        self._dataset, self._collate = dataset, collate

    def __len__(self) -> int:
        return len(self._dataset)

    def __call__(self, index: Tensor, key: Key) -> Particles:
        places = index.tolist()
        many = getattr(self._dataset, "__getitems__", None)  # which DataLoaders ask for as well
        with seeded(key()):
            rows = many(places) if callable(many) else [self._dataset[i] for i in places]
            return collated(rows, self._collate, index.clone())  # which may draw, too: to mix two images, say

    def whole(self) -> None:
        """It is not at hand: items may be drawn anew each time."""


def collated(rows: list[Any], collate: Collate, index: Tensor) -> Particles:
    """Items as particles.

    Args:
        rows: the items.
        collate: makes one batch of them.
        index: which particles they are ``[N]``, their own.

    Raises:
        InvalidValue: they do not collate, or into something else than a state, or a state and data.
    """
    try:
        batch = stacked(rows) if collate is default_collate else collate(rows)
    except (RuntimeError, ValueError, TypeError) as error:
        raise InvalidValue(f"the dataset's items do not collate into one batch (ragged?): {error}") from error
    if isinstance(batch, tuple | list):
        batch = batch[0] if len(batch) == 1 else tuple(batch)
    return converted(batch, index)


def stacked(rows: list[Any]) -> Tree:
    """What ``default_collate`` makes of rows, sooner where they are tuples that hold tensors.

    It asks each entry of each row what it is, which takes a fifth of the time that putting them together does.
    """
    if not {tuple, list}.issuperset(kinds := set(map(type, rows))) or len(kinds) > 1 or len(set(map(len, rows))) > 1:
        return default_collate(rows)
    columns: list[Any] = list(zip(*rows, strict=True))
    return [torch.stack(c) if set(map(type, c)) == {Tensor} else default_collate(c) for c in columns]
