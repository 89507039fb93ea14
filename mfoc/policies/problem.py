"""A problem in u as a problem in the parameters of a policy, and the solved policy read back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor, nn

from mfoc import printing, tree
from mfoc import problem as problems
from mfoc.checks import check_flag, check_instance, kind_of
from mfoc.errors import InvalidType, InvalidValue
from mfoc.networks.inspection import mixes, refuse_unfit
from mfoc.networks.readout import place
from mfoc.networks.stages import Stage
from mfoc.particles import Particles
from mfoc.policies.modules import Policy, Timed, takes_time
from mfoc.policies.rows import check_rows
from mfoc.problem import HasControls, Problem, controls_of
from mfoc.tree import Tree


@dataclass(frozen=True, eq=False, repr=False)
class Feedback(Problem):
    """A problem whose controls are the parameters of a policy, as ``feedback`` returns it.

    Attributes:
        open_loop: the problem that is controlled.
        policy: the module given to ``feedback``.
    """

    open_loop: Problem | None = None
    policy: nn.Module | None = None

    def validate(self, particles: Particles, controls: Tree | None = None) -> None:
        """As ``Problem.validate``; and the problem in u must treat its control row by row.

        Raises:
            InvalidType, InvalidValue: as ``Problem.validate``; or dynamics or costs say something else of a control
                that all particles share than of equal rows for all of them.
        """
        super().validate(particles, controls)
        self.check_rows(particles)

    def check_rows(self, particles: Particles) -> None:
        """Refuses a problem in u that does not treat its control row by row.

        Raises:
            InvalidValue: it does not.
        """
        if self.open_loop is not None and not self.open_loop.per_particle:
            check_rows(self.open_loop, particles)


def feedback(problem: Problem, policy: nn.Module, *, per_stage: bool = False) -> Feedback:
    """The problem of controlling by a policy: its controls are the policy's parameters.

    A network, and a policy that is linear in features::

        problem = mfoc.feedback(problem, nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1)))
        problem = mfoc.feedback(problem, mfoc.linear_policy(lambda x: x, torch.zeros(1, 2)), per_stage=True)

    Class of control: feedback u(t, x), or u(t, x, law) where the policy uses ``mfoc.mean``, of the policy's family. Any
    solver solves it. MSA minimises H in the parameters, which the optimum need not do where they are tied or the family
    is not convex; Gradient, EMSA and NewtonCG lower J.

    Args:
        problem: a problem whose dynamics and costs take a control of one row a particle, u ``[N, ...]``, whatever its
            own controls are (they are left out). Where those are shared, both are asked to say the same of equal rows,
            when it is solved: a cost such as ``u.square().sum()`` is refused, ``u.square().sum(-1)`` is right.
        policy: a module called as ``policy(x)`` or ``policy(t, x)``, by how many arguments its forward pass needs, that
            returns u for the states x ``[N, ...]`` (a pytree where the state is one). t is the share of the stages
            that has passed, in [0, 1). It is copied, never changed; its training mode is kept.
        per_stage: parameters of their own for each stage, all begun at the policy's; else one set for all stages.

    Returns:
        The problem; ``policy_of(problem, solution)`` reads the policy back. With batch norm in training mode each batch
        of particles is a population of its own, ``interacting="batch"``.

    Raises:
        InvalidType: ``problem`` is no plain problem, or ``policy`` no module of one or two arguments.
        InvalidValue: bounds on u, which only the policy itself can keep; or a policy that draws random numbers, is
            lazy, shares parameters or has none that require grad.
    """
    check_instance(Problem, "mfoc.Problem", problem=problem)
    check_flag(per_stage=per_stage)
    if type(problem) is not Problem:
        raise InvalidType(
            f"problem is {kind_of(problem)}; expected a plain mfoc.Problem: take the feedback of that "
            "one first, and make the richer problem of what mfoc.feedback returns"
        )
    if isinstance(problem.controls, dict) and problem.controls.keys() == {"controls", "T"}:
        raise InvalidValue(
            "the end time of problem is solved for (FreeTime), and a policy gives controls alone: fix it, T=..."
        )
    if problem.bounds is not None:
        raise InvalidValue(
            f"bounds is {problem.bounds}, on u, and controls are now the policy's parameters: leave bounds out and let "
            "the policy end in what keeps them (nn.Hardtanh, nn.Sigmoid, nn.Softmax, ...)"
        )
    check_instance(nn.Module, "a torch.nn.Module, mfoc.linear_policy(features, weight) for one", policy=policy)
    refuse_unfit(policy)
    run = _Run.of(policy, problem.stages)
    weights = run.parameters()
    if not weights:
        raise InvalidValue("policy has no parameter that requires grad; there is nothing to solve for")
    loop = _ClosedLoop(problem, run)
    # Normalised by the statistics of the batch, the particles of a batch are a population of their own.
    own_batch = any(mixes(part) for part in policy.modules())
    stages = range(problem.stages)
    return Feedback(
        loop.dynamics,
        problem.terminal_cost,
        [tree.copy(weights) for _ in stages] if per_stage else weights,
        running_cost=None if problem.running_cost is None else loop.running_cost,
        horizon=problem.stages,
        schedule=problems.per_stage if per_stage else problems.tied,
        kind=None if run.timed else problem.kind,
        noise=None if problem.noise is None else loop.noise,
        interacting="batch" if own_batch else problem.interacting,
        terminal=problem.terminal,
        path=[replace(each, function=loop.constraint(each.function)) for each in problem.path_constraints] or None,
        open_loop=problem,
        policy=policy,
    )


def policy_of(problem: Feedback, solution: HasControls | Tree) -> Policy:
    """The solved policy.

    Args:
        problem: what ``feedback`` returned.
        solution: a solution or iterate of it, or controls.

    Returns:
        A module, called with the stage t and states x ``[N, ...]``; ``policy.networks[0]`` is a copy of the module that
        ``feedback`` was given, with the controls as its parameters (``policy.networks[t]`` if each stage has its own).

    Raises:
        InvalidType: ``problem`` has no policy, or ``solution`` no controls.
        InvalidValue: the controls are not of this problem.
    """
    check_instance(Feedback, "what mfoc.feedback returns", problem=problem)
    assert problem.policy is not None
    controls = controls_of(solution)
    if not tree.same_structure(controls, problem.controls):
        raise InvalidValue("solution holds controls of another structure than the problem's: it is of another problem")
    networks = []
    for weights in controls if problem.per_stage else [controls]:
        network = copy.deepcopy(problem.policy)
        place(network, weights)
        networks.append(network)
    return Policy(networks, problem.stages)


@dataclass(frozen=True, eq=False)
class _Run:
    """The policy at given parameters."""

    stage: Stage
    timed: bool
    stages: int

    @classmethod
    def of(cls, policy: nn.Module, stages: int) -> _Run:
        """A private copy of the policy, for a problem of so many stages."""
        timed = takes_time(policy)
        return cls(Stage("policy", Timed(policy) if timed else policy), timed, stages)

    def parameters(self) -> dict[str, Tensor]:
        """Those it begins with, by their names in the policy."""
        return {key.removeprefix("net.") if self.timed else key: own for key, own in self.stage.controls().items()}

    def __call__(self, t: int, x: Tree, theta: dict[str, Tensor]) -> Tree:
        try:
            if self.timed:
                u = self.stage((t / self.stages, x), {f"net.{key}": own for key, own in theta.items()}, None)
            else:
                u = self.stage(x, theta, None)
        except RuntimeError as error:
            raise InvalidValue(f"the policy failed on states {printing.short(x)}: {error}") from error
        n = len(tree.leaves(x)[0])
        for name, leaf in tree.named_leaves(u, "u"):
            if leaf.dim() == 0 or len(leaf) != n:
                raise InvalidValue(
                    f"the policy returned {name} of shape {tuple(leaf.shape)}; expected one row a particle, [{n}, ...]"
                )
        return u


@dataclass(frozen=True, eq=False)
class _ClosedLoop:
    """The functions of a problem whose control is what a policy says."""

    problem: Problem
    run: _Run

    def dynamics(self, t: int, x: Tree, u: Tree, z: Tree) -> Tree:
        """f_t at the policy's control; ``u`` holds the policy's parameters, here and below."""
        return self.problem.dynamics(t, x, self.run(t, x, u), z)

    def running_cost(self, t: int, x: Tree, u: Tree, z: Tree) -> Tensor:
        """L_t at the policy's control ``[N]``."""
        assert self.problem.running_cost is not None
        return self.problem.running_cost(t, x, self.run(t, x, u), z)

    def noise(self, t: int, x: Tree, u: Tree, z: Tree) -> Tensor:
        """The noise in f_t at the policy's control ``[N, d]``."""
        assert self.problem.noise is not None
        return self.problem.noise(t, x, self.run(t, x, u), z)

    def constraint(self, function: Callable[..., Tensor]) -> Callable[[int, Tree, Tree, Tree], Tensor]:
        """A constraint c(t, x, u, z) at the policy's control."""
        return lambda t, x, u, z: function(t, x, self.run(t, x, u), z)
