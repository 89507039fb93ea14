"""Networks as control problems: the layers are the stages, the weights are the controls."""

from mfoc.networks import inspection, packed
from mfoc.networks.losses import Loss, per_sample
from mfoc.networks.modules import MaskedDropout, Residual
from mfoc.networks.problem import from_module, place, refresh_averages, to_module, weight_decay
from mfoc.networks.stages import named_stages

__all__ = [
    "Loss",
    "MaskedDropout",
    "Residual",
    "from_module",
    "inspection",
    "named_stages",
    "packed",
    "per_sample",
    "place",
    "refresh_averages",
    "to_module",
    "weight_decay",
]
