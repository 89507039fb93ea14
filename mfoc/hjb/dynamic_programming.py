"""Dynamic programming on a grid: the semi-Lagrangian scheme for the Hamilton-Jacobi-Bellman equation.

Falcone & Ferretti, "Semi-Lagrangian Approximation Schemes for Linear and Hamilton-Jacobi Equations" (2014), sec. 8.4.2;
with noise, Camilli & Falcone (1995), "An approximation scheme for the optimal control of diffusion processes".
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from mfoc.checks import check_choice, check_integer, check_positive
from mfoc.errors import InvalidValue
from mfoc.hjb.bellman import Bellman, Data, bellman, check_controls
from mfoc.hjb.splines import WIDTH, Grid, as_grid
from mfoc.hjb.value import TERMS, GridValue
from mfoc.problem import Problem

logger = logging.getLogger(__name__)

_NEWTON = 16  # evaluations that Newton's method takes at a point, about: derivatives count by their cost
_WORTH_SAYING = 0.1  # share of points that leave the grid


def solve(
    problem: Problem,
    axes: Sequence[Tensor],
    *,
    z: Data = None,
    interpolation: str = "cubic",
    candidates: Tensor | None = None,
    noise_dim: int | None = None,
    nodes: int = 3,
    most_terms: float = 3e10,
    most_memory: float = 4e9,
) -> GridValue:
    """The value function and the optimal feedback of a problem with 1 to 3 state variables.

        V_T = Phi,      V_t(x) = min_u E [ L_t(x, u, z) + V_(t+1)(f_t(x, u, z)) ]     at each point of the grid

    It is the value of the problem as it is discretised in time, up to interpolation. Against the problem in continuous
    time (``mfoc.continuous``, step h, Euler) the error is O(h) + O(dx^4 / h) for smooth values and cubic splines: order
    1 in dx where h ~ dx, order 2 where h ~ dx^2 (``tests/benchmarks/bench_hjb.py`` prints them). Bounds of the problem
    are kept. Each state has a control of its own: the optimum is that of feedback controls, at or below that of a
    control shared by the cloud.

    States that leave the grid find V continued linearly. The share of points from which the best control leads there
    is in ``GridValue.leaving``; above 10% a warning is logged: take the grid wider than the states of interest.

    Args:
        problem: each stage has one tensor ``[m]`` as its control; particles must not interact. Noise is what
            ``mfoc.continuous(..., diffusion=)`` reads from ``z["noise"]``.
        axes: a uniform axis ``[n_i]`` for each state variable, such as ``torch.linspace(-2, 2, 81)``.
        z: data for all states, a pytree with leading axis 1; or, with noise, a function of standard normals
            ``[1, stages, k]`` that returns it. None: no data but ``{"noise": normals}``.
        interpolation: "cubic", or "linear", which is monotone, for values with kinks.
        candidates: controls ``[C, m]`` that are tried at every point, the best of which is refined by Newton's method:
            where there are several local minima in u, one near each. None: a lattice of 5 values for each bounded
            control, the problem's own control and that plus and minus 1 for the others.
        noise_dim: k, the normals that a stage reads; the number of states when None.
        nodes: of the Gauss-Hermite rule in each of them; 2 is the scheme of Camilli & Falcone.
        most_terms: refuse what would take more terms (points x stages x evaluations x nodes x splines at a point);
            some 2e7 take a second on one core.
        most_memory: refuse what would take more bytes.

    Returns:
        The value function: ``value(t, x)``, ``value.gradient(t, x)``, ``value.policy(t, x)``.

    Raises:
        InvalidType, InvalidValue: bad axes, interacting particles, controls that are no single tensor, functions that
            fail or are not finite, or a grid that is too large, with the estimate.
    """
    check_controls(problem)
    check_choice("cubic", "linear", interpolation=interpolation)
    check_integer(2, nodes=nodes)
    check_integer(1, noise_dim=noise_dim, optional=True)
    check_positive(most_terms=most_terms, most_memory=most_memory, finite=False)
    first = problem.schedule(problem.controls, 0)
    grid = as_grid(axes, interpolation, first)
    _check_memory(grid, problem, first, most_memory)
    points = grid.points()
    made = bellman(problem, points, z, noise_dim, nodes, candidates)
    _check_terms(grid, made, most_terms)
    value = _backward(made, grid, points)
    if (most := float(value.leaving.max())) > _WORTH_SAYING:
        logger.warning(
            "from %.0f%% of the grid (stage %d) the optimal control leads off it, where V is extrapolated linearly; "
            "trust the values well inside, or widen the axes",
            100 * most,
            int(value.leaving.argmax()),
        )
    return value


def _check_memory(grid: Grid, problem: Problem, control: Tensor, most: float) -> None:
    numbers = grid.size * (problem.stages * (1 + control.numel()) + 4)
    if (size := numbers * control.element_size()) > most:
        raise InvalidValue(
            f"the values and controls of {grid} at {problem.stages} stages take {size / 1e9:.3g} GB, more than "
            f"most_memory={most / 1e9:.3g} GB; take fewer points or stages, or mfoc.hjb.fit"
        )


def _check_terms(grid: Grid, made: Bellman, most: float) -> None:
    stages, stencil = made.problem.stages, WIDTH[grid.kind] ** len(grid.axes)
    evaluations = len(made.tried(0)) + 1 + _NEWTON
    if (terms := grid.size * stages * evaluations * made.nodes * stencil) > most:
        raise InvalidValue(
            f"{grid.size:,} points x {stages} stages x about {evaluations} evaluations x {made.nodes} nodes of noise x "
            f"{stencil} splines are {terms:.1e} terms, more than most_terms={most:.1e} (some 2e7 take a second on one "
            "core); take fewer points, stages or candidates, or raise most_terms"
        )


@torch.no_grad()
def _backward(made: Bellman, grid: Grid, points: Tensor) -> GridValue:
    stages, m = made.problem.stages, len(made.control(0))
    values = points.new_empty(stages + 1, grid.size)
    controls = points.new_empty(stages, grid.size, m)
    leaving = points.new_zeros(stages)
    values[stages] = made.terminal(points)
    rows = max(1, TERMS // (made.nodes * WIDTH[grid.kind] ** len(grid.axes)))
    for t in reversed(range(stages)):
        coefficients = grid.coefficients(values[t + 1].view(grid.shape))
        for part in torch.split(torch.arange(grid.size, device=points.device), rows):
            start = controls[t + 1, part] if t + 1 < stages else None
            x = points[part]
            u, values[t, part] = made.best(t, x, lambda y, c=coefficients: grid.evaluate(c, y), start)  # type: ignore[misc]
            controls[t, part] = u
            left = made.expectation(t, x, u, lambda y, _: 1 - grid.inside(y).to(y))
            leaving[t] += left.sum() / grid.size
    return GridValue(made, grid, values.view(stages + 1, *grid.shape), controls, leaving)
