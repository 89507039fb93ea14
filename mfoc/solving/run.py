"""A solve under way: its steps, its records, and how it ends."""

from __future__ import annotations

import logging
import math
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

from mfoc import tree
from mfoc.distributed import any_rank
from mfoc.errors import NonFiniteError
from mfoc.pontryagin import evaluate
from mfoc.populations import Population
from mfoc.problem import Problem
from mfoc.solving.calls import says_stop
from mfoc.solving.records import Hook, Iterate, Past, Solution, Solver, Status
from mfoc.solving.steps import stepping
from mfoc.solving.unread import Record
from mfoc.solving.watch import Place, Watch, find_nonfinite

logger = logging.getLogger(__name__)


@dataclass
class Run:
    """A solve under way: where it is, and the last iterate known to be good."""

    problem: Problem
    solver: Solver
    source: Population
    at: Iterate

    def __post_init__(self) -> None:
        self.first, past = self.at.step, self.at.history
        self.history: list[Record] = [record for record in past if record["step"] < self.first]
        self.began = time.perf_counter() - (self.history[-1].get("seconds", 0.0) if self.history else 0.0)
        self.steps = stepping(self.problem, self.solver, self.source, self.at)
        self.here = self.good = self.steps.place()
        self.watch = Watch(self.here)
        self.unwatched: deque[tuple[Record, Place]] = deque()

    def _iterate(self, place: Place) -> Iterate:
        """The iterate at a place, with the records of the steps before it."""
        return self.steps.iterate(place, Past(self.history, self._before(place[0]), self.steps.settle))

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
        return replace(at, history=self._past(at.step))

    def _whole(self) -> Iterate:
        """The last iterate that is held whole: it takes nothing to have it."""
        at = self.steps.at
        return replace(at, history=self._past(at.step))

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
        except BaseException as error:  # Ctrl-C in a hook, or while the solution is judged, too
            try:
                _hold(error, self._rescued())
            except BaseException as second:  # Ctrl-C again, which does not wait for steps that are made again
                _hold(second, self._whole())
                raise
            raise

    def to(self, steps: int, tol: float | None, hooks: Sequence[Hook]) -> tuple[Status, str]:
        """Steps until something ends the solve: why, and in words."""
        try:
            try:
                ended = self._until(steps, tol, hooks)
            except KeyboardInterrupt:
                logger.warning("solve interrupted after step %d; the last iterate is in the solution", self.here[0])
                ended = Status.INTERRUPTED, f"interrupted after step {self.here[0]}"
                self._forget(self.here[0])  # a step that was made and not yet counted
                self.steps.keep(surely=True)
            self.steps.settle()
            return self._watched() or ended
        except NonFiniteError as error:
            if error.last is not None:  # a hook may raise one without
                self.here = self.good = (error.last.step, error.last)
                self._forget(error.last.step + 1 if error.step is None else error.step)
            logger.warning("solve stopped: %s", error)
            return Status.NONFINITE, str(error)

    def _until(self, steps: int, tol: float | None, hooks: Sequence[Hook]) -> tuple[Status, str]:
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
            if hooks:
                stopped = self._hooked(hooks)
                self.steps.keep(surely=True)
                if stopped:
                    return Status.STOPPED, f"a hook stopped the solve at step {self.here[0]}"
        done = f"did {steps - self.first} step{'s' * (steps - self.first != 1)}"
        return Status.MAX_STEPS, f"{done}, {steps} in all" if self.first else done

    def _advance(self, tol: float | None) -> Record:
        """One step, and its record."""
        beginning, seconds = self.watch.beginning, time.perf_counter() - self.began
        length = float(tree.norm(self.steps.controls)) if beginning else 0.0
        record: Record = {"step": self.here[0], "value": math.nan, "residual": math.nan, "seconds": seconds}
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
        stops = [hook for hook in hooks if says_stop(hook(at))]
        return any_rank(stops, self.steps.controls)

    def finished(self, status: Status, message: str) -> Solution:
        """The solution at the last iterate, or at the one before where J or its gradient is not finite there."""
        at = self._iterate(self.here)
        value, residual = self._judged(at)
        if self.good[0] != self.here[0] and not (math.isfinite(value) and math.isfinite(residual)):
            what = find_nonfinite(self.problem, at.controls, self.source(at.step))[1]
            status, message = Status.NONFINITE, f"step {at.step}: {what}"
            logger.warning("solve stopped: %s", message)
            at = self._iterate(self.good)
            value, residual = self._judged(at)
        elif status is Status.MAX_STEPS and self.watch.diverged(value, final=True):
            status, message = self._diverged(value, at.step)
            at = self._iterate(self.here)
            value, residual = self._judged(at)
        at = replace(at, history=self._past(at.step))
        return Solution(at.controls, value, residual, status, self.history, at, message, self.problem, self.source)

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

    def _judged(self, at: Iterate) -> tuple[float, float]:
        """J and the residual on the batch that comes next."""
        problem, solver, particles = self.problem, self.solver, self.source(at.step)
        if hasattr(solver, "evaluate"):
            value, gradient = solver.evaluate(problem, at.controls, at.state, particles)
        else:
            value, gradient = evaluate(problem, at.controls, particles)
        value, residual = tree.floats([value, tree.norm(problem.projected(at.controls, gradient))])
        if hasattr(solver, "violation"):
            residual = math.hypot(residual, solver.violation(problem, at.controls, at.state, particles))
        return value, residual


def _hold(error: BaseException, at: Iterate) -> None:
    """An error carries the iterate with it."""
    with suppress(Exception):  # of errors that take no attributes
        error.last_iterate = at  # type: ignore[attr-defined]
        error.add_note(f"mfoc.solve: after step {at.step}; that iterate is kept as error.last_iterate")
