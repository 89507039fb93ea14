"""Inner loops as control problems, against loops written out one task at a time."""

import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mfoc
from paradigms.meta import (
    Coordinatewise,
    adapt,
    anil,
    evaluate,
    imaml,
    learned_update,
    maml,
    meta_sgd,
    reptile,
    sinusoids,
    tasks,
)

LR = 0.05
ADAM = mfoc.Gradient(partial(torch.optim.Adam, lr=1e-2))


def mlp(seed=0, width=7):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(1, width), nn.Tanh(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1)
    ).double()


def batch(n=4, shots=5, queries=6, seed=0):
    return sinusoids(tasks=n, shots=shots, queries=queries, seed=seed, dtype=torch.float64)


def each(particles):
    """The tasks of a batch, one by one: support and query."""
    (x, y), (a, b) = particles.data["support"], particles.data["query"]
    return zip(zip(x, y, strict=True), zip(a, b, strict=True), strict=True)


def call(net, weights, pair):
    return F.mse_loss(torch.func.functional_call(net, weights, (pair[0],)), pair[1])


def plain(net, particles, update, extra=(), *, steps, first_order=False, moved=None, step_losses=None):
    """Mean query loss and its gradient in the weights and in ``extra``, a task and a step at a time."""
    phi = {name: p.detach().clone().requires_grad_() for name, p in net.named_parameters()}
    moved = list(phi) if moved is None else moved
    total = 0
    for support, query in each(particles):
        fast = dict(phi)
        for k in range(steps):
            inputs = [fast[name] for name in moved]
            slopes = torch.autograd.grad(call(net, fast, support), inputs, create_graph=not first_order)
            fast |= {name: update(k, name, fast[name], slope) for name, slope in zip(moved, slopes, strict=True)}
            if step_losses is not None:
                total = total + step_losses[k] * call(net, fast, query)
        if step_losses is None:
            total = total + call(net, fast, query)
    value = total / len(particles)
    found = torch.autograd.grad(value, [*phi.values(), *extra], allow_unused=True)
    return value, found


def error(formulation, value, gradient):
    """How far value and gradient of a formulation are from these, relative to the largest; stored and recomputed."""
    problem, particles, worst = formulation.problem, formulation.population(0), 0.0
    for recompute in (False, True):
        found = mfoc.evaluate(problem, problem.controls, particles, recompute=recompute)
        pairs = [(found.value, value), *zip(torch.utils._pytree.tree_leaves(found.gradient), gradient, strict=True)]
        assert all(a.shape == b.shape for a, b in pairs)
        scale = max(float(b.detach().abs().max()) for _, b in pairs)
        errors = [float((a - b).detach().abs().max()) / scale for a, b in pairs]
        assert not any(math.isnan(e) for e in errors)
        worst = max([worst, *errors])
    return worst


def sgd(k, name, phi, slope):
    return phi - LR * slope


# ---- the algorithms


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("steps", [1, 3])
def test_maml(steps, first_order):
    net, population = mlp(), batch()
    made = maml(net, F.mse_loss, population, inner_steps=steps, inner_lr=LR, first_order=first_order)
    assert error(made, *plain(net, population(0), sgd, steps=steps, first_order=first_order)) < 1e-10


def test_first_order_is_another_gradient():
    net, population = mlp(), batch()
    exact, rough = (plain(net, population(0), sgd, steps=3, first_order=flag)[1] for flag in (False, True))
    assert (exact[2] - rough[2]).norm() > 1e-3 * exact[2].norm()


def test_multi_step_loss():
    net, population, weights = mlp(), batch(), [0.2, 0.0, 0.5]
    made = maml(net, nn.MSELoss(), population, inner_steps=3, inner_lr=LR, step_losses=weights)
    assert error(made, *plain(net, population(0), sgd, steps=3, step_losses=weights)) < 1e-10


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

    assert error(made, *plain(net, population(0), update, free.values(), steps=2, first_order=first_order)) < 1e-10


@pytest.mark.parametrize(("head", "moved"), [(None, ["4.weight", "4.bias"]), (["2.bias", "4"], None)])
def test_anil(head, moved):
    net, population = mlp(), batch()
    made = anil(net, F.mse_loss, population, inner_steps=3, inner_lr=LR, head=head)
    assert (
        error(made, *plain(net, population(0), sgd, steps=3, moved=moved or ["2.bias", "4.weight", "4.bias"])) < 1e-10
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

    assert error(made, *plain(net, population(0), update, free.values(), steps=2)) < 1e-10


def test_reptile_is_its_rule():
    net, population, eps = mlp(), batch(), 0.3
    made = reptile(net, F.mse_loss, population, inner_steps=4, inner_lr=LR, shots_per_step=2)
    solution = made.solve(mfoc.Gradient(partial(torch.optim.SGD, lr=eps)), steps=1)
    phi = dict(net.named_parameters())
    moves = []
    for (x, y), _ in each(population(0)):
        fast = {name: p.detach().requires_grad_() for name, p in phi.items()}
        for k in range(4):
            rows = [(2 * k) % 5, (2 * k + 1) % 5]
            slopes = torch.autograd.grad(call(net, fast, (x[rows], y[rows])), list(fast.values()))
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
    for i, (support, _) in enumerate(each(particles)):
        for k in (1, 2, 3):
            at = {name: leaf[i].detach() for name, leaf in trajectory.states[k]["fast"].items()}
            shapes = {name: leaf.shape for name, leaf in at.items()}

            def value(flat, shapes=shapes, support=support):
                parts = flat.split([math.prod(s) for s in shapes.values()])
                weights = {n: part.view(s) for (n, s), part in zip(shapes.items(), parts, strict=True)}
                return call(net, weights, support)

            hessian = torch.autograd.functional.hessian(value, torch.cat([leaf.flatten() for leaf in at.values()]))
            now, later = (torch.cat([p[t]["fast"][name][i].flatten() for name in at]) for t in (k, k + 1))
            torch.testing.assert_close(now, later - LR * hessian @ later, rtol=1e-9, atol=1e-11)


# ---- the equilibrium


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
    for (x, y), (a, b) in each(cloud):  # 2/m X'(X w - y) + strength (w - phi) = 0
        m = len(x)
        settled = torch.linalg.solve(
            2 / m * x.T @ x + strength * torch.eye(3).double(), 2 / m * x.T @ y + strength * phi.T
        )
        total = total + F.mse_loss(a @ settled, b)
    value = total / len(cloud)
    assert error(made, value, torch.autograd.grad(value, phi, create_graph=True)) < 1e-9
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


# ---- as formulations


FORMULATIONS = {
    "maml": lambda net, law: maml(net, F.mse_loss, law, inner_steps=2, inner_lr=LR),
    "fomaml": lambda net, law: maml(net, F.mse_loss, law, inner_steps=2, inner_lr=LR, first_order=True),
    "multi-step": lambda net, law: maml(net, F.mse_loss, law, inner_steps=2, inner_lr=LR, step_losses=[0.5, 0.5]),
    "meta_sgd": lambda net, law: meta_sgd(net, F.mse_loss, law, inner_steps=2, inner_lr=LR),
    "anil": lambda net, law: anil(net, F.mse_loss, law, inner_steps=2, inner_lr=LR),
    "reptile": lambda net, law: reptile(net, F.mse_loss, law, inner_steps=2, inner_lr=LR),
    "imaml": lambda net, law: imaml(net, F.mse_loss, law, inner_steps=9, inner_lr=LR, strength=1.0),
}


@pytest.mark.parametrize("name", FORMULATIONS)
def test_conformance(name):
    assert mfoc.testing.check_formulation(FORMULATIONS[name](mlp(), batch()), ADAM) is None  # it raises


@pytest.mark.parametrize("name", FORMULATIONS)
def test_evaluate_and_adapt(name):
    net, population, other = mlp(), batch(), batch(n=3, seed=1)
    made = FORMULATIONS[name](net, population)
    solution = made.solve(ADAM, steps=2)
    table = evaluate(made, solution, other, steps=(0, 1, 7), batches=2, progress=False)
    assert table.tasks == 6
    losses = {k: [] for k in (0, 7)}
    for step in range(2):
        for support, query in each(other(step)):
            losses[0].append(call(made.readout(solution), {}, query))
            losses[7].append(call(adapt(made, solution, support, steps=7), {}, query))
    for k, found in losses.items():
        found = torch.stack(found).detach()
        row = table[k].loss
        assert row.value == pytest.approx(float(found.mean()), rel=1e-9)
        assert row.high - row.low == pytest.approx(2 * 1.959964 * float(found.std()) / math.sqrt(6), rel=1e-5)
    assert table[0].accuracy is None
    assert "7" in str(table)


def test_certificate():
    net, population = mlp(width=3), batch()
    made = maml(net, F.mse_loss, population, inner_steps=1, inner_lr=LR)
    certificate = mfoc.certify(made.problem, made.problem.controls, population)
    assert "residual" in str(certificate)


def test_loss_of_ones_own():
    net, population = mlp(), batch()
    made = maml(net, lambda a, b: (a - b).square().mean(), population, inner_steps=2, inner_lr=LR)
    assert error(made, *plain(net, population(0), sgd, steps=2)) < 1e-10


# ---- what is refused

good = {"inner_steps": 1, "inner_lr": 0.1}
x, y = torch.zeros(2, 3, 1), torch.zeros(2, 3, 1)
CLOUD = SimpleNamespace(support=(x, y), query=(x, y))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inner_steps": 0}, "inner_steps is 0"),
        ({"inner_steps": True}, "inner_steps"),
        ({"inner_lr": -1.0}, "inner_lr"),
        ({"first_order": 1}, "first_order"),
        ({"step_losses": [1.0, 1.0]}, "step_losses"),
        ({"step_losses": 1.0}, "step_losses is a float"),
        ({"net": "net"}, "torch.nn.Module"),
        ({"net": nn.Sequential(nn.Linear(1, 1), nn.Dropout(0.5))}, "Dropout"),
        ({"net": nn.ReLU()}, "nothing to train"),
        ({"net": nn.Linear(2, 1)}, r"cannot run on the support inputs of a task, \(3, 1\)"),
        ({"loss": nn.MSELoss(reduction="none")}, "reduction='none'"),
        ({"loss": nn.MSELoss}, "instance"),
        ({"loss": 3}, "function"),
        ({"loss": lambda a, b: (a - b).square()}, "expected a scalar"),
        ({"tasks": {"support": (x[:, :0], y[:, :0]), "query": (x, y)}}, "support is empty"),
        ({"tasks": {"support": (x, y), "query": (x[:, :0], y[:, :0])}}, "query is empty"),
        ({"tasks": {"support": ([x[0], x[0, :1]], y), "query": (x, y)}}, "stack"),
        ({"tasks": {"support": (x, y[:, :2]), "query": (x, y)}}, "leading axes"),
        ({"tasks": {"support": (x, y[:, :, 0]), "query": (x, y)}}, "broadcast"),
        ({"tasks": {"support": (x, y)}}, "query"),
        ({"tasks": mfoc.Particles(x, y)}, "support"),
    ],
)
def test_refused(change, message):
    given = {"net": nn.Linear(1, 1), "loss": F.mse_loss, "tasks": vars(CLOUD), **good, **change}
    net, loss, law = given.pop("net"), given.pop("loss"), given.pop("tasks")
    with pytest.raises((mfoc.InvalidValue, mfoc.InvalidType), match=message):
        maml(net, loss, law, **given)


def test_head_and_rates_refused():
    with pytest.raises(mfoc.InvalidValue, match="head names"):
        anil(mlp(), F.mse_loss, batch(), head="nose", **good)
    with pytest.raises(mfoc.InvalidValue, match="entries"):
        meta_sgd(mlp(), F.mse_loss, batch(), inner_steps=1, inner_lr=[torch.zeros(1)])
    with pytest.raises(mfoc.InvalidValue, match="shots_per_step is 6 and the support has 5"):
        reptile(mlp(), F.mse_loss, batch(), shots_per_step=6, **good)
    with pytest.raises(mfoc.InvalidType, match="rule"):
        learned_update(mlp(), F.mse_loss, batch(), rule=torch.tanh, inner_steps=1)
