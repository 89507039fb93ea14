"""Optimisers of torch's kind whose learning rate, momentum or batch size is set by control theory."""

from mfoc.optim.cmsgd import CMSGD as CMSGD
from mfoc.optim.csgd import CSGD as CSGD
