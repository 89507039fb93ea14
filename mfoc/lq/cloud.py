"""An LQ problem on a cloud of particles: the functions of its ``Problem``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mfoc.checks import check_instance
from mfoc.errors import InvalidValue
from mfoc.law import count, is_frozen, mean, shared
from mfoc.lq.terms import Coefficients


@dataclass(frozen=True, eq=False)
class Cloud:
    """The functions of the Problem: the equations of ``LinearQuadratic`` with empirical means.

    The noise is factor w with w normal, and for the mean of the cloud, where its covariance differs, factor_mean w.
    """

    lq: Coefficients
    feedback: bool
    factor: Tensor | None
    factor_mean: Tensor | None

    def dynamics(self, t: int, x: Tensor, u: Any, z: Tensor | None) -> Tensor:
        """The next state, with the means of the population."""
        self._check_game()
        m = self._mean(x, "Abar")
        controls, v = self._control(x, m, u, "Bbar")
        moved = x @ self._at("A", t).mT + controls @ self._at("B", t).mT
        for name, average in (("Abar", m), ("Bbar", v)):
            if getattr(self.lq, name) is not None:
                assert average is not None
                moved = moved + self._at(name, t) @ average
        return moved if self.factor is None else moved + self._noise(t, z)

    def running_cost(self, t: int, x: Tensor, u: Any, z: Tensor | None) -> Tensor:
        """The cost of a stage ``[N]``."""
        lq, m = self.lq, self._mean(x, "Qbar", "crossbar")
        controls, v = self._control(x, m, u, "Rbar")
        cost = _quadratic(x, self._at("Q", t)) + _quadratic(controls, self._at("R", t))
        if lq.Qbar is not None:
            assert m is not None
            centre = m if lq.S is None else self._at("S", t) @ m
            cost = cost + _quadratic(x - centre, self._at("Qbar", t))
        if lq.Rbar is not None:
            assert v is not None
            cost = cost + _quadratic(v, self._at("Rbar", t))
        if lq.cross is not None:
            cost = cost + 2 * ((x @ self._at("cross", t)) * controls).sum(-1)
        if lq.crossbar is not None:
            assert m is not None
            # The particle's own control: on average the mean's, and in a game the one that is chosen.
            cost = cost + 2 * ((m @ self._at("crossbar", t)) * controls).sum(-1)
        if lq.offset is not None:
            cost = cost + lq.offset
        return cost if lq.offsetbar is None else cost + lq.offsetbar / count(x)

    def terminal_cost(self, x: Tensor, z: Tensor | None) -> Tensor:
        """The cost of the last state ``[N]``."""
        lq, cost = self.lq, x.new_zeros(len(x))
        if lq.QT is not None:
            cost = cost + _quadratic(x, lq.QT)
        if lq.QbarT is not None:
            m = mean(x)
            cost = cost + _quadratic(x - (m if lq.ST is None else lq.ST @ m), lq.QbarT)
        return cost

    def _check_game(self) -> None:
        if is_frozen() and self.lq.sampled and self.lq.mean_field:
            raise InvalidValue(
                "the problem is a sampled one: discretise() keeps what the population pays, not how a player's cost "
                "depends on the law. Expected LinearQuadratic.discrete(...) for a game"
            )

    def _mean(self, x: Tensor, *names: str) -> Tensor | None:
        """The mean of the cloud, where the control or one of these matrices needs it: else the particles are alone."""
        needed = self.feedback or any(getattr(self.lq, name) is not None for name in names)
        return mean(x) if needed else None

    def _control(self, x: Tensor, m: Tensor | None, u: Any, *names: str) -> tuple[Tensor, Tensor | None]:
        """The controls of all particles ``[N, m]`` and, where one of these matrices needs it, their mean ``[m]``.

        ``u`` is shared ``[m]``, or has a row for each particle, as a policy's and those of ``per_particle`` have.
        """
        if not self.feedback and u.dim() > 1:
            return u, mean(u) if any(getattr(self.lq, name) is not None for name in names) else None
        if not self.feedback:
            return u.expand(len(x), -1), shared(u)
        assert m is not None
        v: Tensor = -(u["Kbar"] @ m)
        return v - (x - m) @ u["K"].mT, shared(v)

    def _noise(self, t: int, z: Any) -> Tensor:
        assert self.factor is not None
        k = self.factor.shape[-1]
        expected = f"normal variables of shape (N, {self.lq.steps}, {k})"
        check_instance(Tensor, expected, data=z)
        if z.dim() != 3 or z.shape[1:] != (self.lq.steps, k):
            raise InvalidValue(f"data is {tuple(z.shape)}; expected {expected}")
        w: Tensor = z[:, t]
        factor = self._stage(self.factor, t)
        if self.factor_mean is None:
            return w @ factor.mT
        common = mean(w)
        return (w - common) @ factor.mT + self._stage(self.factor_mean, t) @ common

    def _at(self, name: str, t: int) -> Tensor:
        x: Tensor = getattr(self.lq, name)
        return self._stage(x, t)

    def _stage(self, x: Tensor, t: int) -> Tensor:
        return x[min(t, len(x) - 1)] if self.lq.varying else x


def noise_factors(lq: Coefficients) -> tuple[Tensor | None, Tensor | None]:
    """Square roots of the covariances of the noise of a particle and, where it differs, of the mean."""

    def root(x: Tensor) -> Tensor:
        # Of a semi-definite matrix, for which Cholesky would fail; its derivative need not exist.
        values, vectors = torch.linalg.eigh(x.detach())
        factor: Tensor = vectors * values.clamp_min(0).sqrt().unsqueeze(-2)
        return factor

    if lq.noise is None:
        return lq.sigma, None
    return root(lq.noise), None if lq.noisebar is None else root(lq.noise + lq.noisebar)


def _quadratic(x: Tensor, weight: Tensor) -> Tensor:
    return ((x @ weight) * x).sum(-1)
