"""Whether a value function is that of a problem: its gradient along optimal paths is the costate.

Along an optimal path of a deterministic problem p_t = dV/dx(t, x_t), where V is differentiable: Fleming & Soner,
"Controlled Markov Processes and Viscosity Solutions" (2006), sec. I.6. With bounds on the control too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mfoc import tree
from mfoc.checks import check_instance, check_integer
from mfoc.errors import InvalidType, InvalidValue
from mfoc.hjb.bellman import Bellman, check_controls, interacts
from mfoc.hjb.paths import follow, per_particle
from mfoc.hjb.value import GridValue, Value
from mfoc.pontryagin import costates, rollout
from mfoc.populations import as_particles
from mfoc.problem import Problem


@dataclass(frozen=True, eq=False)
class Verification:
    """What ``verify`` found.

    Attributes:
        value: V(0, x_0) ``[N]``; None where the particles interact.
        cost: what the policy pays from the same states ``[N]``, on one path of the noise each; None likewise.
        gradient_error: the largest ``|dV/dx - p|`` at each stage, in units of the largest ``|p|`` there ``[T+1]``; None
            where it does not apply.
        why: why it does not apply; empty where it does.
        outside: share of the states of all paths that are off the grid.
    """

    value: Tensor | None
    cost: Tensor | None
    gradient_error: Tensor | None
    why: str
    outside: float

    def plot(self) -> Any:
        """A figure of what each path pays against V(0, x_0), and of the error of the gradient by stage.

        Raises:
            InvalidValue: the particles interact, so that there is nothing to compare.
            MissingExtra: matplotlib is not installed.
        """
        from mfoc.drawing.fields import beside

        if self.value is None or self.cost is None:
            raise InvalidValue(f"there is nothing to draw: {self.why}")
        labels = "value V(0, $x_0$)", "cost of the policy's path"
        return beside(self.value, self.cost, labels, "verification of a value function", self.gradient_error)

    def __repr__(self) -> str:
        lines = []
        if self.value is not None and self.cost is not None:
            gap = self.cost - self.value
            spread = f" +- {float(gap.std() / len(gap) ** 0.5):.2g}" if len(gap) > 1 else ""
            off = f"; {self.outside:.1%} of the states are off the grid" if self.outside else ""
            lines.append(
                f"Verification: mean V(0, x0) = {float(self.value.mean()):.6g}, J of the policy = "
                f"{float(self.cost.mean()):.6g}, difference {float(gap.mean()):.2g}{spread}{off}"
            )
        if self.gradient_error is None:
            lines.append(f"p = dV/dx does not apply: {self.why}")
        else:
            worst = int(self.gradient_error.argmax())
            lines.append(
                f"|dV/dx - p| is at most {float(self.gradient_error.max()):.2g} of the largest |p|, at stage {worst}"
            )
        return "\n".join(lines)


@torch.no_grad()
def verify(problem: Problem, value: Value, population: Any, *, seed: int = 0) -> Verification:
    """Compares a value function with paths of the policy it gives: V with their cost, dV/dx with their costates.

    The costate does not know V: it is the gradient of the cost of the path, its controls held. That the two agree is
    necessary for V to be the value function along these paths, and shows that it is solved accurately.

    Args:
        problem: the control problem; the one that was solved, or another with the same states, controls and stages.
        value: what ``mfoc.hjb.solve`` or ``mfoc.hjb.fit`` returned.
        population: initial states ``[N, n]``, or what ``mfoc.population`` takes (its data are not used: z is that of
            ``value``).
        seed: of the noise.

    Raises:
        InvalidType: problem or value is none, or its control is no single tensor.
        InvalidValue: the problem does not fit the value function, or has constraints.
    """
    check_instance(Value, "a value function, as mfoc.hjb.solve returns it", value=value)
    check_controls(problem)
    check_integer(0, seed=seed)
    if problem.stages != value.problem.stages:
        raise InvalidValue(f"the problem has {problem.stages} stages and the value function {value.problem.stages}")
    own, asked = (len(replace(value.bellman, problem=each).control(0)) for each in (problem, value.problem))
    if own != asked:
        raise InvalidValue(f"the control has {own} numbers in the problem and {asked} in that of the value function")
    particles = as_particles(population)
    if not isinstance(particles.state, Tensor):
        raise InvalidType("the state is a tree; expected a tensor of initial states [N, n]")
    made = replace(value.bellman, problem=problem)
    if interacts(made, particles.state):
        why = "the particles interact: a costate holds what a particle does to others, which V(t, x) does not know"
        return Verification(None, None, None, why, 0.0)
    x = particles.state
    before = value(0, x)
    states, controls, cost = follow(made, value.policy, x, made.draw(len(x), seed))
    outside = 0.0
    if isinstance(value, GridValue):
        outside = 1 - float(torch.cat([value.grid.inside(x) for x in states]).to(x).mean())
    if made.normals is not None:
        why = "with noise the costate of a path is random; dV/dx is its mean, given the state"
        return Verification(before, cost, None, why, outside)
    return Verification(before, cost, _gradient_errors(made, value, states, controls), "", outside)


def _gradient_errors(made: Bellman, value: Value, states: list[Tensor], controls: list[Tensor]) -> Tensor:
    problem = per_particle(made, controls)
    adjoint = costates(problem, controls, rollout(problem, controls, states[0]), states[0])
    errors = []
    for t, (x, p) in enumerate(zip(states, adjoint, strict=True)):
        largest = tree.length(p, 1).max().clamp_min(torch.finfo(p.dtype).tiny)
        errors.append(tree.length(value.gradient(t, x) - p, 1).max() / largest)
    return torch.stack(errors)
