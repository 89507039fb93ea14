"""Populations: where the particles of step n come from, as a pure function of (seed, n).

Nothing is carried from step to step, so a run that resumes at step n sees the batches of one that never stopped.
No particle is drawn more often than another. With shuffling each is visited once an epoch, and the last batch of an
epoch is short when the batch size does not divide the population: its particles weigh more in that epoch, others in the
next. Without, where they would be the same ones for ever, every batch is full and the batches run on cyclically through
the particles. When a process group is up, each rank takes its share of the batch. Particles know their number in the
population, ``Particles.index``.
"""

from mfoc.populations.door import as_particles, population
from mfoc.populations.fingerprints import check_repeatable, fingerprint
from mfoc.populations.orders import shuffled
from mfoc.populations.protocol import Fetch, Population

__all__ = ["Fetch", "Population", "as_particles", "check_repeatable", "fingerprint", "population", "shuffled"]
