"""Optimisers and what steers them, by control theory."""

from mfoc.optim.annealing import OptimalAnnealing as OptimalAnnealing
from mfoc.optim.batch import AdaptiveBatch as AdaptiveBatch
from mfoc.optim.batch import Measurement as Measurement
from mfoc.optim.rate import LearningRateControl as LearningRateControl
