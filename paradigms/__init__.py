"""Learning paradigms written as control problems.

Each paradigm is a module of functions that return a ``Formulation``: a problem, the population it is solved on, and how
a solution is read back. ``available()`` and ``load(name)`` find the ones that are installed, third-party ones included.
"""

from paradigms.formulation import Formulation, available, load

__all__ = ["Formulation", "available", "load"]
