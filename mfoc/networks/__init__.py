"""Networks as control problems: the layers are the stages, the weights are the controls."""

from mfoc.networks import inspection
from mfoc.networks.costs import Loss, per_sample, weight_decay
from mfoc.networks.cutting import named_stages
from mfoc.networks.modules import MaskedDropout, Residual
from mfoc.networks.problem import from_module
from mfoc.networks.readout import place, refresh_averages, to_module

__all__ = [
    "Loss",
    "MaskedDropout",
    "Residual",
    "from_module",
    "inspection",
    "named_stages",
    "per_sample",
    "place",
    "refresh_averages",
    "to_module",
    "weight_decay",
]
