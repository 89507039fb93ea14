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

from mfoc.checks import check_callable, check_instance, check_integer, check_positive, check_signature
from mfoc.derivatives import gradients
from mfoc.errors import InvalidType, InvalidValue, require
from mfoc.hjb.newton import lattice, minimise_from
from mfoc.problem import STAGE

logger = logging.getLogger(__name__)

_Array = Any  # numpy's


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
    bounds: tuple[float | Tensor, float | Tensor] | None = None,
    z: Any = None,
    guess: Extremal | None = None,
    nodes: int = 51,
    tol: float = 1e-6,
    max_nodes: int = 5000,
) -> Extremal:
    """Solves the boundary value problem of the minimum principle with ``scipy.integrate.solve_bvp``.

    A collocation method of order four on a mesh it refines itself (Kierzenka & Shampine 2001), in continuous time and
    in float64. What it finds is an extremal, necessary for an optimum: which one depends on the guess where there are
    several. Hard ones are reached by continuation: pass the extremal of an easier problem (smaller T) as ``guess``.

    Args:
        drift: ``b(t, x, u, z)``, as for ``mfoc.continuous``.
        terminal_cost: ``Phi(x, z) -> [N]``.
        x0: the initial state ``[n]``.
        control: a control ``[m]`` near which the minimisation of H begins; with plus and minus 1, the bounds and values
            between.
        running_cost: rate ``L(t, x, u, z) -> [N]``, or None.
        T: the end time.
        bounds: least and largest control, numbers or ``[m]``, or None.
        z: data of one particle ``[1, ...]``, or None.
        guess: an extremal to begin from, its times stretched to [0, T]; None for a state that stays at x0.
        nodes: of the first mesh, without a guess.
        tol: of the relative residual.
        max_nodes: the finest mesh.

    Returns:
        The extremal; see ``converged``.

    Raises:
        MissingExtra: scipy is not installed.
        InvalidType, InvalidValue: arguments do not fit, or a function fails or is not finite.
    """
    integrate = require("scipy.integrate", "spectra")
    check_callable("a function b(t, x, u, z)", drift=drift)
    check_callable("a function of x and z", terminal_cost=terminal_cost)
    check_callable("a function L(t, x, u, z)", optional=True, running_cost=running_cost)
    check_signature(STAGE, optional=True, drift=drift, running_cost=running_cost)
    check_signature(("x", "z"), terminal_cost=terminal_cost)
    check_positive(T=T, tol=tol)
    check_integer(4, nodes=nodes, max_nodes=max_nodes)
    for name, vector in (("x0", x0), ("control", control)):
        check_instance(Tensor, "a floating-point tensor", **{name: vector})
        if not vector.is_floating_point() or vector.dim() != 1 or not len(vector) or not vector.isfinite().all():
            raise InvalidValue(
                f"{name} is {vector.dtype} {tuple(vector.shape)}; expected finite numbers, one for each variable"
            )
    principle = _Principle(drift, terminal_cost, running_cost, z, control.detach().double().cpu(), bounds)
    start = x0.detach().double().cpu()
    times, first = _first(principle, start, T, nodes, guess)
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
    bounds: tuple[float | Tensor, float | Tensor] | None

    def rates(self, t: Tensor, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Drifts ``[K, n]`` and running costs ``[K]`` at K times ``[K]``."""

        def one(s: Any, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
            rate = x.new_zeros(1) if self.running_cost is None else self.running_cost(s, x[None], u, self.z)
            return self.drift(s, x[None], u, self.z)[0], rate[0]

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
        low, high = (torch.as_tensor(bound).to(self.control).expand_as(self.control) for bound in self.limits)
        starts = [u.expand(len(x), -1) for u in [self.control, *lattice(self.control, low, high)]]
        with torch.no_grad():
            return minimise_from(lambda rows, u: self.hamiltonian(t[rows], x[rows], p[rows], u)[0], starts, low, high)[
                0
            ]

    @property
    def limits(self) -> tuple[float | Tensor, float | Tensor]:
        return (-torch.inf, torch.inf) if self.bounds is None else self.bounds

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
        free = x.detach().requires_grad_()
        return gradients(self.terminal_cost(free, self.z), [free])[0]


def _halves(y: _Array) -> tuple[Tensor, Tensor]:
    x, p = torch.from_numpy(np.array(y.T)).chunk(2, 1)
    return x.contiguous(), p.contiguous()


def _first(principle: _Principle, x0: Tensor, T: float, nodes: int, guess: Extremal | None) -> tuple[_Array, _Array]:
    """Times and columns ``[2n, K]`` to begin from."""
    if guess is not None:
        check_instance(Extremal, "what solve_bvp returned, or None", guess=guess)
        if guess.states.shape[1] != len(x0):
            raise InvalidValue(f"guess has {guess.states.shape[1]} states and x0 has {len(x0)}")
        times = guess.times / guess.times[-1] * T
        return times.numpy(), torch.cat([guess.states, guess.costates], 1).T.numpy()
    try:
        slope = principle.terminal_slope(x0[None])
        b, rate = principle.rates(torch.zeros(1), x0[None], principle.control[None])
    except (RuntimeError, LookupError, AttributeError) as error:
        raise InvalidValue(f"the problem cannot be evaluated at x0 with this control: {error}") from error
    if b.shape != (1, len(x0)) or rate.shape != (1,):
        raise InvalidType(f"the drift has {tuple(b.shape[1:])} numbers at a state of {len(x0)}, or a rate is not [N]")
    if not (b.isfinite().all() and slope.isfinite().all() and rate.isfinite().all()):
        raise InvalidValue("the drift, a cost or its slope is not finite at x0")
    column = torch.cat([x0, slope[0]])
    return np.linspace(0, T, nodes), column[:, None].repeat(1, nodes).numpy()


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
