"""The second-order adjoint of a controlled diffusion, and the Hamiltonian that is least where the control is optimal.

Where the control enters the diffusion a change of the control at one instant moves the state by the square root of the
step, so that its second-order effect on the cost is of the size of its first-order one, and an optimal control need not
minimise H. It minimises, for one control a stage (Peng 1990, "A general stochastic maximum principle for optimal
control problems", SIAM J. Control Optim. 28, eqs. 15 and 16; here in discrete time)

    H_t(u') + 1/2 (f_t(u') - f_t(u))' P_(t+1) (f_t(u') - f_t(u)),      in expectation,
    P_T = d2Phi/dx2,      P_t = d2H_t/dx2 + (df_t/dx)' P_(t+1) (df_t/dx)     along each path.

P is the Hessian of a path's cost-to-go, so the expression is J as a function of u_t to second order in the change of
the next state; its curvature at u is that of J in u_t.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mfoc import tree
from mfoc.blocks import Block
from mfoc.derivatives import gradients, no_derivative, once_differentiable, twice_differentiable
from mfoc.frozen import Sweep
from mfoc.particles import Particles
from mfoc.pontryagin import hamiltonian_and_next
from mfoc.problem import Problem
from mfoc.tree import Tree

WIDEST = 64  # dimensions of the state: P holds the square of it for each particle and stage


class NoSecondDerivative(RuntimeError):
    """An operation of the dynamics or of a cost cannot be differentiated twice in the state."""


def controls_noise(problem: Problem, controls: Tree, particles: Particles) -> bool:
    """Whether the control has a path to the noise of some stage, as far as the problem says where its noise is."""
    if problem.noise is None:
        return False
    x, z = particles.state, particles.data
    for t in range(problem.stages):
        with torch.enable_grad():
            u = tree.detached(problem.schedule(controls, t), requires_grad=True)
            noise = problem.noise(t, x, u, z)
        free = tree.tensors(u)
        if noise.requires_grad and any(
            slope is not None for slope in torch.autograd.grad(noise.sum(), free, allow_unused=True)
        ):
            return True
        with torch.no_grad():
            x = problem.dynamics(t, x, u, z)
    return False


def second_adjoints(sweep: Sweep) -> list[Tensor]:
    """P_0..P_T of each particle ``[N, d, d]``; the state is one tensor ``[N, d]`` and the particles are independent.

    Raises:
        NoSecondDerivative: there are none, and autograd says of which operation.
    """
    with twice_differentiable():
        return _second_adjoints(sweep)


def _second_adjoints(sweep: Sweep) -> list[Tensor]:
    problem, z = sweep.problem, sweep.data
    x = tree.free(sweep.states[-1])
    value = problem.terminal_cost(x, z)
    _twice(value)
    slope = gradients(value, [x], create_graph=True)[0]
    found = [_rows(slope, x)]
    for t in reversed(range(problem.stages)):
        x, u = tree.free(sweep.states[t]), problem.schedule(sweep.controls, t)
        value, moved = hamiltonian_and_next(problem, t, x, sweep.costates[t + 1], u, z)
        _twice(value)
        slope = gradients(value, [x], create_graph=True)[0]
        jacobian = _rows(moved, x)
        found.append(_rows(slope, x) + jacobian.mT @ found[-1] @ jacobian)
    return [(p + p.mT) / 2 for p in reversed(found)]


def _twice(value: Tensor) -> None:
    if once := once_differentiable(value):
        raise NoSecondDerivative(f"{once} is marked once_differentiable")


def _rows(output: Tensor, x: Tensor) -> Tensor:
    """The Jacobian of each particle ``[N, d, d]``, a row at a time."""
    columns = range(output.shape[1])
    try:
        rows = [gradients(output[:, k].sum(), [x], retain_graph=True)[0] for k in columns]
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise NoSecondDerivative(no_derivative(error) or str(error).splitlines()[0]) from error
    return torch.stack(rows, 1).detach()


def fits(particles: Particles) -> bool:
    """Whether the state is one that ``second_adjoints`` can be held for: one tensor ``[N, d]`` of a moderate d."""
    x = particles.state
    return isinstance(x, Tensor) and x.dim() == 2 and x.shape[1] <= WIDEST


def generalised_blocks(sweep: Sweep) -> list[Block]:
    """H with the second-order adjoint as a function of the control of each stage that has one, as ``Sweep.blocks``."""
    adjoints = second_adjoints(sweep)
    stages = [t for t in range(sweep.problem.stages) if tree.tensors(sweep.controls[t])]
    return [_block(sweep, t, adjoints[t + 1]) for t in stages]


def _block(sweep: Sweep, t: int, adjoint: Tensor) -> Block:
    held = tree.leaves(sweep.controls[t])

    def restore(row: Tensor) -> Tree:
        return tree.rebuild(sweep.controls[t], tree.pieces(row, held))

    def per_particle(rows: Tensor) -> Tensor:
        p, u = sweep.costates[t + 1], restore(rows[0])
        value, moved = hamiltonian_and_next(sweep.problem, t, sweep.states[t], p, u, sweep.data)
        change = moved - sweep.states[t + 1]
        return (value + torch.einsum("ni,nij,nj->n", change, adjoint, change) / 2)[None]

    return Block(
        (t,),
        tree.ravel(sweep.controls[t]).detach()[None],
        per_particle,
        len(sweep.cost),
        restore,
        region=sweep.region((t,)),
    )
