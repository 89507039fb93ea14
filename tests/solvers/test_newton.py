"""NewtonCG: its products against dense matrices, its steps against scipy and Riccati, its laws."""

import math
from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.optimize import Bounds, minimize

import mfoc
from mfoc.solvers.expansion import expand
from mfoc.solvers.projected import Boxed
from mfoc.solvers.steihaug import steihaug
from tests.problems import CATALOGUE, D, distance, normal, same_bits
from tests.ranks import on_ranks
from tests.solvers.test_agreement import random_lq


def flat(problem, cloud):
    """J and its gradient as functions of one vector of numpy, and the vector to start from."""
    held = mfoc.tree.leaves(problem.controls)

    def function(vector):
        leaves = mfoc.tree.pieces(torch.from_numpy(vector.copy()), held)
        found = mfoc.evaluate(problem, mfoc.tree.rebuild(problem.controls, leaves), cloud)
        return float(found.value), mfoc.tree.ravel(found.gradient).numpy()

    return function, mfoc.tree.ravel(problem.controls).numpy()


def pendulum(stages=12, **more):
    """Two pendulums pushed alike, towards their upright rest."""
    problem = mfoc.continuous(
        lambda t, x, u, z: torch.stack([x[:, 1], torch.sin(x[:, 0]) + u[0] - 0.1 * x[:, 1]], 1),
        lambda x, z: 10 * x.square().sum(1),
        [torch.zeros(1, dtype=D) for _ in range(stages)],
        running_cost=lambda t, x, u, z: 0.05 * u.square().sum() + x.square().sum(1),
        T=3.0,
        **more,
    )
    return problem, mfoc.Particles(torch.tensor([[1.5, 0.0], [1.0, 0.2]], dtype=D))


# ---- products


def dense_hessian(problem, controls, cloud):
    held = mfoc.tree.leaves(controls)

    def value(row):
        return mfoc.rollout(problem, mfoc.tree.rebuild(controls, mfoc.tree.pieces(row, held)), cloud).cost.mean()

    return torch.autograd.functional.hessian(value, mfoc.tree.ravel(controls))


@pytest.mark.parametrize("name", CATALOGUE)
def test_products_are_those_of_the_hessian(name):
    problem, cloud = CATALOGUE[name]()
    model = expand(problem, problem.controls, cloud, gauss_newton=False)
    whole = mfoc.evaluate(problem, problem.controls, cloud)
    v = normal(len(model.slope))
    expected = dense_hessian(problem, problem.controls, cloud) @ v
    assert (model.product(v) - expected).abs().max() < 1e-10 * (1 + expected.abs().max())
    assert (model.slope - mfoc.tree.ravel(whole.gradient)).abs().max() < 1e-12
    assert float(model.value) == pytest.approx(float(whole.value), rel=1e-14)


def dense_gauss_newton(problem, controls, cloud):
    """M' C M of N particles over N, with whole Jacobians: states and stage controls by the controls, and the costs."""
    held, row = mfoc.tree.leaves(controls), mfoc.tree.ravel(controls)
    trees = []

    def reached(row):
        now = mfoc.tree.rebuild(controls, mfoc.tree.pieces(row, held))
        stages = [problem.schedule(now, t) for t in range(problem.stages)]
        trees[:] = [mfoc.rollout(problem, now, cloud).states[1:], stages]
        return mfoc.tree.ravel(trees)

    def cost(vector):
        parts = iter(mfoc.tree.pieces(vector, mfoc.tree.tensors(trees)))
        kept = [next(parts) if mfoc.tree.differentiable(leaf) else leaf for leaf in mfoc.tree.leaves(trees)]
        states, stages = mfoc.tree.rebuild(trees, kept)
        total = problem.terminal_cost(states[-1], cloud.data).mean()
        for t in range(problem.stages) if problem.running_cost is not None else ():
            total = total + problem.running_cost(t, [cloud.state, *states][t], stages[t], cloud.data).mean()
        return total

    jacobian = torch.autograd.functional.jacobian(reached, row)
    return jacobian.T @ torch.autograd.functional.hessian(cost, reached(row).detach()) @ jacobian


@pytest.mark.parametrize("name", CATALOGUE)
def test_gauss_newton_products_are_those_of_a_dense_matrix(name):
    problem, cloud = CATALOGUE[name]()
    model = expand(problem, problem.controls, cloud, gauss_newton=True)
    v = normal(len(model.slope))
    expected = dense_gauss_newton(problem, problem.controls, cloud) @ v
    assert (model.product(v) - expected).abs().max() < 1e-10 * (1 + expected.abs().max())
    assert (model.slope - expand(problem, problem.controls, cloud, gauss_newton=False).slope).abs().max() < 1e-12


def test_gauss_newton_has_no_negative_curvature_where_the_costs_are_convex():
    problem, cloud = CATALOGUE["mlp"]()
    size = len(mfoc.tree.ravel(problem.controls))
    products = {}
    for gauss_newton in (False, True):
        model = expand(problem, problem.controls, cloud, gauss_newton=gauss_newton)
        products[gauss_newton] = torch.stack([model.product(e) for e in torch.eye(size, dtype=D)])
    assert torch.linalg.eigvalsh(products[True])[0] > -1e-12
    assert torch.linalg.eigvalsh(products[False])[0] < -1e-3


# ---- the search for a step


def test_steihaug_solves_the_system_where_the_ball_is_large():
    root = normal(8, 8, seed=1)
    matrix, slope = root @ root.mT + torch.eye(8, dtype=D), normal(8, seed=2)
    found = steihaug(slope, matrix.mv, 1e3, share=1e-12, products=100)
    assert (found.step + torch.linalg.solve(matrix, slope)).abs().max() < 1e-9
    assert (found.image - matrix @ found.step).abs().max() < 1e-9
    assert (found.curved, found.bounded) == (False, False)


def test_the_image_of_a_step_counts_what_the_cauchy_point_has_put_on_bounds():
    """What the model promises is read from it, and wrong promises cost steps."""
    for seed in range(10):
        root, slope, reach = normal(6, 6, seed=seed), 3 * normal(6, seed=30 + seed), torch.full((6,), 0.4, dtype=D)
        matrix = root @ root.mT + torch.eye(6, dtype=D)
        model = Boxed(torch.zeros(6, dtype=D), slope, matrix.mv, -reach, reach)
        found = model.descend(math.inf, share=1e-10, products=100)
        assert (found.image - matrix @ found.step).abs().max() < 1e-12


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("boxed", [False, True], ids=["free", "boxed"])
def test_a_step_stays_in_the_ball_and_is_at_least_as_good_as_the_cauchy_point(seed, boxed):
    matrix, slope, radius = normal(8, 8, seed=seed), normal(8, seed=20 + seed), 0.3 + seed
    matrix = matrix + matrix.mT  # indefinite
    if boxed:
        low, high = torch.full((8,), -0.2, dtype=D), torch.full((8,), 0.3, dtype=D)
        found = Boxed(torch.zeros(8, dtype=D), slope, matrix.mv, low, high).descend(radius, share=0.1, products=50)
        assert bool(((found.step >= low) & (found.step <= high)).all())
    else:
        found = steihaug(slope, matrix.mv, radius, share=0.1, products=50)
        assert float(found.step.norm()) <= radius * (1 + 1e-12)
        assert found.curved or found.bounded

    def model(s):
        return float(slope @ s + s @ matrix @ s / 2)

    assert (found.image - matrix @ found.step).abs().max() < 1e-12
    lengths = torch.linspace(0, radius / float(slope.norm()), 400, dtype=D)
    path = [-length * slope for length in lengths]
    path = [s.clamp(low, high) for s in path] if boxed else path
    least = min(model(s) for s in path)
    assert model(found.step) <= (0.01 if boxed else 1.0) * least + 1e-12
    assert least < 0


def test_negative_curvature_leads_off_a_ridge():
    """J = E (u^2 - 1)^2, nearly flat and concave at 0.01: the model has no minimum."""
    start = [torch.full((1,), 0.01, dtype=D)]
    problem = mfoc.Problem(lambda t, x, u, z: x + u, lambda x, z: (x[:, 0] ** 2 - 1) ** 2, start)
    solution = mfoc.solve(problem, mfoc.NewtonCG(), torch.zeros(3, 1, dtype=D), steps=20, tol=1e-10)
    assert solution.history[0]["negative_curvature"] >= 1
    assert float(solution.controls[0]) == pytest.approx(1.0, abs=1e-10)


# ---- against other solvers


@pytest.mark.parametrize("gauss_newton", [False, True], ids=["newton", "gauss-newton"])
@pytest.mark.parametrize("seed", range(3))
def test_a_quadratic_takes_two_steps(seed, gauss_newton):
    lq, cloud = random_lq(seed)
    solution = mfoc.solve(lq.problem(), mfoc.NewtonCG(gauss_newton=gauss_newton), cloud, steps=2)
    exact = lq.open_loop(cloud.mean(0))
    assert (torch.stack(solution.controls) - exact).abs().max() < 1e-8
    covariance = torch.cov(cloud.mT, correction=0)
    assert solution.value == pytest.approx(lq.value(cloud.mean(0), covariance, shared=True).item(), rel=1e-14)


def test_the_minimum_of_a_network_is_that_of_scipy_and_of_lbfgs():
    problem, cloud = CATALOGUE["decayed"]()  # a tanh network and seven data
    function, start = flat(problem, cloud)
    solution = mfoc.solve(problem, mfoc.NewtonCG(), cloud, steps=40, tol=1e-9)
    theirs = minimize(function, start, jac=True, method="L-BFGS-B", options={"maxiter": 3000, "ftol": 0, "gtol": 1e-9})
    lbfgs = partial(torch.optim.LBFGS, max_iter=200, tolerance_change=1e-14, line_search_fn="strong_wolfe")
    by_lbfgs = mfoc.solve(problem, mfoc.Gradient(lbfgs), cloud, steps=5)
    assert solution.status is mfoc.Status.CONVERGED
    assert solution.value == pytest.approx(theirs.fun, rel=1e-8)
    assert solution.value == pytest.approx(by_lbfgs.value, rel=1e-8)


@pytest.mark.parametrize("gauss_newton", [False, True], ids=["newton", "gauss-newton"])
def test_a_pendulum_as_scipy_swings_it(gauss_newton):
    problem, cloud = pendulum()
    function, start = flat(problem, cloud)
    solution = mfoc.solve(problem, mfoc.NewtonCG(gauss_newton=gauss_newton), cloud, steps=60, tol=1e-8)
    hessian = lambda v: dense_hessian(problem, list(torch.from_numpy(v).split(1)), cloud).numpy()  # noqa: E731
    theirs = minimize(function, start, jac=True, hess=hessian, method="trust-ncg", options={"gtol": 1e-7})
    assert theirs.success
    assert np.abs(mfoc.tree.ravel(solution.controls).numpy() - theirs.x).max() < 1e-6
    assert solution.value == pytest.approx(theirs.fun, rel=1e-12)


def test_convergence_is_superlinear():
    problem, cloud = pendulum()
    history = mfoc.solve(problem, mfoc.NewtonCG(), cloud, steps=60, tol=1e-12).history
    last = [record["residual"] for record in history if 1e-11 < record["residual"] < 1e-1]
    falls = [b / a for a, b in pairwise(last)]
    assert len(falls) >= 2
    assert falls[-1] < 1e-2
    assert falls[-1] < falls[0]


@pytest.mark.parametrize("gauss_newton", [False, True], ids=["newton", "gauss-newton"])
def test_a_box_is_kept_as_by_scipy(gauss_newton):
    problem, cloud = pendulum(bounds=mfoc.Box(-1.5, 1.0))
    function, start = flat(problem, cloud)
    solver = mfoc.NewtonCG(gauss_newton=gauss_newton)
    iterates = []
    solution = mfoc.solve(problem, solver, cloud, steps=60, tol=1e-8, hooks=[lambda at: iterates.append(at.controls)])
    options = {"maxiter": 2000, "ftol": 1e-15, "gtol": 1e-10}
    theirs = minimize(function, start, jac=True, method="L-BFGS-B", bounds=Bounds(-1.5, 1.0), options=options)
    found = mfoc.tree.ravel(solution.controls)
    assert solution.status is mfoc.Status.CONVERGED
    assert solution.value == pytest.approx(theirs.fun, rel=1e-11)
    assert np.abs(found.numpy() - theirs.x).max() < 1e-4
    on = (found == -1.5) | (found == 1.0)
    assert 4 < int(on.sum()) < 12  # what is held is on its bound to the bit
    assert all(-1.5 <= float(u) <= 1.0 for controls in iterates for u in controls)


def test_a_box_that_holds_nothing_changes_nothing():
    problem, cloud = pendulum()
    wide = replace(problem, bounds=mfoc.Box(-100.0, 100.0))
    free, boxed = (mfoc.solve(each, mfoc.NewtonCG(), cloud, steps=40, tol=1e-10) for each in (problem, wide))
    assert distance(free.controls, boxed.controls) < 1e-8


def on_a_rank():
    """A few steps on this rank's share of a mean-field LQ cloud, free and in a box: controls and radii."""
    problem, found = random_lq(5)[0].problem(), []
    for each in (problem, replace(problem, bounds=mfoc.Box(-0.2, 0.2))):
        solution = mfoc.solve(each, mfoc.NewtonCG(), normal(31, 3, seed=9) + 1, steps=3)
        found += [*solution.controls, torch.tensor(solution.last.state["radius"], dtype=D)]
    return found


@pytest.mark.slow
def test_ranks_take_the_steps_of_one_process(tmp_path):
    whole = on_a_rank()
    for found in on_ranks(tmp_path, on_a_rank):
        assert distance(found[0], whole) < 1e-10


# ---- laws


@pytest.mark.parametrize("solver", [mfoc.NewtonCG(), mfoc.NewtonCG(gauss_newton=True)], ids=["newton", "gauss-newton"])
@pytest.mark.parametrize("name", ["mlp", "pytrees", "tied", "interacting"])
def test_keeps_the_laws_of_solvers(name, solver):
    problem, cloud = CATALOGUE[name]()
    mfoc.testing.check_solver(solver, problem, cloud)
    solution = mfoc.solve(problem, solver, cloud, steps=6)
    values = [record["value"] for record in solution.history]
    assert values == sorted(values, reverse=True)
    assert solution.value < values[0]
    for leaf in mfoc.tree.leaves(solution.last.state):
        assert leaf is None or isinstance(leaf, float)


def test_a_solve_goes_on_from_where_it_was():
    problem, cloud = pendulum(bounds=mfoc.Box(-1.5, 1.0))
    whole = mfoc.solve(problem, mfoc.NewtonCG(), cloud, steps=6)
    half = mfoc.solve(problem, mfoc.NewtonCG(), cloud, steps=3)
    assert same_bits(mfoc.solve(problem, mfoc.NewtonCG(), cloud, steps=6, start=half).controls, whole.controls)


def test_the_unit_of_cost_changes_nothing():
    problem, cloud = pendulum()
    running, terminal = problem.running_cost, problem.terminal_cost
    scaled = replace(
        problem,
        running_cost=lambda t, x, u, z: 2.0**20 * running(t, x, u, z),
        terminal_cost=lambda x, z: 2.0**20 * terminal(x, z),
    )
    one, other = (mfoc.solve(each, mfoc.NewtonCG(), cloud, steps=8) for each in (problem, scaled))
    assert same_bits(one.controls, other.controls)


@pytest.mark.parametrize("bounds", [None, mfoc.Box(-1.5, 1.0)], ids=["free", "boxed"])
def test_single_precision_ends_at_rounding(bounds):
    problem, cloud = pendulum(bounds=bounds)
    exact = mfoc.solve(problem, mfoc.NewtonCG(), cloud, steps=40, tol=1e-9)
    single = replace(problem, controls=[u.float() for u in problem.controls])
    rough = mfoc.solve(single, mfoc.NewtonCG(), cloud.to(torch.float32), steps=14)
    assert rough.controls[0].dtype == torch.float32
    assert rough.value == pytest.approx(exact.value, rel=1e-5)
    assert rough.residual < 1e-4
    assert distance([u.double() for u in rough.controls], exact.controls) < 1e-3


def test_a_trial_where_the_cost_overflows_is_refused():
    problem = mfoc.Problem(
        lambda t, x, u, z: x + u, lambda x, z: x[:, 0].exp().exp() - 20 * x[:, 0], [torch.full((1,), -20.0, dtype=D)]
    )
    solution = mfoc.solve(problem, mfoc.NewtonCG(radius=50.0), torch.zeros(2, 1, dtype=D), steps=30, tol=1e-9)
    assert solution.status is mfoc.Status.CONVERGED
    assert solution.history[0]["tries"] > 1


def test_nothing_moves_at_a_stationary_control():
    problem = mfoc.Problem(lambda t, x, u, z: x + u, lambda x, z: x[:, 0] ** 2, [torch.zeros(1, dtype=D)])
    solution = mfoc.solve(problem, mfoc.NewtonCG(), torch.zeros(2, 1, dtype=D), steps=2)
    assert float(solution.controls[0]) == 0
    assert solution.last.state["radius"] is None


class Once(torch.autograd.Function):
    """x^2 / 2 whose second derivative nobody wrote."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square() / 2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, slope):
        return slope * ctx.saved_tensors[0]


def test_what_has_no_second_derivative_is_refused():
    problem = mfoc.Problem(lambda t, x, u, z: Once.apply(x + u), lambda x, z: x[:, 0], [torch.ones(1, dtype=D)])
    with pytest.raises(mfoc.InvalidValue, match=r"second derivatives.*Once.*Gradient"):
        mfoc.solve(problem, mfoc.NewtonCG(), torch.ones(2, 1, dtype=D), steps=1)


def test_other_bounds_than_a_box_are_refused():
    problem = mfoc.Problem(
        lambda t, x, u, z: x + u, lambda x, z: x[:, 0], [torch.full((2,), 0.5, dtype=D)], bounds=mfoc.Simplex()
    )
    with pytest.raises(mfoc.InvalidValue, match="EMSA"):
        mfoc.solve(problem, mfoc.NewtonCG(), torch.ones(2, 2, dtype=D), steps=1)


@pytest.mark.parametrize(
    ("settings", "error"),
    [({"radius": 0.0}, ValueError), ({"products": 0}, ValueError), ({"gauss_newton": 1}, TypeError)],
    ids=["radius", "products", "gauss_newton"],
)
def test_bad_settings_are_refused(settings, error):
    with pytest.raises(error, match=next(iter(settings))):
        mfoc.NewtonCG(**settings)


def test_newton_is_refused_where_j_is_not_what_is_minimised():
    control = mfoc.Problem(
        lambda t, x, u, z: x + u,
        lambda x, z: (x - mfoc.mean(x)).square().sum(1) + x.square().sum(1),
        [torch.zeros(2, dtype=D)],
    )
    with pytest.raises(mfoc.InvalidValue, match="NewtonCG's trust region compares"):
        mfoc.solve(mfoc.Equilibrium(control), mfoc.NewtonCG(), normal(4, 2), steps=1)


def plain_steihaug(slope, product, radius, share, products):
    """Nocedal & Wright (2006), algorithm 7.2, number by number."""
    step, residual, direction = torch.zeros_like(slope), slope, -slope
    square = float(residual @ residual)
    goal = share**2 * square
    for k in range(products):
        if square <= goal:
            return step, k
        moved = product(direction)
        curvature = float(direction @ moved)
        length = square / curvature if curvature > 0 else math.inf
        if curvature <= 0 or float((step + length * direction).norm()) >= radius:
            if math.isinf(radius):
                return step, k + 1
            a, b, c = float(direction @ direction), 2 * float(step @ direction), float(step @ step) - radius**2
            return step + (-b + math.sqrt(b * b - 4 * a * c)) / (2 * a) * direction, k + 1
        step, residual = step + length * direction, residual + length * moved
        before, square = square, float(residual @ residual)
        direction = square / before * direction - residual
    return step, products


@pytest.mark.parametrize("radius", [math.inf, 100.0, 0.5])
@pytest.mark.parametrize("lowest", [0.1, -1.0])
@pytest.mark.parametrize("products", [3, 20])
def test_conjugate_gradients_that_look_once_a_product_make_the_steps_of_those_that_look_at_each_number(
    radius, lowest, products
):
    axes = torch.linalg.qr(normal(8, 8))[0]
    matrix = axes * torch.linspace(lowest, 2, 8, dtype=torch.float64) @ axes.mT
    slope, share = normal(8, seed=1), 1e-9
    found = steihaug(slope, matrix.mv, radius, share=share, products=products)
    step, taken = plain_steihaug(slope, matrix.mv, radius, share, products)
    torch.testing.assert_close(found.step, step, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.image, matrix @ found.step, rtol=1e-9, atol=1e-9)
    assert found.products == taken
    assert found.bounded == (not math.isinf(radius) and abs(float(step.norm()) - radius) < 1e-9)
