"""A head with a control of its own: the readout of a recurrent network, the last layer of a neural ODE.

A terminal cost sees the last state and the data, no control. What is read out of the last state by weights that are
solved for is one more stage, y = head(x_T, v, z), and the terminal cost is that of y.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mfoc import tree
from mfoc.bounds import region
from mfoc.bounds.region import Bounds
from mfoc.checks import check_callable, check_instance, check_signature, kind_of
from mfoc.constraints import Constraint, Equality
from mfoc.errors import InvalidType, InvalidValue
from mfoc.networks.inspection import is_affine, mixes, refuse_unfit
from mfoc.networks.problem import NetworkProblem
from mfoc.networks.stages import Stage
from mfoc.particles import Particles
from mfoc.policies.problem import Feedback
from mfoc.problem import Problem, RunningCost, per_stage
from mfoc.tree import Tree

Head = Callable[[Tree, Tree, Tree], Tree]


@dataclass(frozen=True, eq=False, repr=False)
class WithHead(Problem):
    """A problem whose last stage is a head, as ``with_head`` returns it.

    Attributes:
        headless: the problem it was given to.
    """

    headless: Problem | None = None

    def validate(self, particles: Particles, controls: Tree | None = None) -> None:
        """As ``Problem.validate``; of a feedback its problem in u must treat its control row by row, too.

        Raises:
            InvalidType, InvalidValue: as ``Problem.validate``, and as that of ``mfoc.feedback``.
        """
        super().validate(particles, controls)
        self.check_rows(particles)

    def check_rows(self, particles: Particles) -> None:
        """See ``validate``."""
        if isinstance(self.headless, Feedback | WithHead):
            self.headless.check_rows(particles)


def with_head(
    problem: Problem,
    head: Head | nn.Module,
    control: Tree = None,
    *,
    running_cost: RunningCost | None = None,
    bounds: Bounds = None,
) -> WithHead:
    """The problem with one more, last stage y = head(x_T, v, z); its terminal cost is evaluated on y.

    A neural ODE with a linear readout, whose weights are ``controls[-1]``; and a recurrent cell, tied over time, with
    one of one's own, ``controls["head"]``::

        problem = mfoc.with_head(mfoc.continuous(drift, loss, controls), nn.Linear(8, 2))
        problem = mfoc.with_head(cell, lambda h, v, z: h @ v["W"] + v["b"], {"W": W, "b": b})

    Args:
        problem: a problem whose terminal cost takes what the head returns. Its running cost, noise and path constraints
            are those of its own stages; the head's stage has none of them.
        head: ``head(x, v, z) -> y`` with leading axis N, or a module, called as ``head(x)`` or ``head(x, z=z)``: its
            parameters are the control, and begin at their values. A module is copied, never changed; read it back with
            ``head.load_state_dict(solution.controls[-1], strict=False)``.
        control: the initial guess of v; None for a module. ``{}`` for a head without a control.
        running_cost: ``L(t, x, v, z) -> [N]`` of the head's stage, as ``mfoc.weight_decay(1e-4)``.
        bounds: where v may lie; see ``mfoc.Problem``. Weights of a module outside start from the nearest ones inside.

    Returns:
        A problem of one more stage. Its controls are ``[*controls, v]`` where each stage has its own, else
        ``{"stages": controls, "head": v}``.

    Raises:
        InvalidType: a game or an equilibrium, which are made of the problem with its head; or no such head.
        InvalidValue: a function without a control or a module with one, constraints on the last state, a module's
            weights where each particle has a control of its own, or what ``from_module`` refuses in a module.
    """
    _check(problem, head, control)
    check_callable("a function L(t, x, v, z)", optional=True, running_cost=running_cost)
    lead = int(problem.per_particle)
    affine, interacting = False, problem.interacting
    if isinstance(head, nn.Module):
        stage = Stage("head", head)
        control, affine = stage.controls(), is_affine(head)
        if bounds is not None:
            control = region(bounds, control).project(control)
        if any(mixes(part) for part in head.modules()):
            interacting = "batch"  # normalised by the statistics of the batch, it is a population of its own
        head = stage
    made = _Headed(problem, head, running_cost, object())
    own = None if bounds is None else tree.rebuild(control, region(bounds, control, lead=lead).sets)
    free = [None] * problem.stages if problem.per_stage else None
    before = free if problem.region is None else tree.rebuild(problem.controls, problem.region.sets)
    bounded = bounds is not None or problem.region is not None
    some_affine = affine or problem.affine is not None
    costs = running_cost is not None or problem.running_cost is not None
    return WithHead(
        made.dynamics,
        problem.terminal_cost,
        made.joined(problem.controls, control),
        running_cost=made.running_cost if costs else None,
        horizon=problem.stages + 1,
        schedule=per_stage if problem.per_stage else made.schedule,
        kind=None if problem.kind is None else made.kind,
        affine=made.affine(affine) if some_affine else None,
        noise=None if problem.noise is None else made.noise,
        interacting=interacting,
        bounds=made.joined(before, own) if bounded else None,
        per_particle=problem.per_particle,
        path=[made.constraint(each) for each in problem.path_constraints] or None,
        headless=problem,
    )


def _check(problem: Any, head: Any, control: Any) -> None:
    check_instance(Problem, "mfoc.Problem", problem=problem)
    if type(problem) not in (Problem, NetworkProblem, WithHead, Feedback):
        raise InvalidType(
            f"problem is {kind_of(problem)}; expected a plain mfoc.Problem: give that one its head first, and make the "
            "richer problem of what mfoc.with_head returns"
        )
    if problem.terminal_constraints:
        raise InvalidValue(
            "terminal constraints are on the last state, which is now the head's output: leave terminal= out, and "
            "dataclasses.replace(mfoc.with_head(...), terminal=mfoc.Inequality(c)) constrains the output, c(y, z)"
        )
    if isinstance(head, type):
        raise InvalidType(f"head is the class {head.__name__}; make an instance, {head.__name__}(...)")
    if not isinstance(head, nn.Module):
        check_callable("a module, or a function head(x, v, z)", head=head)
        check_signature(("x", "u", "z"), synonyms={"v": "u"}, head=head)
        if control is None:
            raise InvalidValue("control is missing: pass the initial guess of v in head(x, v, z), a tensor or a tree")
        return
    refuse_unfit(head)
    if control is not None:
        raise InvalidValue("control was given with a module, whose parameters are the control; leave it out")
    if problem.per_particle:
        raise InvalidValue(
            "each particle has a control of its own (per_particle=True) and a module's weights are shared: pass a "
            "function head(x, v, z) of rows v [N, ...]"
        )


@dataclass(frozen=True, eq=False)
class _Headed:
    """The functions of a problem with a head."""

    problem: Problem
    head: Head
    head_cost: RunningCost | None
    name: object  # the kind of its stage

    @property
    def last(self) -> int:
        """The head's stage."""
        return self.problem.stages

    def joined(self, stages: Tree, head: Tree) -> Tree:
        """What belongs to the stages and to the head, as the controls are joined."""
        if self.problem.per_stage:
            return [*stages, head]
        return {"stages": stages, "head": head}

    def schedule(self, controls: Tree, t: int) -> Tree:
        """Where the stages share their control."""
        return controls["head"] if t == self.last else self.problem.schedule(controls["stages"], t)

    def dynamics(self, t: int, x: Tree, u: Tree, z: Tree) -> Tree:
        """f_t, and at last the head."""
        return self.head(x, u, z) if t == self.last else self.problem.dynamics(t, x, u, z)

    def running_cost(self, t: int, x: Tree, u: Tree, z: Tree) -> Tensor:
        """L_t ``[N]``, zero where there is none."""
        cost = self.head_cost if t == self.last else self.problem.running_cost
        if cost is not None:
            return cost(t, x, u, z)
        like: Tensor = (tree.tensors(x) or tree.tensors(u) or [torch.zeros((), device="cpu")])[0]
        first: Tensor = tree.leaves(x)[0]
        return like.new_zeros(len(first), device=first.device)

    def noise(self, t: int, x: Tree, u: Tree, z: Tree) -> Tensor:
        """The noise in f_t ``[N, d]``; a head has none."""
        assert self.problem.noise is not None
        if t < self.last:
            return self.problem.noise(t, x, u, z)
        with torch.no_grad():
            return torch.zeros_like(tree.tensors(self.head(x, u, z))[0])

    def kind(self, t: int) -> Hashable:
        """The head is like no other stage."""
        assert self.problem.kind is not None
        return self.name if t == self.last else self.problem.kind(t)

    def affine(self, head: bool) -> Callable[[int], bool]:
        """Whether a stage is affine in the state; ``head`` says it of the head."""
        own = self.problem.affine
        return lambda t: head if t == self.last else own is not None and own(t)

    def constraint(self, constraint: Constraint) -> Constraint:
        """A constraint along the path: at the head's stage it holds whatever the state.

        All stages have as many numbers: those of the stage before, taken at the problem's own control, say how many.
        """
        slack = 0.0 if isinstance(constraint, Equality) else -1.0

        def function(t: int, x: Tree, u: Tree, z: Tree) -> Tensor:
            if t < self.last:
                return constraint.function(t, x, u, z)
            before = self.problem.schedule(self.problem.controls, self.last - 1)
            with torch.no_grad():
                return torch.full_like(constraint.function(self.last - 1, x, before, z), slack)

        return replace(constraint, function=function)
