"""The solver ``DDP``: one backward sweep and one line search a step, each problem of the batch at its own pace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mfoc import tree
from mfoc.checks import check_flag, check_instance
from mfoc.distributed import alone
from mfoc.errors import InvalidType, InvalidValue
from mfoc.interacting import coupling
from mfoc.particles import Particles
from mfoc.pontryagin import evaluate, rollout
from mfoc.populations.whole import whole
from mfoc.printing import by_identity
from mfoc.problem import Problem
from mfoc.solvers.ddp.backward import Limits, Policy, best_policy, control_slopes
from mfoc.solvers.ddp.expansion import Slopes, check_curved, curvatures, slopes
from mfoc.solvers.ddp.forward import Nominal, Step, gap_size, search
from mfoc.solvers.ddp.lanes import Lanes
from mfoc.solvers.ddp.pace import Pace
from mfoc.solving import Info
from mfoc.tree import Tree

WIDEST = 200  # dimensions of the state of one problem: V_xx holds the square of it
_CLOSED = 1e3  # roundings that a gap may be of, and is closed


@by_identity
@dataclass(frozen=True, eq=False)
class DDP:
    """Differential dynamic programming, and iLQR: many problems in one batch.

    With a control for each particle (``Problem(per_particle=True)``) each particle is a problem of its own, with its
    own regularisation, step length and convergence. With a control shared by the cloud the cloud is one problem on the
    joint state, of at most 200 dimensions. A step is one iteration: derivatives at all stages of all problems at once,
    a backward sweep (Jacobson & Mayne 1970; Tassa, Erez, Todorov 2012), a line search on roll-outs under the feedback.
    Far from a solution the model of each problem is convex (iLQR); where a full step promises little it is exact, with
    the second derivatives of the dynamics, as long as some mu makes it convex in the controls. Q_uu is regularised by
    mu I. A ``Box`` is respected by a quadratic program at each stage (Tassa, Mansard, Todorov 2014).

    ``info.extra`` tells ``converged`` (problems whose next step is below rounding: they are not moved any more),
    ``regularisation`` (the largest mu), ``step_length`` (the shortest; 0 where a problem stayed), ``indefinite``
    (problems whose exact Q_uu + mu I was not positive definite at some stage, so that the convex model served),
    ``expected`` (what the full step changes J by, in the model), and ``gap`` (sum over stages of the states' gaps, the
    largest of a problem).

    The state after a step has ``"states"``, the trajectories as in ``Trajectory.states``, and ``"gains"``, the feedback
    K_t ``[N, m, n]`` of each stage (``[1, m, N n]`` on the joint state), around the trajectory before the step;
    ``mfoc.solvers.ddp.tracking`` makes them a policy.

    Attributes:
        second_order: use the second derivatives of the dynamics (DDP) near a solution, for quadratic convergence;
            without them it is iLQR, which has cheaper steps, and more of them.
        states: a guess of the trajectories, T+1 pytrees ``[N, ...]`` (the first is put at the particles): multiple
            shooting. The gaps between the guess and what the controls do are closed by the same steps (Mastalli et al.
            2020); until then J is that of the controls alone. None: start from the roll-out.

    Raises:
        InvalidType, InvalidValue: a field is not as said. ``step`` raises them for stages that share a control, bounds
            other than ``Box``, particles that interact under controls of their own, a state too large, several ranks,
            costs (with ``second_order`` dynamics, too) without second derivatives.
    """

    second_order: bool = True
    states: Sequence[Tree] | None = None

    respects_bounds: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_flag(second_order=self.second_order)
        if self.states is not None:
            check_instance(list | tuple, "T+1 pytrees, as Trajectory.states, or None", states=self.states)

    def init(self, problem: Problem, controls: Tree) -> Tree:
        """No trajectory but the guess, and no regularisation."""
        if self.states is not None and len(self.states) != problem.stages + 1:
            raise InvalidValue(f"states has {len(self.states)} entries; x_0..x_T are {problem.stages + 1}")
        problem.check_potential("DDP")
        guess = None if self.states is None else [tree.copy(x) for x in self.states]
        return {"states": guess, "gains": None, **Pace.unknown()}

    def step(self, problem: Problem, controls: Tree, state: Tree, particles: Particles) -> tuple[Tree, Tree, Info]:
        """One iteration; see ``mfoc.Solver``. Over ranks each of them makes it, on the particles of all."""
        particles = whole(particles)
        with alone():
            return self._step(problem, controls, state, particles)

    @torch.no_grad()
    def _step(self, problem: Problem, controls: Tree, state: Tree, particles: Particles) -> tuple[Tree, Tree, Info]:
        first = state["regularisation"] is None
        if first:
            _check(problem, controls, particles)
        lanes, at, found = self._look(problem, controls, state, particles)
        if first:
            check_curved(lanes, at.states, at.controls, exact=self.second_order)
        own = control_slopes(found)
        limits, pace = _limits(problem, at), Pace.of(state, at)
        info = _seen(problem, controls, particles, lanes, at, own)
        slope = _projected(own, limits)
        some = (~pace.done(slope, at)).nonzero()[:, 0]
        info.extra["converged"] = float(lanes.size - len(some))
        if not len(some):
            return controls, state, info
        exact = pace.near[some] & self.second_order
        curved = curvatures(lanes, at.states, at.controls, some, exact)
        part, within = at.of(some), None if limits is None else [(low[some], high[some]) for low, high in limits]
        mu = pace.regularisation[some]
        policy = best_policy(found.of(some), curved, part.gaps, within, mu, exact)
        weight = pace.weighed(some, policy, part)
        step = search(lanes, part, policy, within, some, weight)
        info.extra.update(_report(policy, step, mu, part))
        moved = [u.index_copy(0, some, new) for u, new in zip(at.controls, step.controls, strict=True)]
        states = [x.index_copy(0, some, new) for x, new in zip(at.states, step.states, strict=True)]
        after = {
            "states": [lanes.state(t, x) for t, x in enumerate(states)],
            "gains": _merged(state["gains"], policy.gains, some, lanes.size),
            **pace.after(some, policy, step.length, slope, weight, part),
        }
        new = tree.rebuild(controls, [leaf for t, u in enumerate(moved) for leaf in tree.leaves(lanes.control(t, u))])
        return new, after, info

    def _look(
        self, problem: Problem, controls: Tree, state: Tree, particles: Particles
    ) -> tuple[Lanes, Nominal, Slopes]:
        """The batch, its trajectories, and their first derivatives.

        Trajectories that are carried hold for these controls and particles where their gaps are closed, which the
        first derivatives show; without a guess of states there are no others.
        """
        states = state["states"]
        if self.states is None and states is not None and not _same(states[0], particles.state):
            states = None
        if states is not None:
            lanes, at, found = _along(problem, controls, [particles.state, *states[1:]], particles)
            if at.gaps is None or self.states is not None:
                return lanes, at, found
        return _along(problem, controls, rollout(problem, controls, particles).states, particles, exact=True)


def _along(
    problem: Problem, controls: Tree, states: list[Tree], particles: Particles, *, exact: bool = False
) -> tuple[Lanes, Nominal, Slopes]:
    lanes = Lanes.of(problem, controls, states, particles)
    xs = [lanes.flat(x) for x in states]
    us = [lanes.flat_control(problem.schedule(controls, t)) for t in range(problem.stages)]
    found = slopes(lanes, xs, us)
    gaps = None if exact else _gaps(found.moved, xs)
    return lanes, Nominal(xs, us, gaps, found.cost), found


def _gaps(moved: list[Tensor], xs: list[Tensor]) -> list[Tensor] | None:
    """f_t - x_(t+1) of each stage, zero where it is of the size of rounding; None where all are."""
    gaps, any_open = [], False
    for ahead, x in zip(moved, xs[1:], strict=True):
        size = 1 + x.abs().amax(1, keepdim=True)
        opened = (ahead - x).abs() > _CLOSED * torch.finfo(x.dtype).eps * size
        gaps.append(torch.where(opened.any(1, keepdim=True), ahead - x, 0.0))
        any_open = any_open or bool(opened.any())
    return gaps if any_open else None


def _same(left: Tree, right: Tree) -> bool:
    pairs = zip(tree.leaves(left), tree.leaves(right), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def _limits(problem: Problem, at: Nominal) -> Limits | None:
    """How far each control may step, ``[B, m]`` both ways; None where all are free."""
    if problem.region is None:
        return None
    sides = problem.region.limits(tree.leaves(problem.controls))
    parts = [side.reshape(-1, side.shape[-1]).split([u.shape[1] for u in at.controls], 1) for side in sides]  # type: ignore[no-untyped-call]
    return [(low - u, high - u) for low, high, u in zip(*parts, at.controls, strict=True)]


def _seen(problem: Problem, controls: Tree, particles: Particles, lanes: Lanes, at: Nominal, own: list[Tensor]) -> Info:
    """J and dJ/du at the controls; of the controls alone where the trajectories have gaps."""
    if at.gaps is not None:
        value, gradient = evaluate(problem, controls, particles)
        return Info(value, gradient, {})
    parts = [tree.leaves(lanes.control(t, g / lanes.size)) for t, g in enumerate(own)]
    return Info(at.cost.mean(), tree.rebuild(controls, [leaf for part in parts for leaf in part]), {})


def _projected(own: list[Tensor], limits: Limits | None) -> Tensor:
    """The norm of the gradient of each problem ``[B]``, without what presses a control against its bound."""
    if limits is not None:
        own = [torch.minimum(torch.maximum(-g, low), high) for g, (low, high) in zip(own, limits, strict=True)]
    return torch.stack([g.square().sum(1) for g in own]).sum(0).sqrt()


def _report(policy: Policy, step: Step, mu: Tensor, at: Nominal) -> dict[str, float]:
    return {
        "regularisation": float(mu.max()),
        "step_length": float(step.length.min()),
        "indefinite": float(policy.convex.sum()),
        "expected": float(policy.expected().sum()),
        "gap": 0.0 if at.gaps is None else float(gap_size(at.gaps).max()),
    }


def _merged(old: list[Tensor] | None, new: list[Tensor], some: Tensor, size: int) -> list[Tensor]:
    """The gains, those of some problems new."""
    if len(some) == size:
        return new
    old = [gain.new_zeros(size, *gain.shape[1:]) for gain in new] if old is None else old
    return [gain.index_copy(0, some, part) for gain, part in zip(old, new, strict=True)]


def _check(problem: Problem, controls: Tree, particles: Particles) -> None:
    """Refuses what DDP cannot solve; asked at the first step."""
    if not problem.per_stage:
        raise InvalidValue("the stages share their control and DDP needs one of its own for each; use NewtonCG")
    if problem.region is not None:
        try:
            problem.limits(0)
        except InvalidValue as error:
            raise InvalidValue(f"{error}; DDP knows boxes only: use EMSA") from error
    if any(not leaf.numel() for leaf in tree.leaves(controls)) or not all(map(tree.leaves, controls)):
        raise InvalidValue("a stage has no control; DDP needs one at each: use NewtonCG")
    for name, leaf in tree.named_leaves(controls, "controls"):
        if torch.finfo(leaf.dtype).bits < 32:
            raise InvalidType(f"{name} is {leaf.dtype}; DDP factorises matrices, which takes float32 or float64")
    n = sum(leaf[0].numel() for leaf in tree.leaves(particles.state)) * (1 if problem.per_particle else len(particles))
    if n > WIDEST:
        joint = "" if problem.per_particle else f"the joint state of {len(particles)} particles, "
        raise InvalidValue(
            f"a state of {n} dimensions ({joint}V_xx holds {n} x {n} numbers a stage) is too large for DDP, which goes "
            f"to {WIDEST}; use NewtonCG"
        )
    if problem.per_particle and (found := coupling(problem, particles, controls=controls)):
        where = found.elsewhere or "the population's law"
        raise InvalidValue(
            f"the particles interact ({where}) and each has a control of its own: they are no separate problems, which "
            "DDP needs; use NewtonCG"
        )
