"""Variational inference on a Pyro model with one of its Gaussian guides, as a control problem.

The control holds the guide's unconstrained parameters, a particle is a standard normal vector eps ``[D]``, and the one
stage makes it the unconstrained latents z = loc + L eps (Kucukelbir et al. 2017, arXiv:1603.00788, eq. 9). The stage's
running cost is tau log q(z); the terminal cost is - log p(y | T(z)) / N - tau log (p(T(z)) |dT/dz|).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import mfoc
from mfoc import InvalidType, InvalidValue
from mfoc.population import mixed_seed
from paradigms.bayesian.joint import Arguments, Joint, Latents, prototype
from paradigms.bayesian.layers import shared
from paradigms.bayesian.networks import check_finite, check_shares
from paradigms.bayesian.posterior import name_apart, pyro_package, set_up
from paradigms.formulation import Formulation

_KNOWN = ("AutoNormal", "AutoDiagonalNormal", "AutoMultivariateNormal")


@dataclass(frozen=True)
class GaussianGuide:
    """An AutoGuide read as z = loc + L eps on the unconstrained latents ``[D]``.

    Attributes:
        guide: the guide, its parameters made.
        sites: latent name -> the site of the guide's prototype.
        shapes: latent name -> its unconstrained shape.
        remake: makes a guide of the same kind anew.
    """

    guide: Any
    sites: dict[str, Any]
    shapes: dict[str, torch.Size]
    remake: Callable[[], Any]

    @property
    def dimension(self) -> int:
        """The number D of unconstrained latents."""
        return sum(shape.numel() for shape in self.shapes.values())

    def controls(self) -> dict[str, Tensor]:
        """The guide's unconstrained parameters, by their names in it."""
        return {name: value.detach().clone() for name, value in self.guide.named_parameters()}

    def law(self, u: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
        """The mean ``[D]``, scale ``[D]`` and, for a full covariance, the unit triangle ``[D, D]``: L = scale * it."""
        to = torch.distributions.transform_to
        if isinstance(self.guide, pyro_package("pyro.infer.autoguide").AutoNormal):
            scales = to(type(self.guide).scale_constraint)
            loc = torch.cat([u[f"locs.{name}_unconstrained"].reshape(-1) for name in self.shapes])
            rho = torch.cat([u[f"scales.{name}_unconstrained"].reshape(-1) for name in self.shapes])
            return loc, scales(rho), None
        scale = to(type(self.guide).scale_constraint)(u["scale_unconstrained"])
        if "scale_tril_unconstrained" not in u:
            return u["loc"], scale, None
        return u["loc"], scale, to(type(self.guide).scale_tril_constraint)(u["scale_tril_unconstrained"])

    def latents(self, z: Tensor) -> tuple[Latents, Tensor]:
        """The latents in their supports ``{name: [S, ...]}``, and the log volume of the map ``[S]``."""
        found, volume = {}, z.new_zeros(len(z))
        for (name, shape), part in zip(
            self.shapes.items(), torch.split(z, [shape.numel() for shape in self.shapes.values()], 1), strict=True
        ):
            free = part.view(len(z), *shape)
            transform = torch.distributions.biject_to(self.sites[name]["fn"].support)
            found[name] = value = transform(free)
            log_slope = transform.log_abs_det_jacobian(free, value)
            volume = volume + log_slope.reshape(len(z), -1).sum(1)
        return found, volume

    def solved(self, u: dict[str, Tensor]) -> Any:
        """A new guide of this class at other parameters."""
        guide = self.remake()
        own = dict(guide.named_parameters())
        if own.keys() != u.keys() or any(own[name].shape != u[name].shape for name in own):
            raise InvalidValue(f"the controls hold {sorted(u)}; the guide has {sorted(own)}: were they solved for it?")
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(u[name])
        name_apart(guide)
        return guide


def guide_of(model: Callable[..., Any], guide: Any, arguments: Arguments) -> GaussianGuide:
    """Reads a guide.

    Args:
        model: the Pyro model.
        guide: a class, a function of the model, an instance, or None for ``AutoNormal``.
        arguments: the model's arguments.

    Raises:
        InvalidType: not one of the three Gaussian guides.
        InvalidValue: its latents are not the model's.
    """
    known = tuple(getattr(pyro_package("pyro.infer.autoguide"), name) for name in _KNOWN)
    guide = known[0] if guide is None else guide
    given = guide if isinstance(guide, known) else None
    trace = prototype(model, arguments)

    def remake() -> Any:
        try:
            made = type(given)(given.model) if given is not None else guide(model)
        except TypeError as error:
            raise InvalidType(
                f"guide is {guide!r} and cannot be made anew ({error}); pass a function model -> guide"
            ) from error
        if not isinstance(made, known):
            raise InvalidType(f"guide is a {type(made).__name__}; expected one of {', '.join(_KNOWN)}")
        arguments.call(lambda *args, **kwargs: set_up(made, args, kwargs))
        return made

    if given is None and not callable(guide):
        raise InvalidType(f"guide is a {type(guide).__name__}; expected one of {', '.join(_KNOWN)}")
    try:
        made = remake()
    except NotImplementedError as error:  # what Pyro says of supports it cannot unconstrain, and of sequential plates
        raise InvalidValue(f"the guide cannot be made for this model: {error}") from error
    sites = dict(made.prototype_trace.iter_stochastic_nodes())
    _check_sites(sites, dict(trace.iter_stochastic_nodes()))
    shapes = {
        name: torch.distributions.biject_to(site["fn"].support).inv(site["value"]).shape for name, site in sites.items()
    }
    if given is not None and given.prototype_trace is not None:  # an instance in use: start where it is
        with torch.no_grad():
            for own, value in zip(made.parameters(), given.parameters(), strict=True):
                own.copy_(value)
    return GaussianGuide(made, sites, shapes, remake)


def _check_sites(own: dict[str, Any], model: dict[str, Any]) -> None:
    for kind, names in (("does not cover", model.keys() - own.keys()), ("has also", own.keys() - model.keys())):
        if names:
            raise InvalidValue(f"the guide does not match the model: it {kind} the latents {sorted(names)}")
    for name, site in own.items():
        if site["value"].shape != model[name]["value"].shape:
            raise InvalidValue(
                f"the guide does not match the model: latent {name!r} has shape {tuple(site['value'].shape)} in the "
                f"guide and {tuple(model[name]['value'].shape)} in the model"
            )


class _Normals(mfoc.Population):
    """Standard normal vectors ``[S, D]``, with the rows of a batch."""

    def __init__(self, source: mfoc.Population | None, samples: int, like: Tensor, dimension: int, seed: int) -> None:
        self._source, self._samples, self._like = source, samples, like
        self._dimension, self._seed = dimension, seed
        self.batches_per_epoch = 1 if source is None else source.batches_per_epoch

    def __call__(self, step: int) -> mfoc.Particles:
        """The draws of step ``step`` on its batch."""
        return self._cloud(None if self._source is None else self._source(step), mixed_seed(self._seed, step, 3))

    def epoch(self) -> Iterator[mfoc.Particles]:
        """Fresh draws on every batch of one pass."""
        for k, batch in enumerate([None] if self._source is None else self._source.epoch()):
            yield self._cloud(batch, mixed_seed(self._seed, k, 4))

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
    arguments = Arguments(data, size)
    law = guide_of(model, guide, arguments)
    source = None if batch_size is None else arguments.batches(batch_size, seed)
    if source is not None:
        check_shares(source)
        _check_batch(model, arguments.take(source(0).state), law)
    controls = law.controls()
    n, joint = arguments.size, Joint(model, arguments, list(law.sites))
    temperature, exact = 1 / n if tau is None else tau, kl == "exact"

    def dynamics(t: int, x: Tensor, u: Any, z: Any) -> Tensor:
        loc, scale, triangle = law.law(u)
        return torch.addcmul(loc, scale, x if triangle is None else x @ triangle.mT)

    def running_cost(t: int, x: Tensor, u: Any, z: Any) -> Tensor:
        logs = law.law(u)[1].log().sum()
        constant = 0.5 * law.dimension * math.log(2 * math.pi)
        spread = 0.5 * law.dimension if exact else 0.5 * x.square().sum(1)
        return (-temperature * (spread + logs + constant)).expand(len(x))

    def terminal_cost(x: Tensor, z: Any) -> Tensor:
        latents, volume = law.latents(x)
        count = n if z is None else next(iter(z.values())).shape[1]
        prior, observed = _evaluate(joint, latents, z)
        return -observed / count - temperature * (prior + volume)

    problem = mfoc.Problem(dynamics, terminal_cost, [controls], running_cost=running_cost)
    normals = _Normals(source, samples, next(iter(controls.values())), law.dimension, seed)
    problem.validate(normals(0))
    check_finite(problem, normals(0))

    def readout(solution: Any) -> Any:
        problem.check_controls(solution.controls)
        return law.solved(solution.controls[0])

    return Formulation(problem, normals, readout)


def _evaluate(joint: Joint, latents: Latents, rows: dict[Any, Tensor] | None) -> tuple[Tensor, Tensor]:
    """The log joint; draws that share their batch are vectorised over the latents only."""
    if rows is None or all(shared(value) for value in rows.values()):
        return joint(latents, None if rows is None else {key: value[0] for key, value in rows.items()})
    parts = [
        joint({k: v[i : i + 1] for k, v in latents.items()}, {k: v[i] for k, v in rows.items()})
        for i in range(len(next(iter(rows.values()))))
    ]
    return torch.cat([prior for prior, _ in parts]), torch.cat([observed for _, observed in parts])


def _check_batch(model: Callable[..., Any], arguments: Arguments, law: GaussianGuide) -> None:
    """Refuses models whose latents grow with the batch, or that scale a batch themselves."""
    trace = prototype(model, arguments)
    for name, site in trace.iter_stochastic_nodes():
        if site["value"].shape != law.sites[name]["value"].shape:
            raise InvalidValue(f"latent {name!r} has one entry for each observation; solve without batch_size")
    for name in trace.observation_nodes:
        site = trace.nodes[name]
        if type(site["fn"]).__name__ == "Unit" and not site["cond_indep_stack"]:
            raise InvalidValue(
                f"the factor {name!r} is outside of any plate, and a batch counts N / B times; solve without batch_size"
            )
        if float(torch.as_tensor(trace.nodes[name]["scale"]).max()) != 1:
            raise InvalidValue(
                f"the model scales its observations ({name!r}) to the whole data; leave that out: a batch counts for N"
            )
