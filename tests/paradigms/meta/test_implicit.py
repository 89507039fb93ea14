"""Implicit MAML: the gradient of the exact equilibrium, its residuals, and steps that diverge."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mfoc
from paradigms.meta import (
    imaml,
    maml,
    residuals,
    sinusoids,
    tasks,
)
from tests.oracles.meta import each_task, error
from tests.paradigms.meta.nets import batch, mlp
from tests.problems import D, normal, same_bits, seeded

LAW = sinusoids(tasks=4, shots=5, queries=6, dtype=D)


def cloud(support, query=None):
    """Tasks with these targets."""
    query = support if query is None else query
    return tasks((normal(3, 4, 4), support), (normal(3, 4, 4, seed=5), query))


def off(made, expected):
    """How far value and gradient are from these, on the first batch."""
    return error(made.problem, made.population(0), expected)


def ridge(n=3, shots=6, dim=3):
    generator = torch.Generator().manual_seed(0)
    x, y, a, b = (torch.randn(n, shots, k, generator=generator).double() for k in (dim, 1, dim, 1))
    return tasks((x, y), (a, b))


def test_imaml_has_the_gradient_of_the_exact_equilibrium():
    torch.manual_seed(0)
    net, cloud, strength = nn.Linear(3, 1, bias=False).double(), ridge(), 0.7
    made = imaml(net, F.mse_loss, cloud, inner_steps=400, inner_lr=0.1, strength=strength, cg_steps=10, cg_tol=1e-13)
    phi = net.weight.detach().clone().requires_grad_()
    total = 0
    for (x, y), (a, b) in each_task(cloud):  # 2/m X'(X w - y) + strength (w - phi) = 0
        m = len(x)
        settled = torch.linalg.solve(
            2 / m * x.T @ x + strength * torch.eye(3).double(), 2 / m * x.T @ y + strength * phi.T
        )
        total = total + F.mse_loss(a @ settled, b)
    value = total / len(cloud)
    assert off(made, [value, *torch.autograd.grad(value, phi, create_graph=True)]) < 1e-9
    # its second derivative, through the solve of the adjoint
    free = {"weight": net.weight.detach().clone().requires_grad_()}
    ours = mfoc.rollout(made.problem, {"phi": free}, cloud).cost.mean()
    direction = torch.ones(1, 3).double()
    bent = []
    for at, j in ((phi, value), (free["weight"], ours)):
        (slope,) = torch.autograd.grad(j, at, create_graph=True)
        bent.append(torch.autograd.grad((slope * direction).sum(), at)[0])
    torch.testing.assert_close(bent[1], bent[0], rtol=1e-8, atol=1e-10)


def test_imaml_second_derivative_sees_the_bend_of_the_loss():
    net, population = mlp(width=3), batch(n=2)
    made = imaml(net, F.mse_loss, population, inner_steps=300, inner_lr=0.1, strength=3.0, cg_steps=60, cg_tol=1e-14)
    phi = {name: leaf.clone().requires_grad_() for name, leaf in made.problem.controls["phi"].items()}
    way = {name: torch.full_like(leaf, 0.3) for name, leaf in phi.items()}

    def slope(weights, create_graph):
        value = mfoc.rollout(made.problem, {"phi": weights}, population(0)).cost.mean()
        return torch.autograd.grad(value, list(weights.values()), create_graph=create_graph)

    paired = sum((s * w).sum() for s, w in zip(slope(phi, True), way.values(), strict=True))
    bent = torch.autograd.grad(paired, list(phi.values()))
    h = 1e-4
    ends = [slope({n: (p + s * h * way[n]).detach().requires_grad_() for n, p in phi.items()}, False) for s in (1, -1)]
    for exact, up, down in zip(bent, *ends, strict=True):
        torch.testing.assert_close(exact, (up - down) / (2 * h), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("rate", "strength", "message"),
    [
        (1.0, 2.0, r"1.0 \* 2.0 = 2"),
        (3.0, 5.0, "below 0.4"),
        (0.99, 2.0, "gradient descent diverges"),
        (9.0, 0.1, "to"),
    ],
)
def test_inner_steps_that_diverge(rate, strength, message):
    with pytest.raises(mfoc.InvalidValue, match=message):
        imaml(seeded(lambda: nn.Linear(1, 1)), F.mse_loss, LAW, inner_steps=99, inner_lr=rate, strength=strength)


def test_residuals_of_the_equilibrium_and_its_adjoint():
    """Against the dense system of a linear model."""
    net, strength, data = seeded(lambda: nn.Linear(4, 1, bias=False)), 0.7, cloud(normal(3, 4, 1))
    exact = partial(imaml, net, F.mse_loss, data, inner_lr=0.1, strength=strength)
    fine = exact(inner_steps=2000, cg_steps=8, cg_tol=1e-14)
    assert max(residuals(fine, fine.problem).worst) < 1e-10
    rough = exact(inner_steps=3, cg_steps=1)
    found = residuals(rough, rough.problem)
    phi, far, left = net.weight.detach()[0], [], []
    for i in range(3):
        (x, y), (a, b) = ([leaf[i] for leaf in data.data[part]] for part in ("support", "query"))
        hessian, pull, at = x.T @ x / 2, x.T @ y[:, 0] / 2, phi
        for _ in range(3):
            at = at - 0.1 * (hessian @ at - pull + strength * (at - phi))
        far.append(torch.norm(hessian @ at - pull + strength * (at - phi)) / torch.norm(hessian @ phi - pull))
        g, system = a.T @ (a @ at - b[:, 0]), torch.eye(4, dtype=D) + hessian / strength
        p = g * (g @ g) / (g @ system @ g)  # one step of conjugate gradients
        left.append(torch.norm(g - system @ p) / torch.norm(g))
    assert found.equilibrium.value == pytest.approx(float(sum(far)) / 3, rel=1e-9)
    assert found.adjoint.value == pytest.approx(float(sum(left)) / 3, rel=1e-9)
    assert found.worst == pytest.approx((float(max(far)), float(max(left))), rel=1e-9)
    assert "at worst" in str(found)
    waves = maml(seeded(lambda: nn.Linear(1, 1)), F.mse_loss, LAW, inner_steps=1, inner_lr=0.1)
    with pytest.raises(mfoc.InvalidType, match="no equilibrium"):
        residuals(waves, waves.problem)
    for level in (0.0, 1.0, 2, math.nan, "a", None):
        with pytest.raises((mfoc.InvalidValue, mfoc.InvalidType), match="confidence is"):
            residuals(rough, rough.problem, confidence=level)


def test_a_direction_of_negative_curvature_keeps_its_gradient():
    """Where the equilibrium is no minimum the adjoint is the slope itself, not zero, and the residual says so."""
    data, net = cloud(normal(3, 4, 1)), seeded(lambda: nn.Linear(4, 1, bias=False))
    hill = imaml(net, lambda a, b: -((a - b) ** 2).mean(), data, inner_steps=1, inner_lr=0.01, strength=0.01)
    found = mfoc.evaluate(hill.problem, hill.problem.controls, data).gradient["phi"]["weight"]
    at = {"weight": net.weight.detach().requires_grad_()}
    state = hill.loop.states(hill.problem.controls, data.data, [1])
    ((_, settled),) = state
    fast = settled["fast"]["weight"].detach().requires_grad_()
    loss = -((normal(3, 4, 4, seed=5) @ fast.mT - normal(3, 4, 1)) ** 2).flatten(1).mean(1)
    (slope,) = torch.autograd.grad(loss.mean(), fast)
    torch.testing.assert_close(found, slope.sum(0), rtol=1e-10, atol=1e-12)
    assert residuals(hill, {"phi": {k: v.detach() for k, v in at.items()}}).worst[1] > 1


def test_another_number_of_steps_towards_the_equilibrium():
    """Evaluation goes on where training stopped: the states after k steps are those of an equilibrium of k steps."""
    net, data = seeded(lambda: nn.Linear(4, 1, bias=False)), cloud(normal(3, 4, 1))
    make = partial(imaml, net, F.mse_loss, data, inner_lr=0.1, strength=0.7)
    few, many = make(inner_steps=2), make(inner_steps=9)
    states = dict(few.loop.states(few.problem.controls, data.data, [9, 0, 2]))
    assert list(states) == [0, 2, 9]
    ((_, settled),) = many.loop.states(many.problem.controls, data.data, [9])
    assert same_bits(states[9]["fast"], settled["fast"])
    assert same_bits(
        mfoc.rollout(few.remake(9), few.problem.controls, data).cost, few.loop.query_loss(states[9], data.data)
    )
