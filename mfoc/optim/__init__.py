"""Optimisers of torch's kind whose learning rate, momentum or batch size is set by control theory."""

from mfoc.optim.annealing import OptimalAnnealing as OptimalAnnealing
from mfoc.optim.batch import AdaptiveBatch as AdaptiveBatch
from mfoc.optim.batch import Measurement as Measurement
from mfoc.optim.cmsgd import CMSGD as CMSGD
from mfoc.optim.csgd import CSGD as CSGD
from mfoc.optim.rate import LearningRateControl as LearningRateControl
