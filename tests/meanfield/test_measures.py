"""The price of anarchy and exploitability, against the closed forms of LQ games."""

from functools import partial

import pytest
import torch

import mfoc
from tests.oracles.games import minimum_of_quadratic
from tests.problems import D, distance, normal, scalar_game, swarm

SGD = mfoc.Gradient(partial(torch.optim.SGD, lr=0.1))
LBFGS = mfoc.Gradient(
    partial(torch.optim.LBFGS, line_search_fn="strong_wolfe", max_iter=30, tolerance_grad=1e-14, tolerance_change=0)
)


def test_the_price_of_anarchy_is_that_of_the_two_closed_forms():
    lq, x = scalar_game(), normal(6, 1) + 1
    start = x.mean(0), torch.cov(x.mT, correction=0)[None, None]
    found = mfoc.price_of_anarchy(lq.problem(), SGD, x, steps=200, tol=1e-12)
    exact = mfoc.lq.equilibrium(lq, *start, shared=True).value, lq.value(*start, shared=True)
    assert found.value == pytest.approx(float(exact[0] / exact[1]), rel=1e-12)
    assert found.difference == pytest.approx(float(exact[0] - exact[1]), rel=1e-9)
    assert found.value > 1.001


def test_of_a_feedback_too_by_picard_whose_inner_solver_takes_the_control_problem():
    lq, x = scalar_game(), normal(6, 1) + 1
    start = x.mean(0), torch.cov(x.mT, correction=0)[None, None]
    found = mfoc.price_of_anarchy(lq.problem(feedback=True), mfoc.meanfield.Picard(LBFGS, steps=1), x, steps=30)
    exact = mfoc.lq.equilibrium(lq, *start).value / lq.value(*start)
    assert found.value == pytest.approx(float(exact), rel=1e-6)


def test_where_j_is_not_positive_there_is_no_ratio_and_it_says_so():
    lq, x = scalar_game(), normal(6, 1) + 1
    lower = mfoc.lq.LinearQuadratic.discrete(
        lq.A, lq.B, lq.Q, lq.R, lq.QT, horizon=4, Abar=lq.Abar, Qbar=lq.Qbar, offset=torch.tensor(-90.0, dtype=D)
    )
    found = mfoc.price_of_anarchy(lower.problem(), SGD, x, steps=300)
    assert found.value != found.value
    assert found.difference > 0
    assert "no ratio, since J(optimum) <= 0" in repr(found)


def test_an_equilibrium_that_is_not_solved_is_told():
    problem, cloud = swarm()
    solution = mfoc.solve(problem, SGD, cloud, steps=50)
    worse = mfoc.solve(problem, SGD, cloud, steps=0)
    assert "one of them is not solved" in repr(mfoc.meanfield.PriceOfAnarchy(solution, worse))


@pytest.mark.parametrize("solver", [LBFGS, mfoc.EMSA()], ids=["lbfgs", "emsa"])
def test_exploitability_is_what_the_best_deviation_saves(solver):
    lq, x = scalar_game(), normal(6, 1) + 1
    optimum = lq.open_loop(x.mean(0))
    means = lq.path(x.mean(0)).states

    def cost(v):
        """A player's cost, the mean of the others held."""
        y, total = x[:, 0], torch.zeros((), dtype=D)
        get = {name: getattr(lq, name)[0, 0] for name in ("A", "B", "Q", "R", "QT", "Abar", "Qbar", "S", "QbarT", "ST")}
        for t in range(4):
            m = means[t, 0]
            total = total + (get["Q"] * y**2 + get["Qbar"] * (y - get["S"] * m) ** 2).mean() + get["R"] * v[t, 0] ** 2
            y = get["A"] * y + get["Abar"] * m + get["B"] * v[t, 0]
        return total + (get["QT"] * y**2 + get["QbarT"] * (y - get["ST"] * means[4, 0]) ** 2).mean()

    best, least = minimum_of_quadratic(cost, optimum)
    expected = float(cost(optimum) - least)
    assert expected > 0.01
    found = mfoc.exploitability(lq.problem(), list(optimum), solver, x, steps=60, tol=1e-9)
    assert found.cost == pytest.approx(float(lq.value(x.mean(0), x.var(correction=0)[None, None], shared=True)))
    assert found.value == pytest.approx(expected, rel=1e-9)
    assert distance(torch.stack(found.response.controls), best) < 1e-6
    equilibrium = list(mfoc.lq.equilibrium(lq, x.mean(0)).controls)
    none = mfoc.exploitability(mfoc.Equilibrium(lq.problem()), equilibrium, solver, x, steps=3)
    assert abs(none.value) < 1e-13
    assert "Exploitability(" in repr(none)


def test_a_picard_is_no_solver_of_a_players_problem():
    problem, cloud = swarm()
    with pytest.raises(mfoc.InvalidType, match="expected its inner solver"):
        mfoc.exploitability(problem, problem, mfoc.meanfield.Picard(SGD), cloud, steps=1)
