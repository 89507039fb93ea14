"""One stage of dynamic programming, for many states at once, each with a control of its own.

    V_t(x) = min_u  E [ L_t(x, u, z) + V_(t+1)(f_t(x, u, z)) ]

The functions of a problem are written for one control and a cloud of states. Here each state is a cloud of one with a
control of its own (``torch.vmap``), so that they are called as they are written. The noise is standard normals, over
which the expectation is a Gauss-Hermite rule.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mfoc import tree
from mfoc.checks import check_instance, check_tensor
from mfoc.derivatives import without_fast_path
from mfoc.errors import InvalidType, InvalidValue, MfocError
from mfoc.games import Game
from mfoc.heads import WithHead
from mfoc.hjb.newton import lattice, minimise_from
from mfoc.interacting import coupling
from mfoc.particles import Particles
from mfoc.printing import by_identity
from mfoc.problem import Problem, per_stage
from mfoc.schemes import brownian
from mfoc.tree import Tree
from mfoc.validation import check_cost

Data = Tree | Callable[[Tensor], Tree]  # z for one particle [1, ...], or a function of normals [1, stages, k]
After = Callable[[Tensor], Tensor]  # V_(t+1): states [P, n] -> values [P]


@by_identity
@dataclass(frozen=True, eq=False)
class Bellman:
    """A problem as dynamic programming sees it.

    Attributes:
        problem: the control problem; each stage has one tensor ``[m]`` as its control.
        data: z of one particle ``[1, ...]``, a function of standard normals ``[1, stages, k]`` that makes it, or None.
        normals: nodes of the rule for the noise of a stage ``[Q, k]``; None where there is no noise.
        weights: of the nodes ``[Q]``; None where there is no noise.
        candidates: controls ``[C, m]`` that are tried before Newton's method, beside those of the problem; None for
            a few within the bounds or around the problem's own.
    """

    problem: Problem
    data: Data = None
    normals: Tensor | None = None
    weights: Tensor | None = None
    candidates: Tensor | None = None

    @property
    def nodes(self) -> int:
        """How many values of the noise a stage is averaged over."""
        return 1 if self.normals is None else len(self.normals)

    def control(self, t: int) -> Tensor:
        """The problem's own control at a stage ``[m]``; the first particle's, where each has its own."""
        u: Tensor = self.problem.schedule(self.problem.controls, t).detach()
        return (u[0] if self.problem.per_particle else u).reshape(-1)

    def bounds(self, t: int) -> tuple[Tensor, Tensor]:
        """The least and largest controls of a stage ``[m]``; infinite where there is none.

        Raises:
            InvalidValue: the bounds are no box, or not known stage by stage.
        """
        own = self.control(t)
        if self.problem.bounds is None:
            return torch.full_like(own, -torch.inf), torch.full_like(own, torch.inf)
        low, high = self.problem.limits(t)
        return (low[0], high[0]) if self.problem.per_particle else (low, high)

    def tried(self, t: int) -> Tensor:
        """The controls that are tried at a stage ``[C, m]``."""
        own, (low, high) = self.control(t), self.bounds(t)
        if self.candidates is not None:
            return torch.cat([self.candidates.to(own), own[None]])
        return torch.cat([lattice(own, low, high), own[None]])

    def step(self, t: int, x: Tensor, u: Tensor, normals: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Next states ``[P, n]`` and running costs ``[P]`` of states ``[P, n]``, each with its control ``[P, m]``.

        Args:
            t: the stage.
            x: states.
            u: controls.
            normals: the noise of this stage ``[P, k]``; None where there is none.
        """
        shape = self.problem.schedule(self.problem.controls, t).shape
        shape = torch.Size((1, *shape[1:])) if self.problem.per_particle else shape

        def one(x: Tensor, u: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
            z = self._data(w if normals is not None else None)
            state, control = x[None], u.reshape(shape)
            moved = self.problem.dynamics(t, state, control, z)
            cost = state.new_zeros(1) if self.problem.running_cost is None else None
            if cost is None:
                cost = self.problem.running_cost(t, state, control, z)  # type: ignore[misc]
                check_cost(cost, 1, f"stage {t}: running_cost")
            return moved[0], cost[0]

        with without_fast_path():
            found: tuple[Tensor, Tensor] = torch.vmap(one)(x, u, x if normals is None else normals)
        return found

    def terminal(self, x: Tensor) -> Tensor:
        """Terminal costs ``[P]``."""
        z = self._data(None if self.normals is None else torch.zeros_like(self.normals[0]))
        cost = torch.vmap(lambda x: self.problem.terminal_cost(x[None], z)[0])(x)
        check_cost(cost, len(x), "terminal_cost")
        return cost

    def value(self, t: int, x: Tensor, u: Tensor, after: After) -> Tensor:
        """E [L_t + V_(t+1)] ``[P]``: what a control costs at a stage, and optimal ones thereafter."""
        return self.expectation(t, x, u, lambda moved, cost: cost + after(moved))

    def expectation(self, t: int, x: Tensor, u: Tensor, of: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """The mean over the noise ``[P]`` of a function of next states and running costs."""
        if self.normals is None or self.weights is None:
            return of(*self.step(t, x, u))
        nodes = len(self.normals)
        repeated = self.normals.repeat(len(x), 1)
        found = of(*self.step(t, x.repeat_interleave(nodes, 0), u.repeat_interleave(nodes, 0), repeated))
        return found.view(-1, nodes) @ self.weights

    def best(self, t: int, x: Tensor, after: After, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The best controls ``[P, m]`` found at a stage, and what they cost ``[P]``.

        The cheapest of the controls tried, and of ``start`` ``[P, m]``, is where Newton's method begins.
        """
        low, high = self.bounds(t)
        tried = [u.expand(len(x), -1) for u in self.tried(t)]
        tried += [] if start is None else [start]
        with torch.no_grad():
            point, value = minimise_from(lambda rows, u: self.value(t, x[rows], u, after), tried, low, high)
        if not bool(value.isfinite().all()):
            worst = x[(~value.isfinite()).nonzero()[0, 0]].tolist()
            raise InvalidValue(
                f"stage {t}: the least cost from the state {worst} is not finite: the dynamics or a cost is not, or no "
                "control is best (the cost falls without end in u). Expected finite functions on the grid and around it"
            )
        return point, value

    def draw(self, n: int, seed: int) -> Tensor | None:
        """The noise of n paths ``[n, T, k]``; None where there is none."""
        if self.normals is None:
            return None
        return brownian(n, self.problem.stages, self.normals.shape[1], seed=seed, like=self.normals)

    def cloud(self, state: Tensor) -> Particles:
        """States ``[N, n]`` with data for each, one value of the noise for all."""
        if self.normals is not None:
            w = self.normals[0].expand(len(state), self.problem.stages, -1)
            return Particles(state, self.data(w) if callable(self.data) else {"noise": w})
        if self.data is None:
            return Particles(state)
        return Particles(state, tree.map(lambda leaf: leaf.expand(len(state), *leaf.shape[1:]), self.data))

    def _data(self, normals: Tensor | None) -> Tree:
        if normals is None:
            return self.data
        w = normals.expand(1, self.problem.stages, -1)
        return self.data(w) if callable(self.data) else {"noise": w}


def bellman(
    problem: Problem, state: Tensor, data: Data, noise_dim: int | None, nodes: int, candidates: Tensor | None
) -> Bellman:
    """The problem as dynamic programming sees it; refuses what it cannot solve.

    Args:
        problem: the control problem.
        state: a few states ``[P, n]`` that the problem is tried on.
        data: see ``Bellman``.
        noise_dim: k, the normals of a stage; None for one for each state variable.
        nodes: nodes of the rule in each of them.
        candidates: see ``Bellman``.

    Raises:
        InvalidType, InvalidValue: the problem does not fit.
    """
    check_controls(problem)
    noisy = problem.noise is not None or callable(data)
    if problem.noise is not None and data is not None and not callable(data):
        raise InvalidValue(
            "z holds data and the problem has noise, over which the value function is an expectation; expected a "
            "function of standard normals w [1, stages, k]: z=lambda w: {'noise': w, ...}"
        )
    made = Bellman(problem, data)
    made = replace(made, candidates=_checked_candidates(candidates, len(made.control(0))))
    if noisy:
        normals, weights = _rule(nodes, state.shape[1] if noise_dim is None else noise_dim, state)
        made = replace(made, normals=normals, weights=weights)
    elif data is not None:
        Particles(state[:1], data)
    _try(made, state, noise_dim)
    _check_interaction(made, state)
    return made


def check_controls(problem: Problem) -> None:
    """Refuses what is no problem whose stages each have one tensor ``[m]`` as their control."""
    check_instance(Problem, "mfoc.Problem", problem=problem)
    if isinstance(problem, Game):
        raise InvalidType(
            "problem is a Game; its value is a minimax, which mfoc.hjb does not solve; pass the problem it was made of"
        )
    if isinstance(problem, WithHead):
        raise InvalidType(
            "problem has a head, whose control all particles share, and dynamic programming finds one for each state; "
            "pass the problem it was made of, with a terminal cost in which the head is fixed"
        )
    problem.check_potential("dynamic programming")
    if problem.terminal is not None or problem.path is not None:
        raise InvalidValue(
            "the problem has constraints at the end or along the path, which mfoc.hjb does not meet: write them as "
            "costs (a barrier or a penalty), or use mfoc.AugmentedLagrangian for open-loop controls"
        )
    for t in range(problem.stages):
        u = problem.schedule(problem.controls, t)
        if not isinstance(u, Tensor) or u.dim() > 1 + problem.per_particle:
            raise InvalidType(
                f"the control of stage {t} is {tree.describe(u)}; a feedback chooses one tensor [m] for each state"
            )


def _checked_candidates(candidates: Tensor | None, m: int) -> Tensor | None:
    if candidates is None:
        return None
    check_tensor(f"finite controls [C, {m}], a tensor or None", floating=False, candidates=candidates)
    if candidates.dim() != 2 or candidates.shape[1] != m:
        raise InvalidValue(f"candidates has shape {tuple(candidates.shape)}; expected finite controls [C, {m}]")
    return candidates


def _rule(nodes: int, k: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Tensor products of Gauss-Hermite rules: normals ``[nodes^k, k]`` and their weights."""
    places, weights = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(nodes))
    normals = torch.cartesian_prod(*[places] * k).reshape(-1, k)
    products = torch.cartesian_prod(*[weights / weights.sum()] * k).reshape(-1, k).prod(1)
    return normals.to(like), products.to(like)


def interacts(found: Bellman, state: Tensor) -> bool:
    """Whether the particles of the problem interact, as seen on four of these states."""
    four = state[torch.linspace(0, len(state) - 1, 4, device="cpu").long()]
    controls = [found.problem.schedule(found.problem.controls, t) for t in range(found.problem.stages)]
    if found.problem.per_particle:
        controls = [u[:1].expand(4, *u.shape[1:]) for u in controls]
    staged = replace(found.problem, controls=controls, schedule=per_stage, horizon=None, bounds=None)
    return bool(coupling(staged, found.cloud(four)))


def _check_interaction(found: Bellman, state: Tensor) -> None:
    if interacts(found, state):
        raise InvalidValue(
            "the particles interact: the value depends on the law of the population, not on (t, x) alone. A feedback "
            "value function on states does not exist; use mfoc.solve, or mfoc.lq for linear-quadratic problems"
        )


def _try(found: Bellman, state: Tensor, noise_dim: int | None) -> None:
    few = state[:2]
    for t in {0, found.problem.stages - 1}:
        u = found.control(t).expand(len(few), -1)
        try:
            with torch.no_grad():
                moved, _ = found.step(
                    t, few, u, None if found.normals is None else found.normals[:1].expand(len(few), -1)
                )
                found.terminal(moved)
        except (RuntimeError, ValueError, TypeError, LookupError) as error:
            hint = "" if noise_dim or found.normals is None else "; noise_dim= is that of the Brownian motion"
            if isinstance(error, MfocError) and not hint:
                raise
            raise InvalidValue(
                f"stage {t} cannot be computed for one state at a time, a control for each (torch.vmap): {error}{hint}"
            ) from error
        if moved.shape != few.shape:
            raise InvalidValue(
                f"stage {t}: x_next has {tuple(moved.shape[1:])} numbers a particle, the state {tuple(few.shape[1:])}"
            )
