"""Solvers: each is a way to use the Hamiltonian."""

from mfoc.solvers.gradient import Gradient

__all__ = ["Gradient"]
