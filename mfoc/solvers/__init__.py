"""Solvers: each is a way to use the Hamiltonian."""

from mfoc.solvers.augmented import AugmentedLagrangian
from mfoc.solvers.ddp import DDP
from mfoc.solvers.ddpnopt import DDPNOpt
from mfoc.solvers.discrete import DiscreteMSA
from mfoc.solvers.gradient import Gradient
from mfoc.solvers.minimax import Minimax
from mfoc.solvers.msa import EMSA, MSA
from mfoc.solvers.newton import NewtonCG

__all__ = [
    "DDP", "EMSA", "MSA", "AugmentedLagrangian", "DDPNOpt", "DiscreteMSA", "Gradient", "Minimax", "NewtonCG",
]  # fmt: skip
