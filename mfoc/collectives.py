"""Collectives that end on all ranks of a process group, also where one of them will never take part.

Left alone, a rank waits for the others until the group's timeout (30 minutes) where one of them raised an error and
lives on, and gets a message about sockets where one was killed. Here a rank that fails leaves a note in the group's
store (``announce``), and who waits looks there several times a second. Nothing is looked up while all goes well: there
is no thread, and a collective that is done at once costs what it costs without.

Tensors on a GPU are another matter. NCCL's collectives are queued and the host does not wait for them here, so a note
cannot be seen in them; what ends them is NCCL's own watchdog (``TORCH_NCCL_ASYNC_ERROR_HANDLING``, on by default),
after the timeout given to ``init_process_group``.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import time
import weakref
from collections.abc import Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from mfoc.errors import RankError
from mfoc.ranks import active

logger = logging.getLogger(__name__)

_SLICE = timedelta(milliseconds=200)  # between two looks at the notes
_GRACE = 1.0  # seconds in which the ranks that are left find one another
_RESTART = "the ranks are out of step: start all of them again"


def all_reduce(buffer: Tensor, op: Any = None) -> None:
    """A reduction over all ranks, in place: ``dist.all_reduce`` that ends also where a rank has failed.

    Args:
        buffer: a contiguous tensor, of one shape and dtype on all ranks.
        op: what is taken of it, ``dist.ReduceOp.SUM`` when None.

    Raises:
        RankError: a rank has announced that it failed, or its process is gone; or it did before, and the ranks are
            out of step since.
    """
    group = _group()
    if group.failed:
        group.check()
    op = dist.ReduceOp.SUM if op is None else op
    if buffer.is_cpu:
        group.wait(buffer, op)
    else:
        dist.all_reduce(buffer, op=op)
    group.done += 1
    if group.done == 1:
        group.meet(buffer.device)


def announce(error: BaseException, step: int | None = None) -> None:
    """Tells the other ranks that this one failed, so that none of them waits for it.

    Where all of them fail alike, between the same two collectives, they are still in step, and may go on together.
    Without a process group, and for the ``RankError`` that comes of another's announcement, nothing is done.

    Args:
        error: what went wrong.
        step: the step of the solve at which it did.
    """
    if active() and not isinstance(error, RankError):
        with contextlib.suppress(RuntimeError):  # the store is gone: there is nobody to tell
            _group().announce(": ".join(filter(None, [type(error).__name__, str(error)]))[:500], step)


@contextlib.contextmanager
def announcing(step: int | None = None) -> Iterator[None]:
    """What is raised within is announced, and raised; see ``announce``."""
    try:
        yield
    except BaseException as error:
        announce(error, step)
        raise


class _Group:
    """What this process knows of a process group.

    Failures are counted. The n-th of the group is noted under n by whoever has it first; a rank that waits and has had
    n - 1 looks for it. So the note of a failure that all ranks had alike stops nobody afterwards.
    """

    def __init__(self, group: Any) -> None:
        self.group = weakref.ref(group)  # who destroys the group ends its threads: a later end of them may abort Python
        self._base = _store(group)
        self.done = 0  # collectives that all ranks took part in
        self.failed = False  # this rank, and it is not known yet whether the others are in step with it
        self._failures = 0
        self._broken: RankError | None = None
        self._last: dict[str, Any] = {}  # what this rank announced last
        # torchrun's store outlives its workers: what those before a restart have noted is of another place in it.
        self._store = self._place(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
        self._own, self._ranks = dist.get_rank(), range(dist.get_world_size())
        self._processes: dict[int, tuple[str, int]] = {}
        self._were_gone = False  # at the last look

    def _place(self, name: str) -> Any:
        return dist.PrefixStore(f"mfoc/{name}", self._base)  # type: ignore[attr-defined]

    def meet(self, device: torch.device) -> None:
        """Looks up the processes of all ranks, which have all been here: later the store may be gone."""
        # Restarts are counted machine by machine; a place in the store that none had before is told by rank 0.
        told = torch.tensor([secrets.randbits(62) if self._own == 0 else 0], device=device)
        dist.all_reduce(told)
        self._store = self._place(f"group/{int(told)}")
        self._store.set(f"process/{self._own}", json.dumps(_process()))
        self._processes = {r: tuple(json.loads(self._store.get(f"process/{r}"))) for r in self._ranks}

    def wait(self, buffer: Tensor, op: Any) -> None:
        """A reduction, whose end is waited for."""
        interrupted = False
        work = dist.all_reduce(buffer, op=op, async_op=True)
        while True:
            try:
                if self._ended(work):
                    break
            except KeyboardInterrupt:  # a rank that leaves now is one for which the others wait
                if interrupted:
                    self._give_up(
                        RankError(f"rank {self._own} was interrupted in a collective; {_RESTART}", rank=self._own)
                    )
                    raise
                interrupted = True
                logger.warning("interrupted while the other ranks are waited for; once more ends it at once")
        if interrupted:
            raise KeyboardInterrupt

    def _ended(self, work: Any) -> bool:
        """Whether the collective is done, after a while; notes of a failure are errors."""
        try:
            work.wait(_SLICE)
        except RuntimeError:
            if work.is_completed():
                try:
                    work.wait()  # it may have been done just now
                except RuntimeError as error:
                    self._fail(self._lost(error))
                return True
            if self._noted():
                self._fail(self._lost(None))
            return False
        return True

    def _noted(self) -> bool:
        """Whether a rank has failed, by what is noted or since its process has ended."""
        number = self._failures + 1
        were_gone, self._were_gone = self._were_gone, bool(self._gone(self._ranks))
        if were_gone and self._were_gone:  # twice: who did his part and ended has just let the others end, too
            return True
        try:
            return any(self._store.check([f"{what}/{number}"]) for what in ("failure", "lost"))
        except RuntimeError:
            return True

    def _fail(self, error: BaseException) -> NoReturn:
        if isinstance(error, RankError):
            self._give_up(error)
        else:  # all ranks have the same, as of a dtype that cannot be reduced
            self._failures += 1
            self.failed = True
        raise error

    def _give_up(self, error: RankError) -> None:
        self._failures += 1
        self.failed, self._broken = True, _again(error)  # what a solve adds to its own is not of the next

    def _lost(self, error: RuntimeError | None) -> BaseException:
        """Why a collective cannot end: found together with the ranks that are left."""
        number = self._failures + 1
        time.sleep(0.05 if error else 0)  # sockets are closed a little before a process has ended
        if self._alive(0) is False and not self._store_lives():  # asked in vain, it prints the stack of C++
            return _without_store(error)
        try:
            self._store.set(f"lost/{number}", "")
            self._store.set(f"ended/{number}/{self._own}", "waiting" if error is None else str(self.done))
            found = self._note(number)
            missing = [] if found else self._missing(f"ended/{number}")
            found = found or self._note(number)
            if found is None and not missing:
                return error or RankError(f"a collective failed on another rank; {_RESTART}")  # the same on all ranks
            if found is None:
                gone = self._gone(missing) or self._unheard(missing)
                self._write(number, gone, None, "its process is gone (killed, or out of memory?)")
                found = self._note(number)
            self._linger(number)
        except RuntimeError as unreachable:
            return _without_store(unreachable)
        assert found is not None
        made = _told(found)
        made.__cause__ = error
        return made

    def announce(self, words: str, step: int | None) -> None:
        """Leaves a note."""
        self._failures += 1
        self.failed = True
        self._last = {"ranks": [self._own], "step": step, "words": words}
        self._write(self._failures, **self._last)
        self._store.set(f"ended/{self._failures}/{self._own}", str(self.done))
        self._linger(self._failures)

    def check(self) -> None:
        """After a failure: whether all ranks had it, between the same collectives."""
        number = self._failures
        if self._broken is None:
            try:
                while missing := self._missing(f"ended/{number}"):
                    if gone := self._gone(missing):
                        self._broken = _told({"ranks": gone, "step": None, "words": "its process is gone"})
                        raise self._broken
                ends = {self._store.get(f"ended/{number}/{r}").decode() for r in self._ranks}
                if ends == {str(self.done)}:
                    self.failed = False
                    return
                self._broken = _told(self._note(number) or {})
            except RankError:
                raise
            except RuntimeError:  # the others have ended, and the store with them
                self._broken = _told(self._last)
        raise _again(self._broken)

    def _write(self, number: int, ranks: list[int], step: int | None, words: str) -> None:
        """The note of a failure, unless there is one."""
        self._store.compare_set(f"failure/{number}", "", json.dumps({"ranks": ranks, "step": step, "words": words}))

    def _note(self, number: int) -> dict[str, Any] | None:
        key = f"failure/{number}"
        return json.loads(self._store.get(key)) if self._store.check([key]) else None

    def _missing(self, what: str) -> list[int]:
        """The ranks that do not write this within a second; it ends sooner where those are known to be gone."""
        until = time.monotonic() + _GRACE
        while True:
            missing = [r for r in self._ranks if not self._store.check([f"{what}/{r}"])]
            if time.monotonic() > until or not set(missing) - set(self._gone(missing)):
                return missing
            time.sleep(0.02)

    @staticmethod
    def _store_lives() -> bool:
        """Whether the store outlives rank 0: torchrun holds it."""
        return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"

    def _linger(self, number: int) -> None:
        """The rank that may hold the store does not end before the others have read what is in it."""
        self._store.set(f"known/{number}/{self._own}", "")
        if self._own == 0:
            self._missing(f"known/{number}")

    def _gone(self, ranks: Iterable[int]) -> list[int]:
        """Those whose process is known to have ended, which can be told on one machine."""
        return [r for r in ranks if self._alive(r) is False]

    def _unheard(self, ranks: Iterable[int]) -> list[int]:
        """Those that may have ended: not the ones that are at work and will come."""
        ranks = list(ranks)
        return [r for r in ranks if self._alive(r) is None] or ranks

    def _alive(self, r: int) -> bool | None:
        machine, process = self._processes.get(r, ("", 0))
        return _runs(process) if machine == _process()[0] else None


_KNOWN: list[_Group] = []  # of the process group that is up


def _group() -> _Group:
    group = dist.group.WORLD
    if not _KNOWN or _KNOWN[0].group() is not group:
        _KNOWN[:] = [_Group(group)]
    return _KNOWN[0]


def _store(group: Any) -> Any:
    if hasattr(group, "get_group_store"):
        return group.get_group_store()
    return dist.distributed_c10d._get_default_store()  # noqa: SLF001  of older versions, which have no public way


def _told(note: dict[str, Any]) -> RankError:
    """The error of a rank that reads a note."""
    ranks, step, words = note.get("ranks", []), note.get("step"), note.get("words", "it is not known why")
    who = f"rank{'s' * (len(ranks) != 1)} {', '.join(map(str, ranks))}" if ranks else "a rank"
    when = "" if step is None else f" at step {step}"
    return RankError(f"{who} failed{when}: {words}; {_RESTART}", rank=ranks[0] if ranks else None, step=step)


def _again(error: RankError) -> RankError:
    return RankError(str(error), rank=error.rank, step=error.step)


def _without_store(error: BaseException | None) -> RankError:
    words = "its process is gone, and the group's store with it"
    made = RankError(f"rank 0 failed: {words}; {_RESTART}", rank=0)
    made.__cause__ = error
    return made


def _process() -> tuple[str, int]:
    """This machine, as far as its processes can be asked for by number, and this process."""
    try:
        machine = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii") + os.readlink("/proc/self/ns/pid")
    except OSError:  # no Linux: then nobody is known to be gone
        machine = f"of {os.getpid()}"
    return machine, os.getpid()


def _runs(process: int) -> bool:
    """Whether a process of this machine is there and has not ended: who ended and was not asked for is a zombie."""
    try:
        state = (
            Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
        )
    except OSError:
        return False
    return state not in "ZX"
