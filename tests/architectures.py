"""Small networks that several tests use, their weights the same in every run, in float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A module whose initial weights are the same in every run, in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().double()


def mlp_net() -> nn.Module:
    """Three features, two classes."""
    return seeded(lambda: nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 2)))


def conv_net() -> nn.Module:
    """Images of one channel and 6 x 6 pixels, three classes; one layer works in place."""
    return seeded(
        lambda: nn.Sequential(
            nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2 * 9, 3)
        )
    )


def batch_norm_net() -> nn.Module:
    """Three features, two classes; its particles interact."""
    return seeded(
        lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2), nn.BatchNorm1d(2))
    )
