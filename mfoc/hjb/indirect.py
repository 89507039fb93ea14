"""The indirect method: Pontryagin's two-point boundary value problem of a small deterministic problem, by collocation.

The state obeys dx/dt = b(t, x, u*) from x(0) = x0, the costate dp/dt = -dH/dx(t, x, p, u*) to p(T) = dPhi/dx(x(T)), and
u* minimises H = L + <p, b>.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mfoc import tree
from mfoc.bounds import Box
from mfoc.checks import check_instance, check_integer, check_positive, check_tensor
from mfoc.derivatives import gradients
from mfoc.errors import InvalidValue, require
from mfoc.hjb.bellman import Bellman, bellman
from mfoc.hjb.newton import lattice, minimise_from
from mfoc.hjb.paths import open_loop, per_particle
from mfoc.pontryagin import costates, rollout
from mfoc.schemes import continuous

logger = logging.getLogger(__name__)

_Array = Any  # numpy's
_STAGES = 20  # of the guess


@dataclass(frozen=True, eq=False)
class Extremal:
    """A path that satisfies Pontryagin's minimum principle, on the solver's own mesh of K times.

    Attributes:
        times: ``[K]``, from 0 to T.
        states: ``[K, n]``.
        costates: ``[K, n]``.
        controls: ``[K, m]``.
        cost: integral of the running cost (by Simpson's rule on the solution) plus the terminal cost.
        residual: the largest relative residual of the differential equation on an interval, as scipy estimates it.
        converged: whether it is within the tolerance.
        message: what the solver said.
    """

    times: Tensor
    states: Tensor
    costates: Tensor
    controls: Tensor
    cost: float
    residual: float
    converged: bool
    message: str

    def plot(self) -> Any:
        """A figure of states, costates and controls over time.

        Raises:
            MissingExtra: matplotlib is not installed.
        """
        from mfoc.drawing.fields import paths

        parts = {"x state x": self.states, "p costate p": self.costates, "u control u": self.controls}
        title = f"extremal, cost {self.cost:.4g}" + ("" if self.converged else ", not converged")
        return paths(parts, dict.fromkeys(parts, self.times), title, "time")

    def __repr__(self) -> str:
        how = "converged" if self.converged else f"not converged ({self.message})"
        return (
            f"Extremal({how}: {len(self.times)} nodes on [0, {float(self.times[-1]):.4g}], {self.states.shape[1]} "
            f"states, {self.controls.shape[1]} controls; cost {self.cost:.6g}, residual {self.residual:.2g})"
        )


def solve_bvp(
    drift: Callable[[Any, Any, Any, Any], Any],
    terminal_cost: Callable[[Any, Any], Tensor],
    x0: Tensor,
    control: Tensor,
    *,
    running_cost: Callable[[Any, Any, Any, Any], Tensor] | None = None,
    T: float = 1.0,
    bounds: Box | None = None,
    z: Any = None,
    guess: Extremal | None = None,
    tol: float = 1e-6,
    max_nodes: int = 5000,
) -> Extremal:
    """Solves the boundary value problem of the minimum principle with ``scipy.integrate.solve_bvp``.

    A collocation method of order four on a mesh it refines itself (Kierzenka & Shampine 2001), in continuous time and
    in float64. What it finds is an extremal, necessary for an optimum: which one depends on the guess where there are
    several. The guess is an open-loop minimum of the problem in 20 Euler steps, so that it is near a local minimum and
    not any extremal; hard ones are reached by continuation: pass the extremal of an easier problem (smaller T).

    Args:
        drift: ``b(t, x, u, z)``, as for ``mfoc.continuous``.
        terminal_cost: ``Phi(x, z) -> [N]``.
        x0: the initial state ``[n]``.
        control: a control ``[m]`` near which the minimisation of H begins; with plus and minus 1, the bounds and values
            between.
        running_cost: rate ``L(t, x, u, z) -> [N]``, or None.
        T: the end time.
        bounds: ``mfoc.Box(low, high)``, or None.
        z: data of one particle ``[1, ...]``, or None.
        guess: an extremal to begin from, its times stretched to [0, T]; None for that of the direct method.
        tol: of the relative residual.
        max_nodes: the finest mesh.

    Returns:
        The extremal; see ``converged``.

    Raises:
        MissingExtra: scipy is not installed.
        InvalidType, InvalidValue: arguments do not fit, or a function fails or is not finite.
    """
    integrate = require("scipy.integrate", "spectra")
    check_positive(tol=tol)
    check_integer(4, max_nodes=max_nodes)
    check_tensor("finite floating-point numbers, one for each variable", dim=1, x0=x0, control=control)
    start, own = (vector.detach().double().cpu() for vector in (x0, control))
    problem = continuous(drift, terminal_cost, [own] * _STAGES, running_cost=running_cost, T=T, bounds=bounds)
    made = bellman(problem, start[None], z, None, 2, None)
    principle = _Principle(drift, terminal_cost, running_cost, z, own, *made.bounds(0))
    times, first = _direct(made, start, T) if guess is None else _stretched(guess, start, T)
    found = integrate.solve_bvp(
        principle.flow, lambda a, b: principle.ends(a, b, start), times, first, tol=tol, max_nodes=max_nodes
    )
    return _extremal(principle, found)


@dataclass(frozen=True, eq=False)
class _Principle:
    """The right-hand side of the boundary value problem, on columns ``[2n, K]`` of states above costates."""

    drift: Callable[[Any, Any, Any, Any], Any]
    terminal_cost: Callable[[Any, Any], Tensor]
    running_cost: Callable[[Any, Any, Any, Any], Tensor] | None
    z: Any
    control: Tensor
    low: Tensor
    high: Tensor

    def rates(self, t: Tensor, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Drifts ``[K, n]`` and running costs ``[K]`` at K times ``[K]``."""

        def one(s: Any, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
            rate = x.new_zeros(1) if self.running_cost is None else self.running_cost(s, x[None], u, self.z)
            return self.drift(s, x[None], u, self.z).expand(1, len(x))[0], rate[0]  # u alone is [m]: a scheme adds it

        try:
            found: tuple[Tensor, Tensor] = torch.vmap(one)(t, x, u)
            return found
        except (RuntimeError, TypeError, ValueError) as error:  # math.sin(t), if t < 1: they want a number
            logger.debug("nodes are evaluated one by one: %s", error)
        pairs = [one(float(s), a, v) for s, a, v in zip(t, x, u, strict=True)]
        return torch.stack([b for b, _ in pairs]), torch.stack([rate for _, rate in pairs])

    def hamiltonian(self, t: Tensor, x: Tensor, p: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """H ``[K]``, b and L."""
        b, rate = self.rates(t, x, u)
        return rate + (p * b).sum(1), b, rate

    def least(self, t: Tensor, x: Tensor, p: Tensor) -> Tensor:
        """The controls ``[K, m]`` that minimise H."""
        starts = [u.expand(len(x), -1) for u in [self.control, *lattice(self.control, self.low, self.high)]]

        def value(rows: Tensor, u: Tensor) -> Tensor:
            return self.hamiltonian(t[rows], x[rows], p[rows], u)[0]

        with torch.no_grad():
            return minimise_from(value, starts, self.low, self.high)[0]

    def flow(self, t: _Array, y: _Array) -> _Array:
        """dx/dt and dp/dt ``[2n, K]``."""
        s, (x, p) = torch.from_numpy(np.array(t)), _halves(y)
        u = self.least(s, x, p)
        free = x.requires_grad_()
        value, b, _ = self.hamiltonian(s, free, p, u)
        (slope,) = gradients(value, [free])
        return torch.cat([b.detach(), -slope], 1).T.numpy()

    def ends(self, first: _Array, last: _Array, x0: Tensor) -> _Array:
        """What is wrong with x(0) and p(T) ``[2n]``."""
        (start, _), (x, p) = _halves(first[:, None]), _halves(last[:, None])
        return torch.cat([start[0] - x0, p[0] - self.terminal_slope(x)[0]]).numpy()

    def terminal_slope(self, x: Tensor) -> Tensor:
        """dPhi/dx ``[K, n]``."""
        free = tree.free(x)
        return gradients(self.terminal_cost(free, self.z), [free])[0]


def _halves(y: _Array) -> tuple[Tensor, Tensor]:
    x, p = torch.from_numpy(np.array(y.T)).chunk(2, 1)
    return x.contiguous(), p.contiguous()


def _direct(made: Bellman, x0: Tensor, T: float) -> tuple[_Array, _Array]:
    """Times and columns ``[2n, K]`` of a path that is optimal in Euler steps."""
    x = x0[None]
    controls, _ = open_loop(made, x)
    problem = per_particle(made, controls)
    with torch.no_grad():
        trajectory = rollout(problem, controls, x)
    p = costates(problem, controls, trajectory, x)
    columns = torch.cat([torch.cat(trajectory.states), torch.cat(p)], 1)
    if not columns.isfinite().all():
        raise InvalidValue("the path from x0 is not finite under this control; start from a better one, or a smaller T")
    return np.linspace(0, T, len(columns)), columns.T.numpy()


def _stretched(guess: Extremal, x0: Tensor, T: float) -> tuple[_Array, _Array]:
    """The times of an extremal on [0, T], and its columns ``[2n, K]``."""
    check_instance(Extremal, "what solve_bvp returned, or None", guess=guess)
    if guess.states.shape[1] != len(x0):
        raise InvalidValue(f"guess has {guess.states.shape[1]} states and x0 has {len(x0)}")
    return (guess.times / guess.times[-1] * T).numpy(), torch.cat([guess.states, guess.costates], 1).T.numpy()


def _extremal(principle: _Principle, found: Any) -> Extremal:
    times, (x, p) = torch.from_numpy(found.x), _halves(found.y)
    u = principle.least(times, x, p)
    middle = (times[1:] + times[:-1]) / 2
    between, slopes = _halves(found.sol(middle.numpy()))
    with torch.no_grad():
        rate = principle.rates(times, x, u)[1]
        inner = principle.rates(middle, between, principle.least(middle, between, slopes))[1]
        running = (times.diff() * (rate[1:] + 4 * inner + rate[:-1]) / 6).sum()
        cost = float(running + principle.terminal_cost(x[-1:], principle.z)[0])
    residual = float(np.max(found.rms_residuals))
    return Extremal(times, x, p, u, cost, residual, bool(found.status == 0), str(found.message))
