"""Training as mean-field optimal control: one problem, every solver, a certificate of optimality."""

from mfoc import networks, schemes
from mfoc._errors import InvalidType, InvalidValue, MfocError, MissingExtra, NonFiniteError
from mfoc.networks import from_module, to_module, weight_decay
from mfoc.pontryagin import Trajectory, costates, evaluate, hamiltonian, rollout
from mfoc.population import Population, population
from mfoc.problem import Particles, Problem, per_stage, tied
from mfoc.schemes import continuous, euler, euler_maruyama, heun, rk4
from mfoc.solve import Info, Iterate, Solution, Solver, Status, iterate, solve
from mfoc.solvers import Gradient
