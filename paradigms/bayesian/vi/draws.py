"""Where the particles of variational inference come from, and what it refuses, on networks and Pyro models alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

import mfoc
from mfoc import InvalidValue
from mfoc.distributed import world_size
from mfoc.formulation import Formulation
from mfoc.problem import controls_of
from mfoc.seeding import mixed_seed


@dataclass(frozen=True, kw_only=True, eq=False)
class Settings:
    """What ``variational`` is asked for, of networks and of Pyro models."""

    samples: int
    batch_size: int | None
    tau: float | None
    size: int | None
    kl: str | None
    stl: bool
    seed: int


class LatentDraws(mfoc.Population):
    """Particles that are draws of the latents, each on the whole batch of a population of observations, if any.

    Without a process group the batch of step n is that of the source; over ranks, each rank has its part of the batch
    and, for draws of weights, the same draws.
    """

    def __init__(self, source: mfoc.Population | None, settings: Settings) -> None:
        if source is not None:
            check_shares(source)
            self.batches_per_epoch = source.batches_per_epoch
        self._source, self._samples, self._seed = source, settings.samples, settings.seed

    @property
    def runs_user_code(self) -> bool:
        """See ``mfoc.Population``: what is drawn here is a function of the step."""
        return self._source is not None and self._source.runs_user_code

    def described(self) -> dict[str, Any]:
        """See ``mfoc.Population``."""
        of = None if self._source is None else self._source.described()
        return {"kind": "LatentDraws", "samples": self._samples, "seed": self._seed, "of": of}

    def close(self) -> None:
        """See ``mfoc.Population``."""
        if self._source is not None:
            self._source.close()

    def __call__(self, step: int) -> mfoc.Particles:
        """The draws of step ``step`` on its batch."""
        return self._cloud(None if self._source is None else self._source(step), mixed_seed(self._seed, step, 3))

    def epoch(self) -> Iterator[mfoc.Particles]:
        """Fresh draws on all observations at once: batches of unequal size would count alike."""
        yield self._cloud(None, mixed_seed(self._seed, 0, 4))

    def _cloud(self, batch: mfoc.Particles | None, key: int) -> mfoc.Particles:
        """Draws on a batch, or on all observations."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class StoppedFormulation(Formulation):
    """A formulation whose gradient leaves out a part of mean zero, so that its second derivatives are not those of J.

    Attributes:
        whole: the problem with that part, of the same cost, on which ``certify`` measures.
    """

    whole: mfoc.Problem

    def certify(self, controls: Any, **settings: Any) -> mfoc.Certificate:
        """See ``mfoc.Formulation``."""
        return mfoc.certify(self.whole, controls, self.population, **settings)


def formulated(
    problem: mfoc.Problem, draws: LatentDraws, read: Callable[[Any], Any], *, whole: mfoc.Problem | None = None
) -> Formulation:
    """A problem with its draws, checked on the first of them; ``read`` reads its controls.

    ``whole``: see ``StoppedFormulation``.
    """
    problem.validate(draws(0))
    check_finite(problem, draws(0))

    def readout(solution: Any) -> Any:
        controls = controls_of(solution)
        problem.check_controls(controls)
        return read(controls)

    return Formulation(problem, draws, readout) if whole is None else StoppedFormulation(problem, draws, readout, whole)


def check_finite(problem: mfoc.Problem, particles: mfoc.Particles) -> None:
    """Refuses a log density that is NaN or infinite at the first draws."""
    with torch.no_grad():
        cost = mfoc.rollout(problem, problem.controls, particles).cost
    if not cost.isfinite().all():
        raise InvalidValue(
            f"the log density is {float(cost[~cost.isfinite()][0])} at draws of the initial law; check the likelihood "
            "and the prior (improper? outside the support?), and the data"
        )


def check_shares(source: mfoc.Population) -> None:
    """Refuses batches that ranks would split unevenly: each rank counts by its draws, which are equally many."""
    ranks = world_size()
    if source.size is None or source.batch_size is None:
        return
    last = source.size - (source.batches_per_epoch - 1) * source.batch_size
    if not 0 < last < source.batch_size:  # every batch is full
        last = source.batch_size
    for rows in (source.batch_size, last):
        if rows % ranks:
            raise InvalidValue(
                f"a batch of {rows} observations cannot be split evenly over {ranks} ranks; choose N and batch_size "
                f"divisible by {ranks}"
            )
