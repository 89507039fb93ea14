"""Ranks end together: after a step each says what it wants, and all do the same."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any

from mfoc.distributed import vote
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
    if signals.asked is not None:
        wish = max(wish, _wish_of(error_of(signals.asked)))
    wish = _Wish(vote(wish, like))
    if wish is _Wish.NONFINITE:
        words = "a hook of another rank found what is not finite"
        raise failure or NonFiniteError(words, stage=None, step=step, last=None)
    if wish >= _Wish.INTERRUPT:
        raise Terminated() if wish is _Wish.TERMINATE else KeyboardInterrupt()
    return wish is _Wish.STOP


def _wish_of(error: BaseException) -> _Wish:
    if isinstance(error, NonFiniteError):
        return _Wish.NONFINITE
    return _Wish.TERMINATE if isinstance(error, Terminated) else _Wish.INTERRUPT
