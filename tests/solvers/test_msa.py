from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import scipy.optimize
import torch

import mfoc
from mfoc.frozen import Penalty, blocks
from mfoc.minimisers import LBFGS, Descent, Minimum
from mfoc.pontryagin import adjoint
from tests.problems import CATALOGUE, INTERACTING, D, distance, leaves, normal, same_bits

# ---- MSA and back-propagation


@pytest.mark.parametrize("name", CATALOGUE)
def test_one_inner_step_is_sgd(name):
    problem, particles = CATALOGUE[name]()
    by_msa = mfoc.solve(problem, mfoc.MSA(Descent(lr=0.05)), particles, steps=4)
    by_sgd = mfoc.solve(problem, mfoc.Gradient(partial(torch.optim.SGD, lr=0.05)), particles, steps=4)
    assert distance(by_sgd.controls, problem.controls) > 1e-3
    assert distance(by_msa.controls, by_sgd.controls) < 1e-11
    assert [r["value"] for r in by_msa.history] == pytest.approx([r["value"] for r in by_sgd.history], rel=1e-11)
    assert [r["residual"] for r in by_msa.history] == pytest.approx([r["residual"] for r in by_sgd.history], rel=1e-10)


@pytest.mark.parametrize(
    "solver", [mfoc.MSA(Descent(0.05, steps=3)), mfoc.EMSA(2.0, 0.5), mfoc.EMSA(2.0, adaptive=True)]
)
@pytest.mark.parametrize("name", ["mlp", "pytrees", "tied", "interacting"])
def test_step_is_pure(name, solver):
    problem, particles = CATALOGUE[name]()
    state = solver.init(problem, problem.controls)
    before = mfoc.tree.copy([problem.controls, state, particles.state])
    first, second = (solver.step(problem, problem.controls, state, particles) for _ in range(2))
    assert same_bits(before, [problem.controls, state, particles.state])
    assert same_bits(first[:2], second[:2])
    assert mfoc.tree.same_structure(first[0], problem.controls)
    expected = mfoc.evaluate(problem, problem.controls, particles)
    assert float(first[2].value) == pytest.approx(float(expected.value), rel=1e-13)
    assert distance(first[2].gradient, leaves(expected.gradient)) < 1e-12


def test_msa_solves_what_the_controls_decide_alone():
    """Dynamics x + u with cost (k u - 1)^2: the Hamiltonian does not depend on the state, so one step is exact."""
    problem = mfoc.Problem(
        lambda t, x, u, z: x + u,
        lambda x, z: x.sum(1),
        [torch.zeros(2, dtype=D) for _ in range(3)],
        running_cost=lambda t, x, u, z: ((t + 1) * u - 1).square().sum().expand(len(x)),
    )
    solution = mfoc.solve(problem, mfoc.MSA(LBFGS(30)), normal(4, 2), steps=1)
    for t, u in enumerate(solution.controls):  # 2 (t + 1) ((t + 1) u - 1) + 1 = 0
        expected = (1 - 0.5 / (t + 1)) / (t + 1)
        torch.testing.assert_close(u, torch.full((2,), expected, dtype=D), rtol=1e-7, atol=1e-8)


def test_empty_controls_are_left_out():
    problem = mfoc.Problem(
        lambda t, x, u, z: x + u.sum() - u.numel(),
        lambda x, z: x.square(),
        [torch.ones(0, dtype=D), torch.zeros(1, dtype=D)],
    )
    for solver in (mfoc.MSA(Descent(0.1)), mfoc.MSA(LBFGS(2, trials=4)), mfoc.EMSA(1.0, adaptive=True)):
        solution = mfoc.solve(problem, solver, normal(3), steps=1)
        assert [leaf.shape for leaf in solution.controls] == [(0,), (1,)]
        assert float(solution.controls[1]) != 0


# ---- the inner minimiser


def quadratics(rows, n, seed=0):
    root = normal(rows, n, n, seed=seed)
    a = root @ root.mT + torch.logspace(-1, 1, rows, dtype=D)[:, None, None] * torch.eye(n, dtype=D)
    b = normal(rows, n, seed=seed + 1)

    def evaluate(x):
        ax = torch.einsum("gij,gj->gi", a, x)
        return (x * ax).sum(1) / 2 - (b * x).sum(1), ax - b

    return evaluate, torch.linalg.solve(a, b)


@pytest.mark.parametrize("n", [1, 2, 8])
def test_lbfgs_solves_convex_quadratics_row_by_row(n):
    evaluate, solution = quadratics(6, n)
    found = LBFGS(steps=200, tol=1e-10).minimise(evaluate, torch.zeros(6, n, dtype=D))
    assert distance(found.point, solution) < 1e-8
    torch.testing.assert_close(found.value, evaluate(solution)[0], rtol=1e-12, atol=1e-12)
    assert not found.unbounded.any()


def rosenbrock(x):
    a, b = x[:, :-1], x[:, 1:]
    value = (100 * (b - a.square()).square() + (1 - a).square()).sum(1)
    slope = torch.zeros_like(x)
    slope[:, :-1] += -400 * a * (b - a.square()) - 2 * (1 - a)
    slope[:, 1:] += 200 * (b - a.square())
    return value, slope


def test_lbfgs_agrees_with_scipy_on_rosenbrock():
    start = normal(5, 4, seed=3)
    found = LBFGS(steps=300, tol=1e-9).minimise(rosenbrock, start)
    for row, x0 in zip(found.point, start, strict=True):

        def function(x):
            value, slope = rosenbrock(torch.from_numpy(x)[None])
            return float(value), slope[0].numpy()

        theirs = scipy.optimize.minimize(
            function, x0.numpy(), jac=True, method="L-BFGS-B", options={"maxiter": 2000, "ftol": 1e-16, "gtol": 1e-10}
        )
        np.testing.assert_allclose(row.numpy(), theirs.x, atol=1e-6)
    assert found.evaluations < 600


def test_lbfgs_rows_do_not_influence_each_other():
    start = normal(4, 3, seed=5) * torch.tensor([[1.0], [3.0], [0.1], [0.0]], dtype=D)
    start[3] = 1.0  # starts at the minimum
    for steps in (1, 3, 10, 50):
        together = LBFGS(steps=steps).minimise(rosenbrock, start)
        for g in range(4):
            alone = LBFGS(steps=steps).minimise(rosenbrock, start[g : g + 1])
            assert torch.equal(alone.point[0], together.point[g])
            assert torch.equal(alone.value[0], together.value[g])


def test_lbfgs_flags_unbounded_and_survives_nonfinite_rows():
    def evaluate(x):
        value = torch.stack(
            [x[0].sum(), (x[1] - 2).square().sum(), (x[2] - 3 * x[2].log()).sum(), x[3].sum() * torch.nan]
        )
        slope = torch.stack([torch.ones_like(x[0]), 2 * (x[1] - 2), 1 - 3 / x[2], torch.full_like(x[3], torch.nan)])
        return value, slope

    start = torch.ones(4, 2, dtype=D)
    found = LBFGS(steps=40).minimise(evaluate, start)
    assert found.unbounded.tolist() == [True, False, False, False]
    torch.testing.assert_close(found.point[1:3], torch.tensor([[2.0, 2.0], [3.0, 3.0]], dtype=D), rtol=1e-6, atol=1e-6)
    assert torch.equal(found.point[3], start[3])
    assert found.point[:3].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lbfgs_never_raises_the_value(dtype):
    start = (3 * normal(6, 4, seed=2)).to(dtype)
    before = rosenbrock(start)[0]
    for steps in (1, 2, 5, 20):
        after = LBFGS(steps=steps, trials=4).minimise(rosenbrock, start)
        assert (after.value <= before).all()
        torch.testing.assert_close(after.value, rosenbrock(after.point)[0])
        before = after.value


def test_descent():
    evaluate, _ = quadratics(3, 2)
    x = normal(3, 2, seed=9)
    found = Descent(0.1, steps=2).minimise(evaluate, x)
    once = x - 0.1 * evaluate(x)[1]
    assert torch.equal(found.point, once - 0.1 * evaluate(once)[1])
    assert found.evaluations == 2


# ---- the frozen Hamiltonian


def frozen(problem, particles):
    trajectory = mfoc.rollout(problem, problem.controls, particles)
    costates, _ = adjoint(problem, problem.controls, trajectory, particles)
    return mfoc.tree.detached(trajectory.states), costates


def reference(problem, t, u, states, costates, z, rho, costate_rho):
    """H_t + rho/2 |x_(t+1) - f|^2 + costate_rho/2 |p_t - dH/dx|^2, by one autograd call for each term."""

    def square(left, right):
        pairs = zip(leaves(left), leaves(right), strict=True)
        return sum((a - b).square().reshape(len(a), -1).sum(1) for a, b in pairs if a.is_floating_point())

    x = mfoc.tree.detached(states[t], requires_grad=True)
    moved = problem.dynamics(t, x, u, z)
    pairs = zip(leaves(moved), leaves(costates[t + 1]), strict=True)
    value = sum((f * p).reshape(len(f), -1).sum(1) for f, p in pairs if f.is_floating_point())
    if problem.running_cost is not None:
        value = value + problem.running_cost(t, x, u, z)
    slots = [leaf for leaf in leaves(x) if leaf.requires_grad]
    slope = torch.autograd.grad(value.sum(), slots, create_graph=True)
    target = [leaf for leaf in leaves(costates[t]) if leaf.is_floating_point()]
    return value + rho / 2 * square(states[t + 1], moved) + costate_rho / 2 * square(target, list(slope))


@pytest.mark.parametrize("penalty", [None, (0.7, 0.3), (2.0, 0.0)], ids=str)
@pytest.mark.parametrize("name", CATALOGUE)
def test_augmented_hamiltonian_equals_the_formula(name, penalty):
    problem, particles = CATALOGUE[name]()
    states, costates = frozen(problem, particles)
    weights = penalty or (0.0, 0.0)
    found = blocks(
        problem,
        problem.controls,
        states,
        costates,
        particles.data,
        penalty=None if penalty is None else Penalty(*penalty),
    )
    seen = []
    for block in found:
        rows = block.start + 0.1 * normal(*block.start.shape, seed=7)
        value, slope = block.evaluate(rows)
        terms = []
        free = rows.detach().requires_grad_()
        for g, t in enumerate(block.stages):
            whole = block.restore(free[0 if len(rows) == 1 else g])
            u = whole if problem.schedule is mfoc.per_stage else problem.schedule(whole, t)
            terms.append(reference(problem, t, u, states, costates, particles.data, *weights).mean())
            seen.append(t)
        expected = torch.stack(terms) if len(rows) == len(terms) else torch.stack(terms).sum()[None]
        torch.testing.assert_close(value, expected.detach(), rtol=1e-11, atol=1e-11)
        expected_slope = torch.autograd.grad(expected.sum(), free)[0]
        torch.testing.assert_close(slope, expected_slope, rtol=1e-10, atol=1e-11)
    with_controls = [t for t in range(problem.stages) if leaves(problem.schedule(problem.controls, t))]
    assert sorted(seen) == with_controls


@pytest.mark.parametrize("penalty", [None, Penalty(0.7, 0.3)], ids=["plain", "augmented"])
@pytest.mark.parametrize("name", ["linear_quadratic", "decayed", "mlp"])
def test_stacked_blocks_equal_unstacked(name, penalty):
    problem, particles = CATALOGUE[name]()
    states, costates = frozen(problem, particles)
    found = {}
    for stacked in (True, False):
        parts = blocks(problem, problem.controls, states, costates, particles.data, penalty=penalty, stacked=stacked)
        found[stacked] = {}
        for block in parts:
            rows = block.start + 0.1
            value, slope = block.evaluate(rows)
            point = LBFGS(steps=5).minimise(block.evaluate, block.start).point if penalty else rows
            for g, t in enumerate(block.stages):
                found[stacked][t] = (value[g], slope[g], point[g])
        assert len(parts) < len(found[stacked]) or not stacked or name == "mlp"
    assert found[True].keys() == found[False].keys()
    for t, together in found[True].items():
        for a, b in zip(together, found[False][t], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_no_penalty_at_the_present_controls():
    """At the controls of the sweep the trajectory is feasible: the augmentation and its slope vanish."""
    problem, particles = CATALOGUE["decayed"]()
    states, costates = frozen(problem, particles)
    plain, augmented = (
        blocks(problem, problem.controls, states, costates, particles.data, penalty=penalty)
        for penalty in (None, Penalty(50.0, 50.0))
    )
    for a, b in zip(plain, augmented, strict=True):
        assert distance(list(a.evaluate(a.start)), list(b.evaluate(b.start))) < 1e-11


# ---- E-MSA


@pytest.mark.parametrize("name", CATALOGUE)
def test_adaptive_emsa_never_raises_the_objective(name):
    problem, particles = CATALOGUE[name]()
    start = float(mfoc.evaluate(problem, problem.controls, particles).value)
    solution = mfoc.solve(problem, mfoc.EMSA(0.1, inner=LBFGS(5), adaptive=True), particles, steps=8)
    values = [record["value"] for record in solution.history] + [solution.value]
    assert values[0] == pytest.approx(start, rel=1e-12)
    assert all(b <= a + 1e-12 for a, b in pairwise(values))
    assert values[-1] < values[0]


def test_adaptive_emsa_keeps_the_controls_when_every_try_fails():
    problem, particles = CATALOGUE["mlp"]()

    class Wild:
        def minimise(self, evaluate, start):
            value, _ = evaluate(start)
            return Minimum(start + 1e4, value, torch.zeros_like(value, dtype=torch.bool), 1)

    solver = mfoc.EMSA(1e-6, inner=Wild(), adaptive=True, tries=3)
    controls, state, info = solver.step(problem, problem.controls, solver.init(problem, problem.controls), particles)
    assert same_bits(controls, problem.controls)
    assert state["scale"] == 8.0
    assert info.extra["rho"] == pytest.approx(8e-6)


def test_emsa_with_no_penalty_is_msa():
    problem, particles = CATALOGUE["decayed"]()
    inner = LBFGS(4)
    by_msa = mfoc.solve(problem, mfoc.MSA(inner), particles, steps=2)
    by_emsa = mfoc.solve(problem, mfoc.EMSA(0.0, inner=inner), particles, steps=2)
    assert distance(by_msa.controls, by_emsa.controls) < 1e-9


@pytest.mark.parametrize("name", INTERACTING)
def test_a_large_penalty_moves_little(name):
    problem, particles = CATALOGUE[name]()
    moves = []
    for rho in (1.0, 100.0, 10_000.0):
        solution = mfoc.solve(problem, mfoc.EMSA(rho, inner=LBFGS(20)), particles, steps=1)
        moves.append(distance(solution.controls, problem.controls))
    assert moves[0] > moves[1] > moves[2]


def li_chen_tai_e(stages=20, step=0.25, n=100, seed=1):
    """Sine regression of Li, Chen, Tai, E (2018), sec. 5: a residual tanh network, started next to zero."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return 2 * torch.rand(*shape, generator=generator, dtype=D) - 1

    x = torch.pi * uniform(n, 1)
    controls = [{"W": 0.005 * uniform(5, 5), "b": 0.005 * uniform(5)} for _ in range(stages)]

    def decay(t, x, u, z):
        return (1e-3 / (2 * step) * (u["W"].square().sum() + u["b"].square().sum())).expand(len(x))

    problem = mfoc.continuous(
        lambda t, x, u, z: torch.tanh(x @ u["W"].mT + u["b"]),
        lambda x, z: (x.sum(1) - z).square(),
        controls,
        running_cost=decay,
        T=stages * step,
        autonomous=True,
    )
    return problem, mfoc.Particles(x.repeat(1, 5), x[:, 0].sin())


@pytest.mark.slow
def test_the_toy_of_li_chen_tai_e():
    problem, particles = li_chen_tai_e()

    def values(solver, steps):
        solution = mfoc.solve(problem, solver, particles, steps=steps)
        return np.array([record["value"] for record in solution.history] + [solution.value])

    basic = values(mfoc.MSA(LBFGS(10)), 12)
    assert (basic[1:] / basic[:-1]).max() > 20  # the frozen states are infeasible for the new control
    assert basic[-6:].min() > 0.5
    first_order = min(
        values(mfoc.Gradient(partial(torch.optim.SGD, lr=0.1)), 500)[-1],
        values(mfoc.Gradient(partial(torch.optim.Adam, lr=0.005)), 500)[-1],
    )
    assert first_order > 0.1
    for solver in (mfoc.EMSA(100.0, costate_rho=0.01), mfoc.EMSA(1.0, adaptive=True)):
        assert values(solver, 50)[-1] < first_order / 3
