"""Where the particles of variational inference come from: draws of a random network on batches of observations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import mfoc
from mfoc import tree
from mfoc.seeding import mixed_seed
from paradigms.bayesian.vi.checks import check_shares
from paradigms.bayesian.vi.random_network import RandomNetwork
from paradigms.bayesian.vi.stages import Weights, first


class NetworkDraws(mfoc.Population):
    """Particles that are draws of the network, each on the whole batch of a population of (x, y).

    Without a process group the batch of step n is that of the source; over ranks, each rank has its part of the batch
    and, for draws of weights, the same draws.
    """

    def __init__(self, source: mfoc.Population, network: RandomNetwork, samples: int, seed: int) -> None:
        self._source, self._network, self._samples, self._seed = source, network, samples, seed
        self._plans: dict[Any, Any] = {}  # a memo of shapes
        self._like = first([u for u in network.base.controls if u])
        check_shares(source)
        self.batches_per_epoch = source.batches_per_epoch

    def __call__(self, step: int) -> mfoc.Particles:
        """The draws of step ``step`` on its batch."""
        return self._cloud(self._source(step), mixed_seed(self._seed, step, 3))

    def epoch(self) -> Iterator[mfoc.Particles]:
        """Fresh draws, each on all observations: batches of unequal size would count alike."""
        yield self._cloud(self._source.cloud(), mixed_seed(self._seed, 0, 4))

    def _cloud(self, batch: mfoc.Particles, key: int) -> mfoc.Particles:
        s = self._samples
        x = batch.state.expand(s, *batch.state.shape)
        y = tree.map(lambda leaf: leaf.expand(s, *leaf.shape), batch.data)
        noise = self._noise(batch.state, key)
        return mfoc.Particles(x, {"y": y, "noise": noise})

    def _noise(self, x: Tensor, key: int) -> list[Weights]:
        generator, plan, like = torch.Generator().manual_seed(key), self._plan(x), self._like
        normals = [shape for stage in plan for shape in stage[0].values()]
        signs = [shape for stage in plan for shape in stage[1].values()]
        gauss = torch.randn(_total(normals), generator=generator, dtype=like.dtype, device="cpu")
        parts = _blocks(gauss, normals, like)
        if signs:
            flips = torch.empty(_total(signs), dtype=like.dtype, device="cpu").bernoulli_(0.5, generator=generator)
            parts += _blocks(2 * flips - 1, signs, like)
        made = iter(parts)
        found = [{name: next(made) for name in stage[0]} for stage in plan]
        return [{**entry, **{name: next(made) for name in stage[1]}} for entry, stage in zip(found, plan, strict=True)]

    def _plan(self, x: Tensor) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """The shapes of the noise of each stage, for a batch of this shape."""
        if x.shape not in self._plans:
            shapes = [tuple(state.shape) for state in self._network.states(x)]
            self._plans[x.shape] = [
                stage.noise(self._samples, shapes[t], shapes[t + 1]) for t, stage in enumerate(self._network.stages)
            ]
        return self._plans[x.shape]  # type: ignore[no-any-return]


def _total(shapes: list[tuple[int, ...]]) -> int:
    return sum(torch.Size(shape).numel() for shape in shapes)


def _blocks(flat: Tensor, shapes: list[tuple[int, ...]], like: Tensor) -> list[Tensor]:
    parts = torch.split(flat.to(like.device), [torch.Size(shape).numel() for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
