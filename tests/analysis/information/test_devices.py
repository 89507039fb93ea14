"""On a GPU everything stays there and agrees with the CPU."""

from dataclasses import astuple
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mfoc
from mfoc.analysis.information import (
    KDE,
    Binned,
    gaussian_bottleneck,
    gaussian_information,
    information_bottleneck,
    information_plane,
    with_noise,
)
from tests.devices import CUDA
from tests.problems import D, labels, normal

DEVICES = ["cpu", CUDA]
SIGMA = torch.eye(2, dtype=D)


def net(inputs, outputs):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, 4), nn.Tanh(), nn.Linear(4, outputs)).to(D)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("estimator", [KDE(0.3), Binned(5), Binned(5, "mass"), Binned(torch.tensor([-1.0, 0, 1]))])
def test_planes(estimator, device):
    x, y = normal(20, 3), labels(20, 2)
    wanted = information_plane(net(3, 2), x, y, estimator=estimator)
    found = information_plane(net(3, 2).to(device), x.to(device), y, estimator=estimator)
    for one, other in zip(found.layers, wanted.layers, strict=True):
        assert astuple(one.about_input) == pytest.approx(astuple(other.about_input))
        assert astuple(one.about_labels) == pytest.approx(astuple(other.about_labels))


@pytest.mark.parametrize("device", DEVICES)
def test_closed_forms(device):
    sigma = SIGMA.to(device)
    found = gaussian_bottleneck(sigma, 0.8 * sigma, sigma, 3.0)
    assert found.projection.device.type == found.critical_betas.device.type == device
    assert found.information_y == pytest.approx(gaussian_bottleneck(SIGMA, 0.8 * SIGMA, SIGMA, 3.0).information_y)
    assert gaussian_information(sigma, 0.1) == pytest.approx(gaussian_information(SIGMA, 0.1))
    found.plot()


@pytest.mark.parametrize("device", DEVICES)
def test_bottlenecks(device):
    x, y = normal(10, 3), labels(10, 3)
    sgd = mfoc.Gradient(partial(torch.optim.SGD, lr=0.1))
    values = []
    for where in ("cpu", device):
        problem = information_bottleneck(
            net(3, 4).to(where), net(2, 3).to(where), F.cross_entropy, beta=0.1, latent=2, prior="learned"
        )
        population = with_noise((x.to(where), y.to(where)), 2, batch_size=5)
        solution = mfoc.solve(problem, sgd, population, steps=4)
        assert all(leaf.device.type == where for leaf in mfoc.tree.leaves(solution.controls))
        values.append(problem.rates(solution, population))
    assert astuple(values[0]) == pytest.approx(astuple(values[1]), rel=1e-9)
