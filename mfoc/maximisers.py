"""The adversary's half of a differential game; see ``mfoc.games.maximisers``."""

from mfoc.games.maximisers import FGSM, PGD, YOPO, Free, Maximiser, Play, SharingMaximiser

__all__ = ["FGSM", "PGD", "YOPO", "Free", "Maximiser", "Play", "SharingMaximiser"]
