"""Finite-horizon linear-quadratic control of a population: closed form by two Riccati equations; and its game."""

from mfoc.lq.game import Equilibrium, equilibrium
from mfoc.lq.linear_quadratic import LinearQuadratic, Path, Riccati
from mfoc.lq.terms import Terms

__all__ = ["Equilibrium", "LinearQuadratic", "Path", "Riccati", "Terms", "equilibrium"]
