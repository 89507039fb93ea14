"""Expectations over a population that may be split over processes, and what the processes agree on.

Every mean over particles goes through one all-reduce of one flat buffer, whatever is averaged (``expectation``, and
``average`` of sums). Without a process group it returns what it was given. No collective waits for a rank that has
failed: it raises ``mfoc.errors.RankError`` (see ``mfoc.collectives``).

Controls are held whole by every rank, and so is the optimiser's memory: what is split is the population. Controls that
are larger than a device (FSDP2, ``DTensor``) are not supported, and refused where they come in.

This is below the public doors: it does not check its arguments.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import reduce
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mfoc.collectives import all_reduce, announce, announcing
from mfoc.errors import InvalidValue, RankError
from mfoc.ranks import active, alone, is_main, rank, world_size
from mfoc.tree import leaves, pieces

__all__ = [
    "Ballot", "RankError", "active", "all_reduce", "alone", "announce", "announcing", "any_rank", "average",
    "differing", "expectation", "gathered", "is_main", "rank", "share", "vote", "voting", "world_size",
]  # fmt: skip


def share(index: Tensor) -> Tensor:
    """This rank's part of the particles of a batch.

    A batch of fewer particles than ranks is whole on every rank: no rank is without a particle, which networks cannot
    run on, and means over equal copies are the batch's own. Ranks that would have waited compute what others do.

    Args:
        index: particle indices of the whole batch ``[N]``.
    """
    ranks = world_size()
    return index if len(index) < ranks or ranks == 1 else index[rank() :: ranks]


def expectation(means: Sequence[Tensor], particles: int) -> list[Tensor]:
    """Population means of tensors that are means over this rank's particles.

    Args:
        means: tensors of any shapes, each already averaged over the local particles.
        particles: number of local particles, the weight of this rank; where it is 0 the means are not looked at.

    Returns:
        The means over the particles of all ranks, in the shapes given.

    Raises:
        RankError: another rank failed.
    """
    if not active():
        return list(means)
    return _reduced(means, particles, scaled=True)


def average(sums: Sequence[Tensor], weight: int | float | Tensor) -> list[Tensor]:
    """Population means of tensors that are sums over this rank's particles: ``expectation`` with one pass less.

    Args:
        sums: tensors of any shapes.
        weight: what the sums of all ranks are divided by is the sum of it: the number of particles, or the sum of
            their weights.

    Returns:
        The sums of all ranks over the weights of all ranks, in the shapes given.

    Raises:
        RankError: another rank failed.
    """
    if not active():
        return [total / weight for total in sums]
    return _reduced(sums, weight, scaled=False)


@torch.no_grad()
def _reduced(parts: Sequence[Tensor], weight: int | float | Tensor, *, scaled: bool) -> list[Tensor]:
    """The sums over ranks of parts (times the weight), over that of the weights.

    Parts are written into the buffer where they go, and it is divided in place: two passes over memory beside the
    reduction. It is made anew each time, since the caller keeps what he is given: of one that is kept he would have to
    be given copies, which costs a pass more, and the allocator hands out the same memory again.
    """
    # Half precision cannot hold the number of particles, nor their sum.
    wide = reduce(torch.promote_types, (part.dtype for part in parts), torch.float32)
    ballot = _BALLOT.get()
    carries = ballot is not None and not ballot.is_counted
    size = sum(part.numel() for part in parts)
    # The marks have their places with and without a vote: in which order more than two ranks are summed depends on the
    # size of the buffer, and a run is the same to the bit whether it votes or not.
    buffer = torch.empty(size + 1 + _CODES, dtype=wide, device=parts[0].device)
    views = pieces(buffer[:size], parts)
    if isinstance(weight, int | float) and not weight:
        buffer.zero_()  # the mean of no particles is no number
    else:
        for view, part in zip(views, parts, strict=True):
            if scaled and part.dtype == wide:
                torch.mul(part.detach(), weight, out=view)
            else:
                view.copy_(part)
                if scaled:
                    view.mul_(weight)
        buffer[size] = weight
    buffer[size + 1 :] = 0
    if ballot is not None and carries and ballot.code:
        buffer[size + ballot.code] = 1
    all_reduce(buffer)
    if ballot is not None and carries:
        ballot.counted(buffer[size + 1 :])
    buffer[:size].div_(buffer[size])
    return [view if part.dtype == wide else view.to(part.dtype) for view, part in zip(views, parts, strict=True)]


def gathered(rows: Tensor) -> Tensor:
    """The rows of all ranks ``[B, ...]``, in the order from which ``share`` takes them.

    Args:
        rows: this rank's ``[N, ...]``.
    """
    if not active():
        return rows
    ranks, own = world_size(), rank()
    counts = torch.zeros(ranks, dtype=torch.int64, device=rows.device)
    counts[own] = len(rows)
    all_reduce(counts)
    most = int(counts.max())
    whole = rows.new_zeros(most, ranks, *rows.shape[1:])
    whole[: len(rows), own] = rows
    all_reduce(whole)
    last = max((count - 1) * ranks + r for r, count in enumerate(counts.tolist()))
    return whole.flatten(0, 1)[: last + 1]


def any_rank(flag: object, like: Any) -> bool:
    """Whether the flag is true on any rank, so that all of them stop together.

    Args:
        flag: this rank's; its truth counts.
        like: a tree with a tensor on this rank's device.

    Raises:
        RankError: another rank failed.
    """
    return bool(vote(int(bool(flag)), like)) if active() else bool(flag)


def vote(code: int, like: Any) -> int:
    """The largest of the integers that the ranks give: 0 for nothing, more for what is more urgent.

    Args:
        code: this rank's.
        like: a tree with a tensor on this rank's device.

    Raises:
        RankError: another rank failed.
    """
    if not active():
        return code
    votes = torch.tensor([code], device=leaves(like)[0].device)
    all_reduce(votes, op=dist.ReduceOp.MAX)
    return int(votes.item())


class Ballot:
    """A vote that the next expectation carries, where there is one: it costs a few numbers more in its buffer.

    Args:
        code: what this rank votes for, from 0 to ``_CODES``.
    """

    def __init__(self, code: int) -> None:
        self.code = code
        self._counts: Tensor | None = None

    @property
    def is_counted(self) -> bool:
        """Whether an expectation has carried it."""
        return self._counts is not None

    def counted(self, counts: Tensor) -> None:
        """Takes in how many ranks voted for each code."""
        self._counts = counts.clone()

    def result(self, like: Any) -> int:
        """The largest code of all ranks; by a reduction of its own where no expectation has carried it.

        Args:
            like: a tree with a tensor on this rank's device. On a GPU the host waits for it.

        Raises:
            RankError: another rank failed.
        """
        if not active():
            return self.code
        if self._counts is None:
            return vote(self.code, like)
        given = [code for code, count in enumerate(self._counts.real.tolist(), 1) if count > 0]
        return max(given, default=0)


_CODES = 3
_BALLOT: ContextVar[Ballot | None] = ContextVar("ballot", default=None)


@contextmanager
def voting(code: int) -> Iterator[Ballot]:
    """Within, the first expectation carries a vote; ``ballot.result(controls)`` of the ballot it gives counts it.

    Args:
        code: what this rank votes for: 0 for nothing, up to 3 for what is most urgent.

    Raises:
        InvalidValue: another code.
    """
    if not 0 <= code <= _CODES:
        raise InvalidValue(f"code is {code}; expected 0 to {_CODES}")
    ballot = Ballot(code)
    token = _BALLOT.set(ballot)
    try:
        yield ballot
    finally:
        _BALLOT.reset(token)


def differing(entries: Mapping[str, str], like: Any) -> str:
    """In words, what differs between the ranks.

    Where they agree, which is found by their digests, it costs one reduction of a few numbers.

    Args:
        entries: what has to be the same on all ranks, by name, in words (of tensors: a digest).
        like: a tree with a tensor on this rank's device.

    Returns:
        One clause for each entry that differs; empty where none does, and without ranks.

    Raises:
        RankError: another rank failed.
    """
    if not active():
        return ""
    device = leaves(like)[0].device
    text = json.dumps(dict(entries), sort_keys=True).encode()
    # The length and 7 bytes of a digest: integers that a sum with zeros leaves as they are.
    digest = int.from_bytes(hashlib.blake2b(text, digest_size=7).digest(), "little")
    table = torch.zeros(world_size(), 2, dtype=torch.int64, device=device)
    table[rank()] = torch.tensor([len(text), digest], device=device)
    all_reduce(table)
    if (table == table[0]).all():
        return ""
    lengths = table[:, 0].tolist()
    letters = torch.zeros(world_size(), max(lengths), dtype=torch.uint8, device=device)
    letters[rank(), : len(text)] = torch.tensor(list(text), dtype=torch.uint8, device=device)
    all_reduce(letters)
    texts = letters.cpu()
    found = [json.loads(bytes(texts[r, :length].tolist())) for r, length in enumerate(lengths)]
    names = list(dict.fromkeys(name for each in found for name in each))
    differ = [name for name in names if len({each.get(name) for each in found}) > 1]
    return ". ".join(f"{name}: {_by_value([each.get(name, 'nothing') for each in found])}" for name in differ)


def _by_value(values: list[str]) -> str:
    """Which ranks have which value: ``"0 on ranks 0, 2; 1 on rank 1"``."""
    ranks: dict[str, list[str]] = {}
    for r, value in enumerate(values):
        ranks.setdefault(value, []).append(str(r))
    return "; ".join(f"{value} on rank{'s' * (len(on) > 1)} {', '.join(on)}" for value, on in ranks.items())
