"""What the demo learns: the 1,797 handwritten digits of 8 x 8 pixels that ship with scikit-learn, and a network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mfoc.errors import require
from mfoc.networks import NetworkProblem, Residual, from_module, weight_decay
from mfoc.particles import Particles
from mfoc.seeding import seeded

DECAY = 1e-3
_WIDTH, _DEPTH, _STEP = 64, 4, 0.5


def digits(seed: int) -> tuple[Particles, Particles]:
    """Training and test digits (four fifths and one fifth of each class), pixels in [0, 1].

    Raises:
        MissingExtra: scikit-learn is not installed.
    """
    data = require("sklearn.datasets", "data").load_digits()
    split = require("sklearn.model_selection", "data").train_test_split
    parts = split(data.data / 16, data.target, test_size=0.2, stratify=data.target, random_state=seed)
    x, x_test, y, y_test = (torch.as_tensor(part, device="cpu") for part in parts)
    return Particles(x.float(), y), Particles(x_test.float(), y_test)


class _Layer(nn.Sequential):
    """Layers that make one stage."""


def network(seed: int) -> nn.Sequential:
    """A residual network of one lifting layer, four Euler steps and a linear read-out."""
    with seeded(seed):
        blocks = [Residual(_Layer(nn.Linear(_WIDTH, _WIDTH), nn.Tanh()), _STEP) for _ in range(_DEPTH)]
        return nn.Sequential(_Layer(nn.Linear(64, _WIDTH), nn.Tanh()), *blocks, nn.Linear(_WIDTH, 10))


def control_problem(seed: int) -> NetworkProblem:
    """That network as a control problem: mean cross-entropy and weight decay."""
    return from_module(network(seed), F.cross_entropy, running_cost=weight_decay(DECAY))


def right(net: nn.Module, particles: Particles) -> Tensor:
    """Which particles a network puts in the right class ``[N]``."""
    with torch.no_grad():
        read: Tensor = net(particles.state).argmax(1) == particles.data
    return read


def accuracy(net: nn.Module, particles: Particles) -> float:
    """The fraction of particles that a network puts in the right class."""
    return float(right(net, particles).double().mean())
