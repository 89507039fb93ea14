"""Classical control problems, each in torch and in casadi: one formula, two libraries, the same RK4 discretisation."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

import mfoc
from tests.problems import D, normal


@dataclass(frozen=True)
class Robot:
    """dx/dt = rates(x, u), with a running cost (a rate) and a terminal cost, on lists of coordinates."""

    rates: Callable[..., list[Any]]  # (x, u, sin, cos)
    running: Callable[..., Any]  # (x, u, cos)
    terminal: Callable[..., Any]  # (x, cos)
    start: tuple[float, ...]
    controls: tuple[float, ...]  # the guess, the same at each stage
    limit: float  # of each control, in the bounded problem
    stages: int
    T: float


def _squares(weight: float, x: Any, goal: Any = None) -> Any:
    return weight * sum((a - b) ** 2 for a, b in zip(x, goal or [0.0] * len(x), strict=True))


def _cart_pole(x: Any, u: Any, sin: Any, cos: Any) -> list[Any]:
    """Cart of 1 kg, pole of 0.3 kg and 0.5 m; the pole hangs at angle 0. Kelly (2017), SIAM Review 59, sec. 6."""
    s, c, g, total = sin(x[1]), cos(x[1]), 9.81, 1.0 + 0.3 * sin(x[1]) ** 2
    cart = (u[0] + 0.3 * s * (0.5 * x[3] ** 2 + g * c)) / total
    pole = (-u[0] * c - 0.15 * x[3] ** 2 * c * s - 1.3 * g * s) / (0.5 * total)
    return [x[2], x[3], cart, pole]


_UPRIGHT = (0.0, torch.pi, 0.0, 0.0)
_GOAL = (1.0, 2.0, torch.pi / 2)

ROBOTS = {
    "pendulum": Robot(
        lambda x, u, sin, cos: [x[1], 9.81 * sin(x[0]) - 0.1 * x[1] + u[0]],  # upright at angle 0
        lambda x, u, cos: 0.5 * (1 - cos(x[0])) + 0.05 * x[1] ** 2 + 0.02 * u[0] ** 2,
        lambda x, cos: 20 * (1 - cos(x[0])) + 2 * x[1] ** 2,
        start=(torch.pi, 0.0), controls=(0.1,), limit=4.0, stages=60, T=3.0,
    ),
    "unicycle": Robot(
        lambda x, u, sin, cos: [u[0] * cos(x[2]), u[0] * sin(x[2]), u[1]],
        lambda x, u, cos: _squares(0.1, x, _GOAL) + _squares(0.1, u),
        lambda x, cos: _squares(50.0, x, _GOAL),
        start=(0.0, 0.0, 0.0), controls=(0.1, 0.1), limit=0.9, stages=40, T=3.0,
    ),
    "cart-pole": Robot(
        _cart_pole,
        lambda x, u, cos: _squares(0.1, x, _UPRIGHT) + _squares(0.02, u),
        lambda x, cos: _squares(100.0, x, _UPRIGHT),
        start=(0.0, 0.0, 0.0, 0.0), controls=(0.1,), limit=12.0, stages=60, T=2.0,
    ),
}  # fmt: skip


def in_torch(
    name: str, n: int = 1, *, bounded: bool = False, spread: float = 0.1
) -> tuple[mfoc.Problem, mfoc.Particles]:
    """The problem of n particles with controls of their own; the first starts where the robot does."""
    robot = ROBOTS[name]
    problem = mfoc.continuous(
        lambda t, x, u, z: torch.stack(robot.rates(x.unbind(1), u.unbind(1), torch.sin, torch.cos), 1),
        lambda x, z: robot.terminal(x.unbind(1), torch.cos),
        [torch.tensor(robot.controls, dtype=D).repeat(n, 1) for _ in range(robot.stages)],
        running_cost=lambda t, x, u, z: robot.running(x.unbind(1), u.unbind(1), torch.cos),
        T=robot.T,
        scheme=mfoc.rk4,
        autonomous=True,
        per_particle=True,
        bounds=mfoc.Box(-robot.limit, robot.limit) if bounded else None,
    )
    start = torch.tensor(robot.start, dtype=D).repeat(n, 1)
    start[1:] += spread * normal(n, start.shape[1], seed=7)[1:]
    return problem, mfoc.Particles(start)


def by_ipopt(
    name: str, start: Any, *, bounded: bool = False, controls: Any = None, tol: float = 1e-10
) -> tuple[float, Any, int, float]:
    """The problem of one particle by ipopt: J, the controls ``[T, m]``, iterations, and thread-CPU seconds.

    Args:
        name: the robot.
        start: its state x_0.
        bounded: whether the controls are.
        controls: the guess ``[T, m]``; the robot's own when None. The states start from its roll-out.
        tol: of ipopt.
    """
    import casadi as ca
    import numpy as np

    robot, n, m = ROBOTS[name], len(ROBOTS[name].start), len(ROBOTS[name].controls)
    y, u, h = ca.SX.sym("y", n + 1), ca.SX.sym("u", m), robot.T / robot.stages

    def rates(y: Any) -> Any:
        x, v = ca.vertsplit(y)[:n], ca.vertsplit(u)
        return ca.vertcat(*robot.rates(x, v, ca.sin, ca.cos), robot.running(x, v, ca.cos))

    k1 = rates(y)
    k2 = rates(y + h / 2 * k1)
    k3 = rates(y + h / 2 * k2)
    k4 = rates(y + h * k3)
    advance = ca.Function("advance", [y, u], [y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)])

    guess = np.tile(robot.controls, (robot.stages, 1)) if controls is None else np.asarray(controls)
    xs = ca.SX.sym("x", n, robot.stages)
    us = ca.SX.sym("u", m, robot.stages)
    at, rolled = np.append(np.asarray(start), 0.0), []
    here, total, gaps = ca.DM(list(np.asarray(start))), 0, []
    for t in range(robot.stages):
        moved = advance(ca.vertcat(here, 0), us[:, t])
        total, here = total + moved[n], xs[:, t]
        gaps.append(moved[:n] - here)
        at = np.asarray(advance(at, guess[t])).ravel()
        rolled.append(at[:n])
    total = total + robot.terminal(ca.vertsplit(here), ca.cos)
    limit = robot.limit if bounded else ca.inf
    quiet = {"ipopt.print_level": 0, "print_time": 0, "ipopt.sb": "yes", "ipopt.tol": tol}
    exact = {"ipopt.bound_relax_factor": 0.0, "ipopt.max_iter": 1000}
    solver = ca.nlpsol(
        "solver", "ipopt", {"x": ca.vertcat(ca.vec(xs), ca.vec(us)), "f": total, "g": ca.vertcat(*gaps)}, quiet | exact
    )
    wide = [ca.inf] * (n * robot.stages) + [limit] * (m * robot.stages)
    first = np.concatenate([np.ravel(rolled), np.ravel(guess)])
    began = time.thread_time()
    found = solver(x0=first, lbg=0, ubg=0, lbx=[-w for w in wide], ubx=wide)
    seconds, stats = time.thread_time() - began, solver.stats()
    assert stats["success"], stats["return_status"]
    best = np.asarray(found["x"]).ravel()[n * robot.stages :].reshape(robot.stages, m)
    return float(found["f"]), best, int(stats["iter_count"]), seconds
