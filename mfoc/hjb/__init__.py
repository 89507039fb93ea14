"""Feedback control by dynamic programming: value functions, on grids and fitted, and the indirect method.

    value = mfoc.hjb.solve(problem, [torch.linspace(-3, 3, 81), torch.linspace(-4, 4, 81)])
    value(0, x), value.gradient(0, x), value.policy(0, x)  # V, dV/dx and the optimal feedback at states x [N, 2]
    value.closed_loop(x)  # the paths of that feedback: states, controls, costs
    mfoc.hjb.verify(problem, value, x)  # follows the policy: its cost against V, its costates against dV/dx

``fit`` does it with a network in any dimension, ``solve_bvp`` finds single paths in continuous time. A feedback is
another class of control than one shared by the cloud: its cost is at or below that of ``mfoc.solve``.
"""

from mfoc.hjb.bellman import Bellman
from mfoc.hjb.dynamic_programming import solve
from mfoc.hjb.fitting import fit
from mfoc.hjb.indirect import Extremal, solve_bvp
from mfoc.hjb.paths import ClosedLoop
from mfoc.hjb.splines import Grid
from mfoc.hjb.value import FittedValue, GridValue, Value
from mfoc.hjb.verification import Verification, verify

__all__ = [
    "Bellman", "ClosedLoop", "Extremal", "FittedValue", "Grid", "GridValue", "Value", "Verification", "fit", "solve",
    "solve_bvp", "verify",
]  # fmt: skip
