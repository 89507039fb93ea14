"""Training as mean-field optimal control: one problem, every solver, a certificate of optimality.

A name is looked up when it is first used (PEP 562): then all that is public is imported, and torch with it.
"""

from importlib import import_module
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING, Any

from mfoc import deprecation

if TYPE_CHECKING:
    from mfoc.public import *  # noqa: F403

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


if not TYPE_CHECKING:  # a type checker that sees a __getattr__ takes every name for one that is there
    _former = deprecation.aliases(__name__)

    def __getattr__(name: str) -> Any:
        """A module of this package by itself, so that they can import one another; of the rest, what it is in public.

        Raises:
            AttributeError: there is no such name.
            ImportError: what is imported at the first use fails, as torch does where it is broken.
        """
        module = f"{__name__}.{name}"
        found = not name.startswith("_") and PathFinder.find_spec(module, __path__)  # a file: no module that has moved
        if not found and name not in __all__:
            return _former(name)
        try:
            if found:
                return import_module(module)
            globals()[name] = getattr(import_module(f"{__name__}.public"), name)  # and nothing that a user has set
        except ImportError:
            raise
        except Exception as error:  # an AttributeError would be taken for a name that is not there
            raise ImportError(f"{module} cannot be imported: {error}; `python -m mfoc doctor` says more") from error
        return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
