"""The mean-field game of a control problem: the same object with the law of the population frozen.

    u is an equilibrium:   u minimises J(v; m_u) over v,   m_u the law of the population under u itself,

after J.-M. Lasry, P.-L. Lions (2007), "Mean field games", Japanese Journal of Mathematics 2(1), and R. Carmona,
F. Delarue (2018), "Probabilistic theory of mean field games with applications I", sec. 3.1 and 6.1.2: a game minimises
first and moves the law after, where control of McKean-Vlasov type does both at once. Here the law is named
(``mfoc.mean``), so the one is made of the other by not differentiating it. The population is the cloud, its law the
empirical one, and each player a particle that has no weight in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from mfoc.bounds.region import Bounds
from mfoc.checks import check_instance
from mfoc.constraints import Constraint, Terms
from mfoc.distributed import any_rank
from mfoc.errors import InvalidType, InvalidValue
from mfoc.games import Game
from mfoc.interacting import coupling
from mfoc.law import Tape, frozen, taped
from mfoc.particles import Particles
from mfoc.populations import as_particles
from mfoc.problem import Averaged, Dynamics, Problem, RunningCost, Schedule, TerminalCost, controls_of
from mfoc.tree import Tree

Result = TypeVar("Result")


@dataclass(frozen=True, eq=False, repr=False)
class Equilibrium(Problem):
    """The mean-field game whose players have the costs of a control problem: solve it for an equilibrium.

    It is a ``Problem`` whose functions do not differentiate the law. States and costs are those of the population under
    the controls, and E dH/du is the gradient of a player's cost J(v; m_u) in v, at v = u: where it vanishes u is
    stationary for a player who takes the law for given. ``Gradient``, ``MSA`` and ``Picard`` look for that. It is
    not the gradient of J(u; m_u), so what compares values of J (a line search, adaptive ``EMSA``, a certificate) would
    end elsewhere and is refused; on ``best_response``, a control problem with the law held, all of it applies.

    What is solved for is in the class of the problem's controls: a control that the cloud shares is that of one
    representative player, whose start is random and not seen; a feedback or a control per particle answers to his own
    state. In a linear-quadratic game without noise common to all, the law's mean is the same in each of them
    (``mfoc.lq.equilibrium``); in general it is not.

    The law of the controls acts as the law does where it is named, too: ``mfoc.mean(u)`` of controls ``[N, ...]``, and
    ``mfoc.law.shared(u)`` of a control that all particles share. (``u`` by itself is a player's own.) Bounds are a
    player's: the residual is that of the projected gradient. So are constraints, their law frozen as that of the costs
    is (``AugmentedLagrangian`` around a first-order solver meets them); one in mean is the population's and is refused.

    The law is that of the cloud. With noise in z the law of the paths that were drawn is held, as if every player knew
    it beforehand: the game of infinitely many players is its limit, from which it is some 1/sqrt(N) away.

    Attributes:
        problem: the control problem; it is not changed. Where it changes, ``Equilibrium(dataclasses.replace(problem,
            ...))`` is the game of the other one.

    Raises:
        InvalidType: no problem, or one that is a game already.
    """

    problem: Problem
    dynamics: Dynamics = field(init=False)
    terminal_cost: TerminalCost = field(init=False)
    controls: Any = field(init=False)
    running_cost: RunningCost | None = field(init=False, kw_only=True)
    horizon: int | None = field(init=False, kw_only=True)
    schedule: Schedule = field(init=False, kw_only=True)
    kind: Any = field(init=False, kw_only=True)
    affine: Any = field(init=False, kw_only=True)
    noise: Any = field(init=False, kw_only=True)
    interacting: str | None = field(init=False, kw_only=True)
    bounds: Bounds = field(init=False, kw_only=True)
    per_particle: bool = field(init=False, kw_only=True)
    terminal: Terms = field(init=False, kw_only=True)
    path: Terms = field(init=False, kw_only=True)

    potential: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_instance(Problem, "mfoc.Problem", problem=self.problem)
        if isinstance(self.problem, Equilibrium | Game):
            raise InvalidType(
                f"problem is {self.problem!r}, a game already; expected the control problem it is made of"
            )
        for each in fields(Problem):
            object.__setattr__(self, each.name, getattr(self.problem, each.name))
        for name in ("terminal", "path"):
            constraints = getattr(self.problem, f"{name}_constraints")
            _check_own(constraints, name)
            frozen_ones = [replace(each, function=partial(_frozen, each.function)) for each in constraints]
            object.__setattr__(self, name, frozen_ones or None)
        for name in ("dynamics", "terminal_cost", "running_cost", "noise"):
            function = getattr(self.problem, name)
            alone = function is None or isinstance(function, Averaged)  # which asks nothing of the law
            object.__setattr__(self, name, function if alone else partial(_frozen, function))
        super().__post_init__()

    def __repr__(self) -> str:
        return f"Equilibrium({self.problem!r})"

    def validate(self, particles: Particles, controls: Tree | None = None) -> None:
        """Runs the problem once, and asks whether its particles depend on one another through the named law alone.

        Raises:
            InvalidType, InvalidValue: see ``Problem.validate``; or they do in another way, which is not frozen.
        """
        self.problem.validate(particles, controls)
        controls = self.controls if controls is None else controls_of(controls)
        where = coupling(self.problem, particles, controls=controls).elsewhere
        if any_rank(where is not None, controls):
            raise InvalidValue(
                f"{where or 'the problem (as seen on another rank)'}: the particles depend on one another in a way "
                "that is not named, and would be differentiated where a game holds it. Write it with mfoc.mean (or "
                "mfoc.variance, mfoc.covariance, mfoc.kernel_mean)"
            )

    def rebuilt(self, change: Callable[[Problem], Problem]) -> Problem:
        """The game of what ``change`` makes of the control problem."""
        return Equilibrium(change(self.problem))

    def check_potential(self, what: str) -> None:
        """Refuses what compares values of J.

        Raises:
            InvalidValue: always; says what to do instead.
        """
        raise InvalidValue(
            f"{what} compares values of J, and an equilibrium is no minimum of J: the law is frozen, so that E dH/du "
            "is the gradient of a player's cost and not J's. Use Gradient with a first-order optimizer, MSA, "
            "EMSA(adaptive=False) or mfoc.meanfield.Picard; or hold the law: mfoc.best_response(problem, controls, "
            "population) is a control problem"
        )


def best_response(problem: Problem, controls: Any, population: Any) -> Problem:
    """The control problem of one player: the law is held at what it is under some controls.

    Its particles do not interact any more, so everything applies to it: ``certify``, line searches, minibatches. The
    controls are an equilibrium where they minimise it.

    Args:
        problem: the control problem, or its ``Equilibrium``.
        controls: what the population does; or a solution or iterate that has them. They are also the initial guess.
        population: the cloud, or what ``mfoc.population`` takes, all of it (over ranks, this rank's share).

    Returns:
        The problem, of the same states, costs and class of controls.

    Raises:
        InvalidType, InvalidValue: the problem does not fit the particles, or they interact in a way that is not named.
    """
    game = problem if isinstance(problem, Equilibrium) else Equilibrium(problem)
    particles, controls = as_particles(population), controls_of(controls)
    game.validate(particles, controls)
    return held(game, controls, particles)


def held(game: Equilibrium, controls: Tree, particles: Particles) -> Problem:
    """``best_response`` to controls that are known to fit."""
    base, law = game.problem, _Held({})
    running_cost = None if base.running_cost is None else partial(law.at_stage, "running_cost", base.running_cost)
    noise = None if base.noise is None else partial(law.at_stage, "noise", base.noise)
    path = [
        replace(each, function=partial(law.at_stage, f"path {k}", each.function))
        for k, each in enumerate(base.path_constraints)
    ]
    terminal = [
        replace(each, function=partial(law.at_end, f"terminal {k}", each.function))
        for k, each in enumerate(base.terminal_constraints)
    ]
    response = replace(
        base,
        dynamics=partial(law.at_stage, "dynamics", base.dynamics),
        terminal_cost=partial(law.at_end, "terminal_cost", base.terminal_cost),
        controls=controls,
        running_cost=running_cost,
        noise=noise,
        kind=None,  # each stage has a law of its own
        interacting=None,
        terminal=terminal or None,
        path=path or None,
    )
    stages = [function for function in (running_cost, noise) if function is not None] + [c.function for c in path]
    with torch.no_grad():
        x, z = particles.state, particles.data
        for t in range(base.stages):
            u = base.schedule(controls, t)
            for function in stages:
                function(t, x, u, z)
            x = response.dynamics(t, x, u, z)
        for at_end in (response.terminal_cost, *(c.function for c in terminal)):
            at_end(x, z)
    law.noting = False
    return response


@dataclass(eq=False)
class _Held:
    """Runs a problem's functions with the law's answers from tapes, one for each function and stage."""

    tapes: dict[tuple[str, int], Tape]
    noting: bool = True

    def at_stage(self, name: str, function: Callable[..., Result], t: int, x: Tree, u: Tree, z: Tree) -> Result:
        with taped(self._tape(name, t)):
            return function(t, x, u, z)

    def at_end(self, name: str, function: TerminalCost, x: Tree, z: Tree) -> Tensor:
        with taped(self._tape(name, -1)):
            return function(x, z)

    def _tape(self, name: str, t: int) -> Tape:
        if self.noting:
            self.tapes[name, t] = Tape(over_ranks=True)
        else:
            self.tapes[name, t].rewind()
        return self.tapes[name, t]


def _check_own(constraints: Sequence[Constraint], name: str) -> None:
    """Refuses constraints that no player can meet by himself."""
    if any(each.in_mean for each in constraints):
        raise InvalidValue(
            f"a {name} constraint is in mean, E c of the population, which no player moves: whose multiplier it is, a "
            "game does not say. Write it as a constraint of each player (in_mean=False), or as a cost"
        )


def _frozen(function: Callable[..., Result], *args: Any) -> Result:
    with frozen():
        return function(*args)
