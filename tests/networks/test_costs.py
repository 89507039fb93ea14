"""Losses as terminal costs, weight decay as a running cost: those of torch."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mfoc
from tests.architectures import mlp_net
from tests.problems import distance, labels, normal

SGD = partial(torch.optim.SGD, lr=0.1)


def test_weight_decay_is_that_of_torch():
    net, x, z = mlp_net(), normal(6, 3), labels(6, 2)
    problem = mfoc.from_module(net, F.cross_entropy, running_cost=mfoc.weight_decay(0.03))
    solution = mfoc.solve(problem, mfoc.Gradient(partial(torch.optim.SGD, lr=0.2, momentum=0.9)), (x, z), steps=6)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.2, momentum=0.9, weight_decay=0.03)
    for _ in range(6):
        optimiser.zero_grad()
        F.cross_entropy(net(x), z).backward()
        optimiser.step()
    solved = mfoc.to_module(net, solution.controls)
    assert distance(list(solved.parameters()), list(net.parameters())) < 1e-13


@pytest.mark.parametrize(
    ("loss", "target"),
    [
        (F.cross_entropy, labels(5, 2)),
        (nn.CrossEntropyLoss(label_smoothing=0.1), labels(5, 2)),
        (partial(F.cross_entropy, label_smoothing=0.1), labels(5, 2)),
        (nn.MSELoss(), normal(5, 2, seed=7)),
        (F.l1_loss, normal(5, 2, seed=7)),
        (nn.BCEWithLogitsLoss(reduction="sum"), (normal(5, 2, seed=7) > 0).double()),
        (lambda x, z: (x - z).square().mean(1), normal(5, 2, seed=7)),
    ],
    ids=["function", "module", "partial", "mse", "l1", "bce", "own"],
)
def test_losses_are_means_over_particles(loss, target):
    net, x = mlp_net(), normal(5, 3)
    problem = mfoc.from_module(net, loss)
    value = mfoc.evaluate(problem, problem.controls, mfoc.Particles(x, target)).value
    expected = loss(net(x), target)
    expected = expected / target.numel() if getattr(loss, "reduction", "") == "sum" else expected
    torch.testing.assert_close(value, expected.mean().detach(), rtol=1e-13, atol=0)


def test_a_broadcast_loss_is_refused():
    problem = mfoc.from_module(nn.Sequential(nn.Linear(3, 1)), nn.MSELoss())
    with pytest.warns(UserWarning, match="broadcasting"), pytest.raises(mfoc.InvalidValue, match="broadcast"):
        mfoc.solve(problem, mfoc.Gradient(SGD), (torch.randn(4, 3), torch.randn(4)), steps=1)
