"""Networks that the tests share: a few small ones by name, and a catalogue of every kind that people train."""

from tests.architectures.catalogue import CATALOGUE
from tests.architectures.entry import DOORS, Architecture
from tests.architectures.small import (
    NETWORKS,
    Reused,
    Stages,
    Tiny,
    batch_norm_net,
    conv_net,
    mlp_net,
    nested_net,
    seeded,
)

__all__ = [
    "CATALOGUE",
    "DOORS",
    "NETWORKS",
    "Architecture",
    "Reused",
    "Stages",
    "Tiny",
    "batch_norm_net",
    "conv_net",
    "mlp_net",
    "nested_net",
    "seeded",
]
