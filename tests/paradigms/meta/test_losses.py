"""Losses of a task: the targets that torch takes are taken, those that cannot be right are refused."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mfoc
from paradigms.meta import (
    evaluate,
    maml,
    tasks,
)
from tests.oracles import meta as oracles
from tests.problems import D, generator, normal, seeded

LR = 0.1
KINDS = torch.randint(0, 3, (3, 4), generator=generator(1))
SPARSE = KINDS.index_put((torch.tensor([0, 2, 2]), torch.tensor([1, 0, 3])), torch.tensor(-100))
SIGNS = 2 * torch.randint(0, 2, (3, 4, 3), generator=generator(3)) - 1


def linear(outputs=3):
    return seeded(lambda: nn.Linear(4, outputs))


def cloud(support, query=None):
    """Tasks with these targets."""
    query = support if query is None else query
    return tasks((normal(3, 4, 4), support), (normal(3, 4, 4, seed=5), query))


def ours(net, loss, particles):
    made = maml(net, loss, particles, inner_steps=2, inner_lr=LR)
    found = mfoc.evaluate(made.problem, made.problem.controls, particles)
    return [found.value, *found.gradient["phi"].values()]


@pytest.mark.parametrize(
    ("loss", "targets"),
    [
        (F.cross_entropy, SPARSE),
        (nn.CrossEntropyLoss(), SPARSE),
        (nn.CrossEntropyLoss(reduction="sum"), SPARSE),
        (nn.CrossEntropyLoss(label_smoothing=0.1), SPARSE),
        (nn.CrossEntropyLoss(ignore_index=0), KINDS),
        (nn.CrossEntropyLoss(ignore_index=255), SPARSE.masked_fill(SPARSE < 0, 255)),
        (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0], dtype=D)), SPARSE),
        (lambda output, y: F.cross_entropy(output, y), SPARSE),
        (lambda output, y: F.cross_entropy(output, y) if output.mean() > -9 else output.sum(), SPARSE),
        (nn.SoftMarginLoss(), SIGNS),
        (nn.SoftMarginLoss(), SIGNS.double()),
        (nn.MSELoss(reduction="sum"), SIGNS.double()),
        (nn.KLDivLoss(reduction="batchmean"), SIGNS.double().softmax(-1)),
    ],
)
def test_targets_that_are_legitimate(loss, targets):
    net, particles = linear(), cloud(targets)
    for mine, plain in zip(ours(net, loss, particles), oracles.maml(net, loss, particles, steps=2, lr=LR), strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-12, atol=1e-14)


def test_ignored_labels_that_come_later():
    """The first batch has none, and a batch's tensors may be written into."""
    made = maml(linear(), F.cross_entropy, cloud(KINDS), inner_steps=2, inner_lr=LR)
    labels = KINDS.clone()
    particles = cloud(labels)
    for now in (KINDS, SPARSE, KINDS):
        labels.copy_(now)
        value = mfoc.evaluate(made.problem, made.problem.controls, particles).value
        torch.testing.assert_close(
            value, oracles.maml(linear(), F.cross_entropy, particles, steps=2, lr=LR)[0], rtol=1e-12, atol=0
        )


@pytest.mark.parametrize("loss", [F.cross_entropy, nn.CrossEntropyLoss()])
def test_class_probabilities_are_averaged_over_shots(loss):
    net = seeded(lambda: nn.Linear(4, 3)).to(D)
    pair = lambda seed: (normal(2, 6, 4, seed=seed), normal(2, 6, 3, seed=seed + 1).softmax(-1))  # noqa: E731
    particles = tasks(pair(0), pair(5))
    made = maml(net, loss, particles, inner_steps=1, inner_lr=0.5)
    value = mfoc.evaluate(made.problem, made.problem.controls, particles).value
    torch.testing.assert_close(value, oracles.maml(net, loss, particles, steps=1, lr=0.5)[0], rtol=1e-12, atol=0)


def test_ignored_labels_are_not_counted_as_wrong():
    net = linear()
    made = maml(net, F.cross_entropy, cloud(SPARSE), inner_steps=1, inner_lr=LR)
    row = evaluate(made, made.problem, steps=(0,), progress=False)[0]
    right = (net(normal(3, 4, 4, seed=5)).argmax(2) == SPARSE).sum(1) / (SPARSE >= 0).sum(1)
    assert row.accuracy.value == pytest.approx(float(right.mean()), rel=1e-6)
    signs = maml(net, nn.SoftMarginLoss(), cloud(SIGNS), inner_steps=1, inner_lr=LR)
    assert evaluate(signs, signs.problem, progress=False)[1].accuracy is None


@pytest.mark.parametrize(
    ("loss", "targets", "outputs", "message"),
    [
        (F.cross_entropy, KINDS + 1, 3, "label 3; the network has 3 outputs"),
        (nn.NLLLoss(), KINDS - 1, 3, "label -1"),
        (F.cross_entropy, KINDS.int(), 3, "torch.int64"),
        (F.cross_entropy, F.one_hot(KINDS), 3, "expected integer labels"),
        (lambda a, b: F.cross_entropy(a, b), KINDS + 1, 3, "out of bounds"),
        (F.mse_loss, normal(3, 4), 12, "broadcast"),  # tasks * shots == outputs
        (nn.L1Loss(), KINDS, 12, "broadcast"),
        (F.mse_loss, normal(3, 4), 4, "broadcast"),  # shots == outputs
        (F.mse_loss, normal(3, 4, 1), 3, "broadcast"),
        (F.mse_loss, normal(3, 4, 3) * math.nan, 3, "support y holds NaN"),
        (lambda a, b: F.mse_loss(a, b) + torch.rand(()), normal(3, 4, 3), 3, "random numbers"),
    ],
)
def test_targets_that_cannot_be_right(loss, targets, outputs, message):
    with pytest.raises(mfoc.InvalidValue, match=message):
        maml(linear(outputs), loss, cloud(targets), inner_steps=1, inner_lr=LR)


def test_labels_of_the_query_and_inputs_that_are_not_finite():
    with pytest.raises(mfoc.InvalidValue, match="query y holds the label 3"):
        maml(linear(), F.cross_entropy, cloud(KINDS, KINDS + 2), inner_steps=1, inner_lr=LR)
    bad = tasks((normal(3, 4, 4) / 0, KINDS), (normal(3, 4, 4), KINDS))
    with pytest.raises(mfoc.InvalidValue, match="support x holds NaN"):
        maml(linear(), F.cross_entropy, bad, inner_steps=1, inner_lr=LR)
