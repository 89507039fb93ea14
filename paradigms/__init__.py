"""Learning paradigms written as control problems.

Each paradigm is a module of functions that return a ``Formulation``: a problem, the population it is solved on, and how
a solution is read back. ``available()`` and ``load(name)`` find the ones that are installed, third-party ones included.
"""

from mfoc import neighbours

neighbours.refuse_strangers()  # before anything of this name is imported

from mfoc import Formulation, deprecation  # noqa: E402
from paradigms.registry import available, load  # noqa: E402

__all__ = ["Formulation", "available", "load"]

_BAYESIAN = {
    "draws": ["vi.of_network", "vi.draws"],
    "bridges": ["samplers.bridges"],
    "diffusion": ["samplers.diffusion"],
    "drifts": ["samplers.drifts"],
    "ensemble": ["laws.prediction"],
    "flows": ["samplers.langevin"],
    "follmer": ["samplers.follmer"],
    "guides": ["pyro.guides"],
    "interop": ["density.potential", "pyro.networks"],
    "layers": ["vi.stages"],
    "likelihoods": ["laws.likelihoods"],
    "models": ["vi.of_model"],
    "networks": ["vi.posterior", "vi.of_network", "vi.draws"],
    "posterior": ["vi.posterior", "pyro.networks"],
    "predict": ["predictive", "laws.prediction"],
    "priors": ["laws.priors"],
    "sampler": ["samplers.runs"],
    "stein": ["samplers.kernels"],
    "svgd": ["samplers.svgd"],
    "variational": ["vi.inference"],
}
_META = {
    "checks": ["formulations", "stacked"],
    "convolution": ["layers"],
    "few_shot": ["classification"],
    "inner": ["loop"],
    "normalisation": ["layers"],
    "rules": ["algorithms"],
    "tasks": ["task_laws"],
}
_NAMES = {
    "paradigms.bayesian.draws.Draws": "NetworkDraws",
    "paradigms.bayesian.likelihoods.Custom": "NegativeLogLikelihood",
    "paradigms.meta.checks.checked_network": "StackedNetwork",
    "paradigms.meta.inner.Inner": "TaskObjective",
}

deprecation.moved(
    {
        "paradigms.formulation": ["mfoc.formulation", "mfoc.problem", "paradigms.registry"],
        **{f"paradigms.bayesian.{old}": [f"paradigms.bayesian.{new}" for new in to] for old, to in _BAYESIAN.items()},
        **{f"paradigms.meta.{old}": [f"paradigms.meta.{new}" for new in to] for old, to in _META.items()},
    },
    _NAMES,
)
__getattr__ = deprecation.aliases("paradigms")
