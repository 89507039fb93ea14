"""Differential games: a control problem in which every particle is disturbed by an adversary."""

from mfoc.games.ball import Ball
from mfoc.games.game import Disturbed, Game, costate_at, entering, target_of, undisturbed, with_target
from mfoc.games.maximisers import FGSM, PGD, YOPO, Free, Maximiser, Play, SharingMaximiser

__all__ = [
    "FGSM", "PGD", "YOPO", "Ball", "Disturbed", "Free", "Game", "Maximiser", "Play", "SharingMaximiser",
    "costate_at", "entering", "target_of", "undisturbed", "with_target",
]  # fmt: skip
