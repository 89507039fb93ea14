"""The laws that the guides of Pyro are of: how a guide's parameters and noise make the latents, and their log density.

A family is pure: it takes the parameters, by their names in the guide, as an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from mfoc import require
from paradigms.bayesian.laws.normal import HALF_LOG_2PI

Parameters = Mapping[str, Tensor]
Shapes = Mapping[str, torch.Size]
Factors = tuple[Tensor, Tensor, Tensor | None]


class Family(Protocol):
    """A family of laws q of the free latents ``[D]``.

    Attributes:
        noise: how many standard normals a draw is made of.
        jacobian: whether the latents' density is taken on the line, with the volume of the map to their supports.
    """

    @property
    def noise(self) -> int:
        """See above."""

    @property
    def jacobian(self) -> bool:
        """See above."""

    def draw(self, u: Parameters, eps: Tensor) -> Tensor:
        """Free latents ``[S, D]`` from standard normals ``[S, noise]``."""

    def log_q(self, u: Parameters, eps: Tensor) -> Tensor:
        """The log density at the draws from these normals ``[S]``."""

    def log_prob(self, u: Parameters, z: Tensor) -> Tensor:
        """The log density at free latents ``[S]``."""

    def entropy(self, u: Parameters) -> Tensor:
        """Minus the mean of the log density."""


@dataclass(frozen=True)
class Factored:
    """z = loc + L eps, with L a diagonal or a triangle (AutoNormal, AutoDiagonalNormal, AutoMultivariateNormal).

    Attributes:
        factors: from the parameters the mean ``[D]``, the scale ``[D]`` and, for a full covariance, the unit triangle
            ``[D, D]``: L = scale * it.
        noise: D.
    """

    factors: Callable[[Parameters], Factors]
    noise: int
    jacobian: bool = True

    def draw(self, u: Parameters, eps: Tensor) -> Tensor:
        """See ``Family``."""
        loc, scale, triangle = self.factors(u)
        return torch.addcmul(loc, scale, eps if triangle is None else eps @ triangle.mT)

    def log_q(self, u: Parameters, eps: Tensor) -> Tensor:
        """See ``Family``."""
        logs = self.factors(u)[1].log().sum()
        return -(0.5 * eps.square().sum(1) + logs + self.noise * HALF_LOG_2PI)

    def log_prob(self, u: Parameters, z: Tensor) -> Tensor:
        """See ``Family``."""
        loc, scale, triangle = self.factors(u)
        eps = (z - loc) / scale
        if triangle is not None:
            eps = torch.linalg.solve_triangular(triangle, eps.mT, upper=False, unitriangular=False).mT
        return self.log_q(u, eps)

    def entropy(self, u: Parameters) -> Tensor:
        """See ``Family``."""
        return 0.5 * self.noise + self.factors(u)[1].log().sum() + self.noise * HALF_LOG_2PI


@dataclass(frozen=True)
class LowRank:
    """z = loc + scale (W eps_1 + eps_2), with a factor W ``[D, rank]`` (AutoLowRankMultivariateNormal).

    Attributes:
        scale: the map from the parameter to the scale.
        dimension: D.
        rank: the number of columns of W.
    """

    scale: Callable[[Tensor], Tensor]
    dimension: int
    rank: int
    jacobian: bool = True

    @property
    def noise(self) -> int:
        """First the ``rank`` normals of the factor, as ``torch.distributions.LowRankMultivariateNormal`` draws them."""
        return self.rank + self.dimension

    def draw(self, u: Parameters, eps: Tensor) -> Tensor:
        """See ``Family``."""
        common, own = eps[:, : self.rank], eps[:, self.rank :]
        return torch.addcmul(u["loc"], self.scale(u["scale_unconstrained"]), common @ u["cov_factor"].mT + own)

    def log_q(self, u: Parameters, eps: Tensor) -> Tensor:
        """See ``Family``."""
        return self.log_prob(u, self.draw(u, eps))

    def log_prob(self, u: Parameters, z: Tensor) -> Tensor:
        """See ``Family``; with Woodbury's identity, after the scale is divided out."""
        v, root = (z - u["loc"]) / self.scale(u["scale_unconstrained"]), self._root(u)
        inside = torch.linalg.solve_triangular(root, (v @ u["cov_factor"]).mT, upper=False)
        log: Tensor = -0.5 * (v.square().sum(1) - inside.square().sum(0)) - self._volume(u, root)
        return log

    def entropy(self, u: Parameters) -> Tensor:
        """See ``Family``."""
        return 0.5 * self.dimension + self._volume(u, self._root(u))

    def _root(self, u: Parameters) -> Tensor:
        """The triangle C of C C' = I + W' W; not a number, and no error, where W is none."""
        factor = u["cov_factor"]
        root: Tensor = torch.linalg.cholesky_ex(torch.eye(self.rank, device="cpu").to(factor) + factor.mT @ factor).L
        return root

    def _volume(self, u: Parameters, root: Tensor) -> Tensor:
        logs = self.scale(u["scale_unconstrained"]).log().sum() + root.diagonal().log().sum()
        return logs + self.dimension * HALF_LOG_2PI


@dataclass(frozen=True)
class Point:
    """One point, without noise and of entropy zero: the mode of a density.

    With ``jacobian`` of the density on the line (AutoLaplaceApproximation); without, of the density in the latents' own
    supports (AutoDelta). Where a support is bounded these are two densities, with two modes.

    Attributes:
        names: of the parameters that hold the point, in order.
    """

    names: tuple[str, ...]
    jacobian: bool
    noise: int = 0

    def draw(self, u: Parameters, eps: Tensor) -> Tensor:
        """See ``Family``."""
        return torch.cat([u[name].reshape(-1) for name in self.names]).expand(len(eps), -1)

    def log_q(self, u: Parameters, eps: Tensor) -> Tensor:
        """See ``Family``; it counts as zero, as in Pyro."""
        return u[self.names[0]].new_zeros(len(eps))

    def log_prob(self, u: Parameters, z: Tensor) -> Tensor:
        """See ``log_q``."""
        return self.log_q(u, z)

    def entropy(self, u: Parameters) -> Tensor:
        """See ``log_q``."""
        return u[self.names[0]].new_zeros(())


def family_of(guide: Any, latents: Shapes) -> tuple[Family, dict[str, torch.Size]]:
    """The family of a guide whose parameters are made, and the shapes of its free latents, by name.

    ``latents`` are the shapes on the line. A point in the supports is free in the coordinates of its parameters, which
    are as many as the latent's entries: a simplex of three has two coordinates on the line and three here.
    """
    guides = require("pyro", "bayes").infer.autoguide
    own = dict(guide.named_parameters())
    d, shapes = sum(shape.numel() for shape in latents.values()), dict(latents)
    if isinstance(guide, guides.AutoDelta):
        return Point(tuple(f"{name}_unconstrained" for name in latents), jacobian=False), {
            name: own[f"{name}_unconstrained"].shape for name in latents
        }
    if isinstance(guide, guides.AutoLaplaceApproximation):
        return Point(("loc",), jacobian=True), shapes
    to_scale = torch.distributions.transform_to(type(guide).scale_constraint)
    if isinstance(guide, guides.AutoLowRankMultivariateNormal):
        return LowRank(to_scale, d, own["cov_factor"].shape[1]), shapes
    if isinstance(guide, guides.AutoNormal):
        return Factored(_by_site(tuple(latents), to_scale), d), shapes
    return Factored(_whole(type(guide), to_scale), d), shapes


def _by_site(names: tuple[str, ...], to_scale: Callable[[Tensor], Tensor]) -> Callable[[Parameters], Factors]:
    def factors(u: Parameters) -> Factors:
        loc, rho = (
            torch.cat([u[f"{what}.{name}_unconstrained"].reshape(-1) for name in names]) for what in ("locs", "scales")
        )
        return loc, to_scale(rho), None

    return factors


def _whole(kind: Any, to_scale: Callable[[Tensor], Tensor]) -> Callable[[Parameters], Factors]:
    def factors(u: Parameters) -> Factors:
        triangle = u.get("scale_tril_unconstrained")
        if triangle is not None:
            triangle = torch.distributions.transform_to(kind.scale_tril_constraint)(triangle)
        return u["loc"], to_scale(u["scale_unconstrained"]), triangle

    return factors
