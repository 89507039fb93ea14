"""Variational inference on a Pyro model with one of its guides, as a control problem.

The control holds the guide's unconstrained parameters, a particle is a standard normal vector eps, and the one stage
makes it the free latents z, loc + L eps for a Gaussian (Kucukelbir et al. 2017, arXiv:1603.00788, eq. 9). The stage's
running cost is tau log q(z); the terminal cost is - log p(y | T(z)) / N - tau log (p(T(z)) |dT/dz|). A point has no
noise and no entropy, and what is left is the MAP objective.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import mfoc
from mfoc import InvalidValue
from mfoc.derivatives import without_fast_path
from mfoc.formulation import Formulation
from paradigms.bayesian.density.density import split
from paradigms.bayesian.pyro.guides import guide_of
from paradigms.bayesian.pyro.trace import Arguments, check_batch, evaluate, prototype, quietly
from paradigms.bayesian.vi.draws import SHARE, LatentDraws, Settings, formulated
from paradigms.bayesian.vi.stages import shared


class ModelDraws(LatentDraws):
    """Particles that are standard normal vectors ``[S, D]``, with the rows of a batch."""

    def __init__(self, source: mfoc.Population | None, settings: Settings, like: Tensor, dimension: int) -> None:
        super().__init__(source, settings, like)
        self._dimension = dimension

    def _cloud(self, batch: mfoc.Particles | None, key: int) -> mfoc.Particles:
        s, generator = self._samples, torch.Generator().manual_seed(key)
        noise = torch.randn(s, self._dimension, generator=generator, dtype=self._like.dtype, device="cpu")
        rows = None if batch is None else {k: v.expand(s, *v.shape) for k, v in batch.state.items()}
        return mfoc.Particles(noise.to(self._like.device), rows)

    def _own(self, cloud: mfoc.Particles, rows: Tensor) -> mfoc.Particles:
        own = {k: v[0][rows.to(v.device)].expand(self._samples, len(rows), *v.shape[2:]) for k, v in cloud.data.items()}
        return mfoc.Particles(cloud.state, own)


def of_model(model: Callable[..., Any], data: Any, guide: Any, settings: Settings) -> Formulation:
    """Variational inference on a Pyro model; see ``variational``."""
    arguments = Arguments(data)
    n = arguments.size(settings.size)
    law = guide_of(model, guide, arguments)
    controls = law.controls()
    source, rows = None, arguments.rows(n)
    if settings.batch_size is not None:
        if not rows:
            raise InvalidValue("batch_size was given, and no argument of the model is a tensor with leading axis N")
        source = mfoc.population(mfoc.Particles(rows), batch_size=settings.batch_size, seed=settings.seed)
    family = law.family
    draws = ModelDraws(source, settings, next(iter(controls.values())), family.noise)
    if source is not None and source.batches_per_epoch > 1:
        part = prototype(model, arguments.take(source(0).state))
        check_batch(prototype(model, arguments), part, instead="solve without batch_size")
    temperature, exact = 1 / n if settings.tau is None else settings.tau, settings.kl == "exact"

    def dynamics(t: int, x: Tensor, u: Any, z: Any) -> Tensor:
        return family.draw(u, x)

    def running_cost(t: int, x: Tensor, u: Any, z: Any) -> Tensor:
        return (-temperature * family.entropy(u)).expand(len(x)) if exact else temperature * family.log_q(u, x)

    def along_draws(t: int, x: Tensor, u: Any, z: Any) -> Tensor:
        """The same without the score of log q: its parameters are held, their draw moves (Roeder et al. 2017)."""
        return temperature * family.log_prob({name: value.detach() for name, value in u.items()}, family.draw(u, x))

    def joint(z: Tensor, rows: dict[Any, Tensor] | None) -> tuple[Tensor, Tensor]:
        """The log density of unconstrained latents ``[S, D]``, and of the observations given them, each ``[S]``."""

        def one(z: Tensor) -> tuple[Tensor, Tensor]:
            latents = split(z, law.shapes)
            found = evaluate(model, arguments, latents, rows=rows, jacobian=family.jacobian, nesting=law.nesting)
            return found.prior + found.volume, found.observed

        try:
            with quietly(), without_fast_path():
                prior, observed = torch.func.vmap(one)(z)
        except RuntimeError as error:
            raise InvalidValue(
                f"the model cannot be vectorised over draws ({error}); it must not branch on its latents or turn "
                "them into numbers (.item())"
            ) from error
        return prior, observed

    def terminal_cost(x: Tensor, z: Any) -> Tensor:
        rows = None if z is None else {name: leaf for name, leaf in z.items() if name != SHARE}
        count = n if rows is None else next(iter(rows.values())).shape[1]
        prior, observed = _by_batch(joint, x, rows)
        if z is not None and SHARE in z:
            observed = z[SHARE] * observed
        cost: Tensor = -observed / count - temperature * prior
        return cost

    problem = mfoc.Problem(dynamics, terminal_cost, [controls], running_cost=running_cost)
    whole = problem if settings.stl else None
    if settings.stl:
        problem = dataclasses.replace(problem, running_cost=along_draws)
    return formulated(problem, draws, lambda solved: law.solved(solved[0]), whole=whole)


def _by_batch(joint: Callable[..., tuple[Tensor, Tensor]], z: Tensor, rows: dict[Any, Tensor] | None) -> Any:
    """The log joint; draws that share their batch are vectorised over the latents only."""
    if rows is None or all(shared(value) for value in rows.values()):
        return joint(z, None if rows is None else {key: value[0] for key, value in rows.items()})
    parts = [joint(z[i : i + 1], {key: value[i] for key, value in rows.items()}) for i in range(len(z))]
    return torch.cat([prior for prior, _ in parts]), torch.cat([observed for _, observed in parts])
