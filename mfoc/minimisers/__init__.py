"""Minimisers of the frozen Hamiltonian: the inner problems of MSA, E-MSA and of the certificate's gap."""

from mfoc.minimisers.descent import Descent
from mfoc.minimisers.lbfgs import LBFGS
from mfoc.minimisers.protocol import Evaluate, Minimiser, Minimum, check_minimiser

__all__ = ["LBFGS", "Descent", "Evaluate", "Minimiser", "Minimum", "check_minimiser"]
