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
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Protocol, overload, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from mfoc import printing, tree
from mfoc.checks import check_flag, check_instance, check_integer, check_non_negative, check_signature
from mfoc.derivatives import reached
from mfoc.distributed import any_rank
from mfoc.errors import InvalidType, InvalidValue, NonFiniteError
from mfoc.interacting import check_interaction
from mfoc.particles import Particles
from mfoc.pontryagin import adjoint, evaluate, rollout
from mfoc.populations import Population
from mfoc.populations import population as as_population
from mfoc.problem import Controls, HasControls, Problem, on_few
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
    also has ``evaluate(problem, controls, state, particles) -> Evaluation``, by which the solution is judged. One that
    answers the adversary of a game says so by a true attribute ``plays_games``: ``solve`` gives a game to no other.
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
        history: the records of ``solve`` up to here, as in ``Solution``; a solve that starts here carries them on.
    """

    step: int
    controls: Controls
    state: Tree
    info: Info | None = None
    history: Sequence[dict[str, float]] = field(default=(), repr=False)

    def __repr__(self) -> str:
        seen = "" if self.info is None else f", {self.info}"
        return f"Iterate(step {self.step}, {printing.sizes(self.controls)}{seen})"


class _Past(Sequence[dict[str, float]]):
    """The first records of a list that grows: every iterate has its own past, and there is one list."""

    def __init__(self, records: list[dict[str, float]], count: int) -> None:
        self._records, self._count = records, count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> dict[str, float]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, float]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, float] | list[dict[str, float]]:
        return (
            self._records[: self._count][index] if isinstance(index, slice) else self._records[range(len(self))[index]]
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (self[:],)


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
            five steps (of a solve of less than ten: in the first): the largest |J|, or ||dJ/du|| (1 + ||u||) where that
            is more.
            The controls are then those of the lowest value seen.
        history: one record a step, plain numbers: value and residual at the controls the step started from, the
            seconds since the start when it began, and what the solver reports of itself. The final J is ``value``.
            A resumed solve carries on the records, and their clock, of what it started from.
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
        if not math.isfinite(info.value) or not math.isfinite(info.residual):
            stage, what = _find_nonfinite(problem, at.controls, particles)
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
            found = reached([rollout(problem, free, cloud).cost], [leaf for _, leaf in leaves])
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
    _check_hooks(hooks)
    source = as_population(population)
    run = _Run(problem, solver, source, _begin(problem, solver, source, start, nominal))
    if steps < run.at.step:
        raise InvalidValue(
            f"steps is {steps} and start is at step {run.at.step}: steps are counted from the very beginning, so that "
            f"ten more are steps={run.at.step + 10}"
        )

    def of(method: str) -> list[Callable[..., object]]:
        return [getattr(hook, method) for hook in hooks if hasattr(hook, method)]

    with run.kept(), _closing(of("close")):
        for begin in of("start"):
            begin(steps)
        solution = run.finished(*run.to(steps, tol, hooks))
        _all_called([partial(finish, solution) for finish in of("finish")])
    return solution


def _check_hooks(hooks: Any) -> None:
    if not isinstance(hooks, Sequence) or not all(callable(hook) and not isinstance(hook, type) for hook in hooks):
        raise InvalidType("hooks must be a list of functions of the iterate (instances, not classes)")
    for k, hook in enumerate(hooks):
        for method, arguments in {"start": ["steps"], "finish": ["solution"], "close": []}.items():
            check_signature(
                arguments, **{f"hooks[{k}].{method}": getattr(hook, method)} if hasattr(hook, method) else {}
            )
        check_signature(["iterate"], **{f"hooks[{k}]": hook})


def _says_stop(returned: object) -> bool:
    """Whether a hook returned True: Python's, NumPy's, or a tensor's; no number is one."""
    if isinstance(returned, Tensor):
        return returned.dtype == torch.bool and returned.numel() == 1 and bool(returned)
    if isinstance(returned, np.ndarray):
        return returned.dtype == np.bool_ and returned.size == 1 and bool(returned.all())
    return isinstance(returned, bool | np.bool_) and bool(returned)


@contextmanager
def _closing(closes: Sequence[Callable[[], object]]) -> Iterator[None]:
    """Calls every one of them at the end, however it comes."""
    error: BaseException | None = None
    try:
        yield
    except BaseException as raised:
        error = raised
        raise
    finally:
        _all_called(closes, error)


def _all_called(functions: Iterable[Callable[[], object]], error: BaseException | None = None) -> None:
    """Calls every function, whatever the others raise; then raises the first error, with a note of each later one.

    Args:
        functions: what to call.
        error: one that is on its way already; those of the functions are only noted on it.
    """
    first = error
    for function in functions:
        try:
            function()
        except BaseException as raised:
            if first is None or (isinstance(first, Exception) and not isinstance(raised, Exception)):
                first, raised = raised, first  # Ctrl-C is not to be lost in a note
            if raised is not None:
                with suppress(Exception):
                    first.add_note(f"mfoc.solve: another hook failed: {raised!r}")
                logger.error("a hook failed: %r", raised, exc_info=raised)
    if first is not None and first is not error:
        raise first


@dataclass(eq=False)
class _Watch:
    """Tells divergence from the ups and downs of training, whatever the scale and the sign of J.

    The size that J is measured by is that of its beginning: the largest, over the first half of ten steps from the
    first at which there is any, of |J| and of ||dJ/du|| (1 + ||u||), which J would change by if the controls moved by
    their size. The second is there for solves that begin where J is zero, or happens to be small; the second half of
    the ten only waits, since a solve that explodes at once would be measured by its own explosion. Warm-ups, noise and
    games raise J a hundred times, and come back; what is a million times that size above the best is on its way to
    infinity.
    """

    best: Iterate
    lowest: float = math.inf
    sizes: list[float] = field(default_factory=list)

    def see(self, at: Iterate, info: Info) -> None:
        """Takes in what a step saw at the iterate it started from."""
        value = float(info.value)
        if value < self.lowest:
            self.best, self.lowest = at, value
        if len(self.sizes) < _BEGINNING:
            size = max(abs(value), info.residual * (1 + float(tree.norm(at.controls))))
            if self.sizes or size > 0:
                self.sizes.append(max([*self.sizes[-1:], size]))

    def diverged(self, value: float, *, final: bool = False) -> bool:
        """Whether J has grown beyond return; a solve that ends sooner is judged by the size of its first step."""
        if len(self.sizes) < _BEGINNING:
            return final and bool(self.sizes) and value - self.lowest > _GROWTH * self.sizes[0]
        return value - self.lowest > _GROWTH * self.sizes[_BEGINNING // 2 - 1]


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
        self.watch = _Watch(self.at)

    def _remembering(self, at: Iterate) -> Iterate:
        """The iterate with the records of the steps before it."""
        return replace(
            at, history=_Past(self.history, bisect_left(self.history, at.step, key=lambda r: int(r["step"])))
        )

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
                stops = [hook for hook in hooks if _says_stop(hook(self.at))]  # every hook is called
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
            what = _find_nonfinite(self.problem, self.at.controls, self.source(self.at.step))[1]
            status, message = Status.NONFINITE, f"step {self.at.step}: {what}"
            logger.warning("solve stopped: %s", message)
            self.at = self.good
            value, residual = self._judged()
        elif status is Status.MAX_STEPS and self.watch.diverged(value, final=True):
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
