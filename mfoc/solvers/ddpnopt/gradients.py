"""dH_t/du of each particle at one stage: as factors where the stage is a linear layer, else particle by particle."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mfoc import tree
from mfoc.analysis.noise.samples import Samples
from mfoc.networks.stages import linear_kinds
from mfoc.particles import Particles
from mfoc.problem import Problem
from mfoc.tree import Tree

_BUDGET = 2**27  # bytes that the gradients of the particles of one chunk may take


@dataclass(frozen=True, eq=False)
class Factors:
    """Of a linear layer on vectors: g_i = [slope_i input_i', slope_i], never multiplied out.

    Attributes:
        inputs: x_t ``[N, in]``.
        slopes: p_(t+1) ``[N, out]``.
        bias: whether the layer has one.
    """

    inputs: Tensor
    slopes: Tensor
    bias: bool

    def squares(self, weights: list[Tensor] | None = None) -> Tensor:
        """sum_k weight_k g_(i,k)^2 of each particle ``[N]``; all weights one when None."""
        inputs, slopes = self.inputs.square(), self.slopes.square()
        if weights is None:
            return slopes.sum(1) * (inputs.sum(1) + self.bias)
        found = ((slopes @ weights[0]) * inputs).sum(1)
        return found + slopes @ weights[1] if self.bias else found

    @property
    def extended(self) -> Tensor:
        """The inputs, with a one beside them where there is a bias: g_i = slope_i extended_i'."""
        ones = self.inputs.new_ones(len(self.inputs), 1)
        return torch.cat([self.inputs, ones], 1) if self.bias else self.inputs


@dataclass(frozen=True, eq=False)
class Rows:
    """Of any other stage: one backward pass a particle, by ``vmap`` where it runs, a chunk of particles at a time."""

    samples: Samples

    def squares(self, weights: list[Tensor] | None = None) -> Tensor:
        """sum_k weight_k g_(i,k)^2 of each particle ``[N]``; all weights one when None."""
        first = self.samples.leaves[0]
        flat = None if weights is None else tree.ravel(weights).to(self.samples.wide)
        squares = (rows.square() for rows in self.samples.rows())
        return torch.cat([each.sum(1) if flat is None else each @ flat for each in squares]).to(first)


Own = Factors | Rows


def is_linear(problem: Problem, t: int, u: Tree) -> bool:
    """Whether stage t is known to be an ``nn.Linear`` whose weights are all controls."""
    if problem.kind is None or not isinstance(u, dict) or list(u) not in (["weight", "bias"], ["weight"]):
        return False
    return u["weight"].dim() == 2 and problem.kind(t) in linear_kinds(*u["weight"].shape, bias="bias" in u)


def gradients_at(problem: Problem, t: int, x: Tree, u: Tree, p: Tree, z: Tree) -> Own:
    """f_u' p_(t+1) of each particle, without the running cost.

    Args:
        problem: a per-stage problem whose particles do not interact.
        t: the stage.
        x: x_t ``[N, ...]``.
        u: u_t, with leaves.
        p: p_(t+1), shaped as the state it enters.
        z: data.
    """
    if isinstance(x, Tensor) and x.dim() == 2 and is_linear(problem, t, u):
        return Factors(x.detach(), p, "bias" in u)

    def product(u: Tree, cloud: Particles) -> Tensor:
        x, p = cloud.state
        return tree.dot(problem.dynamics(t, x, u, cloud.data), p)

    u = tree.detached(u, requires_grad=True)
    size = sum(leaf.numel() * leaf.dtype.itemsize for leaf in tree.tensors(u))
    cloud = Particles((tree.detached(x), tree.detached(p)), z)
    return Rows(Samples(u, cloud, product, max(1, _BUDGET // size)))
