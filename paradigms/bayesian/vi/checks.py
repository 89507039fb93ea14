"""What variational inference refuses, on networks and on Pyro models alike."""

from __future__ import annotations

import torch

import mfoc
from mfoc import InvalidValue
from mfoc.distributed import world_size


def check_finite(problem: mfoc.Problem, particles: mfoc.Particles) -> None:
    """Refuses a log density that is NaN or infinite at the first draws.

    Raises:
        InvalidValue: says where.
    """
    with torch.no_grad():
        cost = mfoc.rollout(problem, problem.controls, particles).cost
    if not cost.isfinite().all():
        raise InvalidValue(
            f"the log density is {float(cost[~cost.isfinite()][0])} at draws of the initial law; check the likelihood "
            "and the prior (improper? outside the support?), and the data"
        )


def check_shares(source: mfoc.Population) -> None:
    """Refuses batches that ranks would split unevenly: each rank counts by its draws, which are equally many.

    Raises:
        InvalidValue: a batch that the number of ranks does not divide.
    """
    ranks = world_size()
    if source.size is None or source.batch_size is None:
        return
    last = source.size - (source.batches_per_epoch - 1) * source.batch_size
    for rows in (source.batch_size, min(last, source.batch_size)):
        if rows % ranks:
            raise InvalidValue(
                f"a batch of {rows} observations cannot be split evenly over {ranks} ranks; choose N and batch_size "
                f"divisible by {ranks}"
            )
