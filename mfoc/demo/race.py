"""Several solvers, each with the same budget of seconds, from several seeds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mfoc import tree
from mfoc.demo.data import control_problem, digits, right
from mfoc.errors import NonFiniteError
from mfoc.minimisers import LBFGS, Descent
from mfoc.networks import NetworkProblem
from mfoc.particles import Particles
from mfoc.pontryagin import evaluate, rollout
from mfoc.populations import population
from mfoc.problem import Problem
from mfoc.solvers import EMSA, MSA, Gradient
from mfoc.solving import Iterate, Solution, Solver, solve

SECONDS, SEEDS = 2.0, 3
_POINTS = 25  # of a curve
_UNBOUNDED = 2**31 - 1  # steps: it is the clock that ends a solve


@dataclass(frozen=True)
class Contestant:
    """A solver and the size of its batches; None takes all particles in each step."""

    name: str
    solver: Solver
    batch_size: int | None


@dataclass(frozen=True, eq=False)
class Lap:
    """What a solver made of its seconds, from one seed.

    Attributes:
        contestant: who ran.
        seed: of the split, the network and the batches.
        solution: what ``solve`` returned.
        seconds, values: J over all training particles as it fell; J of the initial guess is the first.
        passes: passes over the training particles, forward and backward; those through H alone count by stages.
        loss: J over all training particles.
        residual: ||E dH/du|| over all training particles.
        right: which test particles are classified right ``[N]``.
    """

    contestant: Contestant
    seed: int
    solution: Solution
    seconds: list[float]
    values: list[float]
    passes: float
    loss: float
    residual: float
    right: Tensor

    @property
    def accuracy(self) -> float:
        """The share of the test particles that is classified right."""
        return float(self.right.double().mean())


class Clock:
    """A hook that ends a solve after so many seconds, and records a function of the iterate on the way.

    They are seconds of the processor on this thread, in which the solver runs: neither what the function takes counts,
    nor a processor that is busy with something else. A solve ends before a step that would pass the end, if it takes
    as long as the last; one step it always has.

    Args:
        function: ``function(iterate) -> number``.
        budget: seconds.
        points: records, about evenly spread.
    """

    def __init__(self, function: Callable[[Iterate], float], budget: float, points: int = _POINTS) -> None:
        self._function, self._budget, self._every = function, budget, budget / points
        self.seconds: list[float] = []
        self.values: list[float] = []
        self._began = self._last = self._due = 0.0

    def start(self, steps: int) -> None:
        """Starts the clock, and the record anew."""
        self.seconds, self.values = [], []
        self._last, self._due = 0.0, self._every
        self._began = time.thread_time()

    def __call__(self, iterate: Iterate) -> bool:
        """Records when it is time; True at the end."""
        called = time.thread_time()
        seconds = called - self._began
        ended = 2 * seconds - self._last >= self._budget
        self._last = seconds
        if ended or seconds >= self._due:
            self.seconds.append(seconds)
            self.values.append(self._function(iterate))
            self._due = seconds + self._every
        self._began += time.thread_time() - called
        return ended


def contestants() -> list[Contestant]:
    """The solvers of the demo."""
    return [
        Contestant("SGD", Gradient(partial(torch.optim.SGD, lr=0.1, momentum=0.9)), 128),
        Contestant("Adam", Gradient(partial(torch.optim.Adam, lr=3e-3)), 128),
        Contestant("MSA (descent)", MSA(Descent(lr=0.05, steps=3)), 128),
        Contestant("MSA (L-BFGS)", MSA(LBFGS(steps=10)), 512),
        Contestant("E-MSA", EMSA(), None),
    ]


def warm_up(seed: int) -> None:
    """One step of each solver: what PyTorch loads on first use is nobody's seconds."""
    train, _ = digits(seed)
    problem = control_problem(seed)
    for contestant in contestants():
        solve(problem, contestant.solver, population(train, batch_size=contestant.batch_size), steps=1)


def laps(seed: int, budget: float) -> Iterator[Lap]:
    """All laps: the solvers take turns, so that what slows the machine for a while slows all of them.

    Args:
        seed: the first of the seeds.
        budget: seconds of a lap.
    """
    for each in range(seed, seed + SEEDS):
        train, test = digits(each)
        problem = control_problem(each)
        for contestant in contestants():
            yield _lap(problem, contestant, train, test, each, budget)


def objective(problem: Problem, controls: tree.Tree, particles: Particles) -> float:
    """J; infinite where a state or a cost is not finite."""
    try:
        with torch.no_grad():
            value = float(rollout(problem, controls, particles).cost.mean())
    except NonFiniteError:
        return math.inf
    return value if math.isfinite(value) else math.inf


def _lap(
    problem: NetworkProblem, contestant: Contestant, train: Particles, test: Particles, seed: int, budget: float
) -> Lap:
    clock = Clock(lambda at: objective(problem, at.controls, train), budget)
    source = population(train, batch_size=contestant.batch_size, seed=seed)
    solution = solve(problem, contestant.solver, source, steps=_UNBOUNDED, hooks=[clock])
    return Lap(
        contestant,
        seed,
        solution,
        [0.0, *clock.seconds],
        [objective(problem, problem.controls, train), *clock.values],
        _passes(solution, problem.stages, (contestant.batch_size or len(train)) / len(train)),
        objective(problem, solution.controls, train),
        _residual(problem, solution.controls, train),
        right(problem.readout(solution), test),
    )


def _residual(problem: Problem, controls: tree.Tree, particles: Particles) -> float:
    try:
        return float(tree.norm(evaluate(problem, controls, particles).gradient))
    except NonFiniteError:
        return math.inf


def _passes(solution: Solution, stages: int, share: float) -> float:
    """Passes over the training particles, of steps and of evaluations of the Hamiltonian of one stage."""
    inner = sum(record.get("inner_evaluations", 0) for record in solution.history)
    return share * (len(solution.history) + inner / stages)
