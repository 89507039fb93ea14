"""The algorithms as control problems, against loops written out one task at a time."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mfoc
from paradigms.meta import (
    Coordinatewise,
    anil,
    learned_update,
    maml,
    meta_sgd,
    reptile,
)
from tests.oracles.meta import called, each_task, error, inner_loop
from tests.paradigms.meta.nets import batch, mlp

LR = 0.05


def sgd(k, name, phi, slope):
    return phi - LR * slope


def off(made, expected):
    """How far value and gradient are from these, on the first batch."""
    return error(made.problem, made.population(0), expected)


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("steps", [1, 3])
def test_maml(steps, first_order):
    net, population = mlp(), batch()
    made = maml(net, F.mse_loss, population, inner_steps=steps, inner_lr=LR, first_order=first_order)
    assert off(made, inner_loop(net, F.mse_loss, population(0), sgd, steps=steps, first_order=first_order)) < 1e-10


def test_first_order_is_another_gradient():
    net, population = mlp(), batch()
    exact, rough = (
        inner_loop(net, F.mse_loss, population(0), sgd, steps=3, first_order=flag) for flag in (False, True)
    )
    assert (exact[3] - rough[3]).norm() > 1e-3 * exact[3].norm()


def test_multi_step_loss():
    net, population, weights = mlp(), batch(), [0.2, 0.0, 0.5]
    made = maml(net, nn.MSELoss(), population, inner_steps=3, inner_lr=LR, step_losses=weights)
    assert off(made, inner_loop(net, F.mse_loss, population(0), sgd, steps=3, step_losses=weights)) < 1e-10


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("per_step", [False, True])
def test_meta_sgd(per_step, first_order):
    net, population = mlp(), batch()
    made = meta_sgd(net, F.mse_loss, population, inner_steps=2, inner_lr=LR, per_step=per_step, first_order=first_order)
    generator = torch.Generator().manual_seed(3)
    controls = made.problem.controls
    alpha = {n: (a * torch.rand(a.shape, generator=generator).double()) for n, a in controls["alpha"].items()}
    made = replace(made, problem=replace(made.problem, controls={**controls, "alpha": alpha}))
    free = {name: a.clone().requires_grad_() for name, a in alpha.items()}

    def update(k, name, phi, slope):
        return phi - (free[name][k] if per_step else free[name]) * slope

    assert (
        off(
            made,
            inner_loop(net, F.mse_loss, population(0), update, list(free.values()), steps=2, first_order=first_order),
        )
        < 1e-10
    )


@pytest.mark.parametrize(("head", "moved"), [(None, ["4.weight", "4.bias"]), (["2.bias", "4"], None)])
def test_anil(head, moved):
    net, population = mlp(), batch()
    made = anil(net, F.mse_loss, population, inner_steps=3, inner_lr=LR, head=head)
    assert (
        off(
            made,
            inner_loop(net, F.mse_loss, population(0), sgd, steps=3, moved=moved or ["2.bias", "4.weight", "4.bias"]),
        )
        < 1e-10
    )
    assert made.loop.objective.start == (4 if head is None else 0)  # features are computed once where they can be


def test_learned_rule():
    net, population = mlp(), batch()
    torch.manual_seed(1)
    rule = Coordinatewise(nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))).double()
    made = learned_update(net, F.mse_loss, population, rule=rule, inner_steps=2, inner_lr=0.3)
    free = {name: p.detach().clone().requires_grad_() for name, p in rule.named_parameters()}

    def update(k, name, phi, slope):
        return phi - 0.3 * torch.func.functional_call(rule, free, (slope, phi))

    assert off(made, inner_loop(net, F.mse_loss, population(0), update, list(free.values()), steps=2)) < 1e-10


def test_reptile_is_its_rule():
    net, population, eps = mlp(), batch(), 0.3
    made = reptile(net, F.mse_loss, population, inner_steps=4, inner_lr=LR, shots_per_step=2)
    solution = made.solve(mfoc.Gradient(partial(torch.optim.SGD, lr=eps)), steps=1)
    phi = dict(net.named_parameters())
    moves = []
    for (x, y), _ in each_task(population(0)):
        fast = {name: p.detach().requires_grad_() for name, p in phi.items()}
        for k in range(4):
            rows = [(2 * k) % 5, (2 * k + 1) % 5]
            slopes = torch.autograd.grad(F.mse_loss(called(net, fast, x[rows]), y[rows]), list(fast.values()))
            fast = {n: (p - LR * s).detach().requires_grad_() for (n, p), s in zip(fast.items(), slopes, strict=True)}
        moves.append({name: fast[name] - phi[name] for name in phi})
    for name, p in phi.items():
        expected = p + eps * torch.stack([move[name] for move in moves]).mean(0)
        torch.testing.assert_close(solution.controls["phi"][name], expected.detach(), rtol=1e-10, atol=1e-12)


def test_costates_follow_the_hessian_recursion():
    net, population = mlp(width=3), batch(n=2)
    made = maml(net, F.mse_loss, population, inner_steps=3, inner_lr=LR)
    problem, particles = made.problem, population(0)
    trajectory = mfoc.rollout(problem, problem.controls, particles)
    p = mfoc.costates(problem, problem.controls, trajectory, particles)
    for i, (support, _) in enumerate(each_task(particles)):
        for k in (1, 2, 3):
            at = {name: leaf[i].detach() for name, leaf in trajectory.states[k]["fast"].items()}
            shapes = {name: leaf.shape for name, leaf in at.items()}

            def value(flat, shapes=shapes, support=support):
                parts = flat.split([math.prod(s) for s in shapes.values()])
                weights = {n: part.view(s) for (n, s), part in zip(shapes.items(), parts, strict=True)}
                return F.mse_loss(called(net, weights, support[0]), support[1])

            hessian = torch.autograd.functional.hessian(value, torch.cat([leaf.flatten() for leaf in at.values()]))
            now, later = (torch.cat([p[t]["fast"][name][i].flatten() for name in at]) for t in (k, k + 1))
            torch.testing.assert_close(now, later - LR * hessian @ later, rtol=1e-9, atol=1e-11)


def test_loss_of_ones_own():
    net, population = mlp(), batch()
    made = maml(net, lambda a, b: (a - b).square().mean(), population, inner_steps=2, inner_lr=LR)
    assert off(made, inner_loop(net, F.mse_loss, population(0), sgd, steps=2)) < 1e-10
