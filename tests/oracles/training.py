"""Gradients, training loops and the method of successive approximations by hand, and what analysis knows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import mfoc
from mfoc.tree import leaves


def copied(controls: Any) -> Any:
    """The same values as new leaves that require grad."""
    return mfoc.tree.map(lambda leaf: leaf.detach().clone().requires_grad_(), controls)


def floats(tree: Any) -> list[Tensor]:
    """The leaves that have a gradient."""
    return [leaf for leaf in leaves(tree) if leaf.is_floating_point()]


def cost_from(problem: mfoc.Problem, t: int, x: Any, controls: Any, z: Any) -> Tensor:
    """The cost of each particle from stage t on, J written out: sum_(s>=t) L_s + Phi."""
    total = torch.zeros(len(leaves(x)[0]), dtype=torch.float64)
    for s in range(t, problem.stages):
        u = problem.schedule(controls, s)
        if problem.running_cost is not None:
            total = total + problem.running_cost(s, x, u, z)
        x = problem.dynamics(s, x, u, z)
    return total + problem.terminal_cost(x, z)


def gradient(problem: mfoc.Problem, controls: Any, particles: mfoc.Particles) -> Any:
    """dJ/du by back-propagation through the whole roll-out."""
    free = copied(controls)
    cost_from(problem, 0, particles.state, free, particles.data).mean().backward()  # type: ignore[no-untyped-call]
    return mfoc.tree.map(lambda leaf: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad, free)


def trained(
    problem: mfoc.Problem,
    make: Callable[[list[Tensor]], torch.optim.Optimizer],
    batches: Callable[[int], mfoc.Particles],
    steps: int,
    scheduler: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler] | None = None,
) -> tuple[Any, list[float]]:
    """A training loop as torch's documentation writes it, back-propagating through the roll-out.

    Returns:
        The trained controls, and the loss before each step.
    """
    controls, values = copied(problem.controls), []
    optimiser = make(leaves(controls))
    schedule = None if scheduler is None else scheduler(optimiser)
    for n in range(steps):

        def closure(cloud: mfoc.Particles = batches(n)) -> Tensor:  # noqa: B008
            optimiser.zero_grad()
            value = cost_from(problem, 0, cloud.state, controls, cloud.data).mean()
            value.backward()  # type: ignore[no-untyped-call]
            return value

        values.append(float(optimiser.step(closure).detach()))  # type: ignore[arg-type, attr-defined]
        if schedule is not None:
            schedule.step()
    return controls, values


def augmented_hamiltonian(
    problem: mfoc.Problem,
    t: int,
    u: Any,
    states: Sequence[Any],
    costates: Sequence[Any],
    z: Any,
    rho: float = 0.0,
    costate_rho: float = 0.0,
) -> Tensor:
    """H_t + rho/2 |x_(t+1) - f|^2 + costate_rho/2 |p_t - dH/dx|^2, ``[N]``: Li, Chen, Tai, E (2018), eq. (20)."""

    def square(left: Any, right: Any) -> Any:
        pairs = zip(leaves(left), leaves(right), strict=True)
        return sum((a - b).square().reshape(len(a), -1).sum(1) for a, b in pairs if a.is_floating_point())

    x = mfoc.tree.detached(states[t], requires_grad=True)
    moved = problem.dynamics(t, x, u, z)
    pairs = zip(leaves(moved), leaves(costates[t + 1]), strict=True)
    value: Any = sum((f * p).reshape(len(f), -1).sum(1) for f, p in pairs if f.is_floating_point())
    if problem.running_cost is not None:
        value = value + problem.running_cost(t, x, u, z)
    slots = [leaf for leaf in leaves(x) if leaf.requires_grad]
    slope = torch.autograd.grad(value.sum(), slots, create_graph=True)
    result: Tensor = value + rho / 2 * square(states[t + 1], moved)
    result = result + costate_rho / 2 * square(floats(costates[t]), list(slope))
    return result


def msa(problem: mfoc.Problem, particles: mfoc.Particles, lr: float, inner: int, steps: int) -> Any:
    """The method of successive approximations (Chernousko and Lyubushin 1982), its minimisation by gradient steps.

    Each step: states forward, costates backward (p_t = dH_t/dx, over the whole cloud), and then ``inner`` steps of
    descent on E H_t in each u_t, with states and costates held. For per-stage controls, and plain states.
    """
    controls, z = mfoc.tree.copy(problem.controls), particles.data
    for _ in range(steps):
        states = [particles.state]
        for t, u in enumerate(controls):
            states.append(problem.dynamics(t, states[t], u, z))
        end = states[-1].detach().requires_grad_()
        p = torch.autograd.grad(problem.terminal_cost(end, z).sum(), end)[0]
        for t in reversed(range(problem.stages)):

            def hamiltonian(x: Tensor, u: Any, t: int = t, p: Tensor = p) -> Tensor:
                product: Tensor = (problem.dynamics(t, x, u, z) * p).reshape(len(p), -1).sum(1)
                return product if problem.running_cost is None else product + problem.running_cost(t, x, u, z)

            x = states[t].detach().requires_grad_()
            before = controls[t]
            for _ in range(inner if leaves(before) else 0):
                free = copied(controls[t])
                slopes = torch.autograd.grad(hamiltonian(x.detach(), free).mean(), leaves(free))
                controls[t] = mfoc.tree.rebuild(
                    free, [u.detach() - lr * g for u, g in zip(leaves(free), slopes, strict=True)]
                )
            p = torch.autograd.grad(hamiltonian(x, before).sum(), x)[0]
    return controls


def expected_quadratic(function: Callable[[Tensor], Tensor], size: int) -> Tensor:
    """E f(w) for a quadratic f and w normal in ``size`` dimensions: f(0) + tr f'' / 2, exactly."""
    origin = torch.zeros(size, dtype=torch.float64)
    hessian: Tensor = torch.autograd.functional.hessian(function, origin)  # type: ignore[no-untyped-call]
    return function(origin) + hessian.trace() / 2


def central_difference(function: Callable[[Tensor], Tensor], point: Tensor, step: float = 1e-6) -> Tensor:
    """The gradient of a number at a point, by central differences entry by entry; its error is of order step^2."""
    slope = torch.zeros_like(point)
    for i in range(point.numel()):
        shift = torch.zeros_like(point)
        shift.view(-1)[i] = step
        slope.view(-1)[i] = (function(point + shift) - function(point - shift)) / (2 * step)
    return slope


def observed_order(steps: Sequence[float], errors: Sequence[float]) -> float:
    """The order at which errors fall with the step: the slope of a line through both on logarithmic axes."""
    return float(np.polyfit([math.log(h) for h in steps], [math.log(e) for e in errors], 1)[0])


def output(problem: mfoc.Problem, x: Any, z: Any = None, controls: Any = None) -> Any:
    """What leaves the last stage: the stages one after another."""
    controls = problem.controls if controls is None else controls
    for t in range(problem.stages):
        x = problem.dynamics(t, x, problem.schedule(controls, t), z)
    return x
