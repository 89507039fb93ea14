"""The Gibbs law of a control problem's controls as a log density."""

from __future__ import annotations

from typing import Any

from torch import Tensor

import mfoc
from mfoc import tree
from mfoc.checks import check_instance, check_positive
from paradigms.bayesian.density.density import LogDensity, flat, split, vectorised
from paradigms.bayesian.laws.priors import log_prob_of, prior_of


def of_problem(problem: mfoc.Problem, data: Any, prior: Any, temperature: float, traced: bool) -> LogDensity:
    """The Gibbs law of a problem's controls; see ``log_density``."""
    check_instance(mfoc.Particles, "the mfoc.Particles of the problem", data=data)
    check_positive(temperature=temperature, finite=False)
    example = {name or "u": leaf for name, leaf in tree.dotted(problem.controls).items()}
    shapes = {name: leaf.shape for name, leaf in example.items()}
    laws = {} if prior is None else {name: log_prob_of(prior_of(prior, name, u)) for name, u in example.items()}
    problem.validate(data)

    def one(x: Tensor) -> Tensor:
        named = split(x, shapes)
        controls = tree.rebuild(problem.controls, named.values())
        gibbs = -mfoc.rollout(problem, controls, data).cost.sum() / temperature
        return gibbs + sum(law(named[name]).sum() for name, law in laws.items())

    return vectorised(one, shapes, flat(example), traced=traced)
