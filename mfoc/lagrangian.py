"""The augmented Lagrangian of a problem with constraints: a problem without them.

Every particle carries the multipliers of its own constraints, as part of its data; those of constraints in mean are the
population's. So every solver, and the certificate, sees a control problem like any other.

This is what ``AugmentedLagrangian`` is made of: it does not check its arguments.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from mfoc import tree
from mfoc.constraints import Constraint
from mfoc.errors import InvalidValue
from mfoc.particles import Particles
from mfoc.pontryagin import rollout
from mfoc.printing import by_identity
from mfoc.problem import Problem
from mfoc.tree import Tree

Values = list[Tensor]  # of each constraint: terminal [N, k], path [N, T, k]; in mean [k] and [T, k]


@by_identity
class Multiplied(NamedTuple):
    """What the functions of the augmented problem receive as z.

    Attributes:
        data: the z of the problem; an empty tuple when it has none.
        multipliers: those of the particles' own constraints, ``[N, k]`` and ``[N, T, k]``.
    """

    data: Tree
    multipliers: Values

    @property
    def z(self) -> Tree:
        """The z of the problem."""
        return None if isinstance(self.data, tuple) and not self.data else self.data


@dataclass(frozen=True, eq=False)
class Lagrangian:
    """A problem's constraints at some multipliers.

    Attributes:
        problem: the problem.
        multipliers: those of each constraint, terminal ones first; per particle they are N times those of J.
        penalty: m of the top of ``mfoc.constraints``.
    """

    problem: Problem
    multipliers: Values
    penalty: float

    @classmethod
    def start(cls, problem: Problem, values: Values, penalty: float) -> Lagrangian:
        """With multipliers of zero, shaped as the constraints' values."""
        return cls(problem, [torch.zeros_like(value) for value in values], penalty)

    @property
    def constraints(self) -> list[tuple[Constraint, bool]]:
        """The constraints, and whether they are along the path."""
        return _kinds(self.problem)

    def particles(self, particles: Particles) -> Particles:
        """The cloud of the augmented problem."""
        own = [held for (c, _), held in zip(self.constraints, self.multipliers, strict=True) if not c.in_mean]
        data = () if particles.data is None else particles.data
        return Particles(particles.state, Multiplied(data, own), particles.index)

    def augmented(self) -> Problem:
        """J with the terms of the constraints; on ``particles(...)``."""
        return self.problem.rebuilt(self._augmented)

    def _augmented(self, problem: Problem) -> Problem:
        kinds = _kinds(problem)
        places = _places(kinds)

        def held(k: int, z: Multiplied, t: int | None) -> Tensor:
            place = places[k]
            multiplier = self.multipliers[k] if place is None else z.multipliers[place]
            return multiplier if t is None else multiplier[..., t, :]

        def terms(z: Multiplied, t: int | None, n: int, *arguments: Tree) -> Tensor | None:
            total = None
            for k, (constraint, along) in enumerate(kinds):
                if along == (t is not None):
                    name = _name(along, t)
                    value = constraint.of(n, name, *arguments)
                    term = constraint.term(value, held(k, z, t), self.penalty).expand(n)
                    total = term if total is None else total + term
            return total

        def dynamics(t: int, x: Tree, u: Tree, z: Multiplied) -> Tree:
            return problem.dynamics(t, x, u, z.z)

        def running_cost(t: int, x: Tree, u: Tree, z: Multiplied) -> Tensor:
            n = len(tree.leaves(x)[0])
            found = [None if problem.running_cost is None else problem.running_cost(t, x, u, z.z)]
            found.append(terms(z, t, n, t, x, u, z.z))
            return torch.stack([part for part in found if part is not None]).sum(0)

        def terminal_cost(x: Tree, z: Multiplied) -> Tensor:
            cost = problem.terminal_cost(x, z.z)
            term = terms(z, None, len(cost), x, z.z)
            return cost if term is None else cost + term

        def noise(t: int, x: Tree, u: Tree, z: Multiplied) -> Tensor:
            assert problem.noise is not None
            return problem.noise(t, x, u, z.z)

        runs = problem.running_cost is not None or bool(problem.path_constraints)
        return replace(
            problem,
            dynamics=dynamics,
            terminal_cost=terminal_cost,
            running_cost=running_cost if runs else None,
            noise=None if problem.noise is None else noise,
            kind=None if problem.path_constraints else problem.kind,
            terminal=None,
            path=None,
        )

    def violation(self, values: Values) -> float:
        """sqrt(E |what is missing|^2)."""
        rows = zip(self.constraints, values, self.multipliers, strict=True)
        return self.size([c.missed(value, held, self.penalty) for (c, _), value, held in rows])

    def size(self, values: Values) -> float:
        """sqrt(E |c|^2) over all constraints."""
        squares = [
            value.square().sum() / (1 if constraint.in_mean else len(value))
            for (constraint, _), value in zip(self.constraints, values, strict=True)
        ]
        return float(torch.stack(squares).sum().sqrt())

    def updated(self, values: Values) -> Lagrangian:
        """With the next multipliers."""
        rows = zip(self.constraints, values, self.multipliers, strict=True)
        return replace(self, multipliers=[c.next_multiplier(value, held, self.penalty) for (c, _), value, held in rows])


def constraint_values(problem: Problem, controls: Tree, particles: Particles) -> Values:
    """The values of a problem's constraints, terminal ones first: ``[N, k]``, along the path ``[N, T, k]``."""
    states, z, n = rollout(problem, controls, particles).states, particles.data, len(particles)
    found = [c.of(n, _name(False, None), states[-1], z) for c in problem.terminal_constraints]
    for c in problem.path_constraints:
        stages = [
            c.of(n, _name(True, t), t, states[t], problem.schedule(controls, t), z) for t in range(problem.stages)
        ]
        found.append(torch.stack(stages, -2))
    return found


def check_same(index: Tensor | None, particles: Particles, multipliers: Values, values: Values) -> None:
    """Refuses other particles than those the multipliers are of."""
    same = [held.shape == value.shape for held, value in zip(multipliers, values, strict=True)]
    moved = index is not None and particles.index is not None and not torch.equal(index, particles.index)
    if not all(same) or moved:
        raise InvalidValue(
            "the particles are others than those of the multipliers, and every particle holds its own: take the "
            "population whole and in one order (batch_size=None, shuffle=False)"
        )


def _kinds(problem: Problem) -> list[tuple[Constraint, bool]]:
    return [(c, False) for c in problem.terminal_constraints] + [(c, True) for c in problem.path_constraints]


def _places(kinds: list[tuple[Constraint, bool]]) -> list[int | None]:
    """Where each constraint's multipliers are among those the particles carry; None for one in mean."""
    places: list[int | None] = []
    for constraint, _ in kinds:
        carried = sum(place is not None for place in places)
        places.append(None if constraint.in_mean else carried)
    return places


def _name(along: bool, t: int | None) -> str:
    return f"stage {t}: the path constraint" if along else "the terminal constraint"
