"""Finite-horizon linear-quadratic control of a population: closed form by two Riccati equations."""

from mfoc.lq.linear_quadratic import LinearQuadratic, Path, Riccati
from mfoc.lq.terms import Terms

__all__ = ["LinearQuadratic", "Path", "Riccati", "Terms"]
