"""Solving: one loop for every solver.

A solver is a frozen dataclass with ``init(problem, controls) -> state`` and
``step(problem, controls, state, particles) -> (controls, state, Info)``, both pure. ``iterate`` is the loop, open to
the user; ``solve`` runs it with a budget, a tolerance and hooks, and always returns the last good iterate.
"""

from __future__ import annotations

import enum
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from mfoc import printing, tree
from mfoc.checks import check_instance, check_integer, check_non_negative
from mfoc.distributed import any_rank
from mfoc.errors import InvalidType, InvalidValue, NonFiniteError
from mfoc.particles import Particles
from mfoc.pontryagin import adjoint, evaluate, rollout
from mfoc.populations import Population
from mfoc.populations import population as as_population
from mfoc.problem import Controls, HasControls, Problem
from mfoc.tree import Tree

logger = logging.getLogger(__name__)

_BEGINNING = 10  # steps by which the size of J is judged
_GROWTH = 1e6  # of J over its size, from which on a solve has diverged


@dataclass(frozen=True, eq=False)
class Info:
    """What a step saw at the controls it started from.

    Attributes:
        value: J on the batch, a scalar tensor.
        gradient: E dH/du, shaped as the controls.
        extra: numbers a solver reports about itself.
    """

    value: Tensor
    gradient: Tree
    extra: dict[str, float] = field(default_factory=dict)

    @cached_property
    def residual(self) -> float:
        """The stationarity residual ||E dH/du||."""
        return float(tree.norm(self.gradient))

    def __repr__(self) -> str:
        extra = "".join(f", {name} {printing.short(number, digits=4)}" for name, number in self.extra.items())
        return f"Info(J = {float(self.value):.6g}, residual {self.residual:.3g}{extra})"


@runtime_checkable
class Solver(Protocol):
    """What ``solve`` needs of a solver; both methods are pure.

    A solver whose objective is not the problem's own J on the particles given (``Minimax``: the adversary moves them)
    also has ``evaluate(problem, controls, state, particles) -> Evaluation``, by which the solution is judged.
    """

    def init(self, problem: Problem, controls: Tree) -> Tree:
        """The state before the first step: a pytree of tensors and plain values."""

    def step(self, problem: Problem, controls: Tree, state: Tree, particles: Particles) -> tuple[Tree, Tree, Info]:
        """One step: new controls, new state, and what was seen at the old controls."""


@dataclass(frozen=True, eq=False)
class Iterate(HasControls[Controls]):
    """Where a solve stands after ``step`` steps.

    Attributes:
        step: steps done.
        controls: the controls after them.
        state: the solver's state after them.
        info: what the last step saw at the controls it started from; None at step 0 and after loading.
    """

    step: int
    controls: Controls
    state: Tree
    info: Info | None = None

    def __repr__(self) -> str:
        seen = "" if self.info is None else f", {self.info}"
        return f"Iterate(step {self.step}, {printing.sizes(self.controls)}{seen})"


class Status(enum.Enum):
    """Why a solve ended."""

    CONVERGED = "converged"
    MAX_STEPS = "max_steps"
    STOPPED = "stopped"
    INTERRUPTED = "interrupted"
    NONFINITE = "nonfinite"
    DIVERGED = "diverged"


@dataclass(frozen=True, eq=False)
class Solution(HasControls[Controls]):
    """The outcome of a solve.

    Attributes:
        controls: the last good controls.
        value: J at these controls, on the batch that comes next (the whole population when it is not batched).
        residual: ||E dH/du|| there.
        status: why the solve ended. DIVERGED: J rose above its lowest value by a million times its size in the first
            ten steps: the largest |J|, or ||dJ/du|| (1 + ||u||) where that is more. The controls are then those of the
            lowest value seen.
        history: one record a step, plain numbers: value and residual at the controls the step started from, the
            seconds since the start when it began, and what the solver reports of itself. The final J is ``value``.
        last: the iterate to resume from, with ``start=``.
        message: the status in words; for NONFINITE, the stage and the step.
    """

    controls: Controls
    value: float
    residual: float
    status: Status
    history: list[dict[str, float]]
    last: Iterate[Controls]
    message: str

    def __repr__(self) -> str:
        return "\n".join(f"{name:9s} {what}" for name, what in self._lines())

    def _repr_html_(self) -> str:
        head, *lines = self._lines()
        return printing.html_table(head, lines)

    def _lines(self) -> list[tuple[str, str]]:
        start = "" if not self.history else f", from {self.history[0]['value']:.6g} at step {self.history[0]['step']}"
        return [
            ("Solution", f"{self.status.value}: {self.message}"),
            ("J", f"{self.value:.6g}{start}"),
            ("residual", f"{self.residual:.3g} (||E dH/du||)"),
            ("steps", f"{self.last.step}"),
            ("controls", printing.sizes(self.controls)),
        ]


Hook = Callable[[Iterate], object]


def iterate(
    problem: Problem[Controls],
    solver: Solver,
    population: Any,
    *,
    start: Iterate[Controls] | Solution[Controls] | None = None,
) -> Iterator[Iterate[Controls]]:
    """The iterates of a solver, without end.

    Args:
        problem: the control problem.
        solver: any ``Solver``.
        population: what ``mfoc.population`` takes, or what it returns.
        start: an iterate (or a solution, whose last one is taken) to go on from; its step decides which batch is next.

    Returns:
        An iterator over the iterates after each step.

    Raises:
        InvalidType, InvalidValue: the problem, its controls and the particles do not fit together.
        NonFiniteError: a state, costate, cost or gradient is not finite; ``error.last`` is the last good iterate.
    """
    source = as_population(population)
    return _advance(problem, solver, source, _begin(problem, solver, source, start))


def _advance(problem: Problem, solver: Solver, source: Population, at: Iterate) -> Iterator[Iterate]:
    good = at
    while True:
        particles = source(at.step)
        controls, state, info = solver.step(problem, at.controls, at.state, particles)
        if not math.isfinite(info.value) or not math.isfinite(info.residual):
            stage, what = _find_nonfinite(problem, at.controls, particles)
            raise NonFiniteError(f"step {at.step}: {what}", stage=stage, step=at.step, last=good)
        good = at
        at = Iterate(at.step + 1, controls, state, info)
        yield at


def _begin(problem: Problem, solver: Solver, source: Population, start: Iterate | Solution | None) -> Iterate:
    check_instance(Problem, "mfoc.Problem", problem=problem)
    check_instance(Solver, "an object with init() and step(), such as mfoc.Gradient(...)", solver=solver)
    if torch.is_inference_mode_enabled():
        raise InvalidValue("torch.inference_mode() is on and solving needs derivatives; leave it (no_grad is fine)")
    start = start.last if isinstance(start, Solution) else start
    if start is not None:
        check_instance(Iterate, "mfoc.Iterate (hooks.load(path)) or a solution", start=start)
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
    problem.validate(source(at.step), controls)
    return at


def _find_nonfinite(problem: Problem, controls: Tree, particles: Particles) -> tuple[int | None, str]:
    """The first stage where a value is not finite, and what it is: only run once a solve has failed."""

    def bad(values: Tree) -> bool:
        return any(not leaf.isfinite().all() for leaf in tree.tensors(values))

    with torch.no_grad():
        trajectory = rollout(problem, controls, particles)
    for t, x in enumerate(trajectory.states[:-1]):
        u = problem.schedule(controls, t)
        if bad(u):
            return t, f"the control of stage {t} is not finite"
        if bad(trajectory.states[t + 1]):
            return t, f"the state that leaves stage {t} is not finite"
        if problem.running_cost is not None and bad(problem.running_cost(t, x, u, particles.data)):
            return t, f"the running cost of stage {t} is not finite"
    if bad(trajectory.cost):
        return problem.stages, f"the terminal cost (after stage {problem.stages - 1}) is not finite"
    costates = adjoint(problem, controls, trajectory, particles)[0]
    for t in reversed(range(problem.stages + 1)):
        if bad(costates[t]):
            return t, f"the costate at stage {t} is not finite"
    return None, "the gradient is not finite, though states, costates and costs are (on this rank)"


def solve(
    problem: Problem[Controls],
    solver: Solver,
    population: Any,
    *,
    steps: int,
    tol: float | None = None,
    hooks: Sequence[Hook] = (),
    start: Iterate[Controls] | Solution[Controls] | None = None,
) -> Solution[Controls]:
    """Solves a control problem.

    Args:
        problem: the control problem.
        solver: ``mfoc.Gradient(...)``, ``mfoc.MSA(...)``, ``mfoc.EMSA(...)`` or any ``Solver``.
        population: what ``mfoc.population`` takes, or what it returns.
        steps: the step to stop at, counted from the very beginning: with ``start`` at step 40, ``steps=100`` does 60.
        tol: stop as soon as the stationarity residual ||E dH/du|| on the batch is at most this; the controls returned
            are those it was measured at.
        hooks: functions of the ``Iterate``, called after each step; one that returns True stops the solve. A hook's
            ``start(steps)``, ``finish(solution)`` and (whatever happens) ``close()`` are called too, if it has them.
        start: an iterate to resume from, or a solution, whose last one is taken.

    Returns:
        The solution. A NaN, divergence or Ctrl-C ends the solve with a status, not an exception. An error in user code
        is raised with the last good iterate attached, as ``error.last_iterate``.

    Raises:
        InvalidType, InvalidValue: bad arguments, or a problem that does not fit its particles.
    """
    check_integer(0, steps=steps)
    check_non_negative(tol=tol, finite=False, optional=True)
    if not isinstance(hooks, Sequence) or not all(callable(hook) and not isinstance(hook, type) for hook in hooks):
        raise InvalidType("hooks must be a list of functions of the iterate (instances, not classes)")
    source = as_population(population)
    run = _Run(problem, solver, source, _begin(problem, solver, source, start))

    def of(method: str) -> list[Callable[..., object]]:
        return [getattr(hook, method) for hook in hooks if hasattr(hook, method)]

    with run.kept(), ExitStack() as stack:
        for close in reversed(of("close")):
            stack.callback(close)
        for begin in of("start"):
            begin(steps)
        solution = run.finished(*run.to(steps, tol, hooks))
        for finish in of("finish"):
            finish(solution)
    return solution


@dataclass(eq=False)
class _Watch:
    """Tells divergence from the ups and downs of training, whatever the scale and the sign of J.

    The size that J is measured by is that of its beginning: the largest, over ten steps from the first at which there
    is any, of |J| and of ||dJ/du|| (1 + ||u||), which J would change by if the controls moved by their size. The second
    is there for solves that begin where J is zero, or happens to be small. Warm-ups, noise and games raise J a hundred
    times, and come back; what is a million times that size above the best is on its way to infinity.
    """

    best: Iterate
    lowest: float = math.inf
    size: float = 0.0
    steps: int = 0

    def see(self, at: Iterate, info: Info) -> None:
        """Takes in what a step saw at the iterate it started from."""
        value = float(info.value)
        if value < self.lowest:
            self.best, self.lowest = at, value
        if self.steps < _BEGINNING:
            reach = info.residual * (1 + float(tree.norm(at.controls)))
            self.size = max(self.size, abs(value), reach)
            self.steps += self.size > 0

    def diverged(self, value: float) -> bool:
        """Whether J has grown beyond return."""
        return self.steps >= _BEGINNING and value - self.lowest > _GROWTH * self.size


@dataclass
class _Run:
    """A solve under way: where it is, and the last iterate known to be good."""

    problem: Problem
    solver: Solver
    source: Population
    at: Iterate
    history: list[dict[str, float]] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self.good = self.at
        self.watch = _Watch(self.at)

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
                self.watch.see(self.good, info)
                if self.watch.diverged(float(info.value)):
                    return self._diverged(float(info.value), self.good.step)
                if tol is not None and residual <= tol:
                    self.at = self.good
                    return Status.CONVERGED, f"residual {residual:.3g} <= tol {tol:.3g} at step {self.at.step}"
                stops = [hook for hook in hooks if hook(self.at) is True]  # every hook is called
                if hooks and any_rank(stops, self.at.controls):
                    return Status.STOPPED, f"a hook stopped the solve at step {self.at.step}"
        except NonFiniteError as error:
            self.at = self.at if error.last is None else error.last  # a hook may raise one without
            logger.warning("solve stopped: %s", error)
            return Status.NONFINITE, str(error)
        except KeyboardInterrupt:
            logger.warning("solve interrupted after step %d; the last iterate is in the solution", self.at.step)
            return Status.INTERRUPTED, f"interrupted after step {self.at.step}"
        return Status.MAX_STEPS, f"did {steps} steps"

    def finished(self, status: Status, message: str) -> Solution:
        """The solution at the last iterate, or at the one before where J or its gradient is not finite there."""
        value, residual = self._judged()
        if self.good is not self.at and not (math.isfinite(value) and math.isfinite(residual)):
            what = _find_nonfinite(self.problem, self.at.controls, self.source(self.at.step))[1]
            status, message = Status.NONFINITE, f"step {self.at.step}: {what}"
            logger.warning("solve stopped: %s", message)
            self.at = self.good
            value, residual = self._judged()
        elif status is Status.MAX_STEPS and self.watch.diverged(value):
            status, message = self._diverged(value, self.at.step)
            value, residual = self._judged()
        return Solution(self.at.controls, value, residual, status, self.history, self.at, message)

    def _diverged(self, value: float, step: int) -> tuple[Status, str]:
        """Back to the best iterate: why, and in words."""
        self.at = self.good = self.watch.best
        message = (
            f"J rose to {value:.3g} at step {step}, from a lowest {self.watch.lowest:.3g} at step {self.at.step}, "
            "whose controls are kept: the steps are too long. Take a smaller learning rate, or EMSA() in place of "
            "MSA() or of a fixed rho"
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
        return float(value), float(tree.norm(gradient))
