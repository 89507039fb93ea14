"""A network and a batch of tasks that tests of meta-learning share."""

import torch
from torch import nn

from paradigms.meta import sinusoids


def mlp(seed=0, width=7):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(1, width), nn.Tanh(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1)
    ).double()


def batch(n=4, shots=5, queries=6, seed=0):
    return sinusoids(tasks=n, shots=shots, queries=queries, seed=seed, dtype=torch.float64)
