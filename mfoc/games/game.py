"""Differential games: a control problem in which every particle is disturbed by an adversary.

    min over u, max over eta in a ball, of   E[ sum_t L_t(x_t, u_t, z) + Phi(x_T, z) ],
    x_(t+1) = f_t(x_t, u_t, z),   and the state that enters stage s is x_s + eta.

Zhang, Zhang, Lu, Zhu, Dong (2019), "You only propagate once: accelerating adversarial training via maximal principle",
arXiv:1905.00877, sec. 3. The Hamiltonian of the problem is that of both players: u minimises it, eta maximises H_s.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mfoc import tree
from mfoc.checks import check_instance, check_integer, kind_of
from mfoc.derivatives import gradients, reached
from mfoc.errors import InvalidType, InvalidValue
from mfoc.games.ball import Ball
from mfoc.particles import Particles
from mfoc.pontryagin import rollout_from
from mfoc.printing import by_identity
from mfoc.problem import Averaged, Problem, TerminalCost, controls_of
from mfoc.tree import Tree
from mfoc.validation import on_few


@by_identity
class Disturbed(NamedTuple):
    """What a game's functions receive as z once a disturbance is played.

    Attributes:
        data: the z of the problem; an empty tuple when it has none.
        disturbance: eta ``[N, ...]``, shaped as the (part of the) state it is added to.
    """

    data: Tree
    disturbance: Tensor


@dataclass(frozen=True, eq=False, repr=False)
class Game(Problem):
    """A control problem with an adversary; make one with ``Game.of``.

    It is a ``Problem``: on plain particles it is the undisturbed one, on ``disturb(particles, eta)`` the disturbed one.
    So everything that takes a problem (``evaluate``, ``certify``, any solver's step) applies to the minimiser's side.
    ``solve`` refuses a solver without an adversary, unless the particles are disturbed already or ``nominal=True`` asks
    for the undisturbed problem.

    Attributes:
        ball: the admissible disturbances.
        stage: the stage s whose incoming state is disturbed.
        part: the state's entry (an index or key) that is disturbed, when the state is a tuple, list or dict.
    """

    ball: Ball = field(default_factory=lambda: Ball(1.0), kw_only=True)
    stage: int = field(default=0, kw_only=True)
    part: int | str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_instance(Ball, "mfoc.Ball(epsilon, norm, bounds)", ball=self.ball)
        check_integer(0, self.stages - 1, stage=self.stage)

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}; the state that enters stage {self.stage} disturbed within {self.ball})"

    @staticmethod
    def of(problem: Problem, ball: Ball, *, stage: int = 0, part: int | str | None = None) -> Game:
        """The game in which an adversary disturbs a problem.

        Args:
            problem: the control problem; it is not changed.
            ball: the admissible disturbances.
            stage: the stage whose incoming state is disturbed; 0 is the input.
            part: which entry of the state, when it is a tuple, list or dict.

        Raises:
            InvalidType, InvalidValue: wrong arguments.
        """
        check_instance(Problem, "mfoc.Problem", problem=problem)
        if isinstance(problem, Game):
            raise InvalidType("problem is a Game already; a game has one adversary")
        if problem.constrained:
            raise InvalidValue("problem has constraints, and no solver meets those of a game: leave them out")
        problem.check_potential("an adversary, who raises J,")
        running_cost, kind, random = problem.running_cost, problem.kind, problem.noise

        def before(t: int, x: Tree, z: Tree) -> tuple[Tree, Tree]:
            if not isinstance(z, Disturbed):
                return x, z
            return (_entered(ball, part, x, z.disturbance) if t == stage else x), undisturbed(z)

        def dynamics(t: int, x: Tree, u: Tree, z: Tree) -> Tree:
            x, z = before(t, x, z)
            return problem.dynamics(t, x, u, z)

        def cost(t: int, x: Tree, u: Tree, z: Tree) -> Tensor:
            assert running_cost is not None
            x, z = before(t, x, z)
            return running_cost(t, x, u, z)

        def noise(t: int, x: Tree, u: Tree, z: Tree) -> Tensor:
            assert random is not None
            x, z = before(t, x, z)
            return random(t, x, u, z)

        def kind_of(t: int) -> Hashable:
            assert kind is not None
            return ("disturbed", kind(t)) if t == stage else kind(t)

        return Game(
            dynamics,
            _of_data(problem.terminal_cost),
            problem.controls,
            running_cost=None if running_cost is None else cost,
            horizon=problem.horizon,
            schedule=problem.schedule,
            kind=None if kind is None else kind_of,
            affine=problem.affine,
            noise=None if random is None else noise,
            interacting=problem.interacting,
            bounds=problem.bounds,
            per_particle=problem.per_particle,
            ball=ball,
            stage=stage,
            part=part,
        )

    def validate(self, particles: Particles, controls: Tree | None = None) -> None:
        """Runs the game once, as a problem, and asks whether the disturbance reaches a cost.

        What counts is a path in the autograd graph: a slope that happens to be zero has one.

        Raises:
            InvalidType, InvalidValue: see ``Problem.validate``; or no cost depends on the disturbed state.
        """
        super().validate(particles, controls)
        controls = tree.detached(self.controls if controls is None else controls_of(controls))
        on_few(lambda few: self._check_reach(few, controls), particles)

    def _check_reach(self, particles: Particles, controls: Tree) -> None:
        x, z = entering(self, controls, particles), undisturbed(particles.data)
        point = self.target(x).detach().clone().requires_grad_()
        with torch.enable_grad():
            entered = with_target(self.part, tree.detached(x), point)
            cost = rollout_from(self, controls, self.stage, entered, z).cost
        if not reached([cost], [point])[0]:
            entry = "" if self.part is None else f" (its entry {self.part!r})"
            raise InvalidValue(
                f"no cost depends on the state that enters stage {self.stage}{entry}, so that an adversary can do "
                "nothing: disturb another stage or part, with stage=... or part=..."
            )

    def check_played(self, particles: Particles) -> None:
        """Refuses particles that carry no disturbance: the game on them is the problem without its adversary.

        Raises:
            InvalidType: says who plays the adversary.
        """
        if not isinstance(particles.data, Disturbed):
            raise InvalidType(
                "problem is a Game and nothing here plays its adversary: solve it with mfoc.Minimax(inner="
                "mfoc.maximisers.PGD(10), outer=...), give particles that carry a disturbance, game.disturb(particles, "
                "eta), or pass nominal=True for the problem without its adversary"
            )

    def target(self, x: Tree) -> Tensor:
        """The tensor in the state at the disturbed stage that eta is added to.

        Raises:
            InvalidType: it is no floating-point tensor.
            InvalidValue: ``part`` is not an entry of the state.
        """
        return target_of(self.part, x)

    def enter(self, x: Tree, eta: Tensor) -> Tree:
        """The state at the disturbed stage with a disturbance added and the bounds applied."""
        return _entered(self.ball, self.part, x, eta)

    def disturb(self, particles: Particles, eta: Tensor) -> Particles:
        """The particles on which this game's functions see the disturbance eta ``[N, ...]``."""
        data = undisturbed(particles.data)
        return Particles(particles.state, Disturbed(() if data is None else data, eta), particles.index)


def undisturbed(z: Tree) -> Tree:
    """The data of a problem, whether or not a disturbance is played."""
    if not isinstance(z, Disturbed):
        return z
    return None if isinstance(z.data, tuple) and not z.data else z.data


def _of_data(cost: TerminalCost) -> TerminalCost:
    """A terminal cost that does not see whether a disturbance is played."""
    if isinstance(cost, Averaged):
        return _AveragedOfData(cost)
    return lambda x, z: cost(x, undisturbed(z))


class _AveragedOfData(Averaged):
    """The same of one that knows its own mean."""

    def __init__(self, cost: Any) -> None:
        self._cost = cost

    def __call__(self, x: Tree, z: Tree) -> Tensor:
        found: Tensor = self._cost(x, undisturbed(z))
        return found

    def mean(self, x: Tree, z: Tree) -> Tensor | None:
        found: Tensor | None = self._cost.mean(x, undisturbed(z))
        return found


def target_of(part: int | str | None, x: Tree) -> Tensor:
    """The disturbed tensor of a state; see ``Game.target``."""
    if part is not None:
        if isinstance(x, Tensor):
            raise InvalidValue(f"part is {part!r} and the state is a tensor {tuple(x.shape)}; leave part out")
        try:
            x = x[part]
        except (KeyError, IndexError, TypeError) as error:
            raise InvalidValue(f"part is {part!r}, which is no entry of the state {tree.describe(x)}") from error
    if not isinstance(x, Tensor) or not x.is_floating_point():
        what = f"a {x.dtype} tensor" if isinstance(x, Tensor) else kind_of(x)
        raise InvalidType(
            f"the state to be disturbed is {what}; expected a floating-point tensor (name an entry of a state that is "
            "a tuple, list or dict with part=...)"
        )
    target: Tensor = x
    return target


def _entered(ball: Ball, part: int | str | None, x: Tree, eta: Tensor) -> Tree:
    target = target_of(part, x)
    if eta.shape != target.shape:
        raise InvalidValue(
            f"the disturbance has shape {tuple(eta.shape)}; the state it is added to has {tuple(target.shape)}"
        )
    return with_target(part, x, ball.enter(target, eta))


def with_target(part: int | str | None, x: Tree, value: Tensor) -> Tree:
    """A state with another tensor in the place of the disturbed one."""
    if part is None:
        return value
    if isinstance(x, dict):
        return {**x, part: value}
    entries = list(x)
    entries[part] = value  # type: ignore[index]
    return type(x)(*entries) if hasattr(x, "_fields") else type(x)(entries)


def entering(game: Game, controls: Tree, particles: Particles) -> Tree:
    """The states that enter the disturbed stage, before they are disturbed (cut from any graph)."""
    check_instance(Game, "mfoc.Game, made by mfoc.Game.of(problem, ball)", game=game)
    x, z, controls = particles.state, undisturbed(particles.data), controls_of(controls)
    with torch.no_grad():
        for t in range(game.stage):
            x = game.dynamics(t, x, game.schedule(controls, t), z)
    return x


@torch.enable_grad()
def costate_at(game: Game, controls: Tree, x: Tree, z: Tree, eta: Tensor) -> Tensor:
    """The costates p_s ``[N, ...]`` at the disturbed stage, where x is what ``entering`` returned.

    p_s(i) = N dJ/dx_s(i) is the gradient of the sum of costs: where particles do not interact it is that of the
    particle's own cost, however many others are in the cloud.
    """
    point = tree.free(game.ball.enter(game.target(x), eta))
    entered, held = with_target(game.part, x, point), tree.detached(controls_of(controls))
    cost = rollout_from(game, held, game.stage, entered, z).cost
    return gradients(cost, [point])[0]
