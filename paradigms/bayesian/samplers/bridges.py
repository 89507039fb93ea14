"""The other direction of the path-integral sampler: learn its drift from end points, by regression on Brownian bridges.

J of ``follmer`` is, but for log Z, the divergence KL(P_u || P*) of the law of the paths from the optimal one, and its
minimiser among drifts that cannot be exact keeps away from parts of the target it would cover badly. KL(P* || P_u)
punishes what is missed. The optimal law is known given its end: a Brownian motion pinned to X_T with the law of the
target. So

    KL(P* || P_u) = E[ int |u(t, X_t) - (X_T - X_t) / (T - t)|^2 / (2 sigma^2) dt ] + what does not depend on u,

a regression on points of bridges to draws from the target: bridge matching, also the training of diffusion models
(Peluchetti 2021; Liu et al. 2022, arXiv:2208.14699). On the grid it stays exact, a sum over the steps; there both
terms are finite, which in continuous time only their sum is.

``CrossEntropy`` needs no such draws: it takes those it has, the end points of its own paths by their weights (Kappen &
Ruiz 2016, arXiv:1505.01874).
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

import mfoc
from mfoc import InvalidType, InvalidValue
from mfoc.checks import check_integer
from mfoc.pontryagin import Evaluation
from mfoc.seeding import mixed_seed
from paradigms.bayesian.samplers.diffusion import Diffusion
from paradigms.bayesian.samplers.follmer import Follmer, systematic
from paradigms.bayesian.samplers.langevin import langevin
from paradigms.bayesian.samplers.runs import sample

logger = logging.getLogger(__name__)

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
    _check_sampler(made)
    check_integer(1, particles=particles)
    check_integer(0, seed=seed)
    if not isinstance(ends, Tensor) or not ends.numel():
        what = "an empty tensor" if isinstance(ends, Tensor) else f"a {type(ends).__name__}"
        raise InvalidType(f"ends is {what}; expected draws from the target [m, {made.density.dim}]")
    pool = made.density.check(ends.detach().to(made.density.like).clone())

    def draw(k: int) -> mfoc.Particles:
        return _bridges(made.diffusion, pool, particles, mixed_seed(seed, k, 2))

    return dataclasses.replace(made, problem=_matching(made), population=mfoc.population(draw))


@dataclass(frozen=True)
class CrossEntropy:
    """Solves a path-integral sampler by bridge matching to its own weighted end points: the cross-entropy method.

    Every so many steps it runs paths with the drift it has, draws end points by their weights, and moves these and
    those drawn before by a Markov chain that leaves the target invariant, so that equal ones part and the cloud spreads
    to where no path went yet. In between, ``inner`` regresses the drift on bridges to them. It covers targets that
    the sampler's own J, which seeks modes, does not: funnels, modes far apart. Kappen & Ruiz (2016), arXiv:1505.01874,
    alg. 1, with bridges in the place of weighted paths.

    Use it as any solver: ``made.solve(CrossEntropy(made, mfoc.Gradient(...)), steps=2000)``. The value it reports is
    that of bridge matching on the end points it has.

    Attributes:
        made: the sampler, what ``follmer`` returned.
        inner: the solver of the regression, such as ``mfoc.Gradient``.
        every: steps between two draws of end points.
        paths: run at each draw.
        particles: points of bridges in a batch of ``inner``.
        keep: draws for which end points stay in use.
        moves: ``moves(x, step)``, end points ``[n, d]`` to as many, the newest first. When None: 24 steps of MALA,
            their sizes in cycles from sigma^2 T down to 1e-4 of it, so that wide and narrow parts both move.
            ``lambda x, step: x`` for none.

    Raises:
        InvalidType, InvalidValue: wrong arguments, or a policy that cannot run under ``torch.vmap``; while solving, end
            points that moved to where the density is not finite.
    """

    made: Follmer
    inner: mfoc.Solver
    every: int = 50
    paths: int = 1024
    particles: int = 2048
    keep: int = 16
    moves: Callable[[Tensor, int], Tensor] | None = None

    def __post_init__(self) -> None:
        _check_sampler(self.made)
        if isinstance(self.inner, type) or not isinstance(self.inner, mfoc.Solver):
            raise InvalidType(f"inner is {self.inner!r}; expected a solver, such as mfoc.Gradient(...)")
        check_integer(1, every=self.every, particles=self.particles, keep=self.keep)
        check_integer(2, paths=self.paths)
        if self.moves is not None and not callable(self.moves):
            raise InvalidType(f"moves is a {type(self.moves).__name__}; expected a function moves(x, step) or None")

    @cached_property
    def _regression(self) -> mfoc.Problem:
        return _matching(self.made)

    def init(self, problem: mfoc.Problem, controls: Any) -> Any:
        """The inner state, the end points in use ``[m, d]`` and how many steps were made."""
        if problem is not self.made.problem:
            raise InvalidValue("this is not the sampler's problem; solve with made.solve(CrossEntropy(made, ...))")
        ends = self.made.density.like.new_zeros(0, self.made.density.dim)
        return {"inner": self.inner.init(problem, controls), "ends": ends, "steps": 0}

    def step(
        self, problem: mfoc.Problem, controls: Any, state: Any, particles: mfoc.Particles
    ) -> tuple[Any, Any, mfoc.Info]:
        """One step of the regression, on new end points when it is time; see ``mfoc.Solver``.

        Without any end point, as no path had a finite weight yet, the value reported is infinite.
        """
        k, ends = state["steps"], state["ends"]
        if k % self.every == 0:
            ends = torch.cat([self._drawn(controls, k), ends])[: self.keep * self.paths]
            if not len(ends):
                lost = next(iter(controls.values())).new_tensor(math.inf)
                return controls, state, mfoc.Info(lost, [torch.zeros_like(leaf) for leaf in controls.values()])
            ends = self._moved(ends, k)
        cloud = _bridges(self.made.diffusion, ends, self.particles, mixed_seed(self.made.seed, k, 4))
        controls, inner, info = self.inner.step(self._regression, controls, state["inner"], cloud)
        return controls, {"inner": inner, "ends": ends, "steps": k + 1}, info

    def evaluate(self, problem: mfoc.Problem, controls: Any, state: Any, particles: mfoc.Particles) -> Evaluation:
        """The objective of bridge matching and its gradient; that of the sampler before there are end points."""
        if not len(state["ends"]):
            return mfoc.evaluate(problem, controls, particles)
        key = mixed_seed(self.made.seed, state["steps"], 4)
        cloud = _bridges(self.made.diffusion, state["ends"], self.particles, key)
        return mfoc.evaluate(self._regression, controls, cloud)

    def _drawn(self, controls: Any, k: int) -> Tensor:
        """End points drawn by their weights; a path that left the range of floating-point numbers has none."""
        x, log_w = self.made.paths(controls, n=self.paths, seed=mixed_seed(self.made.seed, k, 3))
        log_w = log_w.nan_to_num(nan=-math.inf, posinf=-math.inf)
        if log_w.max() == -math.inf:
            logger.warning("step %d: none of %d paths has a finite weight; no end points are drawn", k, self.paths)
            return x[:0]
        return x[systematic(log_w, self.paths, mixed_seed(self.made.seed, k, 6))]

    def _moved(self, ends: Tensor, k: int) -> Tensor:
        found = _chain(self.made, ends, k) if self.moves is None else self.moves(ends, k)
        if not isinstance(found, Tensor) or found.shape != ends.shape:
            what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise InvalidValue(f"moves returned {what} for end points {tuple(ends.shape)}; expected that shape")
        return self.made.density.check(found.detach().to(ends))


def _matching(made: Follmer) -> mfoc.Problem:
    """The regression on points of bridges, as a problem of one stage."""
    diffusion, T = made.diffusion, made.diffusion.times[-1]

    def mismatch(t: int, x: Tensor, controls: Any, z: Any) -> Tensor:
        wanted = (z["end"] - x) / (T - z["time"])[:, None]
        u = diffusion.drifts(controls, z["time"], x.detach())
        cost: Tensor = z["weight"] * (u - wanted).square().sum(1)
        return cost

    return mfoc.Problem(
        dynamics=lambda t, x, controls, z: x,
        running_cost=mismatch,
        terminal_cost=lambda x, z: x.new_zeros(len(x)),
        controls=made.problem.controls,
        horizon=1,
        schedule=mfoc.tied,
    )


def _bridges(diffusion: Diffusion, pool: Tensor, n: int, seed: int) -> mfoc.Particles:
    """Points of bridges to ends from the pool, spread evenly over the times of the grid."""
    generator, stages = torch.Generator().manual_seed(seed), len(diffusion.lengths)
    times, lengths, T = pool.new_tensor(diffusion.times[:-1]), pool.new_tensor(diffusion.lengths), diffusion.times[-1]
    end = pool[torch.randint(len(pool), (n,), generator=generator).to(pool.device)]
    stage = (torch.arange(n) + torch.randint(stages, (1,), generator=generator)) % stages
    t, h = times[stage.to(pool.device)], lengths[stage.to(pool.device)]
    deviation = diffusion.sigma * (t * (T - t) / T).sqrt()
    x = t[:, None] / T * end + deviation[:, None] * diffusion.normals(n, generator)
    return mfoc.Particles(x, {"end": end, "time": t, "weight": stages * h / (2 * diffusion.sigma**2)})


def _chain(made: Follmer, x: Tensor, k: int) -> Tensor:
    """The default moves: MALA in cycles of step sizes."""
    sizes = [made.diffusion.variance * 10 ** (-4 * (t % _SIZES) / (_SIZES - 1)) for t in range(3 * _SIZES)]
    key = mixed_seed(made.seed, k, 5)
    chain = langevin(made.density, step=sizes, steps=len(sizes), particles=x, method="mala", seed=key)
    return sample(chain, burn_in=len(sizes) - 1).x[-1]


def _check_sampler(made: Any) -> None:
    """Refuses what is no sampler, and a policy that cannot be run at many times at once."""
    if not isinstance(made, Follmer):
        raise InvalidType(f"made is a {type(made).__name__}; expected what follmer(...) returns")
    x, times = made.density.initial(2), made.diffusion.times
    try:
        with torch.no_grad():
            made.diffusion.drifts(made.problem.controls, x.new_tensor([times[0], times[-2]]), x)
    except (RuntimeError, TypeError, ValueError) as error:
        raise InvalidValue(
            "policy(t, x) cannot be run under torch.vmap, for many times at once; write it without float(t), branches "
            f"on values and writes in place (torch.where for a branch): {error}"
        ) from error
