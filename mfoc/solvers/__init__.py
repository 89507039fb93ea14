"""Solvers: each is a way to use the Hamiltonian."""

from mfoc.solvers.augmented import AugmentedLagrangian
from mfoc.solvers.ddpnopt import DDPNOpt
from mfoc.solvers.gradient import Gradient
from mfoc.solvers.minimax import Minimax
from mfoc.solvers.msa import EMSA, MSA

__all__ = ["EMSA", "MSA", "AugmentedLagrangian", "DDPNOpt", "Gradient", "Minimax"]
