"""Conformance checks that users and third-party packages can run on their own problems and solvers."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mfoc import tree
from mfoc.checks import check_instance, check_integer, kind_of
from mfoc.derivatives import tree_gradients
from mfoc.formulation import Formulation
from mfoc.interacting import check_own
from mfoc.particles import Particles
from mfoc.pontryagin import adjoint, evaluate, rollout
from mfoc.populations import as_particles
from mfoc.problem import Problem
from mfoc.solving import Solver
from mfoc.tree import Tree

_EXACT = 1e-10


def check_problem(problem: Problem, particles: Any, *, interacting: bool | None = None) -> None:
    """Checks that a problem keeps the laws solvers rely on; returns nothing, raises when one is broken.

    Shapes at every stage, purity (two evaluations agree to the bit and leave the inputs alone), invariance under a
    permutation of the particles, and, in float64, dJ/du and dJ/dx_0 from Pontryagin's principle against autograd.
    The float64 part casts controls and particles; constants the problem closes over must be able to follow.

    Args:
        problem: the problem.
        particles: a small cloud, or what ``mfoc.population`` takes, all of it.
        interacting: when False, also checks that each particle's cost is the one it has alone.

    Raises:
        InvalidType, InvalidValue: the problem does not fit the particles.
        AssertionError: a law is broken; the message says which and by how much.
    """
    check_instance(Problem, "mfoc.Problem", problem=problem)
    particles = as_particles(particles)
    problem.validate(particles)
    if problem.per_particle:
        check_own(problem, problem.controls, particles)
    _check_purity(problem, particles)
    _check_symmetry(problem, particles, alone=interacting is False)
    _check_identity(problem, particles)


def check_solver(solver: Solver, problem: Problem, particles: Any) -> None:
    """Checks that a solver keeps the laws ``solve`` relies on.

    Its step is pure, returns controls of the same structure, shapes and dtypes, reports the objective and gradient
    of the controls it was given (unless it has an ``evaluate`` of its own, whose objective is another), and keeps a
    state of tensors and plain values.

    Args:
        solver: the solver.
        problem: a problem it can solve.
        particles: a cloud, or what ``mfoc.population`` takes, all of it.

    Raises:
        InvalidType: no solver, no problem.
        AssertionError: a law is broken; the message says which.
    """
    check_instance(Solver, "an object with init() and step()", solver=solver)
    check_instance(Problem, "mfoc.Problem", problem=problem)
    controls, particles = tree.copy(problem.controls), as_particles(particles)
    state = solver.init(problem, controls)
    before = tree.copy([controls, state, particles.state, particles.data])
    first, next_state, info = solver.step(problem, controls, state, particles)
    second, _, _ = solver.step(problem, controls, state, particles)
    _same_bits(before, [controls, state, particles.state, particles.data], "step changed its inputs")
    _same_bits(first, second, "two steps from the same place differ")
    _require(tree.same_structure(first, controls), "step returned controls of another structure")
    for name, new, old in _beside(first, controls):
        _require(new.shape == old.shape, f"{name} changed shape from {tuple(old.shape)} to {tuple(new.shape)}")
        _require(new.dtype == old.dtype, f"{name} changed dtype from {old.dtype} to {new.dtype}")
    if not hasattr(solver, "evaluate"):
        value, gradient = evaluate(problem, controls, particles)
        _close(info.value, value, "info.value is not J at the controls given", 1e-5)
        _close(info.gradient, gradient, "info.gradient is not dJ/du at the controls given", 1e-5)
    for leaf in tree.leaves(next_state):
        plain = leaf is None or isinstance(leaf, Tensor | int | float | bool | str)
        _require(plain, f"the solver's state holds {kind_of(leaf)}; expected tensors and plain values")


def check_formulation(formulation: Formulation, solver: Solver, *, steps: int = 2) -> None:
    """Checks a paradigm's formulation: what ``mfoc.Formulation`` promises to users and to other code.

    Its problem keeps the laws of ``check_problem`` on its population, the population is a pure function of the step,
    it solves with the given solver to a finite value, and reading a solution out twice gives the same and leaves the
    solution as it was.

    Args:
        formulation: the formulation.
        solver: a solver for it.
        steps: how many steps to solve for.

    Raises:
        InvalidType: it is no formulation.
        AssertionError: a law is broken; the message says which.
    """
    check_instance(Formulation, "mfoc.Formulation", formulation=formulation)
    first, again = (formulation.population(0) for _ in range(2))
    _same_bits([first.state, first.data], [again.state, again.data], "the population is not a function of the step")
    check_integer(1, steps=steps)
    cost = rollout(formulation.problem, formulation.problem.controls, first).cost
    _require(bool(cost.isfinite().all()), "the cost of the initial controls is not finite")
    check_problem(formulation.problem, first[: min(len(first), 8)])
    check_solver(solver, formulation.problem, first)
    before = tree.copy(formulation.problem.controls)
    solution = formulation.solve(solver, steps=steps)
    _same_bits(before, formulation.problem.controls, "solving changed the problem's controls")
    _require(math.isfinite(solution.value), f"the value after {steps} steps is {solution.value}: {solution.message}")
    _require(solution.last.step == steps, f"the solve ended after {solution.last.step} of {steps} steps")
    kept = tree.copy(solution.controls)
    readings = [_state_of(formulation.readout(solution)) for _ in range(2)]
    _same_bits(kept, solution.controls, "readout changed the solution")
    _same_bits(readings[0], readings[1], "two readouts of one solution differ")


def _state_of(reading: Any) -> Tree:
    """The tensors of a readout, as far as they can be seen."""
    if isinstance(reading, torch.nn.Module):
        return dict(reading.state_dict())
    return [leaf for leaf in tree.leaves(reading) if isinstance(leaf, Tensor)]


def _require(condition: bool, message: str) -> None:
    """An assertion that holds under ``python -O`` too."""
    if not condition:
        raise AssertionError(message)


def _check_purity(problem: Problem, particles: Particles) -> None:
    inputs = [problem.controls, particles.state, particles.data]
    before = tree.copy(inputs)
    first = evaluate(problem, problem.controls, particles)
    trajectories = [rollout(problem, problem.controls, particles) for _ in range(2)]
    second = evaluate(problem, problem.controls, particles)
    _same_bits(before, inputs, "evaluating the problem changed its inputs")
    impure = "differ: dynamics or costs are not pure (hidden randomness)"
    _same_bits(trajectories[0], trajectories[1], f"two roll-outs {impure}")
    _same_bits(list(first), list(second), f"two evaluations {impure}")


@torch.no_grad()
def _check_symmetry(problem: Problem, particles: Particles, *, alone: bool) -> None:
    order = torch.arange(len(particles) - 1, -1, -1, device="cpu")
    cost = rollout(problem, problem.controls, particles).cost
    tolerance = math.sqrt(torch.finfo(cost.dtype).eps)
    permuted = rollout(problem, problem.controls, particles[order]).cost
    _close(permuted, cost[order], "a permutation of the particles changes their costs", tolerance)
    if alone:
        each = [rollout(problem, problem.controls, particles[i : i + 1]).cost for i in range(len(particles))]
        _close(torch.cat(each), cost, "a particle's cost depends on the others", tolerance)


@torch.enable_grad()
def _check_identity(problem: Problem, particles: Particles) -> None:
    cloud = particles.to(torch.float64)
    controls = tree.map(lambda leaf: leaf.detach().double(), problem.controls)
    trajectory = rollout(problem, controls, cloud)
    costates, by_pontryagin = adjoint(problem, controls, trajectory, cloud)
    free = tree.detached([controls, cloud.state], requires_grad=True)
    value = rollout(problem, free[0], Particles(free[1], cloud.data)).cost.mean()
    by_autograd, at_start = tree_gradients(value, free)
    _close(by_pontryagin, by_autograd, "dJ/du = E dH/du fails", _EXACT)
    scaled = tree.map(lambda g: g * len(cloud), at_start)
    _close(costates[0], scaled, "p_0 = N dJ/dx_0 fails", _EXACT)


def _beside(left: Tree, right: Tree) -> list[tuple[str, Any, Any]]:
    return [(f"leaf {i}", a, b) for i, (a, b) in enumerate(zip(tree.leaves(left), tree.leaves(right), strict=True))]


def _same_bits(left: Tree, right: Tree, message: str) -> None:
    for name, a, b in _beside(left, right):
        same = torch.equal(a, b) if isinstance(a, Tensor) else a == b
        _require(same, f"{message} ({name})")


def _close(left: Tree, right: Tree, message: str, tolerance: float) -> None:
    for name, a, b in _beside(left, right):
        if tree.differentiable(a):
            scale = max(1.0, float(b.detach().abs().max())) if b.numel() else 1.0
            gap = float((a - b).detach().abs().max()) if b.numel() else 0.0
            _require(gap <= tolerance * scale, f"{message} ({name}: off by {gap:.3g}, allowed {tolerance * scale:.3g})")
