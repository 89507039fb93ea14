"""The method of successive approximations: minimise the Hamiltonian with states and costates frozen.

Basic MSA (Krylov & Chernousko 1962; Chernousko & Lyubushin 1982) alternates a forward sweep, a backward sweep and
u_t = argmin E H_t. It may diverge, since the new control makes the old states and costates infeasible. E-MSA (Li,
Chen, Tai, E 2018, "Maximum principle based algorithms for deep learning", JMLR 18(165)) penalises that infeasibility;
the sequential quadratic Hamiltonian method (Breitenbach & Borzi 2020) penalises the step, and takes only those that
lower J enough.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from mfoc import tree
from mfoc.blocks import Penalty
from mfoc.checks import check_between, check_flag, check_integer, check_non_negative
from mfoc.errors import InvalidValue
from mfoc.frozen import Sweep
from mfoc.interacting import coupling
from mfoc.minimisers import LBFGS, Descent, Minimiser, Minimum, check_minimiser
from mfoc.particles import Particles
from mfoc.problem import Problem
from mfoc.second_order import WIDEST, NoSecondDerivative, controls_noise, fits, generalised_blocks
from mfoc.solvers.trials import Trial, Trials
from mfoc.solvers.weights import SHARE, Curvature, curvature
from mfoc.solving import Info
from mfoc.tree import Tree

_UP, _DOWN = 3.0, 0.7  # factors of the weights after a step that was refused, and one accepted at once
_PAIRS = 5  # steps, with the changes of the gradient over them, that the next step is combined with
_NEEDS_PENG = (
    "the control enters the diffusion, where an optimal control need not minimise the Hamiltonian, and the "
    "second-order adjoint"
)
_CURE = "use EMSA(), whose steps lower J, or Gradient"
_LEAST, _MOST = 2.0**-20, 2.0**30  # of the factor by which the weights may have changed


@dataclass(frozen=True)
class MSA:
    """The basic method of successive approximations.

    Where H is unbounded below in u (a linear layer without weight decay) there is no minimiser, and the step goes as
    far as the inner solver does; ``info.extra["unbounded_stages"]`` counts such stages. Add a running cost, or use
    ``EMSA``.

    Where the control enters the diffusion, and the problem says so (``Problem.noise``; ``mfoc.continuous`` does), an
    optimal control need not minimise H: what is minimised there is H with Peng's second-order adjoint
    (``mfoc.second_order``), for states that are one tensor ``[N, d]`` of particles that do not interact.

    Class of control: shared by the cloud, per stage or (by all of H at once) tied, or per particle; within bounds of
    any kind.

    Attributes:
        inner: minimiser of the Hamiltonian: ``mfoc.minimisers.LBFGS(...)`` or ``mfoc.minimisers.Descent(...)``. The
            first slope of the latter is that of the sweep, so that with ``steps=1`` H is not evaluated again.
    """

    inner: Minimiser = field(default_factory=LBFGS)

    respects_bounds: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_minimiser(self.inner)

    def init(self, problem: Problem, controls: Tree) -> Tree:
        """Nothing is carried from step to step."""
        return {}

    def step(self, problem: Problem, controls: Tree, state: Tree, particles: Particles) -> tuple[Tree, Tree, Info]:
        """One forward sweep, one backward sweep, one minimisation; see ``mfoc.Solver``."""
        sweep = Sweep.at(problem, controls, particles)
        if problem.per_stage and controls_noise(problem, controls, particles):
            _check_second_order(problem, controls, particles)
            try:
                blocks = generalised_blocks(sweep)
            except NoSecondDerivative as error:
                raise InvalidValue(f"{_NEEDS_PENG} cannot be found ({error}): {_CURE}") from error
            found = sweep.joined((block, block.minimised(self.inner)) for block in blocks)
        else:
            found = _minimised(sweep, self.inner)
        moved, report = _reported(*found)
        return moved, {}, Info(sweep.value, sweep.gradient, {**report})


@dataclass(frozen=True)
class EMSA:
    """The extended method of successive approximations: MSA on the augmented Hamiltonian.

        H_t + rho/2 ||x_(t+1) - f_t||^2 + costate_rho/2 ||p_t - dH_t/dx||^2      (per particle, then E)
            + proximal/2 ||u_t - u_t(now)||^2.

    Adaptive, as it is by default, it is the sequential quadratic Hamiltonian (SQH) method of Breitenbach & Borzi (2020,
    J. Comput. Appl. Math. 369:112583; Hofmann & Borzi 2025, arXiv:2504.11647, for networks) with the penalties of Li et
    al. beside its proximal term; ``rho=0`` leaves SQH alone. A step to u+ is accepted if

        J(u+) <= J(u) - eta proximal max(||u+ - u||^2, ||q - u||^2),

    where q is the minimiser found. Tried are q and, where the controls are free and the population is that of the step
    before, what a quadratic model of J finds best in the span of q - u and of the last five steps, along which changes
    of dJ/du are known (``mfoc.solvers.subspace``): that costs two roll-outs. The first step has in their place the
    change of dJ/du along itself, of which the weights are made: that costs one. The lowest J is taken. Where q itself
    is refused all weights are multiplied by 3, and where nothing was accepted the minimisation is repeated; if
    ``tries`` of them fail the controls stay as they are and the weights large. A q accepted at the first try lowers the
    weights by three tenths, though never below 2^-20 of the first. An adaptive step with ``LBFGS`` in free controls
    begins its line searches with the curvature that the step before left behind.

    Theorem. Let the population be fixed and J, the frozen H and the penalties have Lipschitz gradients in u on a convex
    set that holds the iterates and the controls tried, J and H with constants L and L_H. (i) A q that lowers the
    augmented Hamiltonian is accepted once (1 - 2 eta) proximal >= L + L_H: the weights stay bounded. (ii) J never
    rises, to rounding, and sum_k proximal_k ||u_(k+1) - u_k||^2 <= (J(u_0) - inf J) / eta. (iii) If J is bounded below,
    and the inner minimiser lowers the augmented Hamiltonian by a fixed share of ||slope||^2 (a line search from
    steepest descent does), the residual ||E dH/du|| tends to 0. It needs E dH/du = dJ/du and nothing else of the
    problem: controls may be tied and particles interact. Nothing is said of minima of H, nor of J other than
    stationarity. Within bounds that are convex sets (i) and (ii) hold as they stand, and (iii) of the projected step u
    - P(u - slope) in place of the slope, with what the inner minimiser does by its square.

    Class of control: the problem's, open loop (shared, per particle) or a policy's parameters (``mfoc.feedback``).

    On minibatches a step lowers J on its batch, not J. A batch is known to be another one by J at the same control; the
    proximal weight then has 100 sqrt(number of such steps) added to its factor, which makes steps of about 1 / (L
    sqrt(k)), as in stochastic proximal point methods (Asi & Duchi 2019, SIAM J. Optim. 29(3)): noise averages out.

    With ``adaptive=False`` the weights are fixed and the objective may rise without bound where they are too small;
    Li et al. (2018), sec. 3, bound the rise by the infeasibility that rho penalises.

    Attributes:
        rho: weight of the state's infeasibility. None takes it from the problem at the first batch: as large as makes
            the penalty as curved as J is, in the direction where J is most curved (by a power iteration; three where
            the weight stays).
        costate_rho: weight of the costate's. When None it is rho; but 0 where rho is from the problem, since it costs
            a derivative of a derivative. With p_t(i) = N dJ/dx_t(i) both are per-particle weights. The weights of the
            paper, which sums over N samples and has costates of size 1/N, are
            ``rho=N * rho_paper, costate_rho=rho_paper / N``.
        inner: minimiser of the augmented Hamiltonian. Three iterations are about as far as frozen states are good for.
        adaptive: adapt the weights so that J decreases.
        tries: most minimisations in an adaptive step.
        proximal: weight of the proximal term. When None, a hundredth of J's largest curvature at the first batch if
            adaptive, else 0.
        eta: share of the proximal term by which J must decrease.
    """

    rho: float | None = None
    costate_rho: float | None = None
    inner: Minimiser = field(default_factory=lambda: LBFGS(steps=3))
    adaptive: bool = True
    tries: int = 8
    proximal: float | None = None
    eta: float = 1e-3

    respects_bounds: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_non_negative(rho=self.rho, costate_rho=self.costate_rho, optional=True)
        check_integer(1, tries=self.tries)
        check_flag(adaptive=self.adaptive)
        check_non_negative(proximal=self.proximal, optional=True)
        check_between(0, 0.5, eta=self.eta)
        if self.adaptive and self.proximal == 0:
            raise InvalidValue("proximal is 0; adaptive=True multiplies it, so give a positive one or None")
        check_minimiser(self.inner)
        if self.adaptive and isinstance(self.inner, Descent):
            raise InvalidValue(
                "inner is Descent, whose fixed step overshoots as the weights grow; adaptive needs LBFGS (or say "
                "adaptive=False)"
            )

    def init(self, problem: Problem, controls: Tree) -> Tree:
        """Weights, None until the first batch; their factor; J expected at the next; and what earlier steps learned."""
        if self.adaptive:
            problem.check_potential("EMSA(adaptive=True)")
        weights = {"rho": self.rho, "proximal": self.proximal, "scale": 1.0, "expected": None, "changes": 0}
        if not self.adaptive:
            return weights
        zero = torch.zeros_like(tree.ravel(controls).detach())
        kept = _PAIRS if problem.region is None else 0
        learned = {"step": zero, "gradient": zero, "steps": [zero] * kept, "bends": [zero] * kept}
        reach = zero.new_zeros(problem.stages if problem.per_stage else 1)
        return {**weights, **learned, "reach": reach, "moved": False}

    def step(self, problem: Problem, controls: Tree, state: Tree, particles: Particles) -> tuple[Tree, Tree, Info]:
        """One forward sweep, one backward sweep, one (or, adaptive, several) minimisations; see ``mfoc.Solver``."""
        sweep = Sweep.at(problem, controls, particles)
        state, probe = self._weighed(sweep, particles, state)
        if not self.adaptive:
            penalty = self._penalty(state)
            moved, report = _reported(*sweep.minimised(self.inner, penalty))
            return moved, state, Info(sweep.value, sweep.gradient, {**report, **_weights(penalty)})
        return self._adapted(sweep, particles, state, probe)

    def _adapted(
        self, sweep: Sweep, particles: Particles, state: dict[str, Any], probe: Curvature | None
    ) -> tuple[Tree, Tree, Info]:
        """One adaptive step: tries until J falls enough."""
        here, gradient = float(sweep.value), tree.ravel(sweep.gradient)
        other = _differs(sweep.value, here, state["expected"])
        state = _continued(state, here, gradient, other)
        # Another batch is not fitted beyond what its weights allow; and in bounds a sum of steps may leave the region.
        spans = not other and sweep.problem.region is None
        tried, evaluations = Trials(sweep, particles, here, gradient), 0
        slack = 4 * torch.finfo(sweep.value.dtype).eps * abs(here)  # at a minimum J is constant to rounding
        best = None
        for attempt in range(self.tries):
            penalty = self._penalty(state)
            moved, found, reach = tried.minimised(self.inner, penalty, state["reach"])
            _, report = _reported(moved, found)
            evaluations += report["inner_evaluations"]
            plain, share = tried.at(moved), self.eta * penalty.proximal
            least = plain.square

            def accepts(trial: Trial, share: float = share, least: float = least) -> bool:
                return trial.value <= here - share * max(trial.square, least) + slack

            if spans and probe is not None:
                best = tried.first(plain, probe.steps, probe.bends, accepts)
            elif spans:
                best = tried.lowest(plain, state["steps"], state["bends"], accepts)
            else:
                best = plain if accepts(plain) else None
            if not accepts(plain):
                state["scale"] = min(_UP * state["scale"], _MOST)
            elif attempt == 0:
                state["scale"] = max(_DOWN * state["scale"], _LEAST)
            if best is not None:
                state |= {"reach": reach, "step": best.step, "expected": best.value}
                break
        state["moved"] = best is not None
        extra = {**report, "inner_evaluations": evaluations, "tries": attempt + 1, **_weights(penalty)}
        return sweep.controls if best is None else best.controls, state, Info(sweep.value, sweep.gradient, extra)

    def _weighed(
        self, sweep: Sweep, particles: Particles, state: dict[str, Any]
    ) -> tuple[dict[str, Any], Curvature | None]:
        """The state with all weights known, and the curvature where they had to be found."""
        rho, proximal, found = state["rho"], state["proximal"], None
        if not self.adaptive and proximal is None:
            proximal = 0.0
        if rho is None or proximal is None:
            found = curvature(sweep, particles, products=1 if self.adaptive else 3)
            rho = (found.largest / found.spread if found.spread > 0 else 0.0) if rho is None else rho
            proximal = SHARE * found.largest if proximal is None else proximal
        return {**state, "rho": rho, "proximal": proximal}, found

    def _penalty(self, state: dict[str, Any]) -> Penalty:
        scale, rho = state["scale"], state["rho"]
        costate = (0.0 if self.rho is None else rho) if self.costate_rho is None else self.costate_rho
        noise = math.sqrt(state["changes"]) / SHARE
        return Penalty(rho * scale, costate * scale, state["proximal"] * (scale + noise))


def _weights(penalty: Penalty) -> dict[str, float]:
    return {"rho": penalty.state, "proximal": penalty.proximal}


def _differs(value: Tensor, here: float, expected: float | None) -> bool:
    """Whether J is not the one that was left behind, so that the batch is another one."""
    if expected is None:
        return False
    return abs(here - expected) > math.sqrt(torch.finfo(value.dtype).eps) * max(abs(here), abs(expected))


def _continued(state: dict[str, Any], here: float, gradient: Tensor, other: bool) -> dict[str, Any]:
    """The state with the last step and the change of the gradient over it; without any, on another batch."""
    steps, bends = state["steps"], state["bends"]
    if other:
        steps = bends = [torch.zeros_like(gradient)] * len(steps)
    elif state["moved"] and steps:
        steps, bends = [*steps[1:], state["step"]], [*bends[1:], gradient - state["gradient"]]
    learned = {"steps": steps, "bends": bends, "gradient": gradient}
    return {**state, **learned, "changes": state["changes"] + other, "expected": here}


def _minimised(sweep: Sweep, inner: Minimiser) -> tuple[Tree, list[Minimum]]:
    """``sweep.minimised``; where that begins with a step along the slope of H at the sweep's controls, it is known."""
    if type(inner) is not Descent:
        return sweep.minimised(inner)
    moved = inner.moved(sweep.controls, sweep.gradient, sweep.problem.region)
    if inner.steps == 1:
        return moved, []
    return replace(sweep, controls=moved).minimised(replace(inner, steps=inner.steps - 1))


def _reported(moved: Tree, found: list[Minimum]) -> tuple[Tree, dict[str, int]]:
    return moved, {
        "inner_evaluations": sum(minimum.evaluations for minimum in found),
        "unbounded_stages": int(sum(tree.floats([minimum.unbounded.sum() for minimum in found]))),
    }


def _check_second_order(problem: Problem, controls: Tree, particles: Particles) -> None:
    """Refuses a controlled diffusion for which the second-order adjoint is not held."""
    if not fits(particles) or coupling(problem, particles, controls=controls):
        raise InvalidValue(
            f"{_NEEDS_PENG} is held for independent particles of a state [N, d], d <= {WIDEST}, alone: {_CURE}"
        )
