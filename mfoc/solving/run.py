"""A solve under way: its steps, its records, and how it ends."""

from __future__ import annotations

import logging
import math
import time
import weakref
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from mfoc import tree
from mfoc.distributed import Ballot, active, announce, any_rank
from mfoc.errors import NonFiniteError, RankError
from mfoc.identity import Plain
from mfoc.particles import Particles
from mfoc.pontryagin import evaluate
from mfoc.populations import Population
from mfoc.problem import Problem
from mfoc.solving.calls import all_called, kept_at, says_stop
from mfoc.solving.origin import Origin, mark
from mfoc.solving.records import Hook, Iterate, Past, Solution, Solver, Status
from mfoc.solving.signals import Signals, Terminated
from mfoc.solving.steps import stepping
from mfoc.solving.together import agreed, answer, riding
from mfoc.solving.unread import Record
from mfoc.solving.watch import Place, Watch, find_nonfinite

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Run:
    """A solve under way: where it is, and the last iterate known to be good.

    Attributes:
        settings: what is solved, by what and on what, in plain values.
        signals: what is asked for from outside.
        terminated: whether it ended for SIGTERM.
        solution: what it ended with, if it has.
    """

    problem: Problem
    solver: Solver
    source: Population
    at: Iterate
    settings: Mapping[str, Plain]
    signals: Signals
    terminated: bool = field(init=False, default=False)
    solution: Solution | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.first, past = self.at.step, self.at.history
        self.history: list[Record] = [record for record in past if record["step"] < self.first]
        self.began = time.perf_counter() - (self.history[-1].get("seconds", 0.0) if self.history else 0.0)
        self.steps = stepping(self.problem, self.solver, self.source, self.at)
        self.here = self.good = self.steps.place()
        self.watch = Watch(self.here)
        self.together = active()
        self.hooked = False  # whether a rank has hooks
        self.ballot: Ballot | None = None  # of the last step, where none has
        self.unwatched: deque[tuple[Record, Place]] = deque()

    def _iterate(self, place: Place) -> Iterate:
        """The iterate at a place, with the records of the steps before it."""
        history = Past(self.history, self._before(place[0]), self.steps.settle)
        return self.steps.iterate(place, history, self._origin(place[0]))

    def _origin(self, step: int) -> Origin:
        return Origin(self.settings, step, partial(_marked, weakref.ref(self)))

    def mark(self, step: int) -> Plain:
        """What the batch before a step is known by; None where it cannot be had."""
        number = max(step - 1, 0)
        with suppress(Exception):  # a population that fails now must not keep an iterate from being saved
            return mark(number, self._drawn(number))
        return None

    def _drawn(self, number: int) -> Particles:
        """A batch; the last is at hand."""
        held = self.steps.batch
        return held if held is not None and self.steps.drawn == number else self.source(number)

    def _rescued(self) -> Iterate:
        """The last iterate that can be had, after an error; the records of all steps are filled in."""
        with suppress(NonFiniteError):
            self.steps.settle()
        try:
            self.steps.keep(surely=True)
            at = self._iterate(self.here)
            _ = at.controls
        except Exception:  # what went wrong goes wrong again
            return self._whole()
        return replace(at, history=self._past(at.step), origin=self._origin(at.step))

    def _whole(self) -> Iterate:
        """The last iterate that is held whole: it takes nothing to have it."""
        at = self.steps.at
        return replace(at, history=self._past(at.step), origin=self._origin(at.step))

    def _past(self, step: int) -> Past:
        """The records of the steps before this one, which hold on to nothing else."""
        return Past(self.history, self._before(step))

    def _before(self, step: int) -> int:
        """How many records are of steps before this one."""
        return bisect_left(self.history, step, key=lambda record: int(record["step"]))

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Whatever is raised within carries the last iterate: nothing is lost."""
        try:
            yield
        except BaseException as error:  # Ctrl-C in a hook too
            try:
                _hold(error, self._rescued() if self.solution is None else self.solution.last, self.solution)
            except BaseException as second:  # Ctrl-C again, which does not wait for steps that are made again
                _hold(second, self._whole(), self.solution)
                raise
            raise

    @contextmanager
    def rescuing(self, hooks: Sequence[Hook]) -> Iterator[None]:
        """Where something is raised within, the other ranks are told, and hooks are handed the last iterate.

        Only where steps were made, and there is no solution: else nothing would be lost.
        """
        try:
            yield
        except BaseException as error:
            announce(error, self.here[0])
            if self.here[0] > self.first and self.solution is None:
                at = self._rescued()
                all_called([partial(hook.failed, at) for hook in hooks if hasattr(hook, "failed")], error)
            if isinstance(error, RankError):
                self._placed(error, hooks)
            raise

    def _placed(self, error: RankError, hooks: Sequence[Hook]) -> None:
        """Says of another rank's failure at which step it was, which who was killed could not, and what is left."""
        told = [str(error)]
        if error.step is None:
            error.step = self.here[0]  # ranks are never a step apart
            told.append(f"it was in step {error.step}")
        error.args = ("; ".join(filter(None, [*told, kept_at(hooks)])),)

    def to(self, steps: int, tol: float | None, hooks: Sequence[Hook]) -> tuple[Status, str]:
        """Steps until something ends the solve: why, and in words."""
        try:
            try:
                ended = self._until(steps, tol, hooks)
                self.steps.settle()
            except KeyboardInterrupt as error:
                if self._leaves_alone:
                    raise
                ended = self._interrupted(error)
                self.steps.settle()
            return self._watched() or ended
        except NonFiniteError as error:
            if error.last is not None:  # a hook may raise one without
                self.here = self.good = (error.last.step, error.last)
                self._forget(error.last.step + 1 if error.step is None else error.step)
            logger.warning("solve stopped: %s", error)
            return Status.NONFINITE, str(error)

    @property
    def _leaves_alone(self) -> bool:
        """Whether an interruption is this rank's only: it cannot evaluate anything more, and the others are told."""
        return self.together and not self.signals.agreed

    def _interrupted(self, error: KeyboardInterrupt) -> tuple[Status, str]:
        """Ends at the last iterate: why, and in words."""
        self.signals.heard()
        self.terminated |= isinstance(error, Terminated)
        what = "terminated" if isinstance(error, Terminated) else "interrupted"
        logger.warning("solve %s after step %d; the last iterate is in the solution", what, self.here[0])
        self._forget(self.here[0])  # a step that was made and not yet counted
        self.steps.keep(surely=True)
        return Status.INTERRUPTED, f"{what} after step {self.here[0]}"

    def _until(self, steps: int, tol: float | None, hooks: Sequence[Hook]) -> tuple[Status, str]:
        self.hooked = any_rank(hooks, self.steps.controls)
        while self.here[0] < steps:
            record = self._advance(tol)
            if ended := self._watched():
                return ended
            if tol is not None:
                self.steps.settle()
                residual = record["residual"]
                if residual <= tol or self.here[0] == self.good[0]:  # no step was needed
                    self.here = self.good
                    return Status.CONVERGED, f"residual {residual:.3g} <= tol {tol:.3g} at step {self.here[0]}"
            if self.hooked:
                stopped = self._stopped(hooks)
                self.steps.keep(surely=True)
                if stopped:
                    return Status.STOPPED, f"a hook stopped the solve at step {self.here[0]}"
            elif self.together:
                answer(self.signals, self.steps.controls, self.ballot)
            self.signals.check()
        if self.together and not self.hooked:
            answer(self.signals, self.steps.controls)  # what came during the last step
        done = f"did {steps - self.first} step{'s' * (steps - self.first != 1)}"
        return Status.MAX_STEPS, f"{done}, {steps} in all" if self.first else done

    def _advance(self, tol: float | None) -> Record:
        """One step, and its record."""
        beginning, seconds = self.watch.beginning, time.perf_counter() - self.began
        length = float(tree.norm(self.steps.controls)) if beginning else 0.0
        record: Record = {"step": self.here[0], "value": math.nan, "residual": math.nan, "seconds": seconds}
        if self.together and not self.hooked:
            with riding(self.signals) as self.ballot:
                self.steps.advance(record, tol)
        else:
            self.steps.advance(record, tol)
        self.history.append(record)
        self.unwatched.append((record, self.here))
        self.good, self.here = self.here, self.steps.place()
        if beginning:
            self.steps.settle()
            self.watch.measure(record["value"], record["residual"] * (1 + length))
        return record

    def _watched(self) -> tuple[Status, str] | None:
        """Looks at every J that has been read since: how the solve ends, where it has diverged."""
        while self.unwatched and not math.isnan(self.unwatched[0][0]["value"]):
            record, place = self.unwatched.popleft()
            if self.watch.see(record["value"], place):
                self._forget(place[0] + 1)
                return self._diverged(record["value"], place[0])
        return None

    def _forget(self, step: int) -> None:
        """Drops the records of this step and later ones, which were made before it was known how the solve ends."""
        del self.history[self._before(step) :]

    def _hooked(self, hooks: Sequence[Hook]) -> bool:
        """Whether a hook stops the solve; every one of them is called."""
        at = self._iterate(self.here)
        return bool([hook for hook in hooks if says_stop(hook(at))])

    def _stopped(self, hooks: Sequence[Hook]) -> bool:
        """Whether a hook stops the solve, over ranks one of any rank."""
        if not self.together:
            return self._hooked(hooks)
        return agreed(self.here[0], lambda: bool(hooks) and self._hooked(hooks), self.signals, self.steps.controls)

    def answer(self) -> None:
        """Raises what was asked for and is not answered, on all ranks alike."""
        if self.together:
            answer(self.signals, self.steps.controls)
        self.signals.raised()

    def finished(self, status: Status, message: str) -> Solution:
        """The solution at the last iterate, or at the one before where J or its gradient is not finite there."""
        try:
            solution = self._finished(status, message)
        except KeyboardInterrupt as error:
            if self._leaves_alone:
                raise
            message = f"{self._interrupted(error)[1]}, before J was known there ({message})"
            solution = self._solution(self._iterate(self.here), (math.nan, math.nan), Status.INTERRUPTED, message)
        self.solution = solution
        return solution

    def _finished(self, status: Status, message: str) -> Solution:
        at = self._iterate(self.here)
        value, residual = self._judged(at)
        if self.good[0] != self.here[0] and not (math.isfinite(value) and math.isfinite(residual)):
            what = find_nonfinite(self.problem, at.controls, self._batch(at.step))[1]
            status, message = Status.NONFINITE, f"step {at.step}: {what}"
            logger.warning("solve stopped: %s", message)
            at = self._iterate(self.good)
            value, residual = self._judged(at)
        elif status is Status.MAX_STEPS and self.watch.diverged(value, final=True):
            status, message = self._diverged(value, at.step)
            at = self._iterate(self.here)
            value, residual = self._judged(at)
        return self._solution(at, (value, residual), status, message)

    def _solution(self, at: Iterate, judged: tuple[float, float], status: Status, message: str) -> Solution:
        origin: Mapping[str, Any] = self._origin(at.step)
        if self.source.runs_user_code:  # what it gives later may be something else
            origin = dict(origin)
        at = replace(at, history=self._past(at.step), origin=origin)
        return Solution(at.controls, *judged, status, self.history, at, message, self.problem, self.source)

    def _diverged(self, value: float, step: int) -> tuple[Status, str]:
        """Back to the best iterate: why, and in words."""
        self.here = self.good = self.watch.best
        cure = "or EMSA() in place of MSA() or of a fixed rho"
        if not self.problem.potential:
            cure = "or damping (mfoc.meanfield.Picard), or a larger rho of EMSA(adaptive=False)"
        message = (
            f"J rose to {value:.3g} at step {step}, from a lowest {self.watch.lowest:.3g} at step {self.here[0]}, "
            f"whose controls are kept: the steps are too long. Take a smaller learning rate, {cure}"
        )
        logger.warning("solve diverged: %s", message)
        return Status.DIVERGED, message

    def _batch(self, step: int) -> Particles:
        """The batch on which an iterate is judged: that of the step from it, if one was begun, or of the step to it.

        No other is drawn: a population may have no more than there were steps.
        """
        return self._drawn(max(min(step, self.steps.drawn), 0))

    def _judged(self, at: Iterate) -> tuple[float, float]:
        """J and the residual."""
        problem, solver, particles = self.problem, self.solver, self._batch(at.step)
        if hasattr(solver, "evaluate"):
            value, gradient = solver.evaluate(problem, at.controls, at.state, particles)
        else:
            value, gradient = evaluate(problem, at.controls, particles)
        value, residual = tree.floats([value, tree.norm(problem.projected(at.controls, gradient))])
        if hasattr(solver, "violation"):
            residual = math.hypot(residual, solver.violation(problem, at.controls, at.state, particles))
        return value, residual


def _marked(run: weakref.ref[Run], step: int) -> Plain:
    """Of a run that may be over: iterates do not keep it."""
    alive = run()
    return None if alive is None else alive.mark(step)


def _hold(error: BaseException, at: Iterate, solution: Solution | None) -> None:
    """An error carries the iterate with it, and the solution, if there is one."""
    with suppress(Exception):  # of errors that take no attributes
        error.last_iterate = at  # type: ignore[attr-defined]
        if solution is not None:
            error.solution = solution  # type: ignore[attr-defined]
        error.add_note(f"mfoc.solve: after step {at.step}; that iterate is kept as error.last_iterate")
