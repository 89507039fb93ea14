"""Differential dynamic programming, for many problems at once."""

from mfoc.solvers.ddp.solver import DDP

__all__ = ["DDP"]
