"""The beginning of a solve: everything that can be refused is refused before the first step."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from mfoc import tree
from mfoc.checks import check_flag, check_instance
from mfoc.derivatives import check_derivatives, reached
from mfoc.distributed import any_rank
from mfoc.errors import InvalidValue
from mfoc.identity import Plain
from mfoc.interacting import check_interaction
from mfoc.lagrangian import constraint_values
from mfoc.particles import Particles
from mfoc.pontryagin import rollout
from mfoc.populations import Population
from mfoc.populations.fingerprints import check_repeatable
from mfoc.problem import Problem
from mfoc.solving.origin import check_alike, check_batch, check_same, settings
from mfoc.solving.records import Iterate, Solution, Solver
from mfoc.tree import Tree
from mfoc.validation import on_few

logger = logging.getLogger("mfoc.solving.loop")


def begin(
    problem: Problem,
    solver: Solver,
    source: Population,
    start: Iterate | Solution | None,
    *,
    nominal: bool,
    allow_changes: bool,
    steps: int | None = None,
    tol: float | None = None,
) -> tuple[Iterate, Mapping[str, Plain]]:
    """The iterate that a solve starts at, and what it is a solve of, in plain values.

    Args:
        problem: the control problem.
        solver: the solver.
        source: the population.
        start: where to go on from; None for the problem's own controls.
        nominal: see ``mfoc.solve``.
        allow_changes: see ``mfoc.solve``.
        steps: the step to stop at; None where it is not known.
        tol: see ``mfoc.solve``.

    Raises:
        InvalidType, InvalidValue: see ``mfoc.solve``.
    """
    check_instance(Problem, "mfoc.Problem", problem=problem)
    check_instance(Solver, "an object with init() and step(), such as mfoc.Gradient(...)", solver=solver)
    check_derivatives("solving")
    check_flag(nominal=nominal, allow_changes=allow_changes)
    start = None if start is None else _last(start)
    first = 0 if start is None else start.step
    if steps is not None and steps < first:
        raise InvalidValue(
            f"steps is {steps} and start is at step {first}: steps are counted from the very beginning, so that "
            f"ten more are steps={first + 10}"
        )
    # The batch of the first step. If there is none to make, that of the last: there may be no more.
    asked = max(first - 1, 0) if steps == first else first
    particles = source(asked)
    check_repeatable(source, asked, particles)
    _check_solver(problem, solver, particles, nominal)
    if start is not None and not tree.same_structure(start.controls, problem.controls):
        raise InvalidValue("start holds controls of another structure than the problem's: it is of another problem")
    # The user's own may be written into, and this one is come back to.
    controls = tree.copy(problem.controls if start is None else start.controls)
    fresh = solver.init(problem, controls)
    known = settings(problem, solver, source, particles)
    state = fresh if start is None else _state(solver, start, fresh, known, allow_changes)
    check_alike(known, {"step": first, "steps": steps, "tol": tol, "controls": controls, "state": state}, controls)
    if start is not None and start.origin is not None and not allow_changes:
        check_batch(start.origin, source, controls)
    problem.validate(particles, controls)
    _check_influence(problem, controls, particles)
    check_interaction(problem, controls, source, particles)
    at = Iterate(first, controls, state) if start is None else replace(start, controls=controls, state=state)
    return at, known


def _last(start: Iterate | Solution) -> Iterate:
    start = start.last if isinstance(start, Solution) else start
    check_instance(Iterate, "mfoc.Iterate (hooks.load(path)) or a solution", start=start)
    return start


def _check_solver(problem: Problem, solver: Solver, particles: Particles, nominal: bool) -> None:
    """Refuses a solver that does not know what the problem has."""
    name = type(solver).__name__
    plays = bool(getattr(solver, "plays_games", False))
    if nominal and plays:
        raise InvalidValue(f"nominal is True, without an adversary, and {name} brings one; leave one out")
    if not nominal and not plays:
        problem.check_played(particles)
    if problem.region is not None and not getattr(solver, "respects_bounds", False):
        raise InvalidValue(
            f"the problem's controls are bounded and {name} knows no bounds; use Gradient, MSA, EMSA, "
            "or a solver that says respects_bounds = True"
        )
    if problem.constrained and not getattr(solver, "meets_constraints", False):
        raise InvalidValue(
            f"the problem has constraints and {name} knows none; use mfoc.AugmentedLagrangian({name}(...))"
        )


def _state(solver: Any, start: Iterate, fresh: Tree, known: Mapping[str, Plain], allow_changes: bool) -> Tree:
    """The state to go on with; what changed in the solver's settings is changed in it."""
    if isinstance(fresh, dict) and (not isinstance(start.state, dict) or start.state.keys() != fresh.keys()):
        held = sorted(start.state) if isinstance(start.state, dict) else type(start.state).__name__
        raise InvalidValue(
            f"start holds the state of another solver: {type(solver).__name__} keeps {sorted(fresh)}, it has {held}"
        )
    state = tree.copy(start.state)
    if start.origin is None:
        return state
    if not allow_changes:
        check_same(start.origin, known)
    elif hasattr(solver, "changed"):
        return solver.changed(state, fresh, start.origin.get("solver"))
    return state


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
