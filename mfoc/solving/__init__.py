"""Solving: one loop for every solver.

A solver is a frozen dataclass with ``init(problem, controls) -> state`` and
``step(problem, controls, state, particles) -> (controls, state, Info)``, both pure. ``iterate`` is the loop, open to
the user; ``solve`` runs it with a budget, a tolerance and hooks, and always returns the last good iterate.
"""

from mfoc.solving.loop import iterate, solve
from mfoc.solving.records import Hook, Info, InPlace, Iterate, Solution, Solver, Status

__all__ = ["Hook", "InPlace", "Info", "Iterate", "Solution", "Solver", "Status", "iterate", "solve"]
