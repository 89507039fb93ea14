"""Networks as control problems: the layers are the stages, the weights are the controls."""

from mfoc.networks import inspection, packed
from mfoc.networks.functional import FunctionalModule, functional
from mfoc.networks.losses import Loss, per_sample
from mfoc.networks.modules import MaskedDropout, Residual
from mfoc.networks.problem import NetworkProblem, from_module, to_module, weight_decay
from mfoc.networks.readout import place, refresh_averages
from mfoc.networks.stages import named_stages

__all__ = [
    "FunctionalModule",
    "Loss",
    "MaskedDropout",
    "NetworkProblem",
    "Residual",
    "from_module",
    "functional",
    "inspection",
    "named_stages",
    "packed",
    "per_sample",
    "place",
    "refresh_averages",
    "to_module",
    "weight_decay",
]
