"""The loop: one for every solver."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from mfoc import tree
from mfoc.checks import check_flag, check_instance, check_integer, check_non_negative
from mfoc.derivatives import reached
from mfoc.distributed import any_rank
from mfoc.errors import InvalidValue
from mfoc.interacting import check_interaction
from mfoc.lagrangian import constraint_values
from mfoc.particles import Particles
from mfoc.pontryagin import rollout
from mfoc.populations import Population
from mfoc.populations import population as as_population
from mfoc.problem import Controls, Problem
from mfoc.solving.calls import all_called, check_hooks, closing
from mfoc.solving.records import Hook, Iterate, Solution, Solver
from mfoc.solving.run import Run
from mfoc.solving.steps import Steps, stepping
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
    return _iterates(stepping(problem, solver, source, _begin(problem, solver, source, start, nominal)))


def _iterates(steps: Steps) -> Iterator[Iterate]:
    while True:
        _check_derivatives()
        steps.advance({"step": steps.step})
        yield steps.iterate(steps.place())


def _check_derivatives() -> None:
    if torch.is_inference_mode_enabled():
        raise InvalidValue("torch.inference_mode() is on and solving needs derivatives; leave it (no_grad is fine)")


def _begin(
    problem: Problem, solver: Solver, source: Population, start: Iterate | Solution | None, nominal: bool
) -> Iterate:
    check_instance(Problem, "mfoc.Problem", problem=problem)
    check_instance(Solver, "an object with init() and step(), such as mfoc.Gradient(...)", solver=solver)
    _check_derivatives()
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
        # The user's own may be written into, and this one is come back to.
        start = replace(start, controls=tree.copy(start.controls), state=tree.copy(start.state))
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
    run = Run(problem, solver, source, _begin(problem, solver, source, start, nominal))
    if steps < run.first:
        raise InvalidValue(
            f"steps is {steps} and start is at step {run.first}: steps are counted from the very beginning, so that "
            f"ten more are steps={run.first + 10}"
        )

    def of(method: str) -> list[Callable[..., object]]:
        return [getattr(hook, method) for hook in hooks if hasattr(hook, method)]

    with run.kept(), closing(of("close")):
        for begin in of("start"):
            begin(steps)
        solution = run.finished(*run.to(steps, tol, hooks))
        all_called([partial(finish, solution) for finish in of("finish")])
    return solution
