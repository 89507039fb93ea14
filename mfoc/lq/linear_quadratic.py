"""Finite-horizon linear-quadratic control of a population: the problem, and its answers in closed form.

The state is split into its mean m and the deviation x - m (``modes``), so that a McKean-Vlasov LQ problem is two
ordinary ones: P solves the Riccati equation of the deviation, Pi that of the mean (``riccati``).
"""

from __future__ import annotations

from typing import Any, NamedTuple, Unpack

import torch
from torch import Tensor

from mfoc.checks import check_flag, check_integer, check_plain, check_positive
from mfoc.deprecation import renamed
from mfoc.errors import InvalidValue
from mfoc.lq.cloud import Cloud, noise_factors
from mfoc.lq.conditions import check_covariance, check_finite, check_range
from mfoc.lq.drawing import mean_path
from mfoc.lq.modes import Mode, check_convex, merge, sample, split, trace_product
from mfoc.lq.paths import stagewise_course, stationary_course
from mfoc.lq.riccati import BackwardPass, backward_pass, noise_cost
from mfoc.lq.terms import TIMELESS, Coefficients, Terms, broadcast
from mfoc.printing import by_identity
from mfoc.problem import Problem

_Solved = tuple[BackwardPass, BackwardPass]  # of the deviation and of the mean


@by_identity
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


@by_identity
class Path(NamedTuple):
    """The optimal path of the mean, which is that of a deterministic system.

    Attributes:
        states: ``[..., T+1, n]``.
        controls: ``[..., T, m]`` in discrete time, ``[..., T+1, m]`` (at the nodes) in continuous time.
        cost: its cost ``[...]``.
    """

    states: Tensor
    controls: Tensor
    cost: Tensor

    def plot(self) -> Any:
        """A figure of the mean's states and controls over the nodes.

        Raises:
            InvalidValue: it holds the paths of several problems, with leading axes: draw one, ``Path(*(part[0] ...))``.
            MissingExtra: matplotlib is not installed.
        """
        return mean_path(self.states, self.controls, self.cost, "optimal path of the mean")


class LinearQuadratic(Coefficients):
    """A finite-horizon LQ problem with mean-field terms; m = E x and v = E u.

    In discrete time (``dt`` is None, T = ``steps`` stages), with w of mean 0 and covariance I,

        x_(t+1) = A x + Abar m + B u + Bbar v + sigma w
        J = sum_(t<T) E[x'Qx + (x - Sm)' Qbar (x - Sm) + u'Ru + v' Rbar v + 2 x' cross u + 2 m' crossbar v]
            + E[x_T' QT x_T + (x_T - ST m_T)' QbarT (x_T - ST m_T)]

    and in continuous time the same with dx = (...) dt + sigma dW and an integral over [0, steps * dt]. There is no
    factor 1/2. Make one with ``LinearQuadratic.discrete`` or ``LinearQuadratic.continuous``.

    Every tensor may have leading axes, which broadcast to a batch of problems; all share one floating dtype and one
    device. Results are differentiable in every tensor. Instances are immutable: leave their tensors unchanged too.

    Attributes:
        A: ``[..., n, n]``.
        B: ``[..., n, m]``.
        Q: symmetric ``[..., n, n]``.
        R: symmetric positive definite ``[..., m, m]``, as is R + Rbar.
        steps: number of stages T, or of steps of the time grid.
        dt: length of a step of the grid; None in discrete time.
        QT: terminal weight ``[..., n, n]``; None is zero, as for all that follow except S and ST.
        Abar, Bbar, Qbar, Rbar, QbarT: the mean-field terms, shaped as their counterparts.
        S, ST: ``[..., n, n]``; None is the identity, so that Qbar weighs the spread around the mean.
        cross, crossbar: ``[..., n, m]``.
        sigma: ``[..., n, k]``.
        noise: in place of sigma, the covariance sigma sigma' ``[..., n, n]``.
        noisebar: N times the covariance of the noise of the mean of N particles, less ``noise`` ``[..., n, n]``; zero
            unless the problem is a sampled one, where the drift within a step acts on both differently.
        offset: constant cost per stage ``[...]``, and offsetbar: what N particles pay beyond it, times N.
        sampled: whether it comes from ``discretise``; as a game (``equilibrium``) it is then refused.
        varying: in discrete time, whether every matrix but QT, QbarT and ST has a time axis ``[..., T, ., .]`` (of
            length 1 where it is constant).

    Raises:
        InvalidType: an argument is not a floating-point tensor, or not an integer.
        InvalidValue: wrong shape, mixed dtypes or devices, not finite, not symmetric, or a cost that is not convex.
    """

    @classmethod
    def discrete(
        cls,
        A: Tensor,
        B: Tensor,
        Q: Tensor,
        R: Tensor,
        QT: Tensor | None = None,
        *,
        horizon: int,
        **terms: Unpack[Terms],
    ) -> LinearQuadratic:
        """A problem in discrete time of ``horizon`` stages; the other arguments are the attributes of the class."""
        check_integer(1, horizon=horizon)
        return cls(A, B, Q, R, horizon, None, QT, **terms)

    @classmethod
    @renamed(horizon="T")
    def continuous(
        cls,
        A: Tensor,
        B: Tensor,
        Q: Tensor,
        R: Tensor,
        QT: Tensor | None = None,
        *,
        T: float,
        steps: int,
        **terms: Unpack[Terms],
    ) -> LinearQuadratic:
        """A problem in continuous time over [0, T], solved at the steps + 1 nodes of a uniform grid.

        The Riccati equation is solved on the grid without discretisation error, whatever the step: to rounding, times
        the size of Q and of B R^-1 B' where control is cheap. Only the integral of the noise terms in ``value`` and
        ``finite_population_gap`` is a quadrature, of order six in the step. The other arguments are the attributes of
        the class.
        """
        check_positive(T=T)
        check_integer(1, steps=steps)
        return cls(A, B, Q, R, steps, T / steps, QT, **terms)

    def __post_init__(self) -> None:
        super().__post_init__()
        deviation, mean = self._modes()
        bar = self.mean_field
        check_convex(deviation, "Q + Qbar" if bar else "Q", "R", "QT + QbarT" if bar else "QT")
        if bar:
            check_convex(mean, "Q + (I-S)'Qbar(I-S)", "R + Rbar", "QT + (I-ST)'QbarT(I-ST)")

    def riccati(self) -> Riccati:
        """Solves both Riccati equations."""
        deviation, mean = self._solved(self._modes())
        P, K = self._over_time(deviation.P), self._over_time(deviation.K)
        if mean is deviation:
            return Riccati(P, P, K, K)
        return Riccati(P, self._over_time(mean.P), K, self._over_time(mean.K))

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
        check_integer(0, solution.K.shape[-3] - 1, t=t)
        self._check_vector("x", x)
        if m is None:
            return -_apply(solution.Kbar[..., t, :, :], x)
        self._check_vector("m", m)
        return -_apply(solution.K[..., t, :, :], x - m) - _apply(solution.Kbar[..., t, :, :], m)

    def path(self, m0: Tensor) -> Path:
        """The optimal path of the mean started at m0 ``[..., n]``, whose leading axes broadcast with the batch.

        Constant matrices take O(log T) batched operations, unless cheap control or an unstable system would cost
        digits; they then take O(T), as varying ones do.
        """
        self._check_vector("m0", m0)
        lead = broadcast(m0.shape[:-1], self.batch)
        extra = len(lead) - len(self.batch)  # leading axes that are starts of one problem
        mode = self._modes(lead[extra:])[1]
        starts = m0.expand(*lead, m0.shape[-1]).reshape(-1, len(mode.QT), m0.shape[-1]).transpose(0, 1)
        course = None if self.varying else stationary_course(mode, starts, self.steps, self.dt)
        if course is None:
            course = stagewise_course(mode, starts, self.steps, self.dt)
        cost = check_range("the cost", (starts * torch.bmm(starts, course.P)).sum(-1).mT)
        states, controls = (check_range("the path", x.permute(2, 0, 1, 3)) for x in course[:2])
        return Path(*(x.reshape((*lead, *x.shape[2:])) for x in (states, controls, cost)))

    def open_loop(self, m0: Tensor) -> Tensor:
        """The optimal control among those that the whole population shares, a function of time only.

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

        Raises:
            InvalidType, InvalidValue: a moment of another shape, dtype or device, or not finite; ``cov0`` is no
                covariance; or the value is beyond the range of the dtype.
        """
        self._check_vector("mean0", mean0)
        modes = self._modes()
        solved = self._solved(modes)
        deviation, mean = self._spread(cov0, shared, modes, solved)
        value = (mean0 * _apply(self._unflat(solved[1].P[0]), mean0)).sum(-1) + deviation
        if particles is not None:
            check_integer(1, particles=particles)
            value = value + (mean - deviation) / particles
        return check_range("the value", value)

    def finite_population_gap(self, cov0: Tensor | None, N: int, *, shared: bool = False) -> Tensor:
        """J_N - J, exactly: what N particles pay more on average than the infinite population.

        (1/N) [tr((Pi_0 - P_0) cov0) + sum_t tr((Pi_(t+1) - P_(t+1)) sigma sigma')], the sum being an integral in
        continuous time. The N particles start independently and their empirical mean replaces m in the dynamics, the
        cost and the feedback, which then is optimal among all controls that see all the particles.

        Args:
            cov0: initial covariance ``[..., n, n]``; None for a deterministic start.
            N: number of particles.
            shared: as in ``value``; P and Pi are then those of the uncontrolled deviations.

        Returns:
            ``[...]``.
        """
        check_integer(1, N=N)
        deviation, mean = self._spread(cov0, shared, self._modes())
        return check_range("the gap", (mean - deviation) / N)

    def discretise(self, steps: int | None = None) -> LinearQuadratic:
        """The discrete problem of a control held constant over each of ``steps`` equal steps (zero-order hold).

        Exact for those controls: dynamics, cost (with its product of state and control), noise, and the cost of the
        noise that enters within a step, for N particles too. Its value exceeds the continuous one by O(h^2), and by
        O(h) where the feedback has noise to answer to. It keeps what all pay on average; as a game it is another.

        Args:
            steps: number of steps over the horizon; those of the grid when None.

        Raises:
            InvalidValue: the problem is already discrete.
        """
        if self.dt is None:
            raise InvalidValue("the problem is discrete; expected one in continuous time")
        steps = self.steps if steps is None else steps
        check_integer(1, steps=steps)
        h = self.dt * self.steps / steps
        (own, held), (all_, held_all) = (sample(mode, h) for mode in self._modes())
        # With S = I, Q weighs mean and deviation alike and Qbar the deviation alone.
        alike = ("A", "B", "R", "cross", "noise")
        found: dict[str, Any] = {name: getattr(own, name) for name in alike}
        found |= {"Q": all_.Q, "QT": all_.QT, "offset": held}
        if self.mean_field:
            pairs: dict[str, Any] = {f"{name}bar": (getattr(own, name), getattr(all_, name)) for name in alike}
            pairs |= {"Qbar": (all_.Q, own.Q), "QbarT": (all_.QT, own.QT), "offsetbar": (held, held_all)}
            found |= {name: None if x is None else y - x for name, (x, y) in pairs.items()}
        given = {name: self._unflat(x) for name, x in found.items() if x is not None}
        return LinearQuadratic(steps=steps, dt=None, varying=False, sampled=True, **given)

    def problem(self, *, feedback: bool = False) -> Problem:
        """The same problem for the solvers of mfoc, on a cloud whose empirical mean replaces m.

        Particles hold ``state`` ``[N, n]`` and, where there is noise, ``data`` ``[N, T, k]`` of independent normal
        variables; k counts the columns of sigma, or is n where the covariance is given.

        Args:
            feedback: False for one control per stage shared by the cloud, ``[m]``, of which ``open_loop`` is the
                optimum; True for gains ``{"K": [m, n], "Kbar": [m, n]}`` and u = -K (x - m) - Kbar m, of which
                ``riccati`` is the optimum. Both start from zero.

        Raises:
            InvalidValue: the problem is in continuous time (discretise it first) or has leading axes.
        """
        if self.dt is not None:
            raise InvalidValue("the problem is in continuous time; use discretise(steps).problem()")
        if self.batch:
            raise InvalidValue(f"the problem has leading axes {tuple(self.batch)}; expected a single problem")
        n, m = self.B.shape[-2:]
        check_flag(feedback=feedback)
        cloud = Cloud(self, feedback, *noise_factors(self))

        def zero() -> Any:
            return {"K": self.B.new_zeros(m, n), "Kbar": self.B.new_zeros(m, n)} if feedback else self.B.new_zeros(m)

        zeros = [zero() for _ in range(self.steps)]
        # Equal stages compute one function, unless noise picked by the number of the stage tells them apart.
        kind = None if self.varying or cloud.factor is not None else (lambda t: 0)
        return Problem(cloud.dynamics, cloud.terminal_cost, zeros, running_cost=cloud.running_cost, kind=kind)

    def _modes(self, batch: torch.Size | None = None) -> tuple[Mode, Mode]:
        batch, length = self.batch if batch is None else batch, self.steps if self.varying else 1

        def get(name: str) -> Tensor | None:
            x: Tensor | None = getattr(self, name)
            if x is None:
                return None
            if name in TIMELESS:
                return x.expand(*batch, *x.shape[-2:]).reshape(-1, *x.shape[-2:])
            x = x if self.varying else x.unsqueeze(-3)
            return x.expand(*batch, length, *x.shape[-2:]).reshape(-1, length, *x.shape[-2:])

        return split(get, self.mean_field)

    def _solved(self, modes: tuple[Mode, Mode]) -> _Solved:
        if modes[0] is modes[1]:
            solved = backward_pass(modes[0], self.steps, self.dt)
            return solved, solved
        size, both = len(modes[0].QT), backward_pass(merge(modes), self.steps, self.dt)
        first, second = ([[x[part] for x in series] for series in both] for part in (slice(size), slice(size, None)))
        return BackwardPass(*first), BackwardPass(*second)

    def _spread(
        self, cov0: Tensor | None, shared: bool, modes: tuple[Mode, Mode], solved: _Solved | None = None
    ) -> tuple[Tensor, Tensor]:
        """What randomness costs where it moves one particle alone, and where it moves the mean: ``[...]`` each."""
        check_flag(shared=shared)
        if shared:
            free = modes[0].uncontrolled()
            modes, solved = (free, free if modes[1] is modes[0] else modes[1].uncontrolled()), None
        costs = []
        for mode, each in zip(modes, solved or self._solved(modes), strict=True):
            cost = self._unflat(noise_cost(mode, each, self.dt))
            if cov0 is not None:
                self._check_vector("cov0", cov0, square=True)
                check_covariance("cov0", cov0)
                cost = cost + trace_product(self._unflat(each.P[0]), cov0)
            costs.append(cost if self.offset is None else cost + self.steps * self.offset)
        return costs[0], costs[1] if self.offsetbar is None else costs[1] + self.steps * self.offsetbar

    def _unflat(self, x: Tensor) -> Tensor:
        return x.reshape((*self.batch, *x.shape[1:]))

    def _over_time(self, series: list[Tensor]) -> Tensor:
        return self._unflat(torch.stack(series, 1))

    def _cached(self) -> Riccati:
        """The solution, kept for the next ``feedback`` unless an autograd graph would be kept with it."""
        solution: Riccati | None = self.__dict__.get("_solution")
        if solution is None:
            solution = self.riccati()
            if not any(x.requires_grad for _, x, _ in self.given()) and not torch.is_inference_mode_enabled():
                self.__dict__["_solution"] = solution
        return solution

    def _check_vector(self, name: str, x: Tensor, square: bool = False) -> None:
        n = self.A.shape[-1]
        shape = (n, n) if square else (n,)
        check_plain(f"a tensor of shape (..., {', '.join(map(str, shape))})", **{name: x})
        if x.shape[-len(shape) :] != shape:
            raise InvalidValue(f"{name} has shape {tuple(x.shape)}; expected (..., {', '.join(map(str, shape))})")
        self.check_agrees(name, x)
        check_finite(name, x)


def _apply(matrix: Tensor, x: Tensor) -> Tensor:
    result: Tensor = matrix @ x.unsqueeze(-1)
    return result.squeeze(-1)
