"""Certificates of problems with constraints on states: of the augmented Lagrangian, at the multipliers of a solution.

Where the constraints hold and the multipliers are those of the solution, a minimum of the augmented Lagrangian is one
of J among the controls that meet them, and for a penalty that is large enough the other way round (Nocedal & Wright
2006, theorem 17.5).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from mfoc.certificate.report import Certificate, Standing, Verdict
from mfoc.certificate.surroundings import Surroundings
from mfoc.errors import InvalidValue
from mfoc.lagrangian import Lagrangian, check_same, constraint_values
from mfoc.particles import Particles
from mfoc.problem import Problem
from mfoc.solving import Iterate, Solution
from mfoc.tree import Tree


@dataclass(frozen=True, eq=False)
class Constrained:
    """The constraints of a problem at the controls that are certified.

    Attributes:
        lagrangian: with the multipliers of the solution.
        violation: how far the constraints are from being met.
        scale: how much they change from the controls to a reference as far away as those are from zero.
    """

    lagrangian: Lagrangian
    violation: float
    scale: float

    @classmethod
    def of(cls, problem: Problem, source: Any, controls: Tree, cloud: Particles, seed: int) -> Constrained:
        """From a solution or an iterate of ``AugmentedLagrangian``.

        Raises:
            InvalidValue: there are no multipliers, or those of other particles.
        """
        last = source.last if isinstance(source, Solution) else source
        state = last.state if isinstance(last, Iterate) else None
        if not isinstance(state, dict) or state.get("multipliers") is None:
            raise InvalidValue(
                "the problem has constraints, and without their multipliers nothing can be certified; pass the "
                "solution (or an iterate after a step) of mfoc.AugmentedLagrangian(...), not its controls"
            )
        held = Lagrangian(problem, state["multipliers"], state["penalty"])
        with torch.no_grad():
            values = constraint_values(problem, controls, cloud)
            check_same(state["index"], cloud, held.multipliers, values)
            generator = torch.Generator().manual_seed(seed)
            away = Surroundings.of(held.augmented(), controls, held.particles(cloud), generator).reference
            there = constraint_values(problem, away, cloud)
        return cls(held, held.violation(values), held.size([a - b for a, b in zip(there, values, strict=True)]))

    @property
    def complete(self) -> bool:
        """Whether particles have multipliers of their own, so that they are all there are."""
        return any(not constraint.in_mean for constraint, _ in self.lagrangian.constraints)

    def judged(self, certificate: Certificate, tol: float) -> Certificate:
        """The certificate of the augmented Lagrangian as one of the problem."""
        verdict, seen = certificate.verdict, f"{self.violation:.2g}, scale {self.scale:.2g}"
        if not self.violation <= tol * self.scale:
            sentence = f"infeasible: the constraints are not met (violation {seen})"
            verdict = Verdict(Standing.INFEASIBLE, Standing.INFEASIBLE, sentence)
        elif Standing.LOWER_FOUND in (verdict.standing, verdict.sample):  # where the constraints may not hold
            sentence = f"cannot tell: of the augmented Lagrangian: {verdict}; there the constraints may not be met"
            verdict = Verdict(Standing.CANNOT_TELL, Standing.CANNOT_TELL, sentence)
        else:
            sentence = f"constraints met (violation {seen}); the augmented Lagrangian: {verdict}"
            verdict = Verdict(verdict.standing, verdict.sample, sentence)
        return replace(certificate, violation=self.violation, verdict=verdict)
