"""The double integrator under constraints, by ipopt: exact steps of piecewise-constant forces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import casadi
import numpy as np


def ipopt(
    stages: int,
    start: tuple[float, float],
    goal: tuple[float, float],
    *,
    cost: Callable[[Any, Any], Any],
    box: float | None = None,
    ceiling: float | None = None,
    free: bool = False,
) -> tuple[float, list[float], float]:
    """The least cost, its forces and end time.

    Args:
        stages: number of steps.
        start: position and velocity.
        goal: those at the end.
        cost: of the forces and the end time.
        box: largest force.
        ceiling: highest position at the beginning of a stage.
        free: the end time is free, else 1.
    """
    opti = casadi.Opti()
    force = opti.variable(stages)
    end = opti.variable() if free else 1.0
    h = end / stages
    state: list[Any] = list(start)
    x, v = state
    for k in range(stages):
        if ceiling is not None and k:
            opti.subject_to(x <= ceiling)
        x, v = x + h * v + h**2 / 2 * force[k], v + h * force[k]
    opti.subject_to(x == goal[0])
    opti.subject_to(v == goal[1])
    if box is not None:
        opti.subject_to(opti.bounded(-box, force, box))
    if free:
        opti.subject_to(end >= 0.1)
        opti.set_initial(end, 1.5)
        opti.set_initial(force, [0.5] * (stages // 2) + [-0.5] * (stages - stages // 2))
    opti.minimize(cost(force, end))
    opti.solver("ipopt", {"print_time": False}, {"print_level": 0, "sb": "yes", "tol": 1e-10})
    found = opti.solve()
    return (
        float(found.value(opti.f)),
        [float(u) for u in np.asarray(found.value(force)).ravel()],
        float(found.value(end)),
    )
