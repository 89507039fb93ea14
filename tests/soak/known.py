"""What comes of the solves undisturbed, found out once."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tests.soak.children import call
from tests.soak.solves import checkpointed, undisturbed


@dataclass(frozen=True)
class Known:
    """What is known of a solve.

    Attributes:
        digests: of the controls, by step.
        solution: what is compared of it.
        seconds: how long it takes with a checkpoint at every step.
    """

    digests: dict[int, str]
    solution: dict[str, Any]
    seconds: float


@cache
def known(name: str) -> Known:
    """Of a solve that nothing disturbs, in a process of its own."""
    digests, solution = call(undisturbed, name)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        call(checkpointed, name, str(Path(folder) / "run"))
        return Known(digests, solution, time.perf_counter() - began)
