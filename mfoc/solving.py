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
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from mfoc import tree
from mfoc.checks import check_integer, check_non_negative
from mfoc.distributed import any_rank
from mfoc.errors import InvalidType, InvalidValue, NonFiniteError
from mfoc.particles import Particles
from mfoc.pontryagin import adjoint, evaluate, rollout
from mfoc.populations import Population
from mfoc.populations import population as as_population
from mfoc.problem import HasControls, Problem
from mfoc.tree import Tree

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Info:
    """What a step saw at the controls it started from.

    Attributes:
        value: J on the batch, a scalar tensor.
        gradient: E dH/du: the leaves, in the order of the controls'.
        extra: numbers a solver reports about itself.
    """

    value: Tensor
    gradient: list[Tensor]
    extra: dict[str, float] = field(default_factory=dict)

    @cached_property
    def residual(self) -> float:
        """The stationarity residual ||E dH/du||."""
        return float(tree.norm(self.gradient))


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


@dataclass(frozen=True)
class Iterate(HasControls):
    """Where a solve stands after ``step`` steps.

    Attributes:
        step: steps done.
        controls: the controls after them.
        state: the solver's state after them.
        info: what the last step saw at the controls it started from; None at step 0 and after loading.
    """

    step: int
    controls: Tree
    state: Tree
    info: Info | None = None


class Status(enum.Enum):
    """Why a solve ended."""

    CONVERGED = "converged"
    MAX_STEPS = "max_steps"
    STOPPED = "stopped"
    INTERRUPTED = "interrupted"
    NONFINITE = "nonfinite"


@dataclass(frozen=True)
class Solution(HasControls):
    """The outcome of a solve.

    Attributes:
        controls: the last good controls.
        value: J at these controls, on the batch that comes next (the whole population when it is not batched).
        residual: ||E dH/du|| there.
        status: why the solve ended.
        history: one record a step, plain numbers: value and residual at the controls the step started from, the
            seconds since the start when it began, and what the solver reports of itself. The final J is ``value``.
        last: the iterate to resume from, with ``start=``.
        message: the status in words; for NONFINITE, the stage and the step.
    """

    controls: Tree
    value: float
    residual: float
    status: Status
    history: list[dict[str, float]]
    last: Iterate
    message: str


Hook = Callable[[Iterate], object]


def iterate(problem: Problem, solver: Solver, population: Any, *, start: Iterate | None = None) -> Iterator[Iterate]:
    """The iterates of a solver, without end.

    Args:
        problem: the control problem.
        solver: any ``Solver``.
        population: what ``mfoc.population`` takes, or what it returns.
        start: an iterate to go on from; its step decides which batch comes next.

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


def _begin(problem: Problem, solver: Solver, source: Population, start: Iterate | None) -> Iterate:
    if not isinstance(problem, Problem):
        raise InvalidType(f"problem is a {type(problem).__name__}; expected mfoc.Problem")
    if isinstance(solver, type) or not isinstance(solver, Solver):
        made = f"the class {solver.__name__}; make an instance" if isinstance(solver, type) else type(solver).__name__
        raise InvalidType(f"solver is {made}; expected an object with init() and step(), such as mfoc.Gradient(...)")
    if torch.is_inference_mode_enabled():
        raise InvalidValue("torch.inference_mode() is on and solving needs derivatives; leave it (no_grad is fine)")
    if start is not None and not isinstance(start, Iterate):
        raise InvalidType(f"start is a {type(start).__name__}; expected mfoc.Iterate (hooks.load(path), solution.last)")
    if start is not None and not tree.same_structure(start.controls, problem.controls):
        raise InvalidValue("start holds controls of another structure than the problem's; it is from another problem")
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
    for t in range(problem.stages):
        if bad(problem.schedule(controls, t)):
            return t, f"the control of stage {t} is not finite"
        if bad(trajectory.states[t + 1]):
            return t, f"the state that leaves stage {t} is not finite"
        if problem.running_cost is not None:
            cost = problem.running_cost(t, trajectory.states[t], problem.schedule(controls, t), particles.data)
            if bad(cost):
                return t, f"the running cost of stage {t} is not finite"
    if bad(trajectory.cost):
        return problem.stages, f"the terminal cost (after stage {problem.stages - 1}) is not finite"
    costates = adjoint(problem, controls, trajectory, particles)[0]
    for t in reversed(range(problem.stages + 1)):
        if bad(costates[t]):
            return t, f"the costate at stage {t} is not finite"
    return None, "the gradient is not finite, though states, costates and costs are (on this rank)"


def solve(
    problem: Problem,
    solver: Solver,
    population: Any,
    *,
    steps: int,
    tol: float | None = None,
    hooks: Sequence[Hook] = (),
    start: Iterate | None = None,
) -> Solution:
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
        start: an iterate to resume from.

    Returns:
        The solution. A NaN or Ctrl-C ends the solve with a status, not an exception. An error in user code is raised
        with the last good iterate attached, as ``error.last_iterate``.

    Raises:
        InvalidType, InvalidValue: bad arguments, or a problem that does not fit its particles.
    """
    source = _check_arguments(population, steps, tol, hooks)
    began, history = time.perf_counter(), []
    at = good = _begin(problem, solver, source, start)
    status, message = Status.MAX_STEPS, f"did {steps} steps"
    _each(hooks, "start", steps)
    try:
        stream = _advance(problem, solver, source, at)
        while at.step < steps:
            seconds = time.perf_counter() - began
            good, at = at, next(stream)
            history.append(_record(at, seconds))
            if tol is not None and history[-1]["residual"] <= tol:
                status, at = Status.CONVERGED, good
                message = f"residual {history[-1]['residual']:.3g} <= tol {tol:.3g} at step {good.step}"
                break
            if hooks and any_rank([hook for hook in hooks if hook(at) is True], at.controls):  # every hook is called
                status, message = Status.STOPPED, f"a hook stopped the solve at step {at.step}"
                break
    except NonFiniteError as error:
        status, message, at = Status.NONFINITE, str(error), error.last
        logger.warning("solve stopped: %s", error)
    except KeyboardInterrupt:
        status, message = Status.INTERRUPTED, f"interrupted after step {at.step}"
        logger.warning("solve interrupted after step %d; the last iterate is in the solution", at.step)
    except Exception as error:
        error.last_iterate = at  # type: ignore[attr-defined]
        error.add_note(f"mfoc.solve: raised after step {at.step}; that iterate is kept as error.last_iterate")
        _each(hooks, "close")
        raise
    solution = _finish(problem, solver, source, at, status, message, history)
    if good is not at and not (math.isfinite(solution.value) and math.isfinite(solution.residual)):
        what = _find_nonfinite(problem, at.controls, source(at.step))[1]  # what one more step would have found
        message, at = f"step {at.step}: {what}", good
        logger.warning("solve stopped: %s", message)
        solution = _finish(problem, solver, source, at, Status.NONFINITE, message, history)
    try:
        _each(hooks, "finish", solution)
    except Exception as error:
        error.last_iterate = at  # type: ignore[attr-defined]
        error.add_note("mfoc.solve: a hook failed after the solve; its last iterate is kept as error.last_iterate")
        raise
    finally:
        _each(hooks, "close")
    return solution


def _each(hooks: Sequence[Hook], method: str, *args: Any) -> None:
    for hook in hooks:
        getattr(hook, method, lambda *args: None)(*args)


def _check_arguments(source: Any, steps: int, tol: float | None, hooks: Sequence[Hook]) -> Population:
    check_integer(0, steps=steps)
    check_non_negative(tol=tol, finite=False, optional=True)
    if not isinstance(hooks, Sequence) or not all(callable(hook) and not isinstance(hook, type) for hook in hooks):
        raise InvalidType("hooks must be a list of functions of the iterate (instances, not classes)")
    return as_population(source)


def _record(at: Iterate, seconds: float) -> dict[str, float]:
    info = at.info
    assert info is not None
    record = {"step": at.step - 1, "value": float(info.value), "residual": info.residual, "seconds": seconds}
    return {**record, **info.extra}


def _finish(
    problem: Problem,
    solver: Solver,
    source: Population,
    at: Iterate,
    status: Status,
    message: str,
    history: list[dict[str, float]],
) -> Solution:
    particles = source(at.step)
    if hasattr(solver, "evaluate"):
        value, gradient = solver.evaluate(problem, at.controls, at.state, particles)
    else:
        value, gradient = evaluate(problem, at.controls, particles)
    return Solution(at.controls, float(value), float(tree.norm(gradient)), status, history, at, message)
