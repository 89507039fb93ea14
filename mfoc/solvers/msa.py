"""The method of successive approximations: minimise the Hamiltonian with states and costates frozen.

Basic MSA (Krylov & Chernousko 1962; Chernousko & Lyubushin 1982) alternates a forward sweep, a backward sweep and
u_t = argmin E H_t. It may diverge, since the new control makes the old states and costates infeasible. E-MSA (Li,
Chen, Tai, E 2018, "Maximum principle based algorithms for deep learning", JMLR 18(165)) penalises that infeasibility;
the sequential quadratic Hamiltonian method (Breitenbach & Borzi 2020) penalises the step, and takes only those that
lower J enough.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from mfoc import tree
from mfoc.checks import check_between, check_flag, check_integer, check_non_negative
from mfoc.distributed import expectation
from mfoc.errors import InvalidValue
from mfoc.frozen import Penalty, Sweep
from mfoc.interacting import coupling
from mfoc.minimisers import LBFGS, Descent, Minimiser, Minimum, check_minimiser
from mfoc.particles import Particles
from mfoc.pontryagin import evaluate, penalised, rollout
from mfoc.problem import Problem
from mfoc.second_order import WIDEST, NoSecondDerivative, controls_noise, fits, generalised_blocks
from mfoc.solving import Info
from mfoc.tree import Tree
from mfoc.solvers.subspace import combined
import os
ACC=int(os.environ.get('ACC','1')); M=int(os.environ.get('M','5')); DOWN=float(os.environ.get('DOWN','.7')); UP1=float(os.environ.get('UP1','3'))

_SHARE = 1e-2  # the proximal weight as a share of J's curvature: the state's penalty is the better measure of a step
_UP, _DOWN = 3.0, 0.7  # factors of the weights after a step that was refused, and one accepted at once
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
        inner: minimiser of the Hamiltonian: ``mfoc.minimisers.LBFGS(...)`` or ``mfoc.minimisers.Descent(...)``.
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
            found = sweep.minimised(self.inner)
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

        J(u+) <= J(u) - eta proximal ||u+ - u||^2,

    else all weights are multiplied by 3 and the minimisation is repeated; if ``tries`` of them fail the controls stay
    as they are and the weights large. A step accepted at the first try lowers the weights by three tenths, though never
    below 2^-20 of the first.

    Theorem. Let the population be fixed and J, the frozen H and the penalties have Lipschitz gradients in u on a convex
    set that holds the iterates and the controls tried, J and H with constants L and L_H. (i) What lowers the augmented
    Hamiltonian is accepted once (1 - 2 eta) proximal >= L + L_H: the weights stay bounded. (ii) J never rises, to
    rounding, and sum_k proximal_k ||u_(k+1) - u_k||^2 <= (J(u_0) - inf J) / eta. (iii) If J is bounded below, and the
    inner minimiser lowers the augmented Hamiltonian by a fixed share of ||slope||^2 (a line search from steepest
    descent does), the residual ||E dH/du|| tends to 0. It needs E dH/du = dJ/du and nothing else of the problem:
    controls may be tied and particles interact. Nothing is said of minima of H, nor of J other than stationarity.
    Within bounds that are convex sets (i) and (ii) hold as they stand, and (iii) of the projected step u - P(u - slope)
    in place of the slope, with what the inner minimiser does by its square.

    Class of control: the problem's, open loop (shared, per particle) or a policy's parameters (``mfoc.feedback``).

    On minibatches a step lowers J on its batch, not J. A batch is known to be another one by J at the same control; the
    proximal weight then has 100 sqrt(number of such steps) added to its factor, which makes steps of about 1 / (L
    sqrt(k)), as in stochastic proximal point methods (Asi & Duchi 2019, SIAM J. Optim. 29(3)): noise averages out.

    With ``adaptive=False`` the weights are fixed and the objective may rise without bound where they are too small;
    Li et al. (2018), sec. 3, bound the rise by the infeasibility that rho penalises.

    Attributes:
        rho: weight of the state's infeasibility. None takes it from the problem at the first batch: as large as makes
            the penalty as curved as J is, in the direction where J is most curved (by three power iterations).
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
        """The weights, None until the first batch; their factor; J expected at the next; how many batches were new."""
        if self.adaptive:
            problem.check_potential("EMSA(adaptive=True)")
        zero = torch.zeros_like(tree.ravel(controls))
        return {"rho": self.rho, "proximal": self.proximal, "scale": 1.0, "expected": None, "changes": 0, "reach": zero.new_zeros(problem.stages if problem.per_stage else 1), "point": zero, "gradient": zero, "steps": [zero] * M, "bends": [zero] * M}

    def step(self, problem: Problem, controls: Tree, state: Tree, particles: Particles) -> tuple[Tree, Tree, Info]:
        """One forward sweep, one backward sweep, one (or, adaptive, several) minimisations; see ``mfoc.Solver``."""
        sweep = Sweep.at(problem, controls, particles)
        state = self._weighed(sweep, particles, state)
        if not self.adaptive:
            penalty = self._penalty(state)
            moved, report = _minimise(sweep, self.inner, penalty)
            return moved, state, Info(sweep.value, sweep.gradient, {**report, **_weights(penalty)})
        here = float(sweep.value)
        known = state["expected"] is not None
        other = _differs(here, sweep.value.dtype, state["expected"])
        state = {**state, "changes": state["changes"] + other}
        evaluations = 0
        slack = 4 * torch.finfo(sweep.value.dtype).eps * abs(here)
        u, g = tree.ravel(controls).detach(), tree.ravel(sweep.gradient)
        if known and not other:
            step_, change_ = u - state["point"], g - state["gradient"]
            if bool(step_.any()):
                state["steps"], state["bends"] = [*state["steps"][1:], step_], [*state["bends"][1:], change_]
        elif known:
            zero = torch.zeros_like(u)
            state["steps"] = state["bends"] = [zero] * len(state["steps"])
        state["point"], state["gradient"] = u, g
        firsts = {}
        expected = here
        for attempt in range(self.tries):
            penalty = self._penalty(state)
            reach = state["reach"].clone()

            def work(block, reach=reach):
                if not isinstance(self.inner, LBFGS) or block.region is not None:
                    return block.minimised(self.inner)
                key = block.stages
                if key not in firsts:
                    firsts[key] = block.evaluate(block.start)
                idx = list(key) if problem.per_stage else [0]
                warm = self.inner.warm(block.evaluate, block.start, firsts[key], reach[idx])
                reach[idx] = warm.reach.to(reach)
                return warm.minimum

            moved, report = _reported(*sweep.joined(sweep.each(work, penalty)))
            evaluations += report["inner_evaluations"]
            reached = float(_objective(problem, moved, particles))
            d = tree.ravel(moved) - u
            square = float(d.norm()) ** 2
            ok = reached <= here - self.eta * penalty.proximal * square + slack
            best, best_u = (reached, moved) if ok else (here, controls)
            if problem.region is None and ACC and math.isfinite(reached) and not other:
                step_ = combined(d, reached - here, g, state["steps"], state["bends"])
                if step_ is not None:
                    cand = tree.rebuild(controls, tree.pieces(u + step_, tree.leaves(controls)))
                    value = float(_objective(problem, cand, particles))
                    sq = max(square, float(step_.norm()) ** 2)
                    if value <= here - self.eta * penalty.proximal * sq + slack and value < best:
                        best, best_u = value, cand
            if best_u is not controls:
                if ok:
                    state["scale"] = max(state["scale"] * (DOWN if attempt == 0 else 1.0), _LEAST)
                else:
                    state["scale"] = min(UP1 * state["scale"], _MOST)
                state["reach"] = reach
                moved, expected = best_u, best
                break
            state["scale"], moved = min(_UP * state["scale"], _MOST), controls
        extra = {**report, "inner_evaluations": evaluations, "tries": attempt + 1, **_weights(penalty)}
        return moved, {**state, "expected": expected}, Info(sweep.value, sweep.gradient, extra)

    def _weighed(self, sweep: Sweep, particles: Particles, state: dict[str, Any]) -> dict[str, Any]:
        """The state with all weights known."""
        rho, proximal = state["rho"], state["proximal"]
        if not self.adaptive and proximal is None:
            proximal = 0.0
        if rho is None or proximal is None:
            curvature, spread = _curvatures(sweep, particles)
            rho = (curvature / spread if spread > 0 else 0.0) if rho is None else rho
            proximal = _SHARE * curvature if proximal is None else proximal
        return {**state, "rho": rho, "proximal": proximal}

    def _penalty(self, state: dict[str, Any]) -> Penalty:
        scale, rho = state["scale"], state["rho"]
        costate = (0.0 if self.rho is None else rho) if self.costate_rho is None else self.costate_rho
        noise = math.sqrt(state["changes"]) / _SHARE
        return Penalty(rho * scale, costate * scale, state["proximal"] * (scale + noise))


def _weights(penalty: Penalty) -> dict[str, float]:
    return {"rho": penalty.state, "proximal": penalty.proximal}


def _differs(value, dtype, expected) -> bool:
    """Whether J is not the one that was left behind, so that the batch is another one."""
    if expected is None:
        return False
    return abs(value - expected) > math.sqrt(torch.finfo(dtype).eps) * max(abs(value), abs(expected))


def _square(left: Tree, right: Tree) -> float:
    return float(tree.norm(tree.map(lambda a, b: a - b, left, right))) ** 2


def _curvatures(sweep: Sweep, particles: Particles, *, products: int = 3) -> tuple[float, float]:
    """J's largest curvature |v' d2J/du2 v|, and sum_t E |df_t/du v_t|^2 in its direction v.

    Power iteration; the products are differences of gradients, exact enough for a first weight, and cost a gradient
    each where second derivatives would cost two and the memory of a graph.
    """
    problem, controls, gradient = sweep.problem, sweep.controls, sweep.gradient
    size, slope = 1.0 + float(tree.norm(controls)), float(tree.norm(gradient))
    if slope == 0:
        return 1.0, 0.0  # where J does not slope no step is made, whatever the weights
    h = math.sqrt(torch.finfo(sweep.value.dtype).eps) * size
    direction, curvature = gradient, 0.0
    for _ in range(products):
        length = float(tree.norm(direction))
        near = _moved(controls, direction, h / length)
        change = tree.map(lambda a, b: a - b, evaluate(problem, near, particles).gradient, gradient)
        found = float(tree.norm(change)) / h
        if not math.isfinite(found) or found == 0:
            break
        direction, curvature = change, found
    near = _moved(controls, direction, h / float(tree.norm(direction)))
    with torch.no_grad():
        spreads = [
            _spread(
                problem.dynamics(t, sweep.states[t], problem.schedule(near, t), particles.data), sweep.states[t + 1]
            )
            for t in range(problem.stages)
        ]
    spread = float(expectation([torch.stack(spreads).sum()], len(particles))[0]) / h**2
    # Where J hardly bends, steps of many times the size of the controls are no better.
    return _rounded(max(curvature, _SHARE * slope / size)), _rounded(spread) if math.isfinite(spread) else 0.0


def _rounded(number: float) -> float:
    """To seven bits, so that a weight does not carry on the rounding of the differences it is made of."""
    mantissa, exponent = math.frexp(number)
    return math.ldexp(round(128 * mantissa) / 128, exponent)


def _moved(controls: Tree, direction: Tree, length: float) -> Tree:
    return tree.map(lambda u, v: u + length * v, controls, direction)


def _spread(x: Tree, y: Tree) -> Tensor:
    """E |x - y|^2 over this rank's particles."""
    pairs = [(a, b) for a, b in zip(tree.leaves(x), tree.leaves(y), strict=True) if tree.differentiable(a)]
    return torch.stack([(a - b).abs().square().sum() / len(a) for a, b in pairs]).sum()


def _minimise(sweep: Sweep, inner: Minimiser, penalty: Penalty | None) -> tuple[Tree, dict[str, int]]:
    """The minimisers of the augmented Hamiltonian, and what the search reports."""
    return _reported(*sweep.minimised(inner, penalty))


def _reported(moved: Tree, found: list[Minimum]) -> tuple[Tree, dict[str, int]]:
    return moved, {
        "inner_evaluations": sum(minimum.evaluations for minimum in found),
        "unbounded_stages": sum(int(minimum.unbounded.sum()) for minimum in found),
    }


def _check_second_order(problem: Problem, controls: Tree, particles: Particles) -> None:
    """Refuses a controlled diffusion for which the second-order adjoint is not held."""
    if not fits(particles) or coupling(problem, particles, controls=controls):
        raise InvalidValue(
            f"{_NEEDS_PENG} is held for independent particles of a state [N, d], d <= {WIDEST}, alone: {_CURE}"
        )


def _objective(problem: Problem, controls: Tree, particles: Particles) -> Tensor:
    with torch.no_grad():
        cost = rollout(problem, controls, particles).cost.mean()
    return penalised(problem, controls, expectation([cost], len(particles))[0])
