"""Passes through a game's problem that serve both players.

All of them differentiate the sum of costs: slopes in the state are then those of each particle, p_s(i) = N dJ/dx_s(i),
whatever the size of the batch, and those in the controls are N dJ/du.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mfoc import tree
from mfoc.derivatives import gradients
from mfoc.games.game import Game, undisturbed, with_target
from mfoc.particles import Particles
from mfoc.pontryagin import pull_back
from mfoc.printing import by_identity
from mfoc.tree import Tree


@by_identity
class Pass(NamedTuple):
    """One pass: what of its graph the backward passes start from and end at."""

    target: Tensor  # the part of the state that is disturbed, before it is
    point: Tensor  # the same after it is
    entry: Tree  # the whole state that enters the disturbed stage
    moved: Tree  # the state that leaves it
    cost: list[Tensor]  # the running cost of the disturbed stage [N], if it has one
    total: Tensor  # the cost [N] (NaN when the pass is that of the disturbed stage alone)


class Passes:
    """Passes at fixed controls, one for each disturbance tried; ``descend`` if gradients in the controls are wanted."""

    def __init__(self, game: Game, controls: Tree, particles: Particles, *, descend: bool) -> None:
        self.game, self.controls, self.particles = game, controls, particles
        self.state, self.data = particles.state, undisturbed(particles.data)
        with torch.no_grad():
            staged = [game.schedule(controls, t) for t in range(game.stages)]
        self.staged = [tree.detached(u, requires_grad=descend) for u in staged]
        self.descend = descend

    def weights(self, stages: Sequence[int]) -> list[Tensor]:
        """The leaves of the controls of some stages."""
        return [leaf for t in stages for leaf in tree.tensors(self.staged[t])]

    @torch.enable_grad()
    def forward(self, eta: Tensor) -> Pass:
        """A whole pass with a disturbance."""
        game, s = self.game, self.game.stage
        x, before = self._through(range(s), self.state)
        run = self._disturbed(game.target(x), x, eta)
        x, after = self._through(range(s + 1, game.stages), run.moved)
        costs = [*before, *run.cost, *after]
        return run._replace(total=sum(costs, game.terminal_cost(x, self.data)))

    def _through(self, stages: range, x: Tree) -> tuple[Tree, list[Tensor]]:
        """The state that leaves some stages, and their running costs."""
        costs = []
        for t in stages:
            if self.game.running_cost is not None:
                costs.append(self.game.running_cost(t, x, self.staged[t], self.data))
            x = self.game.dynamics(t, x, self.staged[t], self.data)
        return x, costs

    @torch.enable_grad()
    def local(self, run: Pass, eta: Tensor) -> Pass:
        """The disturbed stage alone, with another disturbance."""
        return self._disturbed(run.target, tree.detached(run.entry), eta)

    def _disturbed(self, target: Tensor, x: Tree, eta: Tensor) -> Pass:
        game, s = self.game, self.game.stage
        point = game.ball.enter(target, eta)
        if not point.requires_grad:
            point = tree.free(point)
        entry = with_target(game.part, x, point)
        moved, cost = self._through(range(s, s + 1), entry)
        return Pass(target.detach(), point, entry, moved, cost, point.new_full((len(point),), torch.nan))

    def hamiltonian_slopes(self, run: Pass, costate: list[Tensor], inputs: list[Tensor], *, keep: bool) -> list[Tensor]:
        """The gradient of sum_i H_s with a frozen costate: p_(s+1) for each leaf of the state that leaves stage s."""
        seeds = [*costate, *(torch.ones_like(cost) for cost in run.cost)]
        return gradients([*tree.tensors(run.moved), *run.cost], inputs, seeds, retain_graph=keep)

    def gradient(self, by_leaf: list[Tensor]) -> Tree:
        """The gradient of J in the controls, from those of the sum of costs in the weights of all stages."""
        stream = iter([slope / len(self.particles) for slope in by_leaf])
        by_stage = [tree.rebuild(u, [next(stream) for _ in tree.leaves(u)]) for u in self.staged]
        return pull_back(self.game, self.controls, by_stage)
