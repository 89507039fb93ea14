"""Where the particles of variational inference come from, and what it refuses, on networks and Pyro models alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import mfoc
from mfoc import InvalidValue
from mfoc.deprecation import warn
from mfoc.distributed import alone, share, world_size
from mfoc.formulation import Formulation
from mfoc.problem import controls_of
from mfoc.seeding import mixed_seed

SHARE = "share of the batch"  # in a particle's data, where it has a batch: the weight of its mean over observations


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

    The batch of step n is that of the source. Over ranks each has all draws, on its share of the observations: their
    costs are weighed by it, so that the mean over ranks is over the observations, however many each has.
    """

    def __init__(self, source: mfoc.Population | None, settings: Settings, like: Tensor) -> None:
        if source is not None:
            self.batches_per_epoch = source.batches_per_epoch
        self._source, self._samples, self._seed = source, settings.samples, settings.seed
        self._like = like  # of what dtype the draws are, and where

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
        """The draws of step ``step`` on its batch, or on this rank's share of it."""
        with alone():  # what is drawn for an observation must not hang on how they are shared out
            batch = None if self._source is None else self._source(step)
            cloud = self._cloud(batch, mixed_seed(self._seed, step, 3))
        if batch is None:
            return cloud
        mine = share(torch.arange(len(batch), device="cpu"))
        weight = 1.0
        if len(mine) < len(batch):
            cloud, weight = self._own(cloud, mine), world_size() * len(mine) / len(batch)
        # With a weight of 1 as well: an iterate is known by what its particles hold, on any number of ranks.
        return replace(cloud, data={**cloud.data, SHARE: self._like.new_full((self._samples,), weight)})

    def epoch(self) -> Iterator[mfoc.Particles]:
        """Fresh draws on all observations at once: batches of unequal size would count alike."""
        yield self._cloud(None, mixed_seed(self._seed, 0, 4))

    def _cloud(self, batch: mfoc.Particles | None, key: int) -> mfoc.Particles:
        """Draws on a batch, or on all observations."""
        raise NotImplementedError

    def _own(self, cloud: mfoc.Particles, rows: Tensor) -> mfoc.Particles:
        """The same draws on some of the observations."""
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


def check_shares(_source: mfoc.Population) -> None:
    """Deprecated: ranks may share batches out unevenly, whose costs are weighed."""
    warn("check_shares does nothing any more: batches need not be split evenly over ranks")
