"""Variational inference on a Pyro model with one of its Gaussian guides, as a control problem.

The control holds the guide's unconstrained parameters, a particle is a standard normal vector eps ``[D]``, and the one
stage makes it the unconstrained latents z = loc + L eps (Kucukelbir et al. 2017, arXiv:1603.00788, eq. 9). The stage's
running cost is tau log q(z); the terminal cost is - log p(y | T(z)) / N - tau log (p(T(z)) |dT/dz|).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

import mfoc
from mfoc import InvalidValue
from mfoc.formulation import Formulation
from mfoc.problem import controls_of
from mfoc.seeding import mixed_seed
from paradigms.bayesian.density.density import split
from paradigms.bayesian.laws.normal import HALF_LOG_2PI
from paradigms.bayesian.pyro.arguments import Arguments
from paradigms.bayesian.pyro.guides import guide_of
from paradigms.bayesian.pyro.trace import check_batch, evaluate, prototype, quietly
from paradigms.bayesian.vi.checks import check_finite, check_shares
from paradigms.bayesian.vi.stages import shared


class ModelDraws(mfoc.Population):
    """Particles that are standard normal vectors ``[S, D]``, with the rows of a batch."""

    def __init__(self, source: mfoc.Population | None, samples: int, like: Tensor, dimension: int, seed: int) -> None:
        self._source, self._samples, self._like = source, samples, like
        self._dimension, self._seed = dimension, seed
        self.batches_per_epoch = 1 if source is None else source.batches_per_epoch

    def __call__(self, step: int) -> mfoc.Particles:
        """The draws of step ``step`` on its batch."""
        return self._cloud(None if self._source is None else self._source(step), mixed_seed(self._seed, step, 3))

    def epoch(self) -> Iterator[mfoc.Particles]:
        """Fresh draws on all observations at once: batches of unequal size would count alike."""
        yield self._cloud(None, mixed_seed(self._seed, 0, 4))

    def _cloud(self, batch: mfoc.Particles | None, key: int) -> mfoc.Particles:
        s, generator = self._samples, torch.Generator().manual_seed(key)
        noise = torch.randn(s, self._dimension, generator=generator, dtype=self._like.dtype, device="cpu")
        rows = None if batch is None else {k: v.expand(s, *v.shape) for k, v in batch.state.items()}
        return mfoc.Particles(noise.to(self._like.device), rows)


def of_model(
    model: Callable[..., Any],
    data: Any,
    *,
    guide: Any,
    samples: int,
    batch_size: int | None,
    tau: float | None,
    size: int | None,
    kl: str | None,
    seed: int,
) -> Formulation:
    """Variational inference on a Pyro model; see ``variational``."""
    arguments = Arguments(data)
    n = arguments.size(size)
    law = guide_of(model, guide, arguments)
    source = None if batch_size is None else arguments.batches(n, batch_size, seed)
    if source is not None:
        check_shares(source)
        if source.batches_per_epoch > 1:
            part = prototype(model, arguments.take(source(0).state))
            check_batch(prototype(model, arguments), part, instead="solve without batch_size")
    controls = law.controls()
    temperature, exact = 1 / n if tau is None else tau, kl == "exact"
    joint = partial(_joint, model, arguments, law.shapes)

    def dynamics(t: int, x: Tensor, u: Any, z: Any) -> Tensor:
        loc, scale, triangle = law.law(u)
        return torch.addcmul(loc, scale, x if triangle is None else x @ triangle.mT)

    def running_cost(t: int, x: Tensor, u: Any, z: Any) -> Tensor:
        logs = law.law(u)[1].log().sum()
        constant = law.dimension * HALF_LOG_2PI
        spread = 0.5 * law.dimension if exact else 0.5 * x.square().sum(1)
        return (-temperature * (spread + logs + constant)).expand(len(x))

    def terminal_cost(x: Tensor, z: Any) -> Tensor:
        count = n if z is None else next(iter(z.values())).shape[1]
        prior, observed = _by_batch(joint, x, z)
        cost: Tensor = -observed / count - temperature * prior
        return cost

    problem = mfoc.Problem(dynamics, terminal_cost, [controls], running_cost=running_cost)
    normals = ModelDraws(source, samples, next(iter(controls.values())), law.dimension, seed)
    problem.validate(normals(0))
    check_finite(problem, normals(0))

    def readout(solution: Any) -> Any:
        controls = controls_of(solution)
        problem.check_controls(controls)
        return law.solved(controls[0])

    return Formulation(problem, normals, readout)


def _joint(
    model: Callable[..., Any],
    arguments: Arguments,
    shapes: dict[str, torch.Size],
    z: Tensor,
    rows: dict[Any, Tensor] | None,
) -> tuple[Tensor, Tensor]:
    """The log density of unconstrained latents ``[S, D]``, and of the observations given them, each ``[S]``.

    Raises:
        InvalidValue: the model cannot be vectorised.
    """

    def one(z: Tensor) -> tuple[Tensor, Tensor]:
        found = evaluate(model, arguments, split(z, shapes), rows=rows)
        return found.prior + found.volume, found.observed

    with quietly():
        try:
            prior, observed = torch.func.vmap(one)(z)
        except RuntimeError as error:
            raise InvalidValue(
                f"the model cannot be vectorised over draws ({error}); it must not branch on its latents or turn "
                "them into numbers (.item())"
            ) from error
    return prior, observed


def _by_batch(joint: Callable[..., tuple[Tensor, Tensor]], z: Tensor, rows: dict[Any, Tensor] | None) -> Any:
    """The log joint; draws that share their batch are vectorised over the latents only."""
    if rows is None or all(shared(value) for value in rows.values()):
        return joint(z, None if rows is None else {key: value[0] for key, value in rows.items()})
    parts = [joint(z[i : i + 1], {key: value[i] for key, value in rows.items()}) for i in range(len(z))]
    return torch.cat([prior for prior, _ in parts]), torch.cat([observed for _, observed in parts])
