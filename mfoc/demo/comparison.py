"""Who won a race, and who cannot be told apart from the winner: paired comparisons over a few seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mfoc.statistics import mean_interval

CONFIDENCE = 0.95  # that no two of all are called different by chance


@dataclass(frozen=True)
class Winner:
    """Who is best in the mean over the seeds.

    Attributes:
        name: of the best.
        mean: what it scored.
        tied: who cannot be told apart from it.
    """

    name: str
    mean: float
    tied: list[str]


def lowest(scores: Mapping[str, Sequence[float]]) -> Winner:
    """The winner by a positive number that is to be small, compared by ratios.

    A paired t test of the logarithm, at a level that holds for all pairs of names together (Bonferroni), since the
    winner is chosen by looking. Infinite scores lose.

    Args:
        scores: name -> a number for each seed, the same seeds in the same order for all.
    """
    means = {name: math.fsum(numbers) / len(numbers) for name, numbers in scores.items()}
    best = min(means, key=lambda name: means[name])
    logs = {name: torch.tensor(numbers, dtype=torch.float64, device="cpu").log() for name, numbers in scores.items()}
    tied = [name for name in scores if name != best and not _apart(logs[name] - logs[best], len(scores))]
    return Winner(best, means[best], tied)


def most_accurate(right: Mapping[str, Sequence[Tensor]]) -> Winner:
    """The winner by accuracy.

    Two are told apart where a paired t test of the accuracies over the seeds does, and a sign test on the images that
    only one of the two reads right as well: accuracies are multiples of an image, and may differ by the same few images
    in each of three seeds by chance.

    Args:
        right: name -> for each seed which images are read right ``[N]``, the same images for all.
    """
    shares = {name: torch.stack([each.double().mean() for each in seeds]) for name, seeds in right.items()}
    best = max(shares, key=lambda name: float(shares[name].mean()))
    hits = {name: torch.cat(list(seeds)).bool() for name, seeds in right.items()}

    def apart(name: str) -> bool:
        only = int((hits[best] & ~hits[name]).sum()), int((hits[name] & ~hits[best]).sum())
        seeds = _apart(shares[best] - shares[name], len(right))
        return seeds and sign_test(*only) < (1 - CONFIDENCE) / _pairs(len(right))

    return Winner(best, float(shares[best].mean()), [name for name in right if name != best and not apart(name)])


def sign_test(one: int, other: int) -> float:
    """The two-sided p-value of so many pairs in favour of one and of the other, if both were as likely."""
    total = one + other
    tail = sum(math.comb(total, k) for k in range(min(one, other) + 1))
    return min(1.0, float(2 * tail / (1 << total)))


def _apart(differences: Tensor, names: int) -> bool:
    """Whether paired differences ``[seeds]``, of which the mean is positive, have a mean that is."""
    if bool((differences == math.inf).any()):
        return True
    mean, half = mean_interval(differences, 1 - (1 - CONFIDENCE) / _pairs(names))
    return mean - half > 0


def _pairs(names: int) -> int:
    return max(1, math.comb(names, 2))
