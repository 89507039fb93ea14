"""Training as mean-field optimal control: one problem, every solver, a certificate of optimality."""

from mfoc import (
    analysis,
    bounds,
    certificate,
    checks,
    compilation,
    constraints,
    deprecation,
    derivatives,
    distributed,
    errors,
    games,
    heads,
    hjb,
    hooks,
    interacting,
    lagrangian,
    law,
    lq,
    maximisers,
    meanfield,
    minimisers,
    networks,
    optim,
    particles,
    plot,
    policies,
    printing,
    schemes,
    seeding,
    testing,
    tree,
    vectorisation,
)
from mfoc.bounds import L1, Box, Simplex
from mfoc.certificate import Certificate, Measure, certify, certify_module
from mfoc.compilation import compiled
from mfoc.constraints import Equality, Inequality
from mfoc.errors import (
    InvalidType,
    InvalidValue,
    MfocError,
    MissingExtra,
    NonFiniteError,
    RankError,
    StorageError,
    require,
)
from mfoc.formulation import Formulation
from mfoc.games import Ball, Game
from mfoc.heads import with_head
from mfoc.law import covariance, kernel_mean, mean, variance
from mfoc.meanfield import Equilibrium, best_response, exploitability, price_of_anarchy
from mfoc.networks import from_module, to_module, weight_decay
from mfoc.particles import Particles
from mfoc.policies import feedback, linear_policy, policy_of
from mfoc.pontryagin import Evaluation, Trajectory, costates, evaluate, hamiltonian, rollout
from mfoc.populations import Population, population
from mfoc.problem import HasControls, Problem, controls_of, per_stage, tied
from mfoc.schemes import FreeTime, continuous, dopri5, euler, euler_maruyama, heun, rk4, rk38
from mfoc.solvers import DDP, EMSA, MSA, AugmentedLagrangian, DDPNOpt, DiscreteMSA, Gradient, Minimax, NewtonCG
from mfoc.solving import Info, Iterate, Solution, Solver, Status, iterate, solve

__version__ = "0.2.0.dev0"

__all__ = [
    "DDP", "EMSA", "L1", "MSA", "AugmentedLagrangian", "Ball", "Box", "Certificate", "DDPNOpt", "DiscreteMSA",
    "Equality", "Equilibrium", "Evaluation", "Formulation", "FreeTime", "Game", "Gradient", "HasControls",
    "Inequality", "Info", "InvalidType", "InvalidValue", "Iterate", "Measure", "MfocError", "Minimax",
    "MissingExtra", "NewtonCG", "NonFiniteError", "Particles", "Population", "Problem", "RankError", "Simplex",
    "Solution", "Solver", "Status", "StorageError", "Trajectory", "analysis", "best_response", "bounds",
    "certificate", "certify",
    "certify_module", "checks", "compilation", "compiled", "constraints", "continuous", "controls_of", "costates",
    "covariance", "deprecation", "derivatives", "distributed", "dopri5", "errors", "euler", "euler_maruyama",
    "evaluate", "exploitability", "feedback", "from_module", "games", "hamiltonian", "heads", "heun", "hjb",
    "hooks", "interacting", "iterate", "kernel_mean", "lagrangian", "law", "linear_policy", "lq", "maximisers",
    "mean", "meanfield", "minimisers", "networks", "optim", "particles", "per_stage", "plot", "policies",
    "policy_of", "population", "price_of_anarchy", "printing", "require", "rk4", "rk38", "rollout", "schemes",
    "seeding", "solve", "testing", "tied", "to_module", "tree", "variance", "vectorisation", "weight_decay",
    "with_head",
]  # fmt: skip

deprecation.moved(
    {
        "mfoc.game": ["mfoc.games"],
        "mfoc.inner": ["mfoc.minimisers"],
        "mfoc.population": ["mfoc.particles", "mfoc.seeding", "mfoc.populations"],
        "mfoc.solve": ["mfoc.solving"],
        "mfoc._study": ["mfoc.certificate.study"],  # which pickles of certificates name
        "mfoc._errors": ["mfoc.errors"],
    },
    {
        "mfoc.inner.Inner": "Minimiser",
        "mfoc.inner.check_inner": "check_minimiser",
        "mfoc.population.whole": "concatenated",
    },
)
__getattr__ = deprecation.aliases("mfoc")
