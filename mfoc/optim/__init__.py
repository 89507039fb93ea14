"""Optimisers and what steers them, by control theory."""

from mfoc.optim.annealing import OptimalAnnealing as OptimalAnnealing
