"""A continuous-time problem as a ``Problem``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from mfoc.bounds.region import Bounds
from mfoc.checks import check_callable, check_positive, check_signature
from mfoc.constraints import Terms, listed
from mfoc.errors import InvalidType, InvalidValue
from mfoc.problem import STAGE, Dynamics, Problem, Schedule, TerminalCost, per_stage
from mfoc.schemes.adaptive import dopri5
from mfoc.schemes.free_time import FreeTime
from mfoc.schemes.noise import euler_maruyama
from mfoc.schemes.runge_kutta import Drift, Scheme, euler
from mfoc.tree import Tree

_SCHEMES = "euler, heun, rk4, rk38, dopri5(rtol, atol) and euler_maruyama(diffusion)"


def continuous(
    drift: Drift,
    terminal_cost: TerminalCost,
    controls: Tree,
    *,
    running_cost: Callable[[float, Tree, Tree, Tree], Tensor] | None = None,
    diffusion: float | Callable[[float, Tensor, Tree, Tree], Tensor] | None = None,
    T: float | FreeTime = 1.0,
    scheme: Scheme | euler_maruyama = euler,
    horizon: int | None = None,
    schedule: Schedule = per_stage,
    autonomous: bool = False,
    interacting: str | None = None,
    bounds: Bounds = None,
    per_particle: bool = False,
    terminal: Terms = None,
    path: Terms = None,
) -> Problem:
    """A continuous-time control problem as a ``Problem``: piecewise-constant (or tied) controls on a uniform grid.

    Args:
        drift: ``b(t, x, u, z) -> dx/dt`` in the state's shape; t is the time in [0, T].
        terminal_cost: ``Phi(x, z) -> [N]``.
        controls: one pytree per step, or one pytree with ``schedule=tied`` and ``horizon``.
        running_cost: rate ``L(t, x, u, z) -> [N]`` per unit of time; integrated with the scheme, beside a state that is
            integrated for it once more: the drift is evaluated twice as often as without.
        diffusion: sigma of dx = b dt + sigma dW, short for ``scheme=euler_maruyama(diffusion)``; see there.
        T: the end time; or ``mfoc.FreeTime(start, least)``, to solve for it: the controls are then
            ``{"controls": ..., "T": ...}``.
        scheme: ``euler``, ``heun``, ``rk4``, ``rk38``, ``dopri5(rtol, atol)`` or ``euler_maruyama(diffusion)``.
        horizon: number of steps, when the schedule is not per-stage.
        schedule: how u_t is taken from the controls.
        autonomous: the drift and the running cost do not use t; solvers may then batch over steps.
        interacting: see ``mfoc.Problem``: None, or "batch" where each batch is a population of its own.
        bounds: where controls may lie, as ``mfoc.Box(-1, 1)``; see ``mfoc.Problem``.
        per_particle: each particle has a control of its own; see ``mfoc.Problem``.
        terminal: constraints on the last state, ``c(x, z)``; see ``mfoc.Problem``.
        path: constraints at the beginning of every step, ``c(t, x, u, z)`` with the time t.

    Returns:
        The discretised problem, with step h = T / steps.

    Raises:
        InvalidValue: T is not a positive finite number, or a diffusion is given with another scheme.
        InvalidType: drift or scheme is not a function.
    """
    check_callable("a function b(t, x, u, z)", drift=drift)
    check_callable("a function L(t, x, u, z)", optional=True, running_cost=running_cost)
    check_signature(STAGE, optional=True, drift=drift, running_cost=running_cost)
    if isinstance(T, FreeTime):
        return continuous(
            **T.stretched(
                {
                    "drift": drift, "terminal_cost": terminal_cost, "controls": controls, "running_cost": running_cost,
                    "diffusion": diffusion, "scheme": scheme, "horizon": horizon, "schedule": schedule,
                    "autonomous": autonomous, "interacting": interacting, "bounds": bounds,
                    "per_particle": per_particle, "terminal": terminal, "path": path,
                }
            )
        )  # fmt: skip
    check_positive(T=T)
    if diffusion is not None:
        if scheme is not euler:
            raise InvalidValue(
                "scheme was given with a diffusion, which euler_maruyama steps; leave scheme out, or pass "
                "scheme=euler_maruyama(diffusion, noise) alone"
            )
        scheme = euler_maruyama(diffusion)
    if isinstance(scheme, type) or not (isinstance(scheme, euler_maruyama) or callable(scheme)):
        raise InvalidType(f"scheme is {scheme!r}; expected one of {_SCHEMES}")
    if schedule is per_stage and horizon is None and isinstance(controls, list | tuple):
        horizon = len(controls)
    h = T / horizon if isinstance(horizon, int) and horizon > 0 else T  # a bad horizon is refused by Problem
    base: Scheme = euler if isinstance(scheme, euler_maruyama) else scheme
    noise: Dynamics | None = None
    if isinstance(scheme, euler_maruyama):
        increment = scheme.increment

        def noise(t: int, x: Tree, u: Tree, z: Tree) -> Tensor:
            return increment(t, t * h, x, u, z, h)

    def dynamics(t: int, x: Tree, u: Tree, z: Tree) -> Tree:
        moved = base(drift, t * h, x, u, z, h)
        return moved if noise is None else moved + noise(t, x, u, z)

    def integrated(t: int, x: Tree, u: Tree, z: Tree) -> Tensor:
        assert running_cost is not None
        first = running_cost(t * h, x, u, z)
        if base is euler:
            return h * first

        def augmented(s: float, y: Tree, u: Tree, z: Tree) -> Tree:
            return drift(s, y[0], u, z), running_cost(s, y[0], u, z)

        total: Tensor = base(augmented, t * h, (x, torch.zeros_like(first)), u, z, h)[1]
        return total

    return Problem(
        dynamics,
        terminal_cost,
        controls,
        running_cost=None if running_cost is None else integrated,
        horizon=horizon,
        schedule=schedule,
        kind=(lambda t: "step") if autonomous and noise is None and not isinstance(scheme, dopri5) else None,
        noise=noise,
        interacting=interacting,
        bounds=bounds,
        per_particle=per_particle,
        terminal=terminal,
        path=[replace(each, function=_at_time(each.function, h)) for each in listed(path, "path", STAGE)] or None,
    )


def _at_time(function: Callable[..., Tensor], h: float) -> Callable[..., Tensor]:
    """A function of the time as one of the stage."""
    return lambda t, x, u, z: function(t * h, x, u, z)
