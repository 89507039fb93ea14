"""Adaptation and its evaluation: tasks and solutions that do not belong, and tasks that diverge."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn

import mfoc
from paradigms.meta import (
    adapt,
    evaluate,
    maml,
    meta_sgd,
    sinusoids,
    tasks,
)
from paradigms.reporting import Estimate
from tests.problems import D, generator, normal, seeded

LR = 0.1
KINDS = torch.randint(0, 3, (3, 4), generator=generator(1))
LAW = sinusoids(tasks=4, shots=5, queries=6, dtype=D)


def linear(outputs=3):
    return seeded(lambda: nn.Linear(4, outputs))


def cloud(support, query=None):
    """Tasks with these targets."""
    query = support if query is None else query
    return tasks((normal(3, 4, 4), support), (normal(3, 4, 4, seed=5), query))


WAVES = maml(seeded(lambda: nn.Linear(1, 1)), F.mse_loss, LAW, inner_steps=1, inner_lr=LR)
CLASSES = maml(linear(), F.cross_entropy, cloud(KINDS), inner_steps=1, inner_lr=LR)
RATES = meta_sgd(seeded(lambda: nn.Linear(1, 1)), F.mse_loss, LAW, inner_steps=1, inner_lr=LR)


@pytest.mark.parametrize(
    ("made", "support", "message"),
    [
        (WAVES, (normal(5, 2), normal(5, 1)), r"cannot run on the support inputs of a task, \(5, 2\)"),
        (WAVES, (normal(5, 1).float(), normal(5, 1).float()), "torch.float64 on cpu"),
        (WAVES, (normal(5, 1), normal(5)), "broadcast"),
        (WAVES, (normal(0, 1), normal(0, 1)), "support is empty"),
        (CLASSES, (normal(4, 4), KINDS[0] + 1), "label 3"),
    ],
)
def test_adapt_and_evaluate_refuse_other_tasks(made, support, message):
    with pytest.raises(mfoc.InvalidValue, match=message):
        adapt(made, made.problem, support)
    pair = tuple(part[None] for part in support)
    with pytest.raises(mfoc.InvalidValue, match=message):
        evaluate(made, made.problem, {"support": pair, "query": pair}, progress=False)


@pytest.mark.parametrize(
    ("made", "other", "message"),
    [
        (WAVES, CLASSES.problem, "another formulation: .*weight"),
        (WAVES, RATES.problem, "another formulation: .*alpha"),
        (RATES, WAVES.problem, "another formulation: .*missing"),
        (WAVES, [normal(3)], "another formulation"),
        (WAVES, {"phi": {"weight": normal(1, 1) / 0, "bias": normal(1)}}, "NaN or infinite"),
        (WAVES, None, "solution is a NoneType"),
    ],
)
def test_solutions_of_other_formulations(made, other, message):
    refused = pytest.raises((mfoc.InvalidValue, mfoc.InvalidType), match=message)
    with refused:
        adapt(made, other, (normal(5, 1), normal(5, 1)))
    with pytest.raises((mfoc.InvalidValue, mfoc.InvalidType), match=message):
        evaluate(made, other, progress=False)


def test_a_task_is_not_counted_twice():
    with pytest.raises(mfoc.InvalidValue, match="counting a task twice"):
        evaluate(CLASSES, CLASSES.problem.controls, cloud(KINDS), batches=2, progress=False)


@pytest.mark.parametrize("shuffle", [True, False])
def test_every_task_is_counted_once_whatever_the_batches(shuffle):
    """In order, the second batch of two begins anew with the first task."""
    whole = evaluate(CLASSES, CLASSES.problem, cloud(KINDS), steps=(0, 2), progress=False)
    source = mfoc.population(cloud(KINDS), batch_size=2, shuffle=shuffle)
    table = evaluate(CLASSES, CLASSES.problem, source, steps=(0, 2), batches=2, progress=False)
    assert table.tasks == 3
    for steps in (0, 2):
        assert table[steps].loss == pytest.approx(whole[steps].loss, rel=1e-12)
        assert table[steps].accuracy == pytest.approx(whole[steps].accuracy, rel=1e-12)
    with pytest.raises(mfoc.InvalidValue, match="batches is 3 and the tasks fill 2"):
        evaluate(CLASSES, CLASSES.problem, source, batches=3, progress=False)


def test_the_interval_of_few_tasks_is_students():
    table = evaluate(CLASSES, CLASSES.problem, cloud(KINDS), steps=0, progress=False)
    outputs = CLASSES.net(normal(3, 4, 4, seed=5))
    each = torch.stack([F.cross_entropy(o, k) for o, k in zip(outputs, KINDS, strict=True)]).detach()
    low, high = stats.t.interval(0.95, 2, float(each.mean()), stats.sem(each.numpy()))
    assert table[0].loss == pytest.approx((float(each.mean()), low, high), rel=1e-9)


@pytest.mark.parametrize("wrap", [lambda **k: nn.CrossEntropyLoss(**k), lambda **k: partial(F.cross_entropy, **k)],
                         ids=["module", "partial"])  # fmt: skip
def test_an_accuracy_is_over_the_targets_that_are_counted(wrap):
    made = maml(linear(), wrap(ignore_index=1), cloud(KINDS), inner_steps=1, inner_lr=LR)
    table = evaluate(made, made.problem, cloud(KINDS), steps=0, progress=False)
    guess = made.net(normal(3, 4, 4, seed=5)).argmax(2)
    each = torch.stack([(g == k)[k != 1].double().mean() for g, k in zip(guess, KINDS, strict=True)])
    assert table[0].accuracy.value == pytest.approx(float(each.mean()), rel=1e-12)


@pytest.mark.parametrize(
    ("steps", "error", "message"),
    [
        ((), mfoc.InvalidValue, "steps is"),
        (-1, mfoc.InvalidValue, "steps is -1"),
        ((1, 2.0), mfoc.InvalidType, "is 2.0"),
    ],
)
def test_numbers_of_steps_that_are_none(steps, error, message):
    with pytest.raises(error, match=message):
        evaluate(WAVES, WAVES.problem, steps=steps, progress=False)


def test_evaluate_says_what_diverged():
    bold = meta_sgd(seeded(lambda: nn.Linear(1, 1)), F.mse_loss, LAW, inner_steps=1, inner_lr=30.0)
    table = evaluate(bold, bold.problem, steps=(0, 1, 500), progress=False)
    assert table[0].diverged == 0
    assert math.isfinite(table[0].loss.value)
    assert table[500].diverged == 4
    assert not math.isfinite(table[500].loss.value)
    assert (table[500].loss.low, table[500].loss.high) == (-math.inf, math.inf)
    assert "(4 of 4 tasks diverged)" in str(table).splitlines()[-1]
    assert "diverged" not in str(table).splitlines()[2]


def test_estimates_of_all_paradigms_are_one():
    from paradigms.adversarial import certificate
    from paradigms.meta import evaluation

    assert certificate.Estimate is evaluation.Estimate is Estimate
    assert str(Estimate(0.5, 0.25, 0.75)) == "0.5 [0.25, 0.75]"


def test_tables_compare_by_their_numbers():
    tables = [evaluate(WAVES, WAVES.problem, steps=k, progress=False) for k in (1, 1, 2)]
    assert tables[0] == tables[1] != tables[2]
