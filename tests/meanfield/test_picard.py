"""Damped Picard iteration: best responses, where undamped ones jump to and fro."""

from functools import partial

import pytest
import torch

import mfoc
from tests.problems import distance, normal, same_bits, scalar_game, swarm

SGD = mfoc.Gradient(partial(torch.optim.SGD, lr=0.2))
LBFGS = mfoc.Gradient(
    partial(torch.optim.LBFGS, line_search_fn="strong_wolfe", max_iter=30, tolerance_grad=1e-14, tolerance_change=0)
)


def test_damping_finds_what_best_responses_alone_jump_over():
    """Players who flee their mean (S = -2): the best response reverses, and overshoots."""
    lq, x = scalar_game(S=-2.0, ST=-2.0), normal(6, 1) + 1
    game, exact = mfoc.Equilibrium(lq.problem()), mfoc.lq.equilibrium(lq, x.mean(0)).controls
    found = mfoc.solve(game, mfoc.meanfield.Picard(LBFGS, steps=1, damping=0.3), x, steps=60)
    assert distance(torch.stack(found.controls), exact) < 1e-6
    jumping = mfoc.solve(game, mfoc.meanfield.Picard(LBFGS, steps=1, damping=1.0), x, steps=60)
    assert distance(torch.stack(jumping.controls), exact) > 0.1


def test_one_undamped_step_of_sgd_is_sgd_on_the_equilibrium():
    problem, cloud = swarm()
    game = mfoc.Equilibrium(problem)
    one = mfoc.solve(game, mfoc.meanfield.Picard(SGD, steps=1, damping=1.0), cloud, steps=5)
    other = mfoc.solve(game, SGD, cloud, steps=5)
    assert distance(one.controls, other.controls) < 1e-14
    assert one.residual == pytest.approx(other.residual, rel=1e-12)


def test_it_keeps_the_laws_of_solvers():
    problem, cloud = swarm()
    mfoc.testing.check_solver(mfoc.meanfield.Picard(SGD), mfoc.Equilibrium(problem), cloud)
    game = mfoc.Equilibrium(problem)
    whole = mfoc.solve(game, mfoc.meanfield.Picard(SGD), cloud, steps=4)
    half = mfoc.solve(game, mfoc.meanfield.Picard(SGD), cloud, steps=2)
    assert same_bits(mfoc.solve(game, mfoc.meanfield.Picard(SGD), cloud, steps=4, start=half).controls, whole.controls)


def test_bad_arguments():
    problem, cloud = swarm()
    for wrong in ({"damping": 0.0}, {"damping": 1.5}, {"steps": 0}):
        with pytest.raises(mfoc.InvalidValue, match=next(iter(wrong))):
            mfoc.meanfield.Picard(SGD, **wrong)
    with pytest.raises(mfoc.InvalidType, match="Picard looks for an equilibrium"):
        mfoc.solve(problem, mfoc.meanfield.Picard(SGD), cloud, steps=1)
