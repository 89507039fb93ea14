"""Finite-horizon linear-quadratic control of a population: closed form by two Riccati equations.

The state is split into its mean m and the deviation x - m. They decouple, in dynamics and in cost, so that a
McKean-Vlasov LQ problem is two ordinary ones: P solves the Riccati equation of the deviation, Pi that of the mean.

References:
    J. Yong (2013), "Linear-quadratic optimal control problems for mean-field stochastic differential equations",
    SIAM J. Control Optim. 51(4), for continuous time; R. Elliott, X. Li, Y.-H. Ni (2013), "Discrete time mean-field
    stochastic linear-quadratic optimal control problems", Automatica 49(11), for discrete time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from mfoc import _riccati
from mfoc._errors import InvalidType, InvalidValue
from mfoc._riccati import Mode, Sweep

if TYPE_CHECKING:
    from mfoc.problem import Problem

# Rows and columns of each matrix; those of _TERMINAL never carry a time axis.
_SHAPES = dict(
    A="nn", B="nm", Q="nn", R="mm", QT="nn", Abar="nn", Bbar="nm", Qbar="nn", Rbar="mm", QbarT="nn", S="nn", ST="nn",
    cross="nm", crossbar="nm", sigma="nk", noise="nn", noisebar="nn",
)  # fmt: skip
_TERMINAL = ("QT", "QbarT", "ST")
_SYMMETRIC = ("Q", "R", "QT", "Qbar", "Rbar", "QbarT", "noise", "noisebar")
_MEAN_FIELD = ("Abar", "Bbar", "Qbar", "Rbar", "QbarT", "crossbar", "noisebar")


class Riccati(NamedTuple):
    """The solution, over time. The optimal control is u = -K (x - m) - Kbar m, and T+1 nodes bound T stages.

    Attributes:
        P: ``[..., T+1, n, n]``, of the deviation from the mean.
        Pi: ``[..., T+1, n, n]``, of the mean.
        K: gains on the deviation: ``[..., T, m, n]`` in discrete time, ``[..., T+1, m, n]`` in continuous time.
        Kbar: gains on the mean, likewise.
    """

    P: Tensor
    Pi: Tensor
    K: Tensor
    Kbar: Tensor


class Path(NamedTuple):
    """The optimal path of the mean, which is that of a deterministic system.

    Attributes:
        states: ``[..., T+1, n]``.
        controls: ``[..., T, m]`` in discrete time, ``[..., T+1, m]`` (at the nodes) in continuous time.
        cost: the optimal cost-to-go of the first state ``[...]``.
    """

    states: Tensor
    controls: Tensor
    cost: Tensor


@dataclass(frozen=True, eq=False)
class LinearQuadratic:
    """A finite-horizon LQ problem with mean-field terms; m = E x and v = E u.

    In discrete time (``dt`` is None, ``steps`` stages), with w of mean 0 and covariance I,

        x_(t+1) = A x + Abar m + B u + Bbar v + sigma w
        J = sum_(t<T) E[x'Qx + (x - Sm)' Qbar (x - Sm) + u'Ru + v' Rbar v + 2 x' cross u + 2 m' crossbar v]
            + E[x_T' QT x_T + (x_T - ST m_T)' QbarT (x_T - ST m_T)]

    and in continuous time the same with dx = (...) dt + sigma dW and an integral over [0, steps * dt]. There is no
    factor 1/2. Make one with ``LinearQuadratic.discrete`` or ``LinearQuadratic.continuous``.

    Every tensor may have leading axes, which broadcast to a batch of problems; all share one floating dtype and one
    device. Everything is differentiable in every tensor. Instances are immutable: do not change their tensors in place.

    Attributes:
        A: ``[..., n, n]``.
        B: ``[..., n, m]``.
        Q: symmetric ``[..., n, n]``.
        R: symmetric positive definite ``[..., m, m]``; R + Rbar is too.
        steps: number of stages T, or of steps of the time grid.
        dt: length of a step of the grid; None in discrete time.
        QT: terminal weight ``[..., n, n]``; None is zero, as for all that follow except S and ST.
        Abar, Bbar, Qbar, Rbar, QbarT: the mean-field terms, shaped as their counterparts.
        S, ST: ``[..., n, n]``; None is the identity, so that Qbar weighs the spread around the mean.
        cross, crossbar: ``[..., n, m]``.
        sigma: ``[..., n, k]``.
        noise: covariance of the noise, in place of sigma sigma' ``[..., n, n]``.
        noisebar: what the covariance of the noise of the mean of N particles, times N, has beyond ``noise``: not
            zero when a continuous problem with Abar is sampled.
        offset, offsetbar: constant cost per stage ``[...]``, of the deviation; and what that of the mean has beyond.
        varying: in discrete time, whether every matrix but QT, QbarT and ST has a time axis ``[..., T, ., .]`` (of
            length 1 where it is constant).

    Raises:
        InvalidType: an argument is not a tensor, not floating point, or not an integer.
        InvalidValue: wrong shape, mixed dtypes or devices, not finite, not symmetric, or a problem that is not convex.
    """

    A: Tensor
    B: Tensor
    Q: Tensor
    R: Tensor
    steps: int
    dt: float | None = None
    QT: Tensor | None = None
    Abar: Tensor | None = None
    Bbar: Tensor | None = None
    Qbar: Tensor | None = None
    Rbar: Tensor | None = None
    QbarT: Tensor | None = None
    S: Tensor | None = None
    ST: Tensor | None = None
    cross: Tensor | None = None
    crossbar: Tensor | None = None
    sigma: Tensor | None = None
    noise: Tensor | None = None
    noisebar: Tensor | None = None
    offset: Tensor | None = None
    offsetbar: Tensor | None = None
    varying: bool = False

    @classmethod
    def discrete(
        cls, A: Tensor, B: Tensor, Q: Tensor, R: Tensor, QT: Tensor | None = None, *, horizon: int, **terms: Any
    ) -> LinearQuadratic:
        """A problem in discrete time.

        Args:
            A: ``[..., n, n]``.
            B: ``[..., n, m]``.
            Q: ``[..., n, n]``.
            R: ``[..., m, m]``.
            QT: terminal weight ``[..., n, n]``.
            horizon: number of stages T.
            **terms: any of the other attributes of the class.
        """
        return cls(A, B, Q, R, horizon, None, QT, **terms)

    @classmethod
    def continuous(
        cls,
        A: Tensor,
        B: Tensor,
        Q: Tensor,
        R: Tensor,
        QT: Tensor | None = None,
        *,
        horizon: float,
        steps: int,
        **terms: Any,
    ) -> LinearQuadratic:
        """A problem in continuous time, its solution reported on a grid of ``steps`` equal steps.

        The Riccati equation is solved exactly on the grid, whatever the step; only the integral of the noise terms in
        ``value`` and ``finite_population_gap`` is a quadrature, of order six in the step.

        Args:
            A: ``[..., n, n]``.
            B: ``[..., n, m]``.
            Q: ``[..., n, n]``.
            R: ``[..., m, m]``.
            QT: terminal weight ``[..., n, n]``.
            horizon: final time.
            steps: number of steps of the grid.
            **terms: any of the other attributes of the class.
        """
        if isinstance(horizon, bool) or not isinstance(horizon, int | float):
            raise InvalidType(f"horizon is a {type(horizon).__name__}; expected the final time, a positive number")
        if not (math.isfinite(horizon) and horizon > 0):
            raise InvalidValue(f"horizon is {horizon}; expected a positive, finite final time")
        _check_count("steps", steps)
        return cls(A, B, Q, R, steps, horizon / steps, QT, **terms)

    def __post_init__(self) -> None:
        _check_count("horizon" if self.dt is None else "steps", self.steps)
        if self.varying and self.dt is not None:
            raise InvalidValue("varying is True in continuous time; expected constant matrices")
        if self.sigma is not None and self.noise is not None:
            raise InvalidValue("sigma and noise are both given; expected one, noise = sigma sigma'")
        _check_tensors(self)
        for mode, names in zip(self._modes(), ("{}", "{} + {}bar"), strict=True):
            _check_convex(mode, names)

    @property
    def mean_field(self) -> bool:
        """Whether the mean behaves otherwise than a deviation from it, so that Pi differs from P."""
        return any(getattr(self, name) is not None for name in _MEAN_FIELD)

    @property
    def batch(self) -> torch.Size:
        """The leading axes of the batch of problems."""
        return torch.Size(torch.broadcast_shapes(*(lead for _, _, lead in _leads(self))))

    def riccati(self) -> Riccati:
        """Solves both Riccati equations."""
        deviation, mean = self._sweeps(*self._modes())
        P, K = self._over_time(deviation.P), self._over_time(deviation.K)
        return Riccati(P, P, K, K) if mean is deviation else Riccati(
            P, self._over_time(mean.P), K, self._over_time(mean.K)
        )  # fmt: skip

    def feedback(self, t: int, x: Tensor, m: Tensor | None = None) -> Tensor:
        """The optimal control -K (x - m) - Kbar m.

        Args:
            t: stage; in continuous time, node of the grid (time ``t * dt``).
            x: states ``[..., n]``; the leading axes broadcast against those of the problem.
            m: mean of the state ``[..., n]``; x itself when None, as for a deterministic system.

        Returns:
            Controls ``[..., m]``.
        """
        solution = self._cached()
        nodes = solution.K.shape[-3]
        if not 0 <= t < nodes:
            raise InvalidValue(f"t is {t}; expected a stage from 0 to {nodes - 1}")
        self._check_vector("x", x)
        control = -_apply(solution.Kbar[..., t, :, :], x if m is None else m)
        return control if m is None else control - _apply(solution.K[..., t, :, :], x - m)

    def path(self, m0: Tensor) -> Path:
        """The optimal path of the mean started at m0 ``[..., n]``, whose leading axes broadcast to the batch."""
        self._check_vector("m0", m0)
        sweep = self._sweep(self._modes()[1])
        lead = torch.broadcast_shapes(m0.shape[:-1], self.batch)
        x = m0.expand(*lead, m0.shape[-1]).unsqueeze(-1)
        xs, us = [x], []
        for t, gain in enumerate(sweep.K):
            us.append(self._unflat(gain) @ x)
            if t < self.steps:
                x = self._unflat(sweep.closed[t]) @ x
                xs.append(x)
        cost = (xs[0] * (self._unflat(sweep.P[0]) @ xs[0])).sum((-2, -1))
        return Path(torch.stack(xs, -3).squeeze(-1), -torch.stack(us, -3).squeeze(-1), cost)

    def open_loop(self, m0: Tensor) -> Tensor:
        """The optimal control that the whole population shares, a function of time only.

        It depends on the population through its mean alone, and is the optimal control of a deterministic system.

        Args:
            m0: initial mean ``[..., n]``.

        Returns:
            Controls ``[..., T, m]`` in discrete time, ``[..., T+1, m]`` (at the nodes) in continuous time.
        """
        return self.path(m0).controls

    def value(
        self, mean0: Tensor, cov0: Tensor | None = None, *, particles: int | None = None, shared: bool = False
    ) -> Tensor:
        """The optimal cost.

        Args:
            mean0: initial mean ``[..., n]``.
            cov0: initial covariance ``[..., n, n]``; None for a deterministic start.
            particles: N, for the optimal mean cost of N particles whose empirical mean replaces m; None for the limit.
            shared: whether the control must be shared by all particles (``open_loop``) rather than a feedback.

        Returns:
            ``[...]``.
        """
        self._check_vector("mean0", mean0)
        deviation, mean = self._modes()
        value = _quadratic(self._unflat(self._sweep(mean).P[0]), mean0)
        value = value + self._spread(cov0, shared)[0]
        return value if particles is None else value + self.finite_population_gap(cov0, particles, shared=shared)

    def finite_population_gap(self, cov0: Tensor | None, N: int, *, shared: bool = False) -> Tensor:
        """J_N - J, exactly: what N particles pay more on average than the infinite population.

        (1/N) [tr((Pi_0 - P_0) cov0) + sum_t tr((Pi_(t+1) - P_(t+1)) sigma sigma')], the sum being an integral in
        continuous time. The N particles start independently and their empirical mean replaces m in the dynamics, the
        cost and the feedback, which then is optimal among all controls that see all the particles.

        Args:
            cov0: initial covariance ``[..., n, n]``; None for a deterministic start.
            N: number of particles.
            shared: as in ``value``.

        Returns:
            ``[...]``.
        """
        _check_count("N", N)
        deviation, mean = self._spread(cov0, shared)
        return (mean - deviation) / N

    def discretise(self, steps: int | None = None) -> LinearQuadratic:
        """The discrete problem of a control held constant over each of ``steps`` equal steps (zero-order hold).

        Exact for that class of controls: dynamics, cost (with its product of state and control), noise and the cost
        of the noise that enters within a step, also for N particles. Its value exceeds the continuous one by O(h^2).

        Args:
            steps: number of steps over the horizon; those of the grid when None.

        Raises:
            InvalidValue: the problem is already discrete.
        """
        if self.dt is None:
            raise InvalidValue("the problem is discrete; only a continuous one can be discretised")
        steps = self.steps if steps is None else steps
        _check_count("steps", steps)
        deviation, mean = self._modes()
        h = self.dt * self.steps / steps
        (own, held), (all_, held_all) = _riccati.sample(deviation, h), _riccati.sample(mean, h)
        unflat = self._unflat

        def split(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
            x, y = (unflat(part[:, 0]) for part in (x, y))
            return x, (y - x if self.mean_field else None)

        assert own.cross is not None
        assert all_.cross is not None
        terms: dict[str, Any] = {}
        terms["A"], terms["Abar"] = split(own.A, all_.A)
        terms["B"], terms["Bbar"] = split(own.B, all_.B)
        terms["R"], terms["Rbar"] = split(own.R, all_.R)
        terms["cross"], terms["crossbar"] = split(own.cross, all_.cross)
        terms["Q"], terms["QT"] = unflat(all_.Q[:, 0]), unflat(all_.QT)
        if self.mean_field:  # with S = I, Qbar weighs the deviation alone
            terms["Qbar"], terms["QbarT"] = unflat((own.Q - all_.Q)[:, 0]), unflat(own.QT - all_.QT)
        if own.noise is not None and all_.noise is not None and held is not None and held_all is not None:
            terms["noise"], terms["noisebar"] = split(own.noise, all_.noise)
            terms["offset"] = unflat(held)
            terms["offsetbar"] = unflat(held_all - held) if self.mean_field else None
        return LinearQuadratic(steps=steps, **terms)
