"""Inner loops as formulations: they keep the laws, certify, print in a line and compare without asking tensors."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mfoc
from paradigms.meta import (
    adapt,
    anil,
    evaluate,
    imaml,
    learned_update,
    maml,
    meta_sgd,
    reptile,
)
from paradigms.meta.algorithms import Coordinatewise
from paradigms.meta.loop import Loop, TaskObjective
from tests.oracles.meta import each_task
from tests.paradigms.meta.nets import batch, mlp
from tests.problems import D, seeded

LR = 0.05
ADAM = mfoc.Gradient(partial(torch.optim.Adam, lr=1e-2))


def own_rule():
    return Coordinatewise(seeded(lambda: nn.Linear(2, 1))).to(D)


FORMULATIONS = {
    "maml": lambda net, law: maml(net, F.mse_loss, law, inner_steps=2, inner_lr=LR),
    "fomaml": lambda net, law: maml(net, F.mse_loss, law, inner_steps=2, inner_lr=LR, first_order=True),
    "multi-step": lambda net, law: maml(net, F.mse_loss, law, inner_steps=2, inner_lr=LR, step_losses=[0.5, 0.5]),
    "meta_sgd": lambda net, law: meta_sgd(net, F.mse_loss, law, inner_steps=2, inner_lr=LR),
    "anil": lambda net, law: anil(net, F.mse_loss, law, inner_steps=2, inner_lr=LR),
    "reptile": lambda net, law: reptile(net, F.mse_loss, law, inner_steps=2, inner_lr=LR),
    "adapted rule": lambda net, law: learned_update(
        net, F.mse_loss, law, rule=own_rule(), inner_steps=2, inner_lr=LR, adapt_rule=True
    ),
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
        for support, query in each_task(other(step)):
            losses[0].append(F.mse_loss(made.readout(solution)(query[0]), query[1]))
            losses[7].append(F.mse_loss(adapt(made, solution, support, steps=7)(query[0]), query[1]))
    for k, found in losses.items():
        found = torch.stack(found).detach()
        row = table[k].loss
        assert row.value == pytest.approx(float(found.mean()), rel=1e-9)
        assert row.high - row.low == pytest.approx(
            2 * 2.570582 * float(found.std()) / math.sqrt(6), rel=1e-5
        )  # t of 5 degrees
    assert table[0].accuracy is None
    assert "7" in str(table)


def test_a_formulation_certifies_its_own_problem():
    made = maml(mlp(width=3), F.mse_loss, batch(), inner_steps=1, inner_lr=LR)
    settings = {"lanczos": 3, "seed": 4}
    found = made.certify(made.problem.controls, **settings)
    expected = mfoc.certify(made.problem, made.problem.controls, made.population, **settings)
    assert str(found) == str(expected)
    assert "residual" in str(found)


def test_a_formulation_prints_in_a_line_and_compares():
    one, other = (maml(mlp(), F.mse_loss, batch(), inner_steps=2, inner_lr=LR) for _ in range(2))
    assert repr(one) == "MetaFormulation(Sequential, 78 controls, adapted in 2 inner steps)"
    assert one == one
    assert one != other
    assert one != replace(one, inner_lr=0.1)


def test_old_names_of_an_inner_loop():
    loop = maml(mlp(), F.mse_loss, batch(), inner_steps=1, inner_lr=LR).loop
    with pytest.warns(DeprecationWarning, match=r"\.inner is now \.objective"):
        assert loop.inner is loop.objective
    with pytest.warns(DeprecationWarning, match="inner= is now objective="):
        again = Loop(inner=loop.objective, adapted=loop.adapted, move=loop.move)
    assert again == loop
    with pytest.warns(DeprecationWarning, match=r"inner\.Inner has moved to paradigms\.meta\.loop\.TaskObjective"):
        from paradigms.meta.inner import Inner
    assert Inner is TaskObjective
