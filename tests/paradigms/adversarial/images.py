"""Images, networks and games that tests beside torchattacks share."""

import torch
import torch.nn.functional as F
from torch import nn

from paradigms.adversarial import game
from tests.problems import conv_net, generator, labels, seeded


def uniform(*shape, seed=0):
    return torch.rand(*shape, generator=generator(seed))


X, Y = uniform(40, 1, 6, 6), labels(40, 3)
FLAT, CLASSES = uniform(40, 3), labels(40, 2)
EPSILON, STEP, STEPS = 0.1, 0.03, 7


def net():
    return conv_net().float()


def batch_norm_net():
    layers = (nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))
    made = seeded(lambda: nn.Sequential(*layers)).float().train()
    made(X + 1)  # running averages far from the batch's
    return made


def images(network=None, loss=F.cross_entropy, data=(X, Y), **options):
    return game(net() if network is None else network, loss, data, **({"epsilon": EPSILON} | options))


def entered(formulation, maximiser, seed=None):
    """What the network is shown."""
    made, particles = formulation.problem, formulation.population(0)
    eta = maximiser.maximise(made, made.controls, particles, None if seed is None else generator(seed))
    return made.ball.enter(made.target(particles.state), eta)
