"""f_u' p_(t+1) of each particle at one stage: as factors where it is a linear layer, else particle by particle."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mfoc import tree
from mfoc.analysis.noise.samples import Samples
from mfoc.derivatives import gradients
from mfoc.networks.stages import linear_kinds
from mfoc.particles import Particles
from mfoc.problem import Problem
from mfoc.solvers.ddpnopt.passes import Passes
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

    def weighted(self, weights: Tensor) -> list[Tensor]:
        """The mean of w_i g_i, leaf by leaf, for weights ``[N]``."""
        slopes = self.slopes * (weights / len(weights))[:, None]
        found = [slopes.mT @ self.inputs]
        return [*found, slopes.sum(0)] if self.bias else found

    def squares(self, scales: list[Tensor] | None = None) -> Tensor:
        """sum_k s_k g_(i,k)^2 of each particle ``[N]``, for scales shaped as the leaves; all one when None."""
        inputs, slopes = self.inputs.square(), self.slopes.square()
        if scales is None:
            return slopes.sum(1) * (inputs.sum(1) + self.bias)
        found = ((slopes @ scales[0]) * inputs).sum(1)
        return found + slopes @ scales[1] if self.bias else found

    @property
    def extended(self) -> Tensor:
        """The inputs, with a one beside them where there is a bias: g_i = slope_i extended_i'."""
        ones = self.inputs.new_ones(len(self.inputs), 1)
        return torch.cat([self.inputs, ones], 1) if self.bias else self.inputs


@dataclass(frozen=True, eq=False)
class Rows:
    """Of any other stage: its graph, and one backward pass a particle, by ``vmap`` where it runs, chunk by chunk.

    Attributes:
        outputs: leaves of x_(t+1) in the graph.
        slopes: p_(t+1), beside them.
        leaves: u_t in the graph.
        samples: <p, f> of each particle as a function of u_t.
    """

    outputs: list[Tensor]
    slopes: list[Tensor]
    leaves: list[Tensor]
    samples: Samples

    def weighted(self, weights: Tensor) -> list[Tensor]:
        """The mean of w_i g_i, leaf by leaf, for weights ``[N]``: one backward pass of weighted costates."""
        shares = weights / len(weights)
        seeds = [p * shares.to(p.dtype).view(-1, *(1 for _ in p.shape[1:])) for p in self.slopes]
        return gradients(self.outputs, self.leaves, seeds, retain_graph=True)

    def squares(self, scales: list[Tensor] | None = None) -> Tensor:
        """sum_k s_k g_(i,k)^2 of each particle ``[N]``, for scales shaped as the leaves; all one when None."""
        flat = None if scales is None else tree.ravel(scales).to(self.samples.wide)
        squares = (rows.square() for rows in self.samples.rows())
        return torch.cat([each.sum(1) if flat is None else each @ flat for each in squares]).to(self.leaves[0])


Own = Factors | Rows


def is_linear(problem: Problem, t: int, u: Tree) -> bool:
    """Whether stage t is known to be an ``nn.Linear`` whose weights are all controls."""
    if problem.kind is None or not isinstance(u, dict) or list(u) not in (["weight", "bias"], ["weight"]):
        return False
    return u["weight"].dim() == 2 and problem.kind(t) in linear_kinds(*u["weight"].shape, bias="bias" in u)


def own_gradients(problem: Problem, t: int, passes: Passes, z: Tree) -> Own:
    """Those of stage t, which has controls, at the passes' controls; the particles do not interact."""
    x, u, p = tree.detached(passes.states[t]), passes.controls[t], passes.costates[t + 1]
    if isinstance(x, Tensor) and x.dim() == 2 and is_linear(problem, t, u):
        return Factors(x, p, "bias" in u)

    def product(u: Tree, cloud: Particles) -> Tensor:
        x, p = cloud.state
        return tree.dot(problem.dynamics(t, x, u, cloud.data), p)

    size = sum(leaf.numel() * leaf.dtype.itemsize for leaf in tree.leaves(u))
    samples = Samples(tree.detached(u, requires_grad=True), Particles((x, p), z), product, max(1, _BUDGET // size))
    return Rows(tree.tensors(passes.states[t + 1]), tree.tensors(p), tree.leaves(u), samples)
