"""Solvers that the tests of the loop share."""

from functools import partial

import torch

import mfoc

SGD = mfoc.Gradient(partial(torch.optim.SGD, lr=0.1))
ADAM = mfoc.Gradient(partial(torch.optim.Adam, lr=0.05))
