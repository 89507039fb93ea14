"""The other direction of the path-integral sampler: learn its drift from end points, by regression on Brownian bridges.

J of ``follmer`` is, but for log Z, the divergence KL(P_u || P*) of the law of the paths from the optimal one, and its
minimiser among drifts that cannot be exact keeps away from parts of the target it would cover badly. KL(P* || P_u)
punishes what is missed. The optimal law is known given its end: a Brownian motion pinned to X_T with the law of the
target. So

    KL(P* || P_u) = E[ int |u(t, X_t) - (X_T - X_t) / (T - t)|^2 / (2 sigma^2) dt ] + what does not depend on u,

a regression on points of bridges to draws from the target: bridge matching, also the training of diffusion models
(Peluchetti 2021; Liu et al. 2022, arXiv:2208.14699). On the grid it stays exact, a sum over the steps; there both
terms are finite, which in continuous time only their sum is.

``cross_entropy`` needs no such draws: it takes those it has, the end points of its own paths by their weights (Kappen &
Ruiz 2016, arXiv:1505.01874).
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
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
        InvalidType, InvalidValue: wrong arguments, draws that do not fit the target or are not finite, or a policy that
            cannot run under ``torch.vmap``.
    """
    if not isinstance(made, Follmer):
        raise InvalidType(f"made is a {type(made).__name__}; expected what follmer(...) returns")
    for name, count, least in (("particles", particles, 1), ("seed", seed, 0)):
        if isinstance(count, bool) or not isinstance(count, int) or count < least:
            raise InvalidValue(f"{name} is {count!r}; expected an integer from {least} on")
    if not isinstance(ends, Tensor) or not ends.numel():
        what = "an empty tensor" if isinstance(ends, Tensor) else f"a {type(ends).__name__}"
        raise InvalidType(f"ends is {what}; expected draws from the target [m, {made.density.dim}]")
    pool = made.density.check(ends.detach().to(made.density.like).clone())
    diffusion, stages = made.diffusion, len(made.diffusion.lengths)
    _check_policy(made)
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
        start: the iterate to start from: of ``made.solve`` with such a solver, or to go on from; for another solver
            ``mfoc.Iterate(step, controls, solver.init(made.problem, controls))``. The end points kept are drawn again
            by its drift, so the run is not that which never stopped.
        hooks: of ``mfoc.solve``; for them all rounds are one solve.

    Returns:
        The solution of the last round, whose value and residual are those of bridge matching, with the history of all.
        A round that fails, or Ctrl-C, ends the run with what it reached; when no path has a finite weight any more, at
        the start of the round before. An error in user code carries the last iterate, as ``error.last_iterate``.

    Raises:
        InvalidType, InvalidValue: wrong arguments, a policy that cannot run under ``torch.vmap``, end points that moved
            to where the density is not finite, or no path with a finite weight at the start.
    """
    if not isinstance(made, Follmer):
        raise InvalidType(f"made is a {type(made).__name__}; expected what follmer(...) returns")
    for name, count in (
        ("rounds", rounds),
        ("steps", steps),
        ("paths", paths),
        ("particles", particles),
        ("keep", keep),
    ):
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise InvalidValue(f"{name} is {count!r}; expected a positive integer")
    if moves is not None and not callable(moves):
        raise InvalidType(f"moves is a {type(moves).__name__}; expected a function moves(x, step) or None")
    if not isinstance(hooks, Sequence) or not all(callable(hook) and not isinstance(hook, type) for hook in hooks):
        raise InvalidType("hooks must be a list of functions of the iterate (instances, not classes)")
    _check_policy(made)
    mfoc.iterate(made.problem, solver, made.population, start=start)  # refuses a solver or a start that does not fit
    draw = partial(_ends, made, _chain(made) if moves is None else moves, paths, keep)
    at = _begin(made, solver) if start is None else start
    _each(hooks, "start", at.step + rounds * steps)
    try:
        solution = _rounds(made, solver, draw, at, rounds, steps, particles, [_called(hook) for hook in hooks])
        try:
            _each(hooks, "finish", solution)
        except Exception as error:
            error.last_iterate = solution.last  # type: ignore[attr-defined]
            raise
    finally:
        _each(hooks, "close")
    return solution


def _rounds(
    made: Follmer,
    solver: mfoc.Solver,
    draw: Callable[[Any, int, Tensor], Tensor | None],
    at: mfoc.Iterate,
    rounds: int,
    steps: int,
    particles: int,
    hooks: list[Any],
) -> mfoc.Solution:
    matched, solution = None, None
    history: list[dict[str, float]] = []
    ends = made.density.like.new_zeros(0, made.density.dim)
    began, before = time.perf_counter(), at
    for _ in range(rounds):
        try:
            drawn = draw(at.controls, at.step, ends)
            if drawn is None and matched is not None:
                back = matched.solve(solver, steps=before.step, start=before)
                return _ended(back, history, mfoc.Status.NONFINITE, f"after step {at.step} no path has a finite weight")
            if drawn is None:
                raise InvalidValue("no path has a finite weight; take more steps, a smaller sigma or a lower clip")
            ends = drawn
            matched = bridge_matching(made, ends, particles=particles, seed=mixed_seed(made.seed, at.step, 4))
        except KeyboardInterrupt:
            if solution is None:
                raise
            return _ended(solution, history, mfoc.Status.INTERRUPTED, f"interrupted after step {at.step}")
        except Exception as error:
            error.last_iterate = at  # type: ignore[attr-defined]
            error.add_note(f"cross_entropy: raised after step {at.step}; that iterate is kept as error.last_iterate")
            raise
        late = time.perf_counter() - began
        solution = matched.solve(solver, steps=at.step + steps, start=at, hooks=hooks)
        history += [{**record, "seconds": record["seconds"] + late} for record in solution.history]
        before, at = at, solution.last
        if solution.status is not mfoc.Status.MAX_STEPS:
            break
    assert solution is not None
    return dataclasses.replace(solution, history=history)


def _ended(solution: mfoc.Solution, history: Any, status: mfoc.Status, message: str) -> mfoc.Solution:
    return dataclasses.replace(solution, history=history, status=status, message=message)


def _begin(made: Follmer, solver: mfoc.Solver) -> mfoc.Iterate:
    controls = {name: leaf.clone() for name, leaf in made.problem.controls.items()}
    return mfoc.Iterate(0, controls, solver.init(made.problem, controls))


def _called(hook: Any) -> Callable[[mfoc.Iterate], object]:
    """The hook without what it does at the start and the end, which are not those of a round."""
    return lambda at: hook(at)


def _each(hooks: Sequence[Any], method: str, *args: Any) -> None:
    for hook in hooks:
        getattr(hook, method, lambda *args: None)(*args)


def _check_policy(made: Follmer) -> None:
    """Refuses a policy that cannot be run at many times at once."""
    x = made.density.initial(2)
    times = x.new_tensor([made.diffusion.times[0], made.diffusion.times[-2]])
    try:
        with torch.no_grad():
            made.diffusion.drifts(made.problem.controls, times, x)
    except (RuntimeError, TypeError, ValueError) as error:
        raise InvalidValue(
            "policy(t, x) cannot be run under torch.vmap, for many times at once; write it without float(t), branches "
            f"on values and writes in place (torch.where for a branch): {error}"
        ) from error


def _ends(
    made: Follmer,
    moves: Callable[[Tensor, int], Tensor],
    paths: int,
    keep: int,
    controls: Any,
    k: int,
    ends: Tensor,
) -> Tensor | None:
    """The end points of a round, the newest first; None if no path has a finite weight."""
    fresh = _drawn(made, controls, paths, k)
    return None if fresh is None else _moved(moves, torch.cat([fresh, ends])[: keep * paths], k)


def _drawn(made: Follmer, controls: Any, n: int, k: int) -> Tensor | None:
    """End points drawn by their weights; a path that left the range of floating-point numbers has none."""
    x, log_w = made.paths(controls, n=n, seed=mixed_seed(made.seed, k, 3))
    log_w = log_w.nan_to_num(nan=-math.inf, posinf=-math.inf)
    if log_w.max() == -math.inf:
        return None
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
