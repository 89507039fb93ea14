"""The loop: one for every solver."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from mfoc.checks import check_integer, check_non_negative
from mfoc.derivatives import check_derivatives
from mfoc.distributed import active, announcing
from mfoc.identity import Plain
from mfoc.populations import population as as_population
from mfoc.problem import Controls, Problem
from mfoc.solving.beginning import begin
from mfoc.solving.calls import all_called, check_hooks, closing
from mfoc.solving.records import Hook, Iterate, Solution, Solver
from mfoc.solving.run import Run
from mfoc.solving.signals import listening, terminated
from mfoc.solving.steps import Steps, stepping


def iterate(
    problem: Problem[Controls],
    solver: Solver,
    population: Any,
    *,
    start: Iterate[Controls] | Solution[Controls] | None = None,
    nominal: bool = False,
    allow_changes: bool = False,
) -> Iterator[Iterate[Controls]]:
    """The iterates of a solver, without end.

    Args:
        problem: the control problem.
        solver: any ``Solver``.
        population: what ``mfoc.population`` takes, or what it returns.
        start: an iterate (or a solution, whose last one is taken) to go on from; its step decides which batch is next.
        nominal: solve a game without its adversary; see ``solve``.
        allow_changes: go on from ``start`` with what it was not made with; see ``solve``.

    Returns:
        An iterator over the iterates after each step.

    Raises:
        InvalidType, InvalidValue: the problem, its controls and the particles do not fit together, or ``start`` was
            made with something else.
        NonFiniteError: a state, costate, cost or gradient is not finite; ``error.last`` is the last good iterate.
    """
    source = as_population(population)
    with announcing():
        at, known = begin(problem, solver, source, start, nominal=nominal, allow_changes=allow_changes)
    return _iterates(stepping(problem, solver, source, at), known)


def _iterates(steps: Steps, known: Mapping[str, Plain]) -> Iterator[Iterate]:
    while True:
        check_derivatives("solving")
        with announcing(steps.step):
            steps.advance({"step": steps.step})
        yield steps.iterate(steps.place(), origin=known)


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
    allow_changes: bool = False,
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
            if it has them, and ``failed(iterate)`` with the last good iterate where an error is raised in place of a
            solution. When several of them fail the others are called all the same, and the first error is raised,
            with a note of each other. Over ranks a hook may be on some of them only, if it needs no other rank.
        start: an iterate to resume from, or a solution, whose last one is taken. It must have been made with this
            problem (its structure, functions and what they hold), solver and population: settings, layouts, code and
            numbers are compared, and a fingerprint of the last batch.
        nominal: solve a game without its adversary, by a solver that knows none. It is refused unless asked for.
        allow_changes: go on from ``start`` all the same. The solver's memory is kept; settings are those given now.

    Returns:
        The solution. A NaN, divergence or Ctrl-C ends the solve with a status, not an exception. An error in user code
        is raised with the last good iterate attached, as ``error.last_iterate``, and with ``error.solution`` where
        there was one already. No batch is drawn but those of the
        steps.

    Raises:
        InvalidType, InvalidValue: bad arguments, a problem that does not fit its particles, particles that interact
            and are taken in batches, or split over ranks, so that J would be another (``Problem.interacting``), or a
            ``start`` that was made with something else.
        SystemExit: with status 143, after SIGTERM, to which nobody else listens: the solve has ended as after Ctrl-C,
            its hooks have finished, and ``error.solution`` is what would have been returned.
        RankError: another rank has failed; it says which, at which step, and how.
    """
    check_integer(0, 2**31 - 1, steps=steps)
    check_non_negative(tol=tol, finite=False, optional=True)
    check_hooks(hooks)
    source = as_population(population)
    with announcing():
        at, known = begin(
            problem, solver, source, start, nominal=nominal, allow_changes=allow_changes, steps=steps, tol=tol
        )

    def of(method: str, *arguments: object) -> list[Callable[[], object]]:
        return [partial(getattr(hook, method), *arguments) for hook in hooks if hasattr(hook, method)]

    with listening(together=active()) as signals:
        run = Run(problem, solver, source, at, known, signals)
        with run.kept():
            with closing(of("close")), run.rescuing(hooks):
                all_called(of("start", steps))
                solution = run.finished(*run.to(steps, tol, hooks))
                all_called(of("finish", solution))
                run.answer()
            signals.raised()
        if run.terminated:
            raise terminated(solution)
    return solution
