"""Mean-field games and mean-field control of a diffusion on an interval: coupled HJB and Fokker-Planck equations.

    dX = (b(t, X, m_t) + u) dt + sigma dW,   m_t the density of X_t,   reflecting ends,
    J  = E [ int_0^T weight u^2 + f(t, X, m_t) dt + g(X_T, m_T) ]

    -V_t = sigma^2/2 V_xx + min_u { weight u^2 + (b + u) V_x } + F,    V(T) = G,
     m_t = sigma^2/2 m_xx - ((b + u) m)_x,                             m(0) given.

In the game F = f and G = g. In control a player counts what he does to the others, too: F = d/dm [<m, f(m)>] +
<m, d/dm b(m) V_x>, and G = d/dm <m, g(m)> (A. Bensoussan, J. Frehse, P. Yam 2013, "Mean field games and mean field type
control theory", ch. 4). These derivatives are autograd's on the grid, so that the optimum is that of the discrete J.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mfoc import tree
from mfoc.checks import (
    check_callable,
    check_integer,
    check_non_negative,
    check_positive,
    check_signature,
    check_tensor,
    kind_of,
)
from mfoc.derivatives import gradients
from mfoc.errors import InvalidType, InvalidValue
from mfoc.meanfield.upwind import Chain, best_control, slope_of
from mfoc.printing import by_identity, short

logger = logging.getLogger(__name__)

Field = Callable[[float, Tensor, Tensor], Tensor]
_SLACK = 1e-6  # of the mass of the initial density


@by_identity
@dataclass(frozen=True, eq=False)
class DensitySolution:
    """The outcome of ``DensityProblem.equilibrium`` or ``optimum``.

    Attributes:
        times: the nodes of the time grid ``[T+1]``.
        density: m ``[T+1, n]``; each sums to 1 / h.
        V: ``[T+1, n]``. In the game a player's cost-to-go; in control the derivative of the population's in its law.
        controls: u over each step ``[T, n]``, a feedback.
        value: J, what a player pays on average.
        iterations: how many were done.
        residual: how far the last one moved densities and controls, int int |dm| dx dt / T + the same of m |du|.
        converged: whether that is at most the tolerance asked for.
    """

    times: Tensor
    density: Tensor
    V: Tensor
    controls: Tensor
    value: float
    iterations: int
    residual: float
    converged: bool

    def plot(self, x: Tensor | None = None) -> Any:
        """A figure of the density and of the control over time and state, by colour.

        Args:
            x: the nodes ``[n]``, as ``DensityProblem.x``; the axis counts them when None.

        Raises:
            InvalidType, InvalidValue: x is no tensor of as many numbers as the density has.
            MissingExtra: matplotlib is not installed.
        """
        from mfoc.drawing import fields

        if x is not None:
            check_tensor(f"the nodes of the density [{self.density.shape[1]}]", x=x)
            if x.shape != self.density.shape[1:]:
                raise InvalidValue(f"x has shape {tuple(x.shape)}; the density has {self.density.shape[1]} nodes")
        nodes = None if x is None else x.detach().cpu().double().numpy()
        return fields.density(self.times, nodes, self.density, self.controls, f"density, J = {self.value:.4g}")

    def __repr__(self) -> str:
        state = "converged" if self.converged else "not converged"
        return (
            f"DensitySolution(J = {self.value:.6g}, {state}: residual {self.residual:.3g} after {self.iterations} "
            f"iterations; density {short(self.density)})"
        )


@by_identity
@dataclass(frozen=True, eq=False)
class DensityProblem:
    """A population's diffusion on an interval, as a density on a grid; see the top of the file.

    ``equilibrium`` solves it as a game, ``optimum`` as a control problem. Functions of the density are given all of it,
    ``m`` ``[n]``, and sums times the spacing h are its integrals: the mean is ``(x * m).sum() * h``.

    The scheme is monotone; of second order in space where |b + u| h <= sigma^2, of first order elsewhere and in time.
    The interval must be wide enough for its reflecting ends not to matter, where the model has none.

    Attributes:
        x: nodes ``[n]``, increasing by one spacing h.
        density: m at time 0 ``[n]``, non-negative, of integral 1.
        T: end of time.
        steps: of the time grid.
        sigma: of the noise; zero is allowed (the scheme itself then diffuses, by h |b + u| / 2).
        weight: of u^2.
        drift: ``b(t, x, m) -> [n]``; None is zero, as for the others.
        running_cost: ``f(t, x, m) -> [n]``, a rate.
        terminal_cost: ``g(x, m) -> [n]``.

    Raises:
        InvalidType, InvalidValue: a grid that is not uniform, or no density on it; functions of other arguments.
    """

    x: Tensor
    density: Tensor
    T: float
    steps: int
    sigma: float
    weight: float = 1.0
    drift: Field | None = None
    running_cost: Field | None = None
    terminal_cost: Callable[[Tensor, Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        check_positive(T=self.T, weight=self.weight)
        check_integer(1, steps=self.steps)
        check_non_negative(sigma=self.sigma)
        check_callable("a function (t, x, m)", optional=True, drift=self.drift, running_cost=self.running_cost)
        check_signature(("t", "x", "m"), optional=True, drift=self.drift, running_cost=self.running_cost)
        check_callable("a function (x, m)", optional=True, terminal_cost=self.terminal_cost)
        check_signature(("x", "m"), optional=True, terminal_cost=self.terminal_cost)
        check_tensor("a tensor [n], two nodes or more", dim=1, x=self.x, density=self.density)
        self._check_grid()

    def _check_grid(self) -> None:
        x, m = self.x, self.density
        if not x.is_floating_point() or x.dtype != m.dtype or x.device != m.device:
            raise InvalidType(f"x is {x.dtype} on {x.device} and density {m.dtype} on {m.device}; expected one dtype")
        if x.dim() != 1 or len(x) < 3 or m.shape != x.shape:
            raise InvalidValue(
                f"x has shape {tuple(x.shape)} and density {tuple(m.shape)}; expected [n] both, three nodes or more"
            )
        gaps = x.diff()
        if not bool(gaps[0] > 0) or not bool(
            (gaps - gaps[0]).abs().max() <= 1e3 * torch.finfo(x.dtype).eps * x.abs().max()
        ):
            raise InvalidValue("x is not increasing by one spacing; expected such as torch.linspace(low, high, n)")
        mass = float(m.sum()) * self.h
        if not bool((m >= 0).all()) or not abs(mass - 1) <= _SLACK:
            raise InvalidValue(
                f"density has the integral {mass:.6g} and the least entry {float(m.min()):.3g}; expected 1 and "
                "non-negative: density / (density.sum() * h)"
            )

    @property
    def h(self) -> float:
        """The spacing."""
        return float(self.x[-1] - self.x[0]) / (len(self.x) - 1)

    @property
    def dt(self) -> float:
        """The step in time."""
        return self.T / self.steps

    def equilibrium(self, *, damping: float = 0.5, iterations: int = 500, tol: float = 1e-9) -> DensitySolution:
        """The mean-field game: a fixed point of best responses, by damped policy iteration.

        Each iteration moves the density by the policy of now, a part of the way; solves the linear equation of the
        policy's cost-to-go; and improves the policy at each node (S. Cacace, F. Camilli, A. Goffi 2021, "A policy
        iteration method for mean field games", ESAIM: COCV 27). It need not converge where the coupling is strong and
        not monotone: then less damping, that is a smaller number, helps, or there are several equilibria.

        Args:
            damping: the share of the way that the density goes, in (0, 1].
            iterations: at most.
            tol: of the residual.

        Raises:
            InvalidType, InvalidValue: arguments out of range, or a function that returns something else than finite
                ``[n]``.
        """
        return self._solved(damping, iterations, tol, game=True)

    def optimum(self, *, damping: float = 0.5, iterations: int = 500, tol: float = 1e-9) -> DensitySolution:
        """The mean-field control problem, stationary for J, as ``equilibrium`` does it; the arguments are the same."""
        return self._solved(damping, iterations, tol, game=False)

    def _solved(self, damping: float, iterations: int, tol: float, *, game: bool) -> DensitySolution:
        check_positive(damping=damping)
        check_integer(1, iterations=iterations)
        check_non_negative(tol=tol)
        if damping > 1:
            raise InvalidValue(f"damping is {damping}; expected a share of the way, in (0, 1]")
        m = self.density.detach().expand(self.steps + 1, -1).clone()
        V, u = torch.zeros_like(m), torch.zeros_like(m[1:])
        for done in range(1, iterations + 1):  # noqa: B007
            chain = Chain.of(self._drifts(m) + u, self.sigma, self.h, self.dt)
            new = chain.densities(self.density)
            change = (new - m).abs().sum() * self.h / self.steps
            m = torch.lerp(m, new, damping)
            end = self._end(m[-1]) if game else self._slope(lambda free: free @ self._end(free), m[-1])
            rates = self.weight * u.square() + self._couplings(u, m, V, game)
            V = chain.costs(end, self.dt * rates)
            better = best_control(V[:-1], self._drifts(m), self.weight, self.sigma, self.h)
            residual = float(change + (m[1:] * (better - u).abs()).sum() * self.h / self.steps)
            u = better
            if residual <= tol or not residual < float("inf"):
                break
        if not residual <= tol:
            logger.warning("density: residual %.3g after %d iterations, tol %.3g", residual, done, tol)
        times = self.dt * torch.arange(self.steps + 1, dtype=m.dtype, device=m.device)
        return DensitySolution(times, m, V, u, self._cost(u, m), done, residual, residual <= tol)

    def cost(self, controls: Tensor, density: Tensor) -> float:
        """J of controls ``[T, n]`` on the densities ``[T+1, n]`` that they make.

        Raises:
            InvalidType, InvalidValue: they are of other shapes, or not finite.
        """
        n = len(self.x)
        check_tensor(f"controls [{self.steps}, {n}]", dim=2, controls=controls)
        check_tensor(f"densities [{self.steps + 1}, {n}]", dim=2, density=density)
        if controls.shape != (self.steps, n) or density.shape != (self.steps + 1, n):
            raise InvalidValue(
                f"controls have shape {tuple(controls.shape)} and density {tuple(density.shape)}; "
                f"expected [{self.steps}, {n}] and [{self.steps + 1}, {n}]"
            )
        return self._cost(controls, density)

    def _cost(self, controls: Tensor, density: Tensor) -> float:
        running = self.weight * controls.square() + self._over_time("running_cost", self.running_cost, density)
        total = self.dt * (density[1:] * running).sum() + (density[-1] * self._end(density[-1])).sum()
        return float(total) * self.h

    def _couplings(self, u: Tensor, m: Tensor, V: Tensor, game: bool) -> Tensor:
        """What the law costs at each node over each step ``[T, n]``: F at the top of the file."""
        if game:
            return self._over_time("running_cost", self.running_cost, m)
        slopes = slope_of(V[:-1], self._drifts(m) + u, self.sigma, self.h)

        def total(t: int, free: Tensor) -> Tensor:
            own = free @ self._at("running_cost", self.running_cost, t, free)
            return own + (m[t + 1] * slopes[t]) @ self._at("drift", self.drift, t, free)

        return torch.stack([self._slope(lambda free: total(t, free), m[t + 1]) for t in range(self.steps)])  # noqa: B023

    def _slope(self, function: Callable[[Tensor], Tensor], m: Tensor) -> Tensor:
        with torch.enable_grad():
            free = tree.free(m)
            return gradients(function(free), [free])[0]

    def _drifts(self, m: Tensor) -> Tensor:
        return self._over_time("drift", self.drift, m)

    def _over_time(self, name: str, function: Field | None, m: Tensor) -> Tensor:
        """A function over each step, at its end as in an implicit scheme ``[T, n]``."""
        return torch.stack([self._at(name, function, t, m[t + 1]) for t in range(self.steps)])

    def _at(self, name: str, function: Field | None, t: int, m: Tensor) -> Tensor:
        return torch.zeros_like(m) if function is None else self._checked(name, function((t + 1) * self.dt, self.x, m))

    def _end(self, m: Tensor) -> Tensor:
        if self.terminal_cost is None:
            return torch.zeros_like(m)
        return self._checked("terminal_cost", self.terminal_cost(self.x, m))

    def _checked(self, name: str, value: Any) -> Tensor:
        if not isinstance(value, Tensor):
            raise InvalidType(f"{name} returned {kind_of(value)}; expected a tensor ({len(self.x)},)")
        if value.shape != self.x.shape or not bool(value.detach().isfinite().all()):
            raise InvalidValue(
                f"{name} returned {short(value)}; expected a finite number for each node, ({len(self.x)},)"
            )
        return value
