"""Differential dynamic programming, for many problems at once."""

from mfoc.solvers.ddp.solver import DDP
from mfoc.solvers.ddp.tracking import Tracking, tracking

__all__ = ["DDP", "Tracking", "tracking"]
