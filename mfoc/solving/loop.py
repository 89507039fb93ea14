"""The loop: one for every solver."""

from __future__ import annotations

import logging
import math
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from mfoc import tree
from mfoc.checks import check_flag, check_instance, check_integer, check_non_negative
from mfoc.derivatives import reached
from mfoc.distributed import any_rank
from mfoc.errors import InvalidValue, NonFiniteError
from mfoc.interacting import check_interaction
from mfoc.lagrangian import constraint_values
from mfoc.particles import Particles
from mfoc.pontryagin import evaluate, rollout
from mfoc.populations import Population
from mfoc.populations import population as as_population
from mfoc.problem import Controls, Problem
from mfoc.solving.calls import all_called, check_hooks, closing, says_stop
from mfoc.solving.records import Hook, Iterate, Past, Solution, Solver, Status
from mfoc.solving.watch import Watch, find_nonfinite
from mfoc.tree import Tree
from mfoc.validation import on_few

logger = logging.getLogger(__name__)


def iterate(
    problem: Problem[Controls],
    solver: Solver,
    population: Any,
    *,
    start: Iterate[Controls] | Solution[Controls] | None = None,
    nominal: bool = False,
) -> Iterator[Iterate[Controls]]:
    """The iterates of a solver, without end.

    Args:
        problem: the control problem.
        solver: any ``Solver``.
        population: what ``mfoc.population`` takes, or what it returns.
        start: an iterate (or a solution, whose last one is taken) to go on from; its step decides which batch is next.
        nominal: solve a game without its adversary; see ``solve``.

    Returns:
        An iterator over the iterates after each step.

    Raises:
        InvalidType, InvalidValue: the problem, its controls and the particles do not fit together.
        NonFiniteError: a state, costate, cost or gradient is not finite; ``error.last`` is the last good iterate.
    """
    source = as_population(population)
    return _advance(problem, solver, source, _begin(problem, solver, source, start, nominal))


def _advance(problem: Problem, solver: Solver, source: Population, at: Iterate) -> Iterator[Iterate]:
    good = at
    while True:
        particles = source(at.step)
        controls, state, info = solver.step(problem, at.controls, at.state, particles)
        if problem.region is not None and info.projected is None:
            info = replace(info, projected=problem.region.stationary(at.controls, info.gradient))
        if not math.isfinite(info.value) or not math.isfinite(info.residual):
            stage, what = find_nonfinite(problem, at.controls, particles)
            raise NonFiniteError(f"step {at.step}: {what}", stage=stage, step=at.step, last=good)
        good = at
        at = Iterate(at.step + 1, controls, state, info)
        yield at


def _begin(
    problem: Problem, solver: Solver, source: Population, start: Iterate | Solution | None, nominal: bool
) -> Iterate:
    check_instance(Problem, "mfoc.Problem", problem=problem)
    check_instance(Solver, "an object with init() and step(), such as mfoc.Gradient(...)", solver=solver)
    if torch.is_inference_mode_enabled():
        raise InvalidValue("torch.inference_mode() is on and solving needs derivatives; leave it (no_grad is fine)")
    check_flag(nominal=nominal)
    particles = source(0 if start is None else _last(start).step)
    plays = bool(getattr(solver, "plays_games", False))
    if nominal and plays:
        raise InvalidValue(
            f"nominal is True, without an adversary, and {type(solver).__name__} brings one; leave one out"
        )
    if not nominal and not plays:
        problem.check_played(particles)
    if problem.region is not None and not getattr(solver, "respects_bounds", False):
        raise InvalidValue(
            f"the problem's controls are bounded and {type(solver).__name__} knows no bounds; use Gradient, MSA, EMSA, "
            "or a solver that says respects_bounds = True"
        )
    if problem.constrained and not getattr(solver, "meets_constraints", False):
        name = type(solver).__name__
        raise InvalidValue(
            f"the problem has constraints and {name} knows none; use mfoc.AugmentedLagrangian({name}(...))"
        )
    if start is not None:
        start = _last(start)
        if not tree.same_structure(start.controls, problem.controls):
            raise InvalidValue("start holds controls of another structure than the problem's: it is of another problem")
    controls = tree.copy(problem.controls) if start is None else start.controls
    fresh = Iterate(0, controls, solver.init(problem, controls))
    at = start or fresh
    if isinstance(fresh.state, dict) and (not isinstance(at.state, dict) or at.state.keys() != fresh.state.keys()):
        raise InvalidValue(
            f"start holds the state of another solver: {type(solver).__name__} keeps {sorted(fresh.state)}, it has "
            f"{sorted(at.state) if isinstance(at.state, dict) else type(at.state).__name__}"
        )
    problem.validate(particles, controls)
    _check_influence(problem, controls, particles)
    check_interaction(problem, controls, source, particles)
    return at


def _last(start: Iterate | Solution) -> Iterate:
    start = start.last if isinstance(start, Solution) else start
    check_instance(Iterate, "mfoc.Iterate (hooks.load(path)) or a solution", start=start)
    return start


def _check_influence(problem: Problem, controls: Tree, particles: Particles) -> None:
    """Refuses controls none of which reaches a cost; warns of single ones that do not.

    What counts is a path in the autograd graph: a slope that is zero at these controls has one.
    """
    free = tree.detached(controls, requires_grad=True)
    leaves = [(name, leaf) for name, leaf in tree.named_leaves(free, "controls") if leaf.numel()]
    idle = [name for name, _ in leaves]

    def look(cloud: Particles) -> None:
        with torch.enable_grad():
            seen = [rollout(problem, free, cloud).cost]
            seen += constraint_values(problem, free, cloud) if problem.constrained else []
            found = reached(seen, [leaf for _, leaf in leaves])
        idle[:] = [name for (name, _), there in zip(leaves, found, strict=True) if not there]

    on_few(look, particles)
    if any_rank(idle, controls):  # what a few particles leave out (an expert, a branch) others may use
        look(particles)
    if not any_rank(len(idle) < len(leaves), controls):
        raise InvalidValue(
            "the controls do not reach the costs: no path in the autograd graph leads from any of them to J (are they "
            "used at all? are they detached, or turned into numbers?)"
        )
    if idle:
        names = ", ".join(idle[:5]) + f" and {len(idle) - 5} more" * (len(idle) > 5)
        logger.warning("no stage and no cost depends on %s (not used, or detached?): no gradient moves it", names)


def solve(
    problem: Problem[Controls],
    solver: Solver,
    population: Any,
    *,
    steps: int,
    tol: float | None = None,
    hooks: Sequence[Hook] = (),
    start: Iterate[Controls] | Solution[Controls] | None = None,
    nominal: bool = False,
) -> Solution[Controls]:
    """Solves a control problem.

    Args:
        problem: the control problem.
        solver: ``mfoc.Gradient(...)``, ``mfoc.MSA(...)``, ``mfoc.EMSA(...)`` or any ``Solver``.
        population: what ``mfoc.population`` takes, or what it returns.
        steps: the step to stop at, counted from the very beginning: with ``start`` at step 40, ``steps=100`` does 60,
            ``steps=40`` none, and less is refused.
        tol: stop as soon as the stationarity residual ||E dH/du|| on the batch is at most this; the controls returned
            are those it was measured at.
        hooks: functions of the ``Iterate``, called after each step; one that returns True stops the solve: a bool of
            Python's or NumPy's, or a boolean tensor of one entry. Anything else that is returned, numbers too, is
            ignored. A hook's ``start(steps)``, ``finish(solution)`` and (whatever happens) ``close()`` are called too,
            if it has them. When several of them fail, the first error is raised, with a note of each other.
        start: an iterate to resume from, or a solution, whose last one is taken.
        nominal: solve a game without its adversary, by a solver that knows none. It is refused unless asked for.

    Returns:
        The solution. A NaN, divergence or Ctrl-C ends the solve with a status, not an exception. An error in user code
        is raised with the last good iterate attached, as ``error.last_iterate``.

    Raises:
        InvalidType, InvalidValue: bad arguments, a problem that does not fit its particles, or particles that interact
            and are taken in batches, or split over ranks, so that J would be another (``Problem.interacting``).
    """
    check_integer(0, steps=steps)
    check_non_negative(tol=tol, finite=False, optional=True)
    check_hooks(hooks)
    source = as_population(population)
    run = _Run(problem, solver, source, _begin(problem, solver, source, start, nominal))
    if steps < run.at.step:
        raise InvalidValue(
            f"steps is {steps} and start is at step {run.at.step}: steps are counted from the very beginning, so that "
            f"ten more are steps={run.at.step + 10}"
        )

    def of(method: str) -> list[Callable[..., object]]:
        return [getattr(hook, method) for hook in hooks if hasattr(hook, method)]

    with run.kept(), closing(of("close")):
        for begin in of("start"):
            begin(steps)
        solution = run.finished(*run.to(steps, tol, hooks))
        all_called([partial(finish, solution) for finish in of("finish")])
    return solution


@dataclass
class _Run:
    """A solve under way: where it is, and the last iterate known to be good."""

    problem: Problem
    solver: Solver
    source: Population
    at: Iterate

    def __post_init__(self) -> None:
        self.first = self.at.step
        self.history = [record for record in self.at.history if record["step"] < self.first]
        self.began = time.perf_counter() - (self.history[-1].get("seconds", 0.0) if self.history else 0.0)
        self.good = self.at = self._remembering(self.at)
        self.watch = Watch(self.at)

    def _remembering(self, at: Iterate) -> Iterate:
        """The iterate with the records of the steps before it."""
        return replace(at, history=Past(self.history, bisect_left(self.history, at.step, key=lambda r: int(r["step"]))))

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Whatever is raised within carries the last iterate: nothing is lost."""
        try:
            yield
        except BaseException as error:  # Ctrl-C in a hook, or while the solution is judged, too
            with suppress(Exception):  # of errors that take no attributes
                error.last_iterate = self.at  # type: ignore[attr-defined]
                error.add_note(f"mfoc.solve: after step {self.at.step}; that iterate is kept as error.last_iterate")
            raise

    def to(self, steps: int, tol: float | None, hooks: Sequence[Hook]) -> tuple[Status, str]:
        """Steps until something ends the solve: why, and in words."""
        stream = _advance(self.problem, self.solver, self.source, self.at)
        try:
            while self.at.step < steps:
                seconds = time.perf_counter() - self.began
                self.good, self.at = self.at, next(stream)
                info = self.at.info
                assert info is not None
                residual, seen = info.residual, {"step": self.good.step, "value": float(info.value)}
                self.history.append({**seen, "residual": residual, "seconds": seconds, **info.extra})
                self.at = self._remembering(self.at)
                self.watch.see(self.good, info)
                if self.watch.diverged(float(info.value)):
                    return self._diverged(float(info.value), self.good.step)
                if tol is not None and residual <= tol:
                    self.at = self.good
                    return Status.CONVERGED, f"residual {residual:.3g} <= tol {tol:.3g} at step {self.at.step}"
                stops = [hook for hook in hooks if says_stop(hook(self.at))]  # every hook is called
                if hooks and any_rank(stops, self.at.controls):
                    return Status.STOPPED, f"a hook stopped the solve at step {self.at.step}"
        except NonFiniteError as error:
            self.at = self.at if error.last is None else self._remembering(error.last)  # a hook may raise one without
            logger.warning("solve stopped: %s", error)
            return Status.NONFINITE, str(error)
        except KeyboardInterrupt:
            logger.warning("solve interrupted after step %d; the last iterate is in the solution", self.at.step)
            return Status.INTERRUPTED, f"interrupted after step {self.at.step}"
        done = f"did {steps - self.first} step{'s' * (steps - self.first != 1)}"
        return Status.MAX_STEPS, f"{done}, {steps} in all" if self.first else done

    def finished(self, status: Status, message: str) -> Solution:
        """The solution at the last iterate, or at the one before where J or its gradient is not finite there."""
        value, residual = self._judged()
        if self.good is not self.at and not (math.isfinite(value) and math.isfinite(residual)):
            what = find_nonfinite(self.problem, self.at.controls, self.source(self.at.step))[1]
            status, message = Status.NONFINITE, f"step {self.at.step}: {what}"
            logger.warning("solve stopped: %s", message)
            self.at = self.good
            value, residual = self._judged()
        elif status is Status.MAX_STEPS and self.watch.diverged(value, final=True):
            status, message = self._diverged(value, self.at.step)
            value, residual = self._judged()
        at = self.at
        return Solution(at.controls, value, residual, status, self.history, at, message, self.problem, self.source)

    def _diverged(self, value: float, step: int) -> tuple[Status, str]:
        """Back to the best iterate: why, and in words."""
        self.at = self.good = self.watch.best
        cure = "or EMSA() in place of MSA() or of a fixed rho"
        if not self.problem.potential:
            cure = "or damping (mfoc.meanfield.Picard), or a larger rho of EMSA(adaptive=False)"
        message = (
            f"J rose to {value:.3g} at step {step}, from a lowest {self.watch.lowest:.3g} at step {self.at.step}, "
            f"whose controls are kept: the steps are too long. Take a smaller learning rate, {cure}"
        )
        logger.warning("solve diverged: %s", message)
        return Status.DIVERGED, message

    def _judged(self) -> tuple[float, float]:
        """J and the residual on the batch that comes next."""
        particles = self.source(self.at.step)
        if hasattr(self.solver, "evaluate"):
            value, gradient = self.solver.evaluate(self.problem, self.at.controls, self.at.state, particles)
        else:
            value, gradient = evaluate(self.problem, self.at.controls, particles)
        residual = float(tree.norm(self.problem.projected(self.at.controls, gradient)))
        if hasattr(self.solver, "violation"):
            residual = math.hypot(
                residual, self.solver.violation(self.problem, self.at.controls, self.at.state, particles)
            )
        return float(value), residual
