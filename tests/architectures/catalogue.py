"""Every architecture, by name."""

from __future__ import annotations

from tests.architectures.composed import COMPOSED
from tests.architectures.entry import Architecture
from tests.architectures.hidden import HIDDEN
from tests.architectures.layers import LAYERS
from tests.architectures.sequences import SEQUENCES
from tests.architectures.unusual import UNUSUAL
from tests.architectures.vision import VISION

CATALOGUE: dict[str, Architecture] = {
    entry.name: entry for entry in [*LAYERS, *VISION, *SEQUENCES, *COMPOSED, *UNUSUAL, *HIDDEN]
}
