"""Training as mean-field optimal control: one problem, every solver, a certificate of optimality."""

from mfoc import checks, hooks, inner, lq, maximisers, networks, plot, schemes, testing
from mfoc._errors import InvalidType, InvalidValue, MfocError, MissingExtra, NonFiniteError, require
from mfoc.certificate import Certificate, certify, certify_module
from mfoc.game import Ball, Game
from mfoc.networks import from_module, to_module, weight_decay
from mfoc.pontryagin import Trajectory, costates, evaluate, hamiltonian, rollout
from mfoc.population import Population, population
from mfoc.problem import Particles, Problem, per_stage, tied
from mfoc.schemes import continuous, euler, euler_maruyama, heun, rk4
from mfoc.solve import Info, Iterate, Solution, Solver, Status, iterate, solve
from mfoc.solvers import EMSA, MSA, Gradient, Minimax

__all__ = [
    "EMSA",
    "MSA",
    "Ball",
    "Certificate",
    "Game",
    "Gradient",
    "Info",
    "InvalidType",
    "InvalidValue",
    "Iterate",
    "MfocError",
    "Minimax",
    "MissingExtra",
    "NonFiniteError",
    "Particles",
    "Population",
    "Problem",
    "Solution",
    "Solver",
    "Status",
    "Trajectory",
    "certify",
    "certify_module",
    "checks",
    "continuous",
    "costates",
    "euler",
    "euler_maruyama",
    "evaluate",
    "from_module",
    "hamiltonian",
    "heun",
    "hooks",
    "inner",
    "iterate",
    "lq",
    "maximisers",
    "networks",
    "per_stage",
    "plot",
    "population",
    "require",
    "rk4",
    "rollout",
    "schemes",
    "solve",
    "testing",
    "tied",
    "to_module",
    "weight_decay",
]
