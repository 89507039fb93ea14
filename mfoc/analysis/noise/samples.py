"""A loss as a mean over samples: its gradients sample by sample, its gradient, and products with its Hessian.

Networks and control problems go through one door, ``Samples.of``; everything else here knows neither.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from mfoc import tree
from mfoc.analysis.jacobians import refusing_checkpoints
from mfoc.analysis.kernel.taps import plainly
from mfoc.analysis.noise.doors import Cost, of_network, of_problem
from mfoc.checks import check_integer
from mfoc.derivatives import gradients, refuse_once_differentiable, second_order
from mfoc.errors import InvalidValue
from mfoc.particles import Particles, concatenated
from mfoc.populations import as_particles
from mfoc.problem import Problem
from mfoc.tree import Tree

logger = logging.getLogger(__name__)

_BUDGET = 2**27  # bytes that the gradients of the samples of one chunk may take
_CHUNK = 256  # samples whose activations are held at once
_CURE = "leave out what is made of it (see the arguments of the function that was called)"
_PROBES = 4  # random vectors for tr(H_k Sigma), which only the width of an interval depends on


@dataclass(eq=False)
class Samples:
    """A loss that is a mean over samples, at the parameters where it is looked at.

    Attributes:
        parameters: a tree of leaves of a graph: {name: tensor} of a network, the controls of a problem.
        cloud: the samples.
        cost: ``cost(parameters, samples) -> [n]``, each entry a function of its own sample alone.
        chunk: how many samples are differentiated at once.
        vectorised: whether gradients go through ``vmap``; seen when they first do not.
    """

    parameters: Tree
    cloud: Particles
    cost: Cost
    chunk: int
    vectorised: bool = True

    @classmethod
    def of(
        cls,
        net: nn.Module | Problem[Any],
        loss: Any,
        data: Any,
        *,
        batch_size: int | None = None,
        draws: int | None = None,
        seed: int = 0,
    ) -> Samples:
        """The loss of a network, or of a problem, on data.

        Args:
            net: a module, or a problem.
            loss: ``loss(output, target)``; of a problem its controls, or what has them; its initial guess when None.
            data: what ``mfoc.population`` takes, all of it: (x, y), a Dataset, particles.
            batch_size: samples at once; as many as 128 MiB hold, up to 256, when None.
            draws: that many of the samples at random; all of them, as they come, when None.
            seed: of which are drawn.

        Raises:
            InvalidType, InvalidValue: see ``gradient_noise``.
        """
        check_integer(1, optional=True, batch_size=batch_size)
        check_integer(2, optional=True, draws=draws)
        check_integer(0, seed=seed)
        if torch.is_inference_mode_enabled():
            raise InvalidValue("there are no gradients in torch.inference_mode(); call this outside of it")
        cloud = as_particles(data)
        if len(cloud) < 2:
            raise InvalidValue("data holds one sample; the noise of a gradient is seen between two or more")
        if draws is not None:
            if draws > len(cloud):
                raise InvalidValue(f"draws is {draws}; the data hold {len(cloud)} samples")
            order = torch.randperm(len(cloud), generator=torch.Generator().manual_seed(seed), device="cpu")
            cloud = cloud[order[:draws].to(tree.leaves(cloud.state)[0].device)]
        cloud = Particles(tree.detached(cloud.state), tree.detached(cloud.data), cloud.index)
        parameters, cost = of_problem(net, loss, cloud) if isinstance(net, Problem) else of_network(net, loss, cloud)
        parameters = tree.map(tree.free, parameters)
        size = sum(leaf.numel() * leaf.dtype.itemsize for leaf in tree.tensors(parameters))
        made = cls(parameters, cloud, cost, batch_size or max(1, min(_CHUNK, _BUDGET // size)))
        bad = ~made.losses().isfinite()
        if bool(bad.any()):
            raise InvalidValue(f"the loss of sample {int(bad.nonzero()[0])} is not finite")
        return made

    def __len__(self) -> int:
        return len(self.cloud)

    @property
    def leaves(self) -> list[Tensor]:
        """The leaves of the parameters."""
        return tree.tensors(self.parameters)

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self.leaves[0].device

    @property
    def size(self) -> int:
        """P, the number of parameters."""
        return sum(leaf.numel() for leaf in self.leaves)

    @property
    def wide(self) -> torch.dtype:
        """What sums over samples are taken in: float64, where the device has it."""
        return torch.float32 if self.device.type == "mps" else torch.float64

    def shaped(self, vector: Tensor) -> Tree:
        """A vector ``[P]`` as a tree shaped as the parameters, of its own dtype."""
        return tree.rebuild(self.parameters, tree.pieces(vector, self.leaves))

    def chunks(self, cloud: Particles | None = None) -> Iterator[Particles]:
        """The samples, chunk by chunk."""
        cloud = self.cloud if cloud is None else cloud
        for first in range(0, len(cloud), self.chunk):
            yield cloud[first : first + self.chunk]

    def losses(self, cloud: Particles | None = None) -> Tensor:
        """The loss of each sample ``[n]``."""
        with plainly(), torch.no_grad():
            return torch.cat([self.cost(self.parameters, part).detach() for part in self.chunks(cloud)])

    def rows(self, cloud: Particles | None = None) -> Iterator[Tensor]:
        """The gradients of the samples, chunk by chunk ``[n, P]``, wide.

        Raises:
            InvalidValue: one is not finite.
        """
        done = 0
        for part in self.chunks(cloud):
            with plainly(), refusing_checkpoints("the gradient of one sample"):
                found = self._rows(part)
            bad = ~found.isfinite().all(1)
            if bool(bad.any()):
                raise InvalidValue(f"the gradient of sample {done + int(bad.nonzero()[0])} is not finite")
            done += len(part)
            yield found.to(self.wide)

    def _rows(self, cloud: Particles) -> Tensor:
        if self.vectorised:
            try:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", message=".*performance drop.*")
                    return vectorised_rows(self, cloud)
            except Exception as error:  # whatever the user's functions raise under vmap
                logger.info("gradients are taken one by one, as the loss cannot be vectorised: %s", error)
                self.vectorised = False
        return looped_rows(self, cloud)

    def gradient(self, cloud: Particles | None = None, weights: Tensor | None = None) -> Tensor:
        """The gradient of sum_i w_i loss_i ``[P]``, wide; of the mean without weights ``[n]``."""
        cloud = self.cloud if cloud is None else cloud
        if weights is None:
            weights = torch.full((len(cloud),), 1 / len(cloud), dtype=self.wide, device="cpu")
        total = torch.zeros(self.size, dtype=self.wide, device=self.device)
        for part, w in zip(self.chunks(cloud), torch.split(weights, self.chunk), strict=True):
            with plainly(), refusing_checkpoints("the gradient of one sample"):
                cost = self.cost(self.parameters, part)
                total += tree.ravel(gradients(cost, self.leaves, [w.to(cost)])).to(self.wide)
        return total

    def hessian_products(self, vectors: Tensor, cloud: Particles | None = None) -> Tensor:
        """H v for each of the vectors ``[k, P]``, H the Hessian of the mean loss; wide.

        Raises:
            InvalidValue: something in the loss has no second derivative, or one that is not finite.
        """
        cloud = self.cloud if cloud is None else cloud
        total = torch.zeros(vectors.shape, dtype=self.wide, device=self.device)
        for part in self.chunks(cloud):
            with plainly(), refusing_checkpoints("a second derivative"), second_order("a Hessian of the loss", _CURE):
                cost = self.cost(self.parameters, part)
                refuse_once_differentiable(cost, "a Hessian of the loss", _CURE)
                slope = gradients(cost.sum(), self.leaves, create_graph=True)
                for k, vector in enumerate(vectors):
                    seeds = tree.pieces(vector.to(self.leaves[0]), self.leaves)
                    found = gradients(slope, self.leaves, seeds, retain_graph=True)
                    total[k] += tree.ravel(found).to(self.wide)
        if not bool(total.isfinite().all()):
            raise InvalidValue("the second derivatives of the loss are not finite on some of the samples")
        return total / len(cloud)

    def hessian(self) -> Tensor:
        """H whole ``[P, P]``, by P products, to the last digit symmetric; wide."""
        found = self.hessian_products(torch.eye(self.size, dtype=self.wide, device=self.device))
        return (found + found.mT) / 2


def signs(*shape: int, generator: torch.Generator, like: Tensor) -> Tensor:
    """Random signs, of the dtype and on the device of a tensor: directions v with E v v' = 1, to estimate traces by."""
    return 2 * torch.randint(0, 2, shape, generator=generator, device="cpu").to(like) - 1


def curved_products(
    samples: Samples, means: Tensor, parts: list[Particles], members: int, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """<g_k, H g_l> of the mean gradients, H of the groups other than k and l; and what the H of each group adds.

    A gradient goes with the Hessian of other samples: with that of its own among them, G'HG would come out too large.

    Args:
        samples: the loss.
        means: g, of groups of draws ``[K, P]``.
        parts: the samples of each group that its Hessian H_k is of.
        members: draws in each group.
        seed: of the probes.

    Returns:
        The products ``[K, K]``; and for each group G'H_k G, then estimates of tr(H_k Sigma) by independent probes
        ``[1 + probes, K]``, both from the gradients of the others.
    """
    k = len(parts)
    generator = torch.Generator().manual_seed(seed)
    drawn = signs(_PROBES, k, generator=generator, like=means)
    centred = (means - means.mean(0)) * math.sqrt(members / (k - 1))
    own = []
    for at, (g, part) in enumerate(zip(means, parts, strict=True)):
        rest = (means.sum(0) - g)[None] / (k - 1)
        probes = drawn @ centred - drawn[:, at, None] * centred[at]
        met = torch.cat([rest, probes])
        found = samples.hessian_products(torch.cat([g[None], met]), part)
        own.append((means @ found[0], (met * found[1:]).sum(1)))
    shared, bend = (torch.stack(each) for each in zip(*own, strict=True))  # <g_k, H_k g_l>, ...
    total = k * means @ samples.hessian_products(means, concatenated(parts)).mT
    apart = (total - shared - shared.mT) / (k - 2)
    apart.diagonal().copy_((total - shared).diagonal() / (k - 1))
    return (apart + apart.mT) / 2, bend.mT


def vectorised_rows(samples: Samples, cloud: Particles) -> Tensor:
    """The gradients of the samples by ``vmap``, ``[n, P]``."""
    pack = _packed(cloud)
    given = tree.leaves(pack)

    def single(leaves: list[Tensor], *row: Tensor) -> Tensor:
        one = Particles(*tree.rebuild(pack, [entry[None] for entry in row]))
        return samples.cost(tree.rebuild(samples.parameters, leaves), one)[0]

    constant = [leaf.detach() for leaf in samples.leaves]
    found = vmap(grad(single), in_dims=(None, *[0] * len(given)))(constant, *given)
    return torch.cat([leaf.reshape(len(cloud), -1) for leaf in found], 1).detach()


def looped_rows(samples: Samples, cloud: Particles) -> Tensor:
    """The same by one plain backward pass for each sample: slow, and asks nothing of the loss."""
    found = []
    for n in range(len(cloud)):
        cost = samples.cost(samples.parameters, cloud[n : n + 1])
        found.append(tree.ravel(gradients(cost, samples.leaves)))
    return torch.stack(found)


def _packed(cloud: Particles) -> tuple[Tree, ...]:
    return (cloud.state,) if cloud.data is None else (cloud.state, cloud.data)
