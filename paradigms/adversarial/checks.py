"""What games are refused for."""

from __future__ import annotations

import mfoc
from mfoc import InvalidValue
from mfoc.games import entering


def check_inside(made: mfoc.Game, particles: mfoc.Particles) -> None:
    """Refuses particles whose states at the disturbed stage exceed the game's bounds.

    Raises:
        InvalidValue: says by how much.
    """
    bounds = made.ball.bounds
    if bounds is None:
        return
    x = made.target(entering(made, made.controls, particles))
    low, high = float(x.min()), float(x.max())
    if low < bounds[0] or high > bounds[1]:
        what = "the data reach" if made.stage == 0 else f"the states that enter stage {made.stage} reach"
        raise InvalidValue(
            f"bounds is {bounds} and {what} from {low:.4g} to {high:.4g}; pass their true range, or bounds=None"
        )
