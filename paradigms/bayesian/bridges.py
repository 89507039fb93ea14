"""The other direction of the path-integral sampler: learn its drift from end points, by regression on Brownian bridges.

J of ``follmer`` is the divergence KL(P_u || P*) of the law of the paths from the optimal one, and its minimiser among
drifts that cannot be exact keeps away from parts of the target it would cover badly. KL(P* || P_u) punishes what is
missed. The optimal law is known given its end: a Brownian motion pinned to X_T with the law of the target. So

    KL(P* || P_u) = E[ int |u(t, X_t) - (X_T - X_t) / (T - t)|^2 / (2 sigma^2) dt ] + what does not depend on u,

a regression on points of bridges to draws from the target: bridge matching, also the training of diffusion models
(Peluchetti 2021; Liu et al. 2022, arXiv:2208.14699). On the grid it stays exact, a sum over the steps.
``cross_entropy`` needs no such draws: it takes those it has, the end points of its own paths by their weights (Kappen &
Ruiz 2016, arXiv:1505.01874).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import mfoc
from mfoc import InvalidType, InvalidValue
from mfoc.population import mixed_seed
from paradigms.bayesian.flows import langevin
from paradigms.bayesian.follmer import Follmer, systematic
from paradigms.bayesian.sampler import sample

_SIZES = 8  # step sizes of the default moves, from the largest to 1e-4 of it


def bridge_matching(made: Follmer, ends: Tensor, *, particles: int = 2048, seed: int = 0) -> Follmer:
    """The sampler ``made`` with the objective KL(P* || P_u), given draws from the target.

    The same controls, weights and readout; only what is minimised differs. Its J is that divergence up to a constant.

    Args:
        made: what ``follmer`` returned.
        ends: draws from the target ``[m, d]``; each batch takes some of them, with replacement.
        particles: points of bridges in a batch, spread evenly over the times of the grid.
        seed: of the bridges.

    Raises:
        InvalidType, InvalidValue: wrong arguments, or draws that do not fit the target or are not finite.
    """
    if not isinstance(made, Follmer):
        raise InvalidType(f"made is a {type(made).__name__}; expected what follmer(...) returns")
    for name, count, least in (("particles", particles, 1), ("seed", seed, 0)):
        if isinstance(count, bool) or not isinstance(count, int) or count < least:
            raise InvalidValue(f"{name} is {count!r}; expected an integer from {least} on")
    if not isinstance(ends, Tensor) or not len(ends):
        what = "an empty tensor" if isinstance(ends, Tensor) else f"a {type(ends).__name__}"
        raise InvalidType(f"ends is {what}; expected draws from the target [m, {made.density.dim}]")
    pool = made.density.check(ends.detach().to(made.density.like).clone())
    diffusion, stages = made.diffusion, len(made.diffusion.lengths)
    times, lengths = (pool.new_tensor(values) for values in (diffusion.times[:-1], diffusion.lengths))
    T = diffusion.times[-1]

    def draw(k: int) -> mfoc.Particles:
        generator = torch.Generator().manual_seed(mixed_seed(seed, k, 2))
        end = pool[torch.randint(len(pool), (particles,), generator=generator).to(pool.device)]
        stage = (torch.arange(particles) + torch.randint(stages, (1,), generator=generator)) % stages
        t, h = times[stage.to(pool.device)], lengths[stage.to(pool.device)]
        deviation = diffusion.sigma * (t * (T - t) / T).sqrt()
        x = t[:, None] / T * end + deviation[:, None] * diffusion.normals(particles, generator)
        return mfoc.Particles(x, {"end": end, "time": t, "weight": stages * h / (2 * diffusion.sigma**2)})

    def mismatch(t: int, x: Tensor, controls: Any, z: Any) -> Tensor:
        wanted = (z["end"] - x) / (T - z["time"])[:, None]
        u = diffusion.drifts(controls, z["time"], x.detach())
        cost: Tensor = z["weight"] * (u - wanted).square().sum(1)
        return cost

    problem = mfoc.Problem(
        dynamics=lambda t, x, controls, z: x,
        running_cost=mismatch,
        terminal_cost=lambda x, z: x.new_zeros(len(x)),
        controls=made.problem.controls,
        horizon=1,
        schedule=mfoc.tied,
    )
    return dataclasses.replace(made, problem=problem, population=mfoc.population(draw))


def cross_entropy(
    made: Follmer,
    solver: mfoc.Solver,
    *,
    rounds: int,
    steps: int = 100,
    paths: int = 1024,
    particles: int = 2048,
    keep: int = 16,
    moves: Callable[[Tensor, int], Tensor] | None = None,
    start: mfoc.Iterate | None = None,
    hooks: Any = (),
) -> mfoc.Solution:
    """Solves a path-integral sampler by rounds of draws and bridge matching: the cross-entropy method.

    A round runs paths with the drift it has, draws end points by their weights, moves these and those of the last
    rounds by a Markov chain that leaves the target invariant, so that equal ones part and the cloud spreads to where
    no path went yet, and takes ``steps`` steps of the solver on bridges to them. It covers targets that ``made.solve``,
    whose objective seeks modes, does not: funnels, modes far apart. Kappen & Ruiz (2016), arXiv:1505.01874, alg. 1,
    with bridges in the place of weighted paths.

    Args:
        made: what ``follmer`` returned.
        solver: of the regression, such as ``mfoc.Gradient``; a schedule counts steps over all rounds.
        rounds: how many.
        steps: of the solver in a round.
        paths: drawn in a round.
        particles: points of bridges in a batch of the solver.
        keep: rounds for which end points stay in use.
        moves: ``moves(x, step)``, end points ``[n, d]`` to as many, the newest first. When None: 24 steps of MALA,
            their sizes in cycles from sigma^2 T down to 1e-4 of it, so that wide and narrow parts both move.
            ``lambda x, step: x`` for none.
        start: the iterate to start from: of ``made.solve``, or to go on from. The end points kept are drawn again by
            its drift, so the run is not that which never stopped.
        hooks: of ``mfoc.solve``.

    Returns:
        The solution of the last round, whose value and residual are those of bridge matching. A round that fails ends
        the run with what it reached.

    Raises:
        InvalidType, InvalidValue: wrong arguments, or no path with a finite weight.
    """
    if not isinstance(made, Follmer):
        raise InvalidType(f"made is a {type(made).__name__}; expected what follmer(...) returns")
    for name, count in (("rounds", rounds), ("steps", steps), ("paths", paths), ("keep", keep)):
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise InvalidValue(f"{name} is {count!r}; expected a positive integer")
    moves = _chain(made) if moves is None else moves
    at: mfoc.Iterate | None = start
    ends = made.density.like.new_zeros(0, made.density.dim)
    for _ in range(rounds):
        k, controls = (0, made.problem.controls) if at is None else (at.step, at.controls)
        ends = torch.cat([_drawn(made, controls, paths, k), ends])[: keep * paths]
        ends = _moved(moves, ends, k)
        matched = bridge_matching(made, ends, particles=particles, seed=mixed_seed(made.seed, k, 4))
        solution = matched.solve(solver, steps=k + steps, start=at, hooks=hooks)
        at = solution.last
        if solution.status is not mfoc.Status.MAX_STEPS:
            break
    return solution


def _drawn(made: Follmer, controls: Any, n: int, k: int) -> Tensor:
    """End points drawn by their weights; a path that left the range of floating-point numbers has none."""
    x, log_w = made.paths(controls, n=n, seed=mixed_seed(made.seed, k, 3))
    log_w = log_w.nan_to_num(nan=-math.inf, posinf=-math.inf)
    if log_w.max() == -math.inf:
        raise InvalidValue(f"none of {n} paths has a finite weight; take more steps, a smaller sigma or a lower clip")
    return x[systematic(log_w, n, mixed_seed(made.seed, k, 6))]


def _moved(moves: Callable[[Tensor, int], Tensor], ends: Tensor, k: int) -> Tensor:
    found = moves(ends, k)
    if not isinstance(found, Tensor) or found.shape != ends.shape:
        what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise InvalidValue(f"moves returned {what} for end points {tuple(ends.shape)}; expected that shape")
    return found


def _chain(made: Follmer) -> Callable[[Tensor, int], Tensor]:
    sizes = [made.diffusion.variance * 10 ** (-4 * (t % _SIZES) / (_SIZES - 1)) for t in range(3 * _SIZES)]

    def moves(x: Tensor, k: int) -> Tensor:
        chain = langevin(
            made.density, step=sizes, steps=len(sizes), particles=x, method="mala", seed=mixed_seed(made.seed, k, 5)
        )
        return sample(chain, burn_in=len(sizes) - 1).x[-1]

    return moves
