"""Ranks end together: with a step, or after it, each says what it wants, and all do the same."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mfoc.distributed import Ballot, vote, voting
from mfoc.errors import NonFiniteError
from mfoc.solving.signals import Signals, Terminated, error_of


class _Wish(enum.IntEnum):
    """What a rank wants after a step; the largest of all ranks' is what they do."""

    GO_ON = 0
    STOP = 1
    INTERRUPT = 2
    TERMINATE = 3
    NONFINITE = 4


def agreed(step: int, stops: Callable[[], bool], signals: Signals, like: Any) -> bool:
    """Whether a hook of any rank stops the solve after this step.

    Args:
        step: its number.
        stops: calls this rank's hooks.
        signals: what this rank was asked for.
        like: a tree with a tensor on this rank's device.

    Raises:
        KeyboardInterrupt: a rank was asked to end, ``Terminated`` where by SIGTERM.
        NonFiniteError: a hook of a rank says that something is not finite.
        RankError: a hook of another rank raised something.
    """
    failure: BaseException | None = None
    try:
        wish = _Wish.STOP if stops() else _Wish.GO_ON
    except (KeyboardInterrupt, NonFiniteError) as error:  # anything else ends this rank, which tells the others
        failure, wish = error, _wish_of(error)
    wish = _Wish(vote(max(wish, _asked(signals)), like))
    if wish is _Wish.NONFINITE:
        words = "a hook of another rank found what is not finite"
        raise failure or NonFiniteError(words, stage=None, step=step, last=None)
    _answered(wish, signals)
    return wish is _Wish.STOP


@contextmanager
def riding(signals: Signals) -> Iterator[Ballot]:
    """A step whose expectation carries what this rank is asked for: where no rank has hooks, it costs no reduction."""
    with voting(_asked(signals)) as ballot:
        yield ballot


def answer(signals: Signals, like: Any, ballot: Ballot | None = None) -> None:
    """Ends all ranks where one was asked to end.

    Args:
        signals: what this rank was asked for.
        like: a tree with a tensor on this rank's device.
        ballot: of the step that carried the votes; when None they are given now.

    Raises:
        KeyboardInterrupt: a rank was asked to end, ``Terminated`` where by SIGTERM.
        RankError: another rank failed.
    """
    _answered(_Wish(vote(_asked(signals), like) if ballot is None else ballot.result(like)), signals)


def _answered(wish: _Wish, signals: Signals) -> None:
    if wish in (_Wish.INTERRUPT, _Wish.TERMINATE):
        signals.agreed = True
        raise Terminated() if wish is _Wish.TERMINATE else KeyboardInterrupt()


def _asked(signals: Signals) -> _Wish:
    return _Wish.GO_ON if signals.asked is None else _wish_of(error_of(signals.asked))


def _wish_of(error: BaseException) -> _Wish:
    if isinstance(error, NonFiniteError):
        return _Wish.NONFINITE
    return _Wish.TERMINATE if isinstance(error, Terminated) else _Wish.INTERRUPT
