"""The steps of a solver, one after another: by its pure ``step``, or in place where it can.

In place nobody sees that controls move under him. An iterate that is handed out has its controls and its state made
when they are read: they are copied from where the solver stands or, once it has moved on, found again from a snapshot
of every thirty-second step. Steps are pure functions of controls, state and batch n, so they come back bit for bit.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mfoc import tree
from mfoc.checks import kind_of
from mfoc.distributed import active
from mfoc.errors import InvalidType, InvalidValue, NonFiniteError
from mfoc.particles import Particles
from mfoc.populations import Population
from mfoc.problem import Problem
from mfoc.solving.records import Info, InPlace, Iterate, Solver
from mfoc.solving.unread import Record, Unread, finite
from mfoc.solving.watch import Place, find_nonfinite
from mfoc.tree import Tree

_EVERY = 32  # steps between snapshots


class Steps:
    """Each iterate made of the one before by ``solver.step``.

    Attributes:
        step: how many steps were made, those before it began included.
        at: the iterate where it is; in place, the last that is held whole.
        good: the last iterate where J and its gradient were finite; in place it has to be found again.
        drawn: the number of the last batch that was drawn for a step.
        batch: that batch; None before the first, and while one is drawn.
    """

    def __init__(self, problem: Problem, solver: Solver, source: Population, at: Iterate) -> None:
        self._problem, self._solver, self._source = problem, solver, source
        self.at = self.good = at
        self.step = at.step
        self.drawn = at.step - 1
        self.batch: Particles | None = None

    def _next(self) -> Particles:
        """The batch of the step to come."""
        self.batch = None  # there is to be one at a time
        self.batch, self.drawn = self._source(self.step), self.step
        return self.batch

    def advance(self, record: Record, tol: float | None = None) -> None:
        """One step; J and the residual where it began are filled into the record, at once or by ``settle``.

        Where the residual is at most ``tol`` a step is not needed: one may be made, or none.

        Raises:
            NonFiniteError: one of them is not finite; ``last`` is the last iterate where both were.
        """
        at, particles = self.at, self._next()
        controls, state, info = _made(self._solver.step(self._problem, at.controls, at.state, particles))
        if self._problem.region is not None and info.projected is None:
            info = replace(info, projected=self._problem.region.stationary(at.controls, info.gradient))
        record["value"], record["residual"] = float(info.value), info.residual
        if not finite(record):
            stage, what = find_nonfinite(self._problem, at.controls, particles)
            raise NonFiniteError(f"step {at.step}: {what}", stage=stage, step=at.step, last=self.good)
        record |= info.extra
        self.good, self.at = at, Iterate(at.step + 1, controls, state, info)
        self.step += 1

    def settle(self) -> None:
        """Fills in the records of all steps made so far.

        Raises:
            NonFiniteError: as ``advance``.
        """

    def keep(self, *, surely: bool = False) -> None:
        """Iterates that somebody holds get controls of their own before the solver moves on.

        Args:
            surely: whoever holds one does so to keep it. Else the last is no proof: the variable of a loop over
                ``iterate`` holds it until the next has come.
        """

    def place(self) -> Place:
        """Where it is, to come back to."""
        return self.step, self.at

    @property
    def controls(self) -> Tree:
        """The controls where it is, which may move with it."""
        return self.at.controls

    def iterate(self, place: Place, history: Sequence[Record] = (), origin: Mapping[str, Any] | None = None) -> Iterate:
        """The iterate at a place."""
        return replace(place[1], history=history, origin=origin)


class StepsInPlace(Steps):
    """The same bits by a solver that works in place.

    Over ranks no rank can make a step again alone, and hooks may run on some of them only: whoever holds an iterate
    has it copied before the solver moves on, and each step is known to be finite, on all ranks, before the next. Steps
    are made again only where all ranks do so.

    A thread that was handed an iterate may read it at any time: nothing moves while it copies, and it copies nothing
    that is half written.
    """

    def __init__(self, problem: Problem, solver: Solver, source: Population, at: Iterate, live: InPlace) -> None:
        super().__init__(problem, solver, source, at)
        self._live, self._first, self._unread = live, at.step, Unread()
        self._over_ranks = active()
        self._seen: tuple[Tensor, list[Tensor]] | None = None  # J and its gradient at the last step
        self._before = at  # the snapshot before the one in self.at
        self._handed: list[weakref.ref[Iterate]] = []
        self._copies = False  # hand out copies: somebody keeps iterates
        self._lent: list[tuple[Tensor, int]] = []  # the last copies that were handed out, and their versions
        self._lock = threading.RLock()  # held by who moves, reads or copies

    def advance(self, record: Record, tol: float | None = None) -> None:
        """One step; see ``Steps``."""
        if self._handed:
            self.keep(surely=self._over_ranks)
        if self._lent:
            self._check_lent()
        if self.step - self.at.step >= _EVERY:
            self.settle()
            self._before, self.at = self.at, Iterate(self.step, *self._live.copies(), self._info())
        particles = self._next()
        with self._lock:
            norms: list[Tensor] = []
            value, slopes = self._live.step(particles, None if tol is None else partial(_stationary, tol, norms))
            self._unread.add(record, value, norms or slopes, norms=bool(norms))
            if self._live.taken != self.step - self._first:
                self._seen = value, slopes
                self.step += 1
        if self._over_ranks:
            self.settle()
        elif _at_hand(value):
            record["value"] = value.item()
            if not math.isfinite(record["value"]):
                self.settle()

    def settle(self) -> None:
        """Reads the numbers of all steps made so far; see ``Steps``."""
        with self._lock:
            bad = self._unread.read()
        if bad is not None:
            self._fail(int(bad["step"]))

    def _fail(self, step: int) -> None:
        """Finds the last iterate that was good, and what is wrong with the one after, by making the steps again."""
        snapshot = self.at if self.at.step < step else self._before
        again = self._again(step + 1, snapshot)
        raise NonFiniteError(
            f"step {step}: J or its gradient was not finite, and is when it is evaluated again",
            stage=None,
            step=step,
            last=again.good,
        )

    @property
    def controls(self) -> Tree:
        """The controls where it is, which move with it."""
        return self._live.controls

    def iterate(self, place: Place, history: Sequence[Record] = (), origin: Mapping[str, Any] | None = None) -> Iterate:
        """The iterate at a place, whose controls and state are made when they are read."""
        step, snapshot = place
        if step != self.step or step == snapshot.step:
            return replace(self._again(step, snapshot).at, history=history, origin=origin)
        made = Iterate.later(step, partial(self._recover, step, snapshot), self._info(), history, origin)
        if self._copies:
            _ = made.controls
        else:
            self._handed.append(weakref.ref(made))
        return made

    def _info(self) -> Info | None:
        """What the last step saw; its gradient becomes a tree, and its norm is taken, when somebody reads it."""
        if self._seen is None:
            return self.at.info
        value, slopes = self._seen
        return Info.later(value, partial(_handed, slopes, self._live.shaped, weakref.WeakMethod(self._own)))

    def _own(self) -> None:
        """Who reads a gradient may write into it: the records hold on to its norm only."""
        with self._lock:
            self._unread.own()

    def _again(self, step: int, snapshot: Iterate) -> Steps:
        """The steps from an iterate to another, made again."""
        again = Steps(self._problem, self._solver, self._source, snapshot)
        with torch.inference_mode(False):  # of who reads, which has no derivatives
            while again.step < step:
                again.advance({})
        return again

    def _recover(self, step: int, snapshot: Iterate) -> tuple[Tree, Tree]:
        """Controls and state at a step."""
        with self._lock:
            if self._live.taken == step - self._first:
                self.settle()
                with torch.inference_mode(False):
                    made = self._live.copies()
                self._lent += [(leaf, leaf._version) for leaf in tree.tensors(made[0])]
                return made
        at = self._again(step, snapshot).at  # it has moved on, or stopped in the middle of a step
        return at.controls, at.state

    def _check_lent(self) -> None:
        lent, self._lent = self._lent, []
        if any(leaf._version != version for leaf, version in lent):
            raise InvalidValue(
                "the controls of an iterate were written into; they are copies, of which the solver takes no notice: "
                "bounds=, as mfoc.Box(-1, 1), keeps controls in a set, and a solver of one's own changes them at will"
            )

    def keep(self, *, surely: bool = False) -> None:
        """Gives iterates that somebody holds their own controls; see ``Steps``."""
        kept = [one for one in (ref() for ref in self._handed) if one is not None and not one.held]
        self._copies |= any(one.step < self.step for one in kept)
        if surely or self._copies:
            for one in kept:
                _ = one.controls
            kept = []
        self._handed = [weakref.ref(one) for one in kept]


def _handed(
    slopes: list[Tensor], shaped: Callable[[list[Tensor]], Tree], own: Callable[[], Callable[[], None] | None]
) -> Tree:
    """A gradient, which the steps do not use from now on, if there still are any."""
    if (let_go := own()) is not None:
        let_go()
    return shaped(slopes)


def _stationary(tol: float, norms: list[Tensor], _value: Tensor, slopes: list[Tensor]) -> bool:
    """Whether the residual is at most ``tol``; the norms that it is made of are put into ``norms``."""
    norms += tree.norms(slopes)
    return math.hypot(*tree.floats(norms)) <= tol


def _made(step: Any) -> tuple[Tree, Tree, Info]:
    """What a solver's step made, where it is what it has to be."""
    if isinstance(step, tuple | list) and len(step) == 3 and isinstance(step[2], Info):
        return step[0], step[1], step[2]
    raise InvalidType(f"solver.step returned {kind_of(step)}; expected three things: controls, state and an mfoc.Info")


def _at_hand(value: Tensor) -> bool:
    """Whether it takes no time to look at a number."""
    return bool(value.is_cpu)


def stepping(problem: Problem, solver: Solver, source: Population, at: Iterate) -> Steps:
    """The steps of a solver from an iterate on."""
    make: Any = getattr(solver, "in_place", None)
    # Steps that were made within autocast are others when an iterate is read outside of it.
    pure = make is None or any(map(torch.is_autocast_enabled, ("cpu", "cuda")))
    live = None if pure else make(problem, at.controls, at.state)
    if live is None:
        return Steps(problem, solver, source, at)
    if not isinstance(getattr(live, "taken", None), int):
        raise InvalidType(
            f"solver.in_place returned {kind_of(live)}; expected an InPlace, at work on some step, or None"
        )
    return StepsInPlace(problem, solver, source, at, live)
