"""Feedback control by dynamic programming: value functions, on grids and fitted, and the indirect method."""

from mfoc.hjb.bellman import Bellman
from mfoc.hjb.dynamic_programming import solve
from mfoc.hjb.fitting import fit
from mfoc.hjb.indirect import Extremal, solve_bvp
from mfoc.hjb.splines import Grid
from mfoc.hjb.value import FittedValue, GridValue, Value
from mfoc.hjb.verification import Verification, verify

__all__ = [
    "Bellman", "Extremal", "FittedValue", "Grid", "GridValue", "Value", "Verification", "fit", "solve", "solve_bvp",
    "verify",
]  # fmt: skip
