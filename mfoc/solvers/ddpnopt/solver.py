"""Differential dynamic programming for networks: gradient steps whose later stages answer what the earlier have moved.

Liu, Chen & Theodorou 2021, "DDPNOpt: Differential dynamic programming neural optimizer", ICLR, arXiv:2002.08809. For
one particle, with V_x = p_(t+1) and the second derivatives of f left out,

    Q_x = f_x' V_x,    Q_u = f_u' V_x,    Q_xx = f_x' V_xx f_x,    Q_ux = f_u' V_xx f_x,
    V_xx <- Q_xx - Q_xu Q_uu^-1 Q_ux,     u <- u - Q_uu^-1 (Q_u + Q_ux dx).

The loss is taken in its Gauss-Newton form of rank one, Phi_xx = Phi_x Phi_x'. Then every V_xx is of rank one, c_t^2 p_t
p_t', since with g = dH_t/du = f_u' p_(t+1)

    Q_ux = c_(t+1)^2 g p_t',      Q_xx = c_(t+1)^2 p_t p_t',
    c_t^2 = c_(t+1)^2 max(0, 1 - c_(t+1)^2 g' Q_uu^-1 g),      c_T = 1.

Of the whole cloud, whose control is shared, the step takes the expectation,

    u_t <- u_t - Q_uu^-1 (E[w g] + dL_t/du),      w = 1 + clip(c_(t+1)^2 <p_t, dx_t>, -1, 1),

where dx_t is how far x_t of a particle has moved under the new controls of the stages before. So the feedback is a
weight in sample space: of particles whose cost-to-go has gone up the gradient counts for more, of the others for less.
No matrix is formed, nor, at linear layers, the gradient of a particle.

What is approximate here beside the loss: V_xx of a particle is what it would be if the control answered that particle
alone, as in the paper (of a shared control, each has a share of 1/N and particles are coupled). And V_x stays the
costate: after an answer it would be c_t^2 p_t, which weighs the gradient of each particle and so moves the stationary
points. The clip is not of the paper: without it the weights grow without bound at high learning rates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mfoc import tree
from mfoc.checks import check_between, check_choice, check_flag, check_positive
from mfoc.distributed import any_rank, expectation
from mfoc.errors import InvalidValue
from mfoc.interacting import coupling
from mfoc.particles import Particles
from mfoc.problem import Problem
from mfoc.solvers.ddpnopt.curvature import Curvature, Diagonal, Identity, Inverse, Kronecker
from mfoc.solvers.ddpnopt.gradients import Own, is_linear, own_gradients
from mfoc.solvers.ddpnopt.passes import Passes
from mfoc.solving import Info
from mfoc.tree import Tree

_CURE = "use Gradient"


@dataclass(frozen=True)
class DDPNOpt:
    """Preconditioned gradient descent with the feedback of differential dynamic programming.

    For per-stage controls and particles that do not interact: what ``mfoc.from_module`` makes of a network. A step is a
    forward and a backward pass, a second backward pass to the weights, and a forward pass under the new controls.
    Stages that are not ``nn.Linear`` on vectors need the gradient of each particle, one stage at a time.

    The feedback gives the gradient of each particle a factor, 1 where the stages before have not moved its state, more
    where they have raised its cost-to-go. ``info.extra["clipped"]`` is the share of factors that were clipped.

    Take the feedback with "identity": on small networks it made higher learning rates stable. With "rmsprop" it did
    not, and losses ended higher (tests/benchmarks/bench_ddpnopt.py): at useful rates all factors are 1 but those of the
    last stages, since the curvature there is the size of a mean gradient, far below that of a particle's.

    Attributes:
        lr: the learning rate; Q_uu is the curvature over it.
        curvature: "identity" (gradient descent), "rmsprop" (``torch.optim.RMSprop``) or "kronecker" (K-FAC with the
            gradients of the data, for networks whose stages with weights are all ``nn.Linear``).
        feedback: whether later stages answer what earlier ones have moved; without, it is the optimiser just named.
        clip: the most by which a factor may differ from 1; ``math.inf`` does not clip.
        decay: of the running means in the curvature: 0.99 of RMSProp, 0.95 of K-FAC when None.
        damping: what is added to the curvature: 1e-8 of RMSProp (its ``eps``), 1e-2 of K-FAC when None.
    """

    lr: float
    curvature: str = "identity"
    feedback: bool = True
    clip: float = 1.0
    decay: float | None = None
    damping: float | None = None

    def __post_init__(self) -> None:
        check_positive(lr=self.lr)
        check_choice("identity", "rmsprop", "kronecker", curvature=self.curvature)
        check_flag(feedback=self.feedback)
        check_positive(finite=False, clip=self.clip)
        check_between(0, 1, optional=True, decay=self.decay)
        check_positive(optional=True, damping=self.damping)
        given = [name for name in ("decay", "damping") if getattr(self, name) is not None]
        if self.curvature == "identity" and given:
            raise InvalidValue(f'{given[0]} is given, and curvature="identity" has none; leave it out')

    def init(self, problem: Problem, controls: Tree) -> Tree:
        """How many steps were made, and what the curvature of each stage remembers.

        Raises:
            InvalidValue: controls that stages share, batches that are populations of their own (batch norm), or a stage
                that the curvature is not made for.
        """
        _check_problem(problem)
        problem.check_potential("DDPNOpt")
        curvature = self._curvature()
        held = [tree.tensors(u) for u in controls]
        for t in range(problem.stages) if self.curvature == "kronecker" else ():
            if held[t] and not is_linear(problem, t, controls[t]):
                raise InvalidValue(
                    f'stage {t} has weights and is not known to be an nn.Linear; curvature="kronecker" is made for '
                    'networks of those. Use "rmsprop" or "identity", or stages that are single layers'
                )
        return {"steps": 0, "curvature": [curvature.start(leaves) if leaves else {} for leaves in held]}

    def step(self, problem: Problem, controls: Tree, state: Tree, particles: Particles) -> tuple[Tree, Tree, Info]:
        """One step; see ``mfoc.Solver``.

        Raises:
            InvalidValue: the particles interact (looked at before the first step), or a running cost of the state.
        """
        steps = state["steps"]
        if not steps and any_rank(coupling(problem, particles, controls=controls), controls):
            raise InvalidValue(f"the particles interact, and DDPNOpt takes the curvature of each by itself; {_CURE}")
        passes = Passes.at(problem, controls, particles)
        seen = tree.rebuild(controls, [leaf for slope in passes.gradients for leaf in slope])
        info = Info(passes.value, seen)
        if not (math.isfinite(info.value) and math.isfinite(info.residual)):  # the solve stops here
            return controls, {**state, "steps": steps + 1}, info
        curvature, own = self._curvature(), self._own(problem, passes, particles)
        rows = zip(state["curvature"], passes.gradients, own, strict=True)
        memory = [curvature.seen(old, g, each, steps) if g else {} for old, g, each in rows]
        inverses = [curvature.inverse(each) if g else None for each, g in zip(memory, passes.gradients, strict=True)]
        if self.feedback:
            moved, extra = self._answered(problem, particles, passes, own, inverses)
            info = replace(info, extra=extra)
        else:
            moved = [self._moved(*row) for row in zip(passes.controls, inverses, passes.gradients, strict=True)]
        after = {"steps": steps + 1, "curvature": memory}
        return tree.rebuild(controls, tree.leaves(moved)), after, info

    def _curvature(self) -> Curvature:
        if self.curvature == "identity":
            return Identity()
        if self.curvature == "rmsprop":
            return Diagonal(self.decay or 0.99, self.damping or 1e-8)
        return Kronecker(self.decay or 0.95, self.damping or 1e-2)

    def _own(self, problem: Problem, passes: Passes, particles: Particles) -> list[Own | None]:
        """The gradients of the particles at each stage with controls, if they are asked for."""
        needed = self.feedback or self.curvature == "kronecker"
        return [
            own_gradients(problem, t, passes, particles.data) if needed and gradient else None
            for t, gradient in enumerate(passes.gradients)
        ]

    def _moved(self, u: Tree, inverse: Inverse | None, gradient: list[Tensor]) -> Tree:
        """A control u_t after u_t - Q_uu^-1 g; as it was where there is nothing to move."""
        if inverse is None:
            return u
        pairs = zip(tree.leaves(u), inverse.solved(gradient), strict=True)
        return tree.rebuild(u, [torch.sub(leaf.detach(), step, alpha=self.lr) for leaf, step in pairs])

    def _gains(self, own: list[Own | None], inverses: list[Inverse | None], gain: Tensor) -> list[Tensor]:
        """c_(t+1)^2 of each particle ``[N]`` at each stage, from c_T^2."""
        found = []
        for each, inverse in zip(reversed(own), reversed(inverses), strict=True):
            found.append(gain)
            if each is not None and inverse is not None:
                gain = gain * (1 - self.lr * gain * inverse.squares(each)).clamp(min=0)
        return found[::-1]

    def _answered(
        self,
        problem: Problem,
        particles: Particles,
        passes: Passes,
        own: list[Own | None],
        inverses: list[Inverse | None],
    ) -> tuple[list[Tree], dict[str, float]]:
        """The new controls stage by stage, each at the states that the new ones before it lead to."""
        gains = self._gains(own, inverses, passes.value.new_ones(len(particles)))
        last = max(t for t, each in enumerate(own) if each is not None)
        x, new, clipped = particles.state, list[Tree](), list[Tensor]()
        for t, (u, p, each) in enumerate(zip(passes.controls, passes.costates[:-1], own, strict=True)):
            gradient = passes.gradients[t]
            if each is not None and p is not None:  # no control has moved the states before
                change = (gains[t] * tree.dot(_change(x, passes.states[t]), p)).clamp(-self.clip, self.clip)
                clipped.append((change.abs() == self.clip).to(change).mean())
                gradient = expectation(_sum(each.weighted(1 + change), passes.running[t]), len(particles))
            new.append(self._moved(u, inverses[t], gradient))
            if t < last:
                with torch.no_grad():
                    x = problem.dynamics(t, x, new[t], particles.data)
        (share,) = expectation([torch.stack(clipped).mean() if clipped else gains[0].new_zeros(())], len(particles))
        return new, {"clipped": float(share)}


def _sum(slopes: list[Tensor], running: list[Tensor]) -> list[Tensor]:
    return [a + b for a, b in zip(slopes, running, strict=True)] if running else slopes


def _change(new: Tree, old: Tree) -> Tree:
    return tree.map(lambda a, b: a - b.detach() if tree.differentiable(a) else a, new, old)


def _check_problem(problem: Problem) -> None:
    if not problem.per_stage:
        raise InvalidValue(f"the stages share their control, and DDPNOpt answers at each stage on its own; {_CURE}")
    if problem.per_particle:
        raise InvalidValue(
            f"each particle has a control of its own, and DDPNOpt moves one for the whole cloud; {_CURE}"
        )
    if problem.interacting is not None:
        raise InvalidValue(
            "each batch is a population of its own (batch norm in training mode?), so that the particles interact, and "
            f"DDPNOpt takes the curvature of each by itself; {_CURE}, or call .eval() on the norms"
        )
