"""Continuous-time problems, discretised: dx = b(t, x, u, z) dt + sigma dW, cost = integral L dt + Phi.

A scheme advances one step of length h from time s with the control held constant:
``scheme(drift, s, x, u, z, h) -> x_next``. Orders (global error in h): euler 1, heun 2, rk4 4;
Butcher, "Numerical Methods for Ordinary Differential Equations" (2016), ch. 3. The running cost is integrated by
the same scheme, as one more component of the state, so the objective has the scheme's order too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mfoc import tree
from mfoc.bounds.region import Bounds
from mfoc.checks import check_callable, check_integer, check_non_negative, check_positive, check_signature
from mfoc.errors import InvalidType, InvalidValue
from mfoc.problem import STAGE, Dynamics, Problem, Schedule, TerminalCost, per_stage
from mfoc.tree import Tree

Drift = Callable[[float, Tree, Tree, Tree], Tree]
Scheme = Callable[[Drift, float, Tree, Tree, Tree, float], Tree]


def _axpy(x: Tree, h: float, *terms: tuple[float, Tree]) -> Tree:
    """The state x + h * sum_i c_i k_i, on the floating-point leaves."""
    result = x
    for c, k in terms:
        result = tree.map(lambda a, b, s=h * c: _moved(a, s * b) if tree.differentiable(a) else a, result, k)
    return result


def _moved(x: Tensor, step: Tensor) -> Tensor:
    moved = x + step
    if moved.shape != x.shape:
        raise InvalidValue(f"the drift has shape {tuple(step.shape)}; expected the state's, {tuple(x.shape)}")
    return moved


def euler(drift: Drift, s: float, x: Tree, u: Tree, z: Tree, h: float) -> Tree:
    """Explicit Euler, order 1: ``x + h b(s, x, u, z)``."""
    return _axpy(x, h, (1.0, drift(s, x, u, z)))


def heun(drift: Drift, s: float, x: Tree, u: Tree, z: Tree, h: float) -> Tree:
    """Heun's method (explicit trapezoid), order 2."""
    k1 = drift(s, x, u, z)
    k2 = drift(s + h, _axpy(x, h, (1.0, k1)), u, z)
    return _axpy(x, h, (0.5, k1), (0.5, k2))


def rk4(drift: Drift, s: float, x: Tree, u: Tree, z: Tree, h: float) -> Tree:
    """The classical Runge-Kutta method, order 4."""
    k1 = drift(s, x, u, z)
    k2 = drift(s + h / 2, _axpy(x, h, (0.5, k1)), u, z)
    k3 = drift(s + h / 2, _axpy(x, h, (0.5, k2)), u, z)
    k4 = drift(s + h, _axpy(x, h, (1.0, k3)), u, z)
    return _axpy(x, h, (1 / 6, k1), (1 / 3, k2), (1 / 3, k3), (1 / 6, k4))


@dataclass(frozen=True)
class euler_maruyama:
    """Euler-Maruyama for dx = b dt + sigma(t, x, u, z) dW, strong order 1/2 (1 for additive noise).

    The Brownian increments come from the data, so that the dynamics stay pure:
    ``z["noise"]`` holds standard normals ``[N, steps, k]`` (see ``brownian``); ``noise=`` finds them elsewhere.

    Attributes:
        diffusion: a number (scalar noise of the state's shape), or ``sigma(t, x, u, z)`` returning ``[N, d]``
            (diagonal noise) or ``[N, d, k]``.
        noise: ``noise(z) -> [N, steps, k]``; None reads ``z["noise"]``.
    """

    diffusion: float | Callable[[float, Tensor, Tree, Tree], Tensor]
    noise: Callable[[Tree], Tensor] | None = None

    def __post_init__(self) -> None:
        if callable(self.diffusion):
            check_signature(STAGE, diffusion=self.diffusion)
        elif not isinstance(self.diffusion, Tensor):
            check_non_negative(diffusion=self.diffusion)
        check_callable("a function of the data z", optional=True, noise=self.noise)
        check_signature(("z",), optional=True, noise=self.noise)

    def increment(self, t: Any, s: float, x: Tensor, u: Tree, z: Tree, h: float) -> Tensor:
        """Sigma dW over step t, of the shape of the state ``[N, d]``."""
        if not isinstance(x, Tensor):
            raise InvalidType(f"euler_maruyama needs a state that is one tensor [N, d]; got {tree.describe(x)}")
        normals = self._normals(z)
        if normals.dim() < 2 or normals.shape[1] <= t:
            raise InvalidValue(
                f"stage {t}: dynamics: the noise has shape {tuple(normals.shape)} and each stage needs its own; "
                "expected standard normals [N, stages, k] (mfoc.schemes.brownian draws them)"
            )
        dw = math.sqrt(h) * normals[:, t]
        sigma = self.diffusion(s, x, u, z) if callable(self.diffusion) else self.diffusion
        dw = _product(sigma, dw) if isinstance(sigma, Tensor) and sigma.dim() == 3 else sigma * dw
        if dw.shape != x.shape:
            raise InvalidValue(f"the noise term has shape {tuple(dw.shape)}; expected the state's, {tuple(x.shape)}")
        return dw

    def _normals(self, z: Tree) -> Tensor:
        if self.noise is not None:
            return self.noise(z)
        if not isinstance(z, dict) or "noise" not in z:
            raise InvalidValue(
                "euler_maruyama found no noise: give particles data={'noise': [N, steps, k]} (mfoc.schemes.brownian "
                "draws it) or pass noise= to say where it is"
            )
        normals: Tensor = z["noise"]
        return normals


def _product(sigma: Tensor, dw: Tensor) -> Tensor:
    """``[N, d, k]`` times ``[N, k]``; refuses another k, which einsum would repeat where it is one."""
    if sigma.shape[2] != dw.shape[1]:
        raise InvalidValue(
            f"the diffusion has shape {tuple(sigma.shape)} and each stage {dw.shape[1]} normals; "
            f"expected {sigma.shape[2]}"
        )
    return torch.einsum("ndk,nk->nd", sigma, dw)


def brownian(n: int, steps: int, dim: int, *, seed: int, like: Tensor | None = None) -> Tensor:
    """Standard normals for ``euler_maruyama``, ``[N, steps, k]``.

    Args:
        n: particles N.
        steps: stages of the problem.
        dim: dimension k of the Brownian motion.
        seed: seed of the generator.
        like: a tensor whose dtype and device the noise takes.
    """
    check_integer(1, n=n, steps=steps, dim=dim)
    check_integer(0, seed=seed)
    dtype = like.dtype if like is not None else torch.get_default_dtype()
    noise = torch.randn(n, steps, dim, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return noise if like is None else noise.to(like.device)


def continuous(
    drift: Drift,
    terminal_cost: TerminalCost,
    controls: Tree,
    *,
    running_cost: Callable[[float, Tree, Tree, Tree], Tensor] | None = None,
    diffusion: float | Callable[[float, Tensor, Tree, Tree], Tensor] | None = None,
    T: float = 1.0,
    scheme: Scheme | euler_maruyama = euler,
    horizon: int | None = None,
    schedule: Schedule = per_stage,
    autonomous: bool = False,
    interacting: str | None = None,
    bounds: Bounds = None,
    per_particle: bool = False,
) -> Problem:
    """A continuous-time control problem as a ``Problem``: piecewise-constant (or tied) controls on a uniform grid.

    Args:
        drift: ``b(t, x, u, z) -> dx/dt`` in the state's shape; t is the time in [0, T].
        terminal_cost: ``Phi(x, z) -> [N]``.
        controls: one pytree per step, or one pytree with ``schedule=tied`` and ``horizon``.
        running_cost: rate ``L(t, x, u, z) -> [N]`` per unit of time; integrated with the scheme.
        diffusion: sigma of dx = b dt + sigma dW, short for ``scheme=euler_maruyama(diffusion)``; see there.
        T: the end time.
        scheme: ``euler``, ``heun``, ``rk4`` or ``euler_maruyama(diffusion)``.
        horizon: number of steps, when the schedule is not per-stage.
        schedule: how u_t is taken from the controls.
        autonomous: the drift and the running cost do not use t; solvers may then batch over steps.
        interacting: see ``mfoc.Problem``: None, or "batch" where each batch is a population of its own.
        bounds: where controls may lie, as ``mfoc.Box(-1, 1)``; see ``mfoc.Problem``.
        per_particle: each particle has a control of its own; see ``mfoc.Problem``.

    Returns:
        The discretised problem, with step h = T / steps.

    Raises:
        InvalidValue: T is not a positive finite number, or a diffusion is given with another scheme.
        InvalidType: drift or scheme is not a function.
    """
    check_positive(T=T)
    check_callable("a function b(t, x, u, z)", drift=drift)
    check_callable("a function L(t, x, u, z)", optional=True, running_cost=running_cost)
    check_signature(STAGE, optional=True, drift=drift, running_cost=running_cost)
    if diffusion is not None:
        if scheme is not euler:
            raise InvalidValue(
                "scheme was given with a diffusion, which euler_maruyama steps; leave scheme out, or pass "
                "scheme=euler_maruyama(diffusion, noise) alone"
            )
        scheme = euler_maruyama(diffusion)
    if isinstance(scheme, type) or not (isinstance(scheme, euler_maruyama) or callable(scheme)):
        raise InvalidType(f"scheme is {scheme!r}; expected euler, heun, rk4 or euler_maruyama(diffusion)")
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
        kind=(lambda t: "step") if autonomous and noise is None else None,
        noise=noise,
        interacting=interacting,
        bounds=bounds,
        per_particle=per_particle,
    )
