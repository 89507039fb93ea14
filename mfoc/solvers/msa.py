"""The method of successive approximations: minimise the Hamiltonian with states and costates frozen.

Basic MSA (Krylov & Chernousko 1962; Chernousko & Lyubushin 1982) alternates a forward sweep, a backward sweep and
u_t = argmin E H_t. It may diverge, since the new control makes the old states and costates infeasible. E-MSA (Li,
Chen, Tai, E 2018, "Maximum principle based algorithms for deep learning", JMLR 18(165)) penalises that infeasibility.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mfoc.checks import check_flag, check_integer, check_non_negative
from mfoc.distributed import expectation
from mfoc.errors import InvalidValue
from mfoc.frozen import Penalty, Sweep
from mfoc.minimisers import LBFGS, Descent, Minimiser, check_minimiser
from mfoc.particles import Particles
from mfoc.pontryagin import rollout
from mfoc.problem import Problem
from mfoc.solving import Info
from mfoc.tree import Tree

_MOST = 2.0**30  # of the factor by which rho may have grown


@dataclass(frozen=True)
class MSA:
    """The basic method of successive approximations.

    Where H is unbounded below in u (a linear layer without weight decay) there is no minimiser, and the step goes as
    far as the inner solver does; ``info.extra["unbounded_stages"]`` counts such stages. Add a running cost, or use
    ``EMSA``.

    Attributes:
        inner: minimiser of the Hamiltonian: ``mfoc.minimisers.LBFGS(...)`` or ``mfoc.minimisers.Descent(...)``.
    """

    inner: Minimiser = field(default_factory=LBFGS)

    def __post_init__(self) -> None:
        check_minimiser(self.inner)

    def init(self, problem: Problem, controls: Tree) -> Tree:
        """Nothing is carried from step to step."""
        return {}

    def step(self, problem: Problem, controls: Tree, state: Tree, particles: Particles) -> tuple[Tree, Tree, Info]:
        """One forward sweep, one backward sweep, one minimisation; see ``mfoc.Solver``."""
        sweep = Sweep.at(problem, controls, particles)
        moved, report = _minimise(sweep, self.inner, None)
        return moved, {}, Info(sweep.value, sweep.gradient, {**report})


@dataclass(frozen=True)
class EMSA:
    """The extended method of successive approximations: MSA on the augmented Hamiltonian.

        H_t + rho/2 ||x_(t+1) - f_t||^2 + costate_rho/2 ||p_t - dH_t/dx||^2      (per particle, then E).

    With a fixed rho the objective may rise; Li et al. (2018), sec. 3, bound the rise by the infeasibility that rho
    penalises. With ``adaptive=True`` a step is accepted only if J on its batch does not rise: else rho is doubled and
    the minimisation repeated; if ``tries`` of them fail the controls are left as they are (J unchanged, rho kept
    large). On a fixed population J then never increases (to rounding). After an accepted step rho shrinks by a tenth.

    Attributes:
        rho: weight of the state's infeasibility.
        costate_rho: weight of the costate's; rho when None. With p_t(i) = N dJ/dx_t(i) both are per-particle weights.
            The weights of the paper, which sums over N samples and has costates of size 1/N, are
            ``rho=N * rho_paper, costate_rho=rho_paper / N``.
        inner: minimiser of the augmented Hamiltonian.
        adaptive: adapt rho so that J does not increase.
        tries: most minimisations in an adaptive step.
    """

    rho: float = 1.0
    costate_rho: float | None = None
    inner: Minimiser = field(default_factory=LBFGS)
    adaptive: bool = False
    tries: int = 8

    def __post_init__(self) -> None:
        check_non_negative(rho=self.rho)
        check_non_negative(costate_rho=self.costate_rho, optional=True)
        check_integer(1, tries=self.tries)
        check_flag(adaptive=self.adaptive)
        if self.adaptive and self.rho == 0:
            raise InvalidValue("rho is 0; adaptive=True multiplies rho, so start from a positive one")
        check_minimiser(self.inner)
        if self.adaptive and isinstance(self.inner, Descent):
            raise InvalidValue("inner is Descent, whose fixed step overshoots as rho grows; adaptive needs LBFGS")

    def init(self, problem: Problem, controls: Tree) -> Tree:
        """The factor by which rho has been adapted."""
        return {"scale": 1.0}

    def step(self, problem: Problem, controls: Tree, state: Tree, particles: Particles) -> tuple[Tree, Tree, Info]:
        """One forward sweep, one backward sweep, one (or, adaptive, several) minimisations; see ``mfoc.Solver``."""
        sweep = Sweep.at(problem, controls, particles)
        scale, evaluations, moved = state["scale"], 0, controls
        slack = 4 * torch.finfo(sweep.value.dtype).eps * sweep.value.abs()  # at a minimum J is constant to rounding
        for _ in range(self.tries):
            moved, report = _minimise(sweep, self.inner, self._penalty(scale))
            evaluations += report["inner_evaluations"]
            if not self.adaptive:
                break
            if _objective(problem, moved, particles) <= sweep.value + slack:
                scale *= 0.9
                break
            scale, moved = min(2 * scale, _MOST), controls
        extra = {**report, "inner_evaluations": evaluations, "rho": self.rho * scale}
        return moved, {"scale": scale}, Info(sweep.value, sweep.gradient, extra)

    def _penalty(self, scale: float) -> Penalty:
        return Penalty(self.rho * scale, (self.rho if self.costate_rho is None else self.costate_rho) * scale)


def _minimise(sweep: Sweep, inner: Minimiser, penalty: Penalty | None) -> tuple[Tree, dict[str, int]]:
    """The minimisers of the frozen Hamiltonian, and what the search reports."""
    moved, found = sweep.minimised(inner, penalty)
    return moved, {
        "inner_evaluations": sum(minimum.evaluations for minimum in found),
        "unbounded_stages": sum(int(minimum.unbounded.sum()) for minimum in found),
    }


def _objective(problem: Problem, controls: Tree, particles: Particles) -> Tensor:
    with torch.no_grad():
        cost = rollout(problem, controls, particles).cost.mean()
    return expectation([cost], len(particles))[0]
