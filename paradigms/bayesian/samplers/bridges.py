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
import functools
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import mfoc
from mfoc import InvalidType, InvalidValue, tree
from mfoc.checks import check_callable, check_instance, check_integer, kind_of
from mfoc.deprecation import warn
from mfoc.pontryagin import Evaluation
from mfoc.seeding import mixed_seed
from paradigms.bayesian.laws.normal import shape_or_type
from paradigms.bayesian.samplers.diffusion import PathProblem
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
    check_instance(Follmer, "what follmer(...) returns", made=made)
    check_integer(1, particles=particles)
    check_integer(0, seed=seed)
    paths = made.path_problem
    paths.check_bridges()
    expected = f"draws from the target [m, {made.density.dim}]"
    check_instance(Tensor, expected, ends=ends)
    if not ends.numel():
        raise InvalidValue(f"ends is an empty tensor; expected {expected}")
    pool = made.density.check(ends.detach().to(made.density.like).clone())

    def draw(k: int) -> mfoc.Particles:
        return paths.bridges(pool, particles, mixed_seed(seed, k, 2))

    return dataclasses.replace(made, problem=paths.matching, population=mfoc.population(draw))


def _also_sampler_first(cls: type[CrossEntropy]) -> type[CrossEntropy]:
    """Keeps the spelling of version 0.1, ``CrossEntropy(made, inner, ...)``, beside that of today."""
    plain = cls.__init__

    @functools.wraps(plain)
    def init(self: CrossEntropy, *args: Any, **options: Any) -> None:
        if args and isinstance(args[0], Follmer):  # no solver is one, so that nothing else is meant
            options["made"], *args = args  # type: ignore[assignment]
        plain(self, *args, **options)
        if self.made is not None:
            warn("CrossEntropy(made, inner, ...) is now CrossEntropy(inner, ...): the problem knows its sampler")

    cls.__init__ = init  # type: ignore[method-assign]
    return cls


@_also_sampler_first
@dataclass(frozen=True)
class CrossEntropy:
    """Solves a path-integral sampler by bridge matching to its own weighted end points: the cross-entropy method.

    Every so many steps it runs paths with the drift it has, draws end points by their weights, and moves these and
    those drawn before by a Markov chain that leaves the target invariant, so that equal ones part and the cloud spreads
    to where no path went yet. In between, ``inner`` regresses the drift on bridges to them. It covers targets that
    the sampler's own J, which seeks modes, does not: funnels, modes far apart. Kappen & Ruiz (2016), arXiv:1505.01874,
    alg. 1, with bridges in the place of weighted paths.

    Use it as any solver: ``sampler.solve(CrossEntropy(mfoc.Gradient(...)), steps=2000)``, where ``sampler`` is what
    ``follmer`` returned. The value it reports is that of bridge matching on the end points it has.

    Attributes:
        inner: the solver of the regression, such as ``mfoc.Gradient``.
        every: steps between two draws of end points.
        paths: run at each draw.
        particles: points of bridges in a batch of ``inner``.
        keep: draws for which end points stay in use.
        moves: ``moves(x, step)``, end points ``[n, d]`` to as many, the newest first. When None: 24 steps of MALA,
            their sizes in cycles from sigma^2 T down to 1e-4 of it, so that wide and narrow parts both move.
            ``lambda x, step: x`` for none.
        made: deprecated; the sampler, which the problem that is solved now knows.

    Raises:
        InvalidType, InvalidValue: wrong arguments; while solving, another problem than that of ``follmer``, a policy
            that cannot run under ``torch.vmap``, end points that moved to where the density is not finite.
    """

    inner: mfoc.Solver
    every: int = 50
    paths: int = 1024
    particles: int = 2048
    keep: int = 16
    moves: Callable[[Tensor, int], Tensor] | None = None
    made: Follmer | None = field(default=None, kw_only=True, repr=False)

    def __post_init__(self) -> None:
        check_instance(mfoc.Solver, "a solver, such as mfoc.Gradient(...)", inner=self.inner)
        check_integer(1, every=self.every, particles=self.particles, keep=self.keep)
        check_integer(2, paths=self.paths)
        check_callable("a function moves(x, step)", moves=self.moves, optional=True)
        if self.made is not None:
            check_instance(Follmer, "what follmer(...) returns", made=self.made)

    def init(self, problem: mfoc.Problem, controls: Any) -> Any:
        """The inner state, the end points in use ``[m, d]`` and how many steps were made."""
        own = self._own(problem)
        own.check_bridges()
        ends = own.density.like.new_zeros(0, own.density.dim)
        return {"inner": self.inner.init(own.matching, controls), "ends": ends, "steps": 0}

    def step(
        self, problem: mfoc.Problem, controls: Any, state: Any, particles: mfoc.Particles
    ) -> tuple[Any, Any, mfoc.Info]:
        """One step of the regression, on new end points when it is time; see ``mfoc.Solver``.

        Without any end point, as no path had a finite weight yet, the value reported is infinite.
        """
        own, k, ends = self._own(problem), state["steps"], state["ends"]
        if k % self.every == 0:
            ends = torch.cat([self._drawn(own, controls, k), ends])[: self.keep * self.paths]
            if not len(ends):
                lost = tree.leaves(controls)[0].new_tensor(math.inf)
                return controls, state, mfoc.Info(lost, tree.map(torch.zeros_like, controls))
            ends = self._moved(own, ends, k)
        cloud = own.bridges(ends, self.particles, mixed_seed(own.seed, k, 4))
        controls, inner, info = self.inner.step(own.matching, controls, state["inner"], cloud)
        return controls, {"inner": inner, "ends": ends, "steps": k + 1}, info

    def evaluate(self, problem: mfoc.Problem, controls: Any, state: Any, particles: mfoc.Particles) -> Evaluation:
        """The objective of bridge matching and its gradient; that of the sampler before there are end points."""
        own = self._own(problem)
        if not len(state["ends"]):
            return mfoc.evaluate(own, controls, particles)
        cloud = own.bridges(state["ends"], self.particles, mixed_seed(own.seed, state["steps"], 4))
        return mfoc.evaluate(own.matching, controls, cloud)

    def _own(self, problem: mfoc.Problem) -> PathProblem:
        if not isinstance(problem, PathProblem):
            raise InvalidType(
                f"the problem is {kind_of(problem)}; CrossEntropy solves a path-integral sampler: "
                "follmer(...).solve(CrossEntropy(inner), steps=...), not what bridge_matching made of it"
            )
        if self.made is not None and self.made.problem is not problem:
            raise InvalidValue("this is not the sampler's problem; leave the sampler out: CrossEntropy(inner, ...)")
        return problem

    def _drawn(self, problem: PathProblem, controls: Any, k: int) -> Tensor:
        """End points drawn by their weights; a path that left the range of floating-point numbers has none."""
        x, log_w = problem.paths(controls, n=self.paths, seed=mixed_seed(problem.seed, k, 3))
        log_w = log_w.nan_to_num(nan=-math.inf, posinf=-math.inf)
        if log_w.max() == -math.inf:
            logger.warning("step %d: none of %d paths has a finite weight; no end points are drawn", k, self.paths)
            return x[:0]
        return x[systematic(log_w, self.paths, mixed_seed(problem.seed, k, 6))]

    def _moved(self, problem: PathProblem, ends: Tensor, k: int) -> Tensor:
        if self.moves is None:
            sizes = [problem.diffusion.variance * 10 ** (-4 * (t % _SIZES) / (_SIZES - 1)) for t in range(3 * _SIZES)]
            key = mixed_seed(problem.seed, k, 5)
            chain = langevin(problem.density, step=sizes, steps=len(sizes), particles=ends, method="mala", seed=key)
            found = sample(chain, burn_in=len(sizes) - 1).x[-1]
        else:
            found = self.moves(ends, k)
        if shape_or_type(found) != ends.shape:
            raise InvalidValue(
                f"moves returned {shape_or_type(found)} for end points {tuple(ends.shape)}; expected that shape"
            )
        return problem.density.check(found.detach().to(ends))
