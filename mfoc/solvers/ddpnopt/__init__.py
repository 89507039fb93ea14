"""Differential dynamic programming for networks; see ``mfoc.solvers.ddpnopt.solver``."""

from mfoc.solvers.ddpnopt.solver import DDPNOpt

__all__ = ["DDPNOpt"]
