"""Fingerprints of batches: whether a source gives the same batch when it is asked again.

A population is a pure function of the step. Where a user's code makes the batches, that is a promise, which a source
may break: one that draws from a generator that moves on, counts its calls, or reads a file that has changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mfoc import identity
from mfoc.errors import InvalidValue
from mfoc.particles import Particles

if TYPE_CHECKING:
    from mfoc.populations.protocol import Population

_CURE = (
    "a batch must be a function of n alone: draw from torch.Generator().manual_seed(n), not from a generator that "
    "moves on, the clock or a count of calls. If items draw from the global generators, which are seeded for them, no "
    "other thread may draw from these meanwhile"
)


def fingerprint(particles: Particles) -> str:
    """A hash of a cloud: the structure, dtypes, shapes and bits of its state, data and index, wherever they are.

    Args:
        particles: the cloud.

    Returns:
        32 hexadecimal digits. Particles without an index have that of 0 .. N-1.
    """
    return identity.fingerprint([particles.state, particles.data, particles.indices()])


def check_repeatable(source: Population, step: int, particles: Particles) -> None:
    """Asks a population for a batch again; only where a user's code makes its batches.

    Args:
        source: the population.
        step: the step.
        particles: the batch that it gave for that step.

    Raises:
        InvalidValue: it gives another batch now; which part differs, and what to do.
    """
    if not source.runs_user_code:
        return
    before, now = _hashes(particles), _hashes(source.again(step))
    differing = [name for name in before if before[name] != now[name]]
    if differing:
        raise InvalidValue(
            f"the population gives another batch when step {step} is asked for again (its {' and '.join(differing)}): "
            f"{_CURE}"
        )


def _hashes(particles: Particles) -> dict[str, str]:
    parts = {"state": particles.state, "data": particles.data, "index": particles.indices()}
    return {name: identity.fingerprint(value) for name, value in parts.items()}
