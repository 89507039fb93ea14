"""Differential games: the minimiser's controls against the adversary's disturbances."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from mfoc import tree
from mfoc.checks import check_callable, check_instance, check_integer, check_non_negative, check_signature, kind_of
from mfoc.distributed import expectation, gathered, rank, world_size
from mfoc.errors import InvalidType, InvalidValue
from mfoc.games import Game, entering
from mfoc.games.maximisers import Maximiser, SharingMaximiser, begun
from mfoc.particles import Particles
from mfoc.pontryagin import Evaluation, evaluate, penalised
from mfoc.populations.whole import copied
from mfoc.problem import Problem
from mfoc.seeding import mixed_seed
from mfoc.solvers.gradient import Gradient
from mfoc.solving import Info, Solver
from mfoc.tree import Tree

_LEAST = 1e-6  # the smallest share of the ball a ramp starts with


@dataclass(frozen=True)
class Minimax:
    """Solves a ``Game``: on each batch the adversary answers the controls, then the minimiser moves.

    With ``PGD`` and an optimiser this is adversarial training as usual. A maximiser that shares its passes (``YOPO``,
    ``Free``) hands the optimiser the gradient it has collected. With another solver outside (``MSA``, ``EMSA``) the
    minimiser answers the adversary by minimising the Hamiltonian instead: the maximum principle for both players.

    Class of control: that of the solver outside, which also says whether bounds on the minimiser's controls are kept.

    Attributes:
        inner: the adversary: ``mfoc.maximisers.PGD(...)``, ``YOPO(m, n)``, ``Free(replays)`` or any ``Maximiser``.
        outer: the minimiser: a function that makes a ``torch.optim`` optimiser from a list of tensors, or a solver.
        seed: of the adversary's random starts: that of a particle is a function of (seed, step, its index).
        ramp: the ball's radius at step k as a share of the game's, ``lambda k: min(1.0, k / 500)``: where the full ball
            keeps training at a constant output (MNIST at 0.3 does), a growing one does not.
    """

    inner: Maximiser
    outer: Callable[[list[Tensor]], torch.optim.Optimizer] | Solver
    seed: int = 0
    ramp: Callable[[int], float] | None = None

    plays_games: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_instance(Maximiser, "an object with maximise(), such as mfoc.maximisers.PGD(10)", inner=self.inner)
        if isinstance(self.outer, Minimax):
            raise InvalidType("outer is a Minimax; expected an optimiser factory or a solver of control problems")
        if not isinstance(self.outer, Solver):
            example = "a function that makes an optimiser, such as functools.partial(torch.optim.Adam, lr=1e-3), or a"
            check_callable(f"{example} solver", outer=self.outer)
        check_integer(0, seed=self.seed)
        check_callable("a function of the step", optional=True, ramp=self.ramp)
        check_signature(("k",), optional=True, ramp=self.ramp)

    @cached_property
    def minimiser(self) -> Solver:
        """The solver that moves the controls."""
        is_solver = isinstance(self.outer, Solver) and not isinstance(self.outer, type)
        return self.outer if is_solver else Gradient(self.outer)  # type: ignore[arg-type, return-value]

    @property
    def respects_bounds(self) -> bool:
        """Whether the minimiser keeps controls within the problem's bounds."""
        return bool(getattr(self.minimiser, "respects_bounds", False))

    def init(self, problem: Problem, controls: Tree) -> Tree:
        """The minimiser's state, how many steps were made, and the disturbance that a maximiser carries along."""
        _check_game(problem)
        return {"outer": self.minimiser.init(problem, controls), "steps": 0, "disturbance": None}

    def step(self, problem: Problem, controls: Tree, state: Tree, particles: Particles) -> tuple[Tree, Tree, Info]:
        """One batch; see ``mfoc.Solver``. It reports what was seen at the first answer, or at one that failed."""
        game, inner, outer = self._at(_check_game(problem), state["steps"]), self.inner, self.minimiser
        generator = self._generator(particles, state["steps"])
        after = {**state, "steps": state["steps"] + 1}
        if isinstance(inner, SharingMaximiser) and isinstance(outer, Gradient):
            whole = state["disturbance"] if inner.carries else None
            split = inner.carries and not copied(particles)  # else each rank has the whole of a short batch
            previous = whole[rank() :: world_size()] if split and whole is not None else whole
            x = game.target(entering(game, controls, particles))
            eta = begun(inner, game, x, generator, previous, particles.index)
            seen = []
            for _ in range(inner.updates):  # the optimiser follows the gradient of each play
                plays = _Plays(inner, game, controls, particles, eta)
                controls, after["outer"], info = outer.follow(plays, controls, after["outer"], game.region)
                seen.append(info)
                eta = plays.eta
            if inner.carries:  # of the whole batch, so that the state is one on all ranks
                after["disturbance"] = _kept(gathered(eta) if split else eta, whole)
            return controls, after, next((info for info in seen if not info.value.isfinite()), seen[0])
        eta = inner.maximise(game, controls, particles, generator)
        controls, after["outer"], info = outer.step(game, controls, state["outer"], game.disturb(particles, eta))
        return controls, after, info

    def evaluate(self, problem: Problem, controls: Tree, state: Tree, particles: Particles) -> Evaluation:
        """J and dJ/du at the adversary's answer in the whole ball, the controls fixed."""
        game = _check_game(problem)
        eta = self.inner.maximise(game, controls, particles, self._generator(particles, state["steps"]))
        return evaluate(game, controls, game.disturb(particles, eta))

    def _at(self, game: Game, step: int) -> Game:
        """The game with the ball of this step."""
        share = 1.0 if self.ramp is None else self.ramp(step)
        returned: dict[str, Any] = {f"ramp({step})": share}
        check_non_negative(**returned)
        if share > 1:
            raise InvalidValue(f"ramp({step}) is {share!r}; expected a share of the radius, in [0, 1]")
        radius = max(share, _LEAST) * game.ball.epsilon  # a ball of radius zero is no ball
        return game if share == 1 else replace(game, ball=replace(game.ball, epsilon=radius))

    def _generator(self, particles: Particles, steps: int) -> torch.Generator:
        device = next(leaf.device for leaf in tree.leaves(particles.state) if isinstance(leaf, Tensor))
        return torch.Generator(device).manual_seed(mixed_seed(self.seed, steps, 0))  # the same on all ranks


class _Plays:
    """What an optimiser evaluates: plays that all start from one disturbance, however often it asks."""

    def __init__(self, inner: SharingMaximiser, game: Game, controls: Tree, particles: Particles, eta: Tensor) -> None:
        self.inner, self.game, self.controls, self.particles = inner, game, controls, particles
        self.start = self.eta = eta

    def __call__(self, leaves: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        play = self.inner.play(self.game, tree.rebuild(self.controls, leaves), self.particles, self.start)
        self.eta = play.disturbance
        value, *slopes = expectation([play.value, *tree.leaves(play.gradient)], len(self.particles))
        return penalised(self.game, tree.rebuild(self.controls, leaves), value), slopes


def _kept(eta: Tensor, previous: Tensor | None) -> Tensor:
    """What is carried on: a batch shorter than the one before leaves the rest of its disturbance as it was."""
    if previous is None or previous.shape[1:] != eta.shape[1:] or len(previous) <= len(eta):
        return eta
    return torch.cat([eta, previous[len(eta) :].to(eta)])


def _check_game(problem: Problem) -> Game:
    if not isinstance(problem, Game):
        raise InvalidType(
            f"problem is {kind_of(problem)} without an adversary; make it a game with mfoc.Game.of(problem, "
            "mfoc.Ball(epsilon))"
        )
    return problem
