"""When a solve has gone wrong: J grown beyond return, or a number that is none."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from mfoc import tree
from mfoc.particles import Particles
from mfoc.pontryagin import adjoint, rollout
from mfoc.problem import Problem
from mfoc.solving.records import Iterate
from mfoc.tree import Tree

Place = tuple[int, Iterate]  # a step, and an iterate from which it can be reached

_BEGINNING = 10  # steps by which the size of J is judged
_GROWTH = 1e6  # of J over its size, from which on a solve has diverged


@dataclass(eq=False)
class Watch:
    """Tells divergence from the ups and downs of training, whatever the scale and the sign of J.

    The size that J is measured by is that of its beginning: the largest, over the first half of ten steps from the
    first at which there is any, of |J| and of ||dJ/du|| (1 + ||u||), which J would change by if the controls moved by
    their size. The second is there for solves that begin where J is zero, or happens to be small; the second half of
    the ten only waits, since a solve that explodes at once would be measured by its own explosion. Warm-ups, noise and
    games raise J a hundred times, and come back; what is a million times that size above the best is on its way to
    infinity.
    """

    best: Place
    lowest: float = math.inf
    sizes: list[float] = field(default_factory=list)

    @property
    def beginning(self) -> bool:
        """Whether the size of J is still being found."""
        return len(self.sizes) < _BEGINNING

    def see(self, value: float, place: Place) -> bool:
        """Takes in J at a place; whether it has grown beyond return."""
        if value < self.lowest:
            self.best, self.lowest = place, value
            return False
        return self.diverged(value)

    def measure(self, value: float, change: float) -> None:
        """Takes in |J| in the beginning, and what it would change by, ||dJ/du|| (1 + ||u||)."""
        size = max(abs(value), change)
        if self.sizes or size > 0:
            self.sizes.append(max([*self.sizes[-1:], size]))

    def diverged(self, value: float, *, final: bool = False) -> bool:
        """Whether J has grown beyond return; a solve that ends sooner is judged by the size of its first step."""
        if self.beginning:
            return final and bool(self.sizes) and value - self.lowest > _GROWTH * self.sizes[0]
        return value - self.lowest > _GROWTH * self.sizes[_BEGINNING // 2 - 1]


def find_nonfinite(problem: Problem, controls: Tree, particles: Particles) -> tuple[int | None, str]:
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
