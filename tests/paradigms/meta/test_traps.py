"""Ways in which stacked tasks could quietly part from the network and the loss they stand for."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mfoc
from paradigms.meta import evaluate, few_shot, learned_update, maml, tasks
from tests.problems import D, generator, normal, seeded


def labelled(shots=6, seed=0):
    return normal(3, shots, 4, seed=seed), torch.randint(0, 3, (3, shots), generator=generator(seed))


TASKS = tasks(labelled(6), labelled(5, seed=1))


def by_hand(net, loss, cloud, lr):
    """The mean query loss after one step on each task, with plain functional calls."""
    weights, total = {k: p.detach().clone() for k, p in net.named_parameters()}, 0.0
    for i in range(len(cloud)):
        (x, y), (x_query, y_query) = ([leaf[i] for leaf in cloud.data[part]] for part in ("support", "query"))
        free = {k: w.clone().requires_grad_() for k, w in weights.items()}
        slopes = torch.autograd.grad(loss(torch.func.functional_call(net, free, (x,)), y), list(free.values()))
        moved = {k: w - lr * g for (k, w), g in zip(free.items(), slopes, strict=True)}
        total += loss(torch.func.functional_call(net, moved, (x_query,)), y_query).item() / len(cloud)
    return total


def test_a_layer_that_is_used_twice_runs_twice():
    shared = nn.Tanh()
    net = seeded(lambda: nn.Sequential(nn.Linear(4, 6), shared, nn.Linear(6, 6), shared, nn.Linear(6, 3))).to(D)
    made = maml(net, F.cross_entropy, TASKS, inner_steps=1, inner_lr=0.1)
    value = mfoc.evaluate(made.problem, made.problem.controls, TASKS).value
    assert float(value) == pytest.approx(by_hand(net, F.cross_entropy, TASKS, 0.1), rel=1e-12)


@pytest.mark.parametrize("loss", [F.cross_entropy, nn.CrossEntropyLoss()])
def test_class_probabilities_are_averaged_over_shots(loss):
    net = seeded(lambda: nn.Linear(4, 3)).to(D)
    pair = lambda seed: (normal(2, 6, 4, seed=seed), normal(2, 6, 3, seed=seed + 1).softmax(-1))  # noqa: E731
    cloud = tasks(pair(0), pair(5))
    made = maml(net, loss, cloud, inner_steps=1, inner_lr=0.5)
    value = mfoc.evaluate(made.problem, made.problem.controls, cloud).value
    assert float(value) == pytest.approx(by_hand(net, loss, cloud, 0.5), rel=1e-12)


def test_few_shot_batches_depend_on_the_seed_and_the_step_alone():
    images, kinds = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32), np.arange(40) % 8
    batches = few_shot(images, kinds, ways=3, shots=1, queries=2, tasks=4, seed=3)
    before = batches(5).data["support"][0].clone()
    try:
        torch.set_default_dtype(torch.float64)
        assert torch.equal(batches(5).data["support"][0], before)
    finally:
        torch.set_default_dtype(torch.float32)
    images[:] = 0
    assert torch.equal(batches(5).data["support"][0], before)


def test_a_task_is_not_counted_twice():
    made = maml(seeded(lambda: nn.Linear(4, 3)).to(D), F.cross_entropy, TASKS, inner_steps=1, inner_lr=0.1)
    with pytest.raises(mfoc.InvalidValue, match="counting a task twice"):
        evaluate(made, made.problem.controls, TASKS, batches=2, progress=False)


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.norm = nn.Parameter(torch.tensor(0.1, dtype=D)), nn.Identity()

    def forward(self, slope, weight):
        return self.a * slope


def test_rules_that_share_or_mix_are_refused():
    net, rule, mixing = seeded(lambda: nn.Linear(4, 3)).to(D), Scaled(), Scaled()
    mixing.norm = nn.BatchNorm1d(1)
    with pytest.raises(mfoc.InvalidValue, match="shares parameters"):
        learned_update(net, F.cross_entropy, TASKS, rule=nn.ModuleDict({"weight": rule, "bias": rule}), inner_steps=1)
    with pytest.raises(mfoc.InvalidValue, match="mixes tasks"):
        learned_update(net, F.cross_entropy, TASKS, rule=mixing, inner_steps=1)
