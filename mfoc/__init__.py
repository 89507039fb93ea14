"""Training as mean-field optimal control: one problem, every solver, a certificate of optimality."""

from mfoc import inner, networks, schemes
from mfoc._errors import InvalidType, InvalidValue, MfocError, MissingExtra, NonFiniteError
from mfoc.networks import from_module, to_module, weight_decay
from mfoc.pontryagin import Trajectory, costates, evaluate, hamiltonian, rollout
from mfoc.population import Population, population
from mfoc.problem import Particles, Problem, per_stage, tied
from mfoc.schemes import continuous, euler, euler_maruyama, heun, rk4
from mfoc.solve import Info, Iterate, Solution, Solver, Status, iterate, solve
from mfoc.solvers import EMSA, MSA, Gradient

__all__ = [
    "EMSA",
    "MSA",
    "Gradient",
    "Info",
    "InvalidType",
    "InvalidValue",
    "Iterate",
    "MfocError",
    "MissingExtra",
    "NonFiniteError",
    "Particles",
    "Population",
    "Problem",
    "Solution",
    "Solver",
    "Status",
    "Trajectory",
    "continuous",
    "costates",
    "euler",
    "euler_maruyama",
    "evaluate",
    "from_module",
    "hamiltonian",
    "heun",
    "inner",
    "iterate",
    "networks",
    "per_stage",
    "population",
    "rk4",
    "rollout",
    "schemes",
    "solve",
    "tied",
    "to_module",
    "weight_decay",
]
