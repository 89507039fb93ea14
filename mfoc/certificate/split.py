"""A cloud cut into groups of particles: what the intervals of a certificate are made from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mfoc import tree
from mfoc.certificate.intervals import fold_of_group
from mfoc.particles import Particles
from mfoc.pontryagin import rollout
from mfoc.problem import Problem
from mfoc.tree import Tree


@dataclass(frozen=True, eq=False)
class Split:
    """A cloud, its groups, and folds made of groups.

    Groups of independent particles are looked at one by one. Particles that interact are not themselves outside of
    their cloud: there the cloud without one group is looked at, and what counts is the pseudo-value of the jackknife,
    K whole - (K - 1) rest (Efron & Tibshirani 1993, "An introduction to the bootstrap", eq. 11.7); of means over
    independent particles that is the group's own.
    """

    whole: Particles
    groups: list[Tensor]  # K of them: indices of particles
    interacting: bool
    complete: bool = False  # the particles are all there are: each has a control of its own

    @classmethod
    def of(
        cls, cloud: Particles, groups: int, generator: torch.Generator, *, interacting: bool, complete: bool = False
    ) -> Split:
        """A random partition; a cloud of too few particles, or one that is all there is, is one group."""
        count = len(cloud)
        if complete:
            return cls(cloud, [torch.arange(count, device="cpu")], interacting, complete=True)
        order = torch.randperm(count, generator=generator, device="cpu")
        few = interacting and count < 4  # without a group or a fold it would be no cloud
        return cls(cloud, list(order.tensor_split(1 if few else min(groups, count))), interacting)

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def weights(self) -> Tensor:
        """The share of the particles in each group ``[K]``."""
        sizes = torch.tensor([len(group) for group in self.groups], dtype=torch.float64, device="cpu")
        return sizes / sizes.sum()

    @property
    def folds(self) -> Tensor:
        """The fold of each group ``[K]``."""
        return fold_of_group(len(self))

    def members(self, fold: int) -> Tensor:
        """The particles of a fold."""
        return torch.cat([group for group, own in zip(self.groups, self.folds.tolist(), strict=True) if own == fold])

    def without_folds(self) -> Iterator[Particles]:
        """The cloud without each fold; of one group there is none."""
        folds = self.folds.tolist()
        for fold in range(max(folds) + 1 if len(self) > 1 else 0):
            yield self._joined([group for group, own in zip(self.groups, folds, strict=True) if own != fold])

    def parts(self) -> Iterator[Particles]:
        """One cloud for each group: the group, or, of interacting particles, all but the group."""
        for k, group in enumerate(self.groups):
            if self.interacting and len(self) > 1:
                yield self._joined(self.groups[:k] + self.groups[k + 1 :])
            else:
                yield self.whole[group]

    def _joined(self, groups: list[Tensor]) -> Particles:
        return self.whole[torch.cat(groups).sort().values]

    def values(self, whole: Tensor, parts: Tensor) -> Tensor:
        """The groups' values ``[K, ...]`` of a mean over particles, from that of the whole and those of the parts."""
        if not self.interacting or len(self) == 1:
            return parts
        return len(self) * whole - (len(self) - 1) * parts


def interact(problem: Problem, controls: Tree, cloud: Particles) -> bool:
    """Whether the particles' own costs and states are others in half of the cloud."""
    if len(cloud) < 2:
        return False
    half = (len(cloud) + 1) // 2
    own = tree.map(lambda u: u[:half], controls) if problem.per_particle else controls
    with torch.no_grad():
        whole = rollout(problem, controls, cloud)
        try:
            part = rollout(problem, own, cloud[:half])
        except (RuntimeError, ValueError):  # a law that takes more particles: batch norm of one
            return True
    seen, alone = [[t.cost, *tree.tensors(t.states)] for t in (whole, part)]
    return any(not _alike(a[:half], b) for a, b in zip(seen, alone, strict=True))


def _alike(a: Tensor, b: Tensor) -> bool:
    if not a.numel() or not a.isfinite().all():  # at a control where nothing can be said
        return True
    return bool(((a - b).abs() <= torch.finfo(a.dtype).eps ** 0.75 * a.abs().amax()).all())
