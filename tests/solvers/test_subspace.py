"""The step that a quadratic model finds best in a span is the least of a quadratic there."""

import pytest
import torch

import mfoc
from mfoc.frozen import Sweep
from mfoc.minimisers import LBFGS
from mfoc.solvers.subspace import combined
from mfoc.solvers.weights import curvature
from tests.problems import CATALOGUE, D, normal


def bowl(n, seed=0):
    root = normal(n, n, seed=seed)
    return root @ root.mT / n + torch.eye(n, dtype=D), normal(n, seed=seed + 1)


@pytest.mark.parametrize("earlier", [0, 1, 4])
def test_the_step_is_the_least_of_a_quadratic_in_the_span(earlier):
    a, g = bowl(12)
    d, steps = -g, [normal(12, seed=5 + k) for k in range(earlier)]
    step = combined(d, float(g @ d + d @ a @ d / 2), g, steps, [a @ s for s in steps])
    span = torch.stack([d, *steps], 1)
    exact = span @ torch.linalg.solve(span.mT @ a @ span, -(span.mT @ g))
    torch.testing.assert_close(step, exact, rtol=1e-9, atol=1e-10)


def test_repeated_it_is_the_conjugate_gradient_method():
    """Ten steps minimise a quadratic of ten unknowns; steepest descent with exact lengths does not."""
    a, b = bowl(10)

    def distance(pairs):
        u, steps, changes = torch.zeros(10, dtype=D), [], []
        for _ in range(10):
            g = a @ u + b
            step = combined(-g, float(-g @ g + g @ a @ g / 2), g, steps[-pairs:], changes[-pairs:])
            u, steps, changes = u + step, [*steps, step], [*changes, a @ step]
            if pairs == 0:
                steps, changes = [], []
        return float((a @ u + b).norm() / b.norm())

    assert distance(1) < 1e-6
    assert distance(0) > 1e-4


def test_missing_and_repeated_steps_change_nothing():
    a, g = bowl(6)
    d, s, zero = -g, normal(6, seed=3), torch.zeros(6, dtype=D)
    rise = float(g @ d + d @ a @ d / 2)
    plain = combined(d, rise, g, [s], [a @ s])
    torch.testing.assert_close(combined(d, rise, g, [zero, s, s], [zero, a @ s, a @ s]), plain, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("rise", [float("inf"), float("nan")])
def test_where_the_model_knows_nothing_there_is_no_step(rise):
    g = normal(4)
    assert combined(-g, rise, g, [], []) is None
    assert combined(torch.zeros_like(g), 0.0, g, [], []) is None
    assert combined(-g, float(-g @ g) + 1e-17, g, [], [], rounding=1e-12) is None


def test_a_warm_start_without_reach_is_a_cold_one_and_with_it_asks_less():
    a, b = bowl(8)
    asked = []

    def evaluate(rows):
        asked.append(len(rows))
        slope = 1e-3 * (rows @ a + b)
        return (1e-3 * (rows * (rows @ a / 2 + b))).sum(1), slope

    start = torch.zeros(1, 8, dtype=D)
    cold = LBFGS(3).minimise(evaluate, start)
    warm = LBFGS(3).warm(evaluate, start, evaluate(start))
    assert torch.equal(cold.point, warm.minimum.point)
    assert cold.evaluations == warm.minimum.evaluations + 1
    asked.clear()
    again = LBFGS(3).warm(evaluate, start, evaluate(start), warm.reach)
    assert len(asked) == again.minimum.evaluations + 1 < cold.evaluations
    for unknown in (0.0, float("nan"), -1.0):
        same = LBFGS(3).warm(evaluate, start, evaluate(start), torch.full((1,), unknown, dtype=D))
        assert torch.equal(same.minimum.point, cold.point)


def test_on_another_batch_earlier_steps_are_forgotten():
    problem, particles = CATALOGUE["mlp"]()
    solver = mfoc.EMSA()
    controls, state = problem.controls, solver.init(problem, problem.controls)
    for _ in range(3):
        controls, state, _ = solver.step(problem, controls, state, particles)
    assert any(bool(step.any()) for step in state["steps"])
    half = mfoc.tree.map(lambda leaf: leaf[: len(leaf) // 2], [particles.state, particles.data])
    _, state, _ = solver.step(problem, controls, state, mfoc.Particles(*half))
    assert state["changes"] == 1
    assert not any(bool(step.any()) for step in state["steps"])


@pytest.mark.parametrize("products", [1, 3])
def test_first_weights_come_with_products_of_the_hessian(products):
    problem, cloud = CATALOGUE["decayed"]()
    found = curvature(Sweep.at(problem, problem.controls, cloud), cloud, products=products)
    leaves = mfoc.tree.leaves(problem.controls)

    def gradient(vector):
        controls = mfoc.tree.rebuild(problem.controls, mfoc.tree.pieces(vector, leaves))
        return mfoc.tree.ravel(mfoc.evaluate(problem, controls, cloud).gradient)

    at, h = mfoc.tree.ravel(problem.controls), 1e-4
    assert len(found.steps) == len(found.bends) == products
    for step, bend in zip(found.steps, found.bends, strict=True):
        central = (gradient(at + h * step) - gradient(at - h * step)) / (2 * h)
        assert float(step.norm()) == pytest.approx(1)
        assert float((central - bend).norm()) < 1e-4 * float(bend.norm())
