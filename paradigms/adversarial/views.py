"""A game as an attack of torchattacks plays it: the network is shown normalised inputs, a target is approached."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import Tensor

import mfoc
from mfoc import tree
from mfoc.games import Disturbed, undisturbed


def normalised(game: mfoc.Game, normalise: Callable[[Tensor], Tensor]) -> mfoc.Game:
    """The game whose network is shown ``normalise(x)``, where x is what the adversary disturbs.

    The ball and its bounds are those of x, as in torchattacks, whose attacks disturb images in [0, 1].

    Args:
        game: a game that disturbs stage 0; states are an input ``[N, ...]`` or a pair of them.
        normalise: an affine function, so that what is affine in x stays so.
    """
    running = game.running_cost

    def shown(t: int, x: Any, z: Any) -> tuple[Any, Any]:
        if t > 0:
            return x, z
        if isinstance(z, Disturbed):  # before it is normalised
            x, z = game.enter(x, z.disturbance), undisturbed(z)
        return tree.map(normalise, x), z

    def dynamics(t: int, x: Any, u: Any, z: Any) -> Any:
        x, z = shown(t, x, z)
        return game.dynamics(t, x, u, z)

    def running_cost(t: int, x: Any, u: Any, z: Any) -> Tensor:
        assert running is not None
        x, z = shown(t, x, z)
        return running(t, x, u, z)

    return dataclasses.replace(game, dynamics=dynamics, running_cost=None if running is None else running_cost)


def towards(game: mfoc.Game) -> mfoc.Game:
    """The game whose adversary lowers the cost instead of raising it: with the data of a target, it goes there."""
    running = game.running_cost

    def opposed(t: int, x: Any, u: Any, z: Any) -> Tensor:
        assert running is not None
        return -running(t, x, u, z)

    return dataclasses.replace(
        game,
        terminal_cost=lambda x, z: -game.terminal_cost(x, z),
        running_cost=None if running is None else opposed,
    )
