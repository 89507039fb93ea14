"""Solvers: each is a way to use the Hamiltonian."""

from mfoc.solvers.ddp import DDP
from mfoc.solvers.gradient import Gradient
from mfoc.solvers.minimax import Minimax
from mfoc.solvers.msa import EMSA, MSA

__all__ = ["DDP", "EMSA", "MSA", "Gradient", "Minimax"]
