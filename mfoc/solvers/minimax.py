"""Differential games: the minimiser's controls against the adversary's disturbances."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mfoc import _tree
from mfoc._distributed import expectation, rank
from mfoc._errors import InvalidType, InvalidValue
from mfoc._tree import Tree
from mfoc.game import Game
from mfoc.maximisers import Maximiser, SharingMaximiser
from mfoc.pontryagin import Evaluation, evaluate
from mfoc.population import mixed_seed
from mfoc.problem import Particles, Problem
from mfoc.solve import Info, Solver
from mfoc.solvers.gradient import Gradient


@dataclass(frozen=True)
class Minimax:
    """Solves a ``Game``: on each batch the adversary answers the controls, then the minimiser moves.

    With ``PGD`` and an optimiser this is adversarial training as usual. A maximiser that shares its passes (``YOPO``,
    ``Free``) hands the optimiser the gradient it has collected. With another solver outside (``MSA``, ``EMSA``) the
    minimiser answers the adversary by minimising the Hamiltonian instead: the maximum principle for both players.

    Attributes:
        inner: the adversary: ``mfoc.maximisers.PGD(...)``, ``YOPO(m, n)``, ``Free(replays)`` or any ``Maximiser``.
        outer: the minimiser: a function that makes a ``torch.optim`` optimiser from a list of tensors, or a solver.
        seed: of the adversary's random starts, which are a function of (seed, step).
    """

    inner: Maximiser
    outer: Callable[[list[Tensor]], torch.optim.Optimizer] | Solver
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.inner, type) or not isinstance(self.inner, Maximiser):
            kind = f"the class {self.inner.__name__}" if isinstance(self.inner, type) else type(self.inner).__name__
            raise InvalidType(f"inner is {kind}; expected an object with maximise(), such as mfoc.maximisers.PGD(10)")
        if isinstance(self.outer, Minimax):
            raise InvalidType("outer is a Minimax; expected an optimiser factory or a solver of control problems")
        if not callable(self.outer) and not isinstance(self.outer, Solver):
            raise InvalidType(
                f"outer is a {type(self.outer).__name__}; expected a function that makes an optimiser, such as "
                "functools.partial(torch.optim.Adam, lr=1e-3), or a solver"
            )
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise InvalidValue(f"seed is {self.seed!r}; expected a non-negative integer")

    @cached_property
    def minimiser(self) -> Solver:
        """The solver that moves the controls."""
        is_solver = isinstance(self.outer, Solver) and not isinstance(self.outer, type)
        return self.outer if is_solver else Gradient(self.outer)  # type: ignore[arg-type, return-value]

    def init(self, problem: Problem, controls: Tree) -> Tree:
        """The minimiser's state, how many steps were made, and the disturbance that a maximiser carries along."""
        _check_game(problem)
        return {"outer": self.minimiser.init(problem, controls), "steps": 0, "disturbance": None}

    def step(self, problem: Problem, controls: Tree, state: Tree, particles: Particles) -> tuple[Tree, Tree, Info]:
        """One batch; see ``mfoc.Solver``. What it reports was seen at the adversary's answer."""
        game, inner, outer = _check_game(problem), self.inner, self.minimiser
        generator = self._generator(particles, state["steps"])
        after = {**state, "steps": state["steps"] + 1}
        if isinstance(inner, SharingMaximiser) and isinstance(outer, Gradient):
            previous = state["disturbance"] if inner.carries else None
            eta = inner.begin(game, controls, particles, generator, previous)
            controls, after["outer"], info, eta = self._share(inner, outer, game, controls, state, particles, eta)
            after["disturbance"] = eta if inner.carries else None
            return controls, after, info
        eta = inner.maximise(game, controls, particles, generator)
        controls, after["outer"], info = outer.step(game, controls, state["outer"], game.disturb(particles, eta))
        return controls, after, info

    def evaluate(self, problem: Problem, controls: Tree, state: Tree, particles: Particles) -> Evaluation:
        """J and dJ/du at the adversary's answer, the controls fixed."""
        game = _check_game(problem)
        eta = self.inner.maximise(game, controls, particles, self._generator(particles, state["steps"]))
        return evaluate(game, controls, game.disturb(particles, eta))

    @staticmethod
    def _share(
        inner: SharingMaximiser,
        outer: Gradient,
        game: Game,
        controls: Tree,
        state: Tree,
        particles: Particles,
        eta: Tensor,
    ) -> tuple[Tree, Tree, Info, Tensor]:
        """Plays on one batch, the optimiser following the gradient of each; reports the first."""
        plays = _Plays(inner, game, controls, particles, eta)
        controls, memory, first = outer.follow(plays, controls, state["outer"])
        for _ in range(inner.updates - 1):
            plays = _Plays(inner, game, controls, particles, plays.eta)
            controls, memory, _ = outer.follow(plays, controls, memory)
        return controls, memory, first, plays.eta

    def _generator(self, particles: Particles, steps: int) -> torch.Generator:
        device = next(leaf.device for leaf in _tree.leaves(particles.state) if isinstance(leaf, Tensor))
        return torch.Generator(device).manual_seed(mixed_seed(self.seed, steps, rank()))


class _Plays:
    """What an optimiser evaluates: the first play, which moves the adversary, and any it asks for after that."""

    def __init__(self, inner: SharingMaximiser, game: Game, controls: Tree, particles: Particles, eta: Tensor) -> None:
        self.inner, self.game, self.controls, self.particles, self.eta = inner, game, controls, particles, eta

    def __call__(self, leaves: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        play = self.inner.play(self.game, _tree.rebuild(self.controls, leaves), self.particles, self.eta)
        self.eta = play.disturbance
        value, *slopes = expectation([play.value, *_tree.leaves(play.gradient)], len(self.particles))
        return value, slopes


def _check_game(problem: Problem) -> Game:
    if not isinstance(problem, Game):
        raise InvalidType(
            f"problem is a {type(problem).__name__} without an adversary; make it a game with mfoc.Game.of(problem, "
            "mfoc.Ball(epsilon))"
        )
    return problem
