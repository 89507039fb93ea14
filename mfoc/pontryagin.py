"""Pontryagin's minimum principle for a mean-field control problem.

    H_t(x, p, u, z) = L_t(x, u, z) + <p, f_t(x, u, z)>
    p_T = dPhi/dx,      p_t = dH_t/dx (x_t, p_(t+1), u_t)
    u_t minimises E_rho H_t(x_t, p_(t+1), .)

The minimum convention of Liu & Theodorou (2019), arXiv:1908.10920, sec. 3: p is the gradient of the cost-to-go.
For interacting problems p_t(i) = N dJ/dx_t(i), where J is the cloud's mean cost; dJ/du_t = E dH_t/du_t always.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mfoc import tree
from mfoc.checks import check_instance, check_plain
from mfoc.derivatives import gradients, tree_gradients
from mfoc.distributed import active, average, expectation
from mfoc.errors import InvalidValue
from mfoc.particles import Particles
from mfoc.populations import as_particles
from mfoc.printing import by_identity, short
from mfoc.problem import Averaged, HasControls, Problem, controls_for
from mfoc.segments import check_recompute, recomputed, swept
from mfoc.tree import Tree
from mfoc.validation import check_cost


@by_identity
class Trajectory(NamedTuple):
    """A rolled-out cloud.

    Attributes:
        states: T+1 pytrees, each ``[N, ...]``.
        cost: total cost per particle ``[N]``.
    """

    states: list[Tree]
    cost: Tensor

    def plot(self, labels: Tensor | None = None) -> Any:
        """A figure of the cloud as it moves, at five stages, and of its law: mean and spread at every stage.

        States of two numbers are seen as they are, wider ones in the plane of their two first principal components (of
        all stages together where they are equally wide). Of a tree of tensors the law of each leaf is drawn.

        Args:
            labels: classes, or numbers, ``[N]`` for the colours.

        Raises:
            InvalidType, InvalidValue: labels that are not one for each particle, states without tensors, no particle.
            MissingExtra: matplotlib is not installed.
        """
        from mfoc.drawing import clouds

        clouds.check_states(self.states, len(self.cost))
        clouds.check_labels(labels, len(self.cost))
        return clouds.trajectory(self.states, labels)

    def __repr__(self) -> str:
        return (
            f"Trajectory({len(self.states)} states of {len(self.cost)} particles, from {short(self.states[0])} to "
            f"{short(self.states[-1])}; mean cost {float(self.cost.detach().mean()):.6g})"
        )


@by_identity
class Evaluation(NamedTuple):
    """The objective and its gradient at one control.

    Attributes:
        value: J, a scalar tensor; with the penalty, where the problem's bounds are one (``L1``).
        gradient: dJ/du, shaped as the controls, without that of a penalty.
    """

    value: Tensor
    gradient: Tree

    def __repr__(self) -> str:
        return f"Evaluation(J = {float(self.value):.6g}, ||dJ/du|| = {float(tree.norm(self.gradient)):.3g})"


def rollout(problem: Problem, controls: HasControls | Tree, particles: Any) -> Trajectory:
    """Runs the dynamics forward.

    Args:
        problem: the control problem.
        controls: controls shaped as ``problem.controls``, or a solution or iterate that has them.
        particles: the cloud, N particles; or what ``mfoc.population`` takes, all of it.

    Returns:
        The states x_0..x_T and the cost of each particle ``[N]``; differentiable in controls and states.

    Raises:
        InvalidType: no problem, no controls, or nothing a population can be made of.
        InvalidValue: a cost is not ``[N]``, or the controls are not T.
    """
    check_instance(Problem, "mfoc.Problem", problem=problem)
    particles, controls = as_particles(particles), controls_for(problem, controls)
    problem.check_stages(controls)
    return rollout_from(problem, controls, 0, particles.state, particles.data)


def rollout_from(problem: Problem, controls: Tree, stage: int, x: Tree, z: Tree = None) -> Trajectory:
    """Runs the dynamics forward from the states x ``[N, ...]`` that enter a later stage: its cost is the cost-to-go."""
    states, running = _stages_from(problem, controls, stage, x, z)
    return Trajectory(states, _whole_cost(problem, states, z, running))


def mean_cost(problem: Problem, controls: Tree, particles: Particles) -> Tensor:
    """This rank's mean of the cost: by the terminal cost's own mean, where it is ``Averaged``, which is cheaper."""
    problem.check_stages(controls)
    states, running = _stages_from(problem, controls, 0, particles.state, particles.data)
    terminal, z = problem.terminal_cost, particles.data
    at_once = terminal.mean(states[-1], z) if isinstance(terminal, Averaged) else None
    if at_once is None:
        return _whole_cost(problem, states, z, running).mean(-1)
    return at_once if running is None else running.mean(-1) + at_once


def _stages_from(problem: Problem, controls: Tree, stage: int, x: Tree, z: Tree) -> tuple[list[Tree], Tensor | None]:
    """The states from x on, and the sum of the running costs ``[N]``; None where there are none."""
    states, total = [x], None
    n = len(tree.leaves(x)[0])
    for t in range(stage, problem.stages):
        u = problem.schedule(controls, t)
        if problem.running_cost is not None:
            cost = problem.running_cost(t, x, u, z)
            check_cost(cost, n, f"stage {t}: running_cost")
            total = cost if total is None else total + cost
        x = problem.dynamics(t, x, u, z)
        states.append(x)
    return states, total


def _whole_cost(problem: Problem, states: list[Tree], z: Tree, running: Tensor | None) -> Tensor:
    """The cost of each particle ``[N]``, as many as entered, with its running costs."""
    cost = problem.terminal_cost(states[-1], z)
    check_cost(cost, len(tree.leaves(states[0])[0]), "terminal_cost")
    return cost if running is None else running + cost


def hamiltonian(problem: Problem, t: int, x: Tree, p: Tree, u: Tree, z: Tree = None) -> Tensor:
    """H_t(x, p, u, z) = L_t(x, u, z) + <p, f_t(x, u, z)> for each particle.

    Args:
        problem: the control problem.
        t: the stage.
        x: states x_t ``[N, ...]``.
        p: costates p_(t+1), shaped as the state at stage t+1.
        u: the control u_t.
        z: data ``[N, ...]``.

    Returns:
        The Hamiltonian ``[N]``.

    Raises:
        InvalidType: no problem, or x, p or u hold something else than tensors.
        InvalidValue: p is shaped otherwise than the state at stage t+1.
    """
    check_instance(Problem, "mfoc.Problem", problem=problem)
    for name, part in {"x": x, "p": p, "u": u}.items():
        for label, leaf in tree.named_leaves(part, name):
            check_plain("a tensor with data", **{label: leaf})
    moved = problem.dynamics(t, x, u, z)
    given, own = tree.leaves(p), tree.leaves(moved)
    if [leaf.shape for leaf in given] != [leaf.shape for leaf in own]:
        raise InvalidValue(f"p is {tree.describe(p)}; expected the shape of the next state, {tree.describe(moved)}")
    return _hamiltonian(problem, t, x, p, u, z, moved)


def hamiltonian_and_next(problem: Problem, t: int, x: Tree, p: Tree, u: Tree, z: Tree) -> tuple[Tensor, Tree]:
    """H_t ``[N]`` and f_t, from one evaluation of the dynamics; see ``hamiltonian``."""
    moved = problem.dynamics(t, x, u, z)
    return _hamiltonian(problem, t, x, p, u, z, moved), moved


def _hamiltonian(problem: Problem, t: int, x: Tree, p: Tree, u: Tree, z: Tree, moved: Tree) -> Tensor:
    value = tree.dot(moved, p)
    return value if problem.running_cost is None else value + problem.running_cost(t, x, u, z)


def adjoint(problem: Problem, controls: Tree, trajectory: Trajectory, particles: Particles) -> tuple[list[Tree], Tree]:
    """The backward sweep: costates and the gradient of J.

    Stages are evaluated again at the states of the trajectory, about sqrt(T) at a time, and the sweep holds the
    intermediate values of as many (activation checkpointing). The gradient is that of this rank's particles only.
    The states need not be those that the controls lead to.
    """
    return swept(problem, controls, trajectory.states, particles)


def pull_back(problem: Problem, controls: Tree, by_stage: list[Tree]) -> Tree:
    """The gradient in ``controls`` of a function whose gradients in u_0..u_(T-1) are given."""
    if problem.per_stage:
        return tree.rebuild(controls, tree.leaves(by_stage))
    with torch.enable_grad():
        free = tree.detached(controls, requires_grad=True)
        staged = [problem.schedule(free, t) for t in range(problem.stages)]
        pairs = zip(tree.tensors(staged), tree.tensors(by_stage), strict=True)
        return tree_gradients(torch.stack([(leaf * slope).sum() for leaf, slope in pairs]).sum(), [free])[0]


def costates(problem: Problem, controls: HasControls | Tree, trajectory: Trajectory, particles: Any) -> list[Tree]:
    """The costates p_0..p_T along a trajectory.

    Args:
        problem: the control problem.
        controls: the controls of the trajectory, or a solution or iterate that has them.
        trajectory: what ``rollout`` returned.
        particles: the cloud, or what ``mfoc.population`` takes, all of it.

    Returns:
        T+1 pytrees shaped as the states; p_t(i) = N dJ/dx_t(i). Leaves that are not floating point get zeros.

    Raises:
        InvalidType: no problem, no controls, no trajectory.
        InvalidValue: controls of another problem, or a trajectory of other particles or of another horizon.
    """
    check_instance(Problem, "mfoc.Problem", problem=problem)
    check_instance(Trajectory, "what mfoc.rollout returns", trajectory=trajectory)
    particles, controls = as_particles(particles), controls_for(problem, controls)
    _check_trajectory(problem, trajectory, particles)
    return adjoint(problem, controls, trajectory, particles)[0]


def _check_trajectory(problem: Problem, trajectory: Trajectory, particles: Particles) -> None:
    """Refuses a trajectory that is not of these particles in this problem."""
    states = trajectory.states
    if not isinstance(states, list | tuple) or len(states) != problem.stages + 1:
        raise InvalidValue(f"trajectory holds no {problem.stages + 1} states; expected what rollout returned")
    for t, x in enumerate(states):
        for label, leaf in tree.named_leaves(x, f"trajectory.states[{t}]"):
            if leaf.dim() == 0 or len(leaf) != len(particles):
                raise InvalidValue(
                    f"{label} has shape {tuple(leaf.shape)} and there are {len(particles)} particles; expected the "
                    "particles that the trajectory is of"
                )


def evaluate(
    problem: Problem, controls: HasControls | Tree, particles: Any, *, recompute: bool | int = False
) -> Evaluation:
    """J and dJ/du over the population: one forward and one backward pass.

    Args:
        problem: the control problem.
        controls: where to evaluate; or a solution or iterate that has them.
        particles: the cloud (this rank's share), or what ``mfoc.population`` takes, all of it.
        recompute: keep a few states only and evaluate the stages between them again on the way back: at most one more
            forward pass. True: sqrt(T) stages at a time, which is the memory of about as many stages and as many
            states. An integer: that many stages at a time; 1 is best where a stage holds far more than sqrt(T) states.

    Returns:
        The value, a scalar, and the gradient shaped as the controls; expectations are over all ranks.

    Raises:
        InvalidType: no problem, no controls, or ``recompute`` is neither a flag nor an integer.
        InvalidValue: it is an integer below 1.
    """
    check_instance(Problem, "mfoc.Problem", problem=problem)
    check_recompute(recompute)
    particles, controls = as_particles(particles), controls_for(problem, controls)
    free = [tree.free(leaf) for leaf in tree.leaves(controls)]
    value, slopes = value_and_slopes(problem, tree.rebuild(controls, free), free, particles, recompute=recompute)
    return Evaluation(value, tree.rebuild(controls, slopes))


def mean_and_slopes(cost: Tensor, inputs: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """This rank's mean of a cost ``[..., N]`` and its gradient (of the sum of means): what ``expectation`` takes.

    Over ranks the sum over the particles is differentiated and divided after, not the mean: through the law of the
    population (``mfoc.mean``) gradients flow between ranks, and would be weighed by the size of the wrong one's share.
    """
    mean = cost.mean(-1)
    if not active():
        return mean, gradients(mean, inputs)
    return mean, [slope / cost.shape[-1] for slope in gradients(cost, inputs)]


def value_and_slopes(
    problem: Problem, controls: Tree, leaves: list[Tensor], particles: Particles, *, recompute: bool | int = False
) -> tuple[Tensor, list[Tensor]]:
    """``evaluate`` where the controls are made of these leaves, which require grad: the hot path of ``Gradient``."""
    if recompute:
        cost, slopes = recomputed(problem, controls, particles, recompute)
        value, *slopes = expectation([cost.mean().detach(), *slopes], len(particles))
    elif active():
        value, slopes = _over_ranks(problem, controls, leaves, particles)
    else:
        with torch.enable_grad():
            value = mean_cost(problem, controls, particles)
            slopes = gradients(value, leaves)
        value = value.detach()
    return value if problem.region is None else penalised(problem, controls, value), slopes


def _over_ranks(
    problem: Problem, controls: Tree, leaves: list[Tensor], particles: Particles
) -> tuple[Tensor, list[Tensor]]:
    """J and its gradient, in one reduction; sums are differentiated, not means (see ``mean_and_slopes``).

    A terminal cost that knows its mean (``Averaged``) is asked for this rank's, and for the weight that it has in that
    of all: a loss that ignores some targets divides by the others, of which each rank has its own number.
    """
    n, terminal, z = len(particles), problem.terminal_cost, particles.data
    with torch.enable_grad():
        problem.check_stages(controls)
        states, running = _stages_from(problem, controls, 0, particles.state, z)
        at_once = weight = None
        if running is None and isinstance(terminal, Averaged):
            weight = terminal.weight(states[-1], z)
            at_once = None if weight is None else terminal.mean(states[-1], z)
        if at_once is None or weight is None:
            cost = _whole_cost(problem, states, z, running)
            mean, weight, slopes = cost.mean(-1), n, gradients(cost, leaves)
        else:
            mean = at_once
            slopes = gradients([mean], leaves, [torch.as_tensor(weight, dtype=mean.dtype, device=mean.device)])
    wide = mean.detach().to(torch.promote_types(mean.dtype, torch.float32))
    total = torch.where(torch.as_tensor(weight, device=wide.device) > 0, wide * weight, 0)  # a mean of none is NaN
    value, *slopes = average([total, *slopes], weight)
    return value.to(mean.dtype), slopes


@torch.no_grad()
def penalised(problem: Problem, controls: Tree, value: Tensor) -> Tensor:
    """J with the penalty that ``Problem.bounds`` may hold."""
    penalty = None if problem.region is None else problem.region.penalty(controls)
    return value if penalty is None else value + penalty
