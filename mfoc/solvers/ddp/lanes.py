"""The problems of a batch, on flat states and controls.

A lane is one problem at one state and control: with a control for each particle, a particle (its own problem); with a
control shared by the cloud, the cloud (one problem, on the joint state). Lanes are evaluated together: particles that
do not interact are a larger cloud, clouds are mapped by ``torch.func.vmap``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import vmap

from mfoc import tree
from mfoc.derivatives import without_fast_path
from mfoc.errors import InvalidType, InvalidValue
from mfoc.particles import Particles
from mfoc.problem import Problem
from mfoc.tree import Tree

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Lanes:
    """A batch of B problems.

    Attributes:
        problem: the control problem.
        data: z of the cloud.
        states: T+1 pytrees, one for the shapes of each state.
        controls: the control tree, for its shapes.
        number: N, the particles.
    """

    problem: Problem
    data: Tree
    states: Sequence[Tree]
    controls: Tree
    number: int

    @classmethod
    def of(cls, problem: Problem, controls: Tree, states: Sequence[Tree], particles: Particles) -> Lanes:
        """The batch that a problem is on a cloud.

        Raises:
            InvalidType: a state has a leaf that is not a real floating-point tensor.
        """
        for name, leaf in tree.named_leaves(states[0], "state"):
            if not leaf.is_floating_point():
                raise InvalidType(
                    f"{name} is {leaf.dtype}; DDP differentiates in the whole state, which must be real and floating "
                    "point: move the leaf to the data z, or use Gradient"
                )
        return cls(problem, particles.data, states, controls, len(particles))

    @property
    def joint(self) -> bool:
        """Whether the cloud shares its controls, so that it is one problem on the joint state."""
        return not self.problem.per_particle

    @property
    def size(self) -> int:
        """B, the number of problems."""
        return 1 if self.joint else self.number

    def flat(self, x: Tree) -> Tensor:
        """States of the cloud as rows ``[B, n]``."""
        rows = torch.cat([leaf.reshape(self.number, -1) for leaf in tree.leaves(x)], 1)
        return rows.reshape(1, -1) if self.joint else rows

    def flat_control(self, u: Tree) -> Tensor:
        """A control as rows ``[B, m]``."""
        return torch.cat([leaf.reshape(self.size, -1) for leaf in tree.leaves(u)], 1)

    def state(self, t: int, rows: Tensor) -> Tree:
        """Rows ``[B, n]`` as states of the cloud at stage t."""
        rows = rows.reshape(self.number, -1)
        return _shaped(rows, self.states[t], self.number)

    def control(self, t: int, rows: Tensor) -> Tree:
        """Rows ``[B, m]`` as the control of stage t."""
        like = self.controls[t]
        return (
            tree.rebuild(like, tree.pieces(rows.reshape(-1), tree.leaves(like)))
            if self.joint
            else _shaped(rows, like, self.number)
        )

    def of_lanes(self, index: Tensor) -> Tree:
        """The data of lanes: of their particles, or (joint) of the cloud that all share."""
        if self.joint or self.data is None:
            return self.data
        return tree.map(lambda leaf: leaf[index], self.data)

    def groups(self) -> list[list[int]]:
        """The stages, together where they are the same function of states and controls of the same shapes."""
        found: dict[Hashable, list[int]] = {}
        for t in range(self.problem.stages):
            held = tree.leaves([self.states[t], self.controls[t]])
            kind = t if self.problem.kind is None else (self.problem.kind(t), tuple(leaf.shape for leaf in held))
            found.setdefault(kind, []).append(t)
        return list(found.values())

    def width(self, t: int) -> int:
        """The dimension n of the flat state at stage t."""
        found: int = self.particles * sum(leaf[0].numel() for leaf in tree.leaves(self.states[t]))
        return found

    # ---- values

    def dynamics(self, t: int, x: Tensor, u: Tensor, z: Tree) -> Tensor:
        """x_(t+1) of some lanes ``[L, n']``."""
        return self._each(lambda *lane: self._moved(t, *lane), x, u, z)

    def running_cost(self, t: int, x: Tensor, u: Tensor, z: Tree) -> Tensor:
        """L_t of some lanes ``[L]``; of a cloud, the mean."""
        if self.problem.running_cost is None:
            return x.new_zeros(len(x))
        return self._each(lambda *lane: self._running(t, *lane), x, u, z)

    def terminal_cost(self, x: Tensor, z: Tree) -> Tensor:
        """Phi of some lanes ``[L]``; of a cloud, the mean."""
        return self._each(lambda x, u, z: self._terminal(x, z), x, x[:, :0], z)

    def _each(self, function: Callable[..., Tensor], x: Tensor, u: Tensor, z: Tree) -> Tensor:
        """A function of several lanes: a larger cloud; of clouds, mapped, or one after another where that fails."""
        if not self.joint:
            try:
                return function(x, u, z)
            except RuntimeError as error:
                if len(x) == self.number:
                    raise
                raise InvalidValue(_CUT.format(f"an error ({str(error).splitlines()[0]})", len(x))) from error
        if len(x) > 1:
            try:
                with without_fast_path():
                    mapped: Tensor = vmap(lambda x, u: function(x[None], u[None], z)[0])(x, u)
                return mapped
            except RuntimeError as error:  # control flow that depends on values, an operation without a batching rule
                logger.info("clouds cannot be evaluated in one batch (%s); one by one", str(error).splitlines()[0])
        return torch.cat([function(x[i : i + 1], u[i : i + 1], z) for i in range(len(x))])

    def _moved(self, t: int, x: Tensor, u: Tensor, z: Tree) -> Tensor:
        moved = self.problem.dynamics(t, *self._shaped(t, x, u), z)
        return self._rows(len(x), moved)

    def _running(self, t: int, x: Tensor, u: Tensor, z: Tree) -> Tensor:
        assert self.problem.running_cost is not None
        return self._mean(len(x), self.problem.running_cost(t, *self._shaped(t, x, u), z))

    def _terminal(self, x: Tensor, z: Tree) -> Tensor:
        shaped = _shaped(x.reshape(-1, x.shape[1] // self.particles), self.states[-1], len(x) * self.particles)
        return self._mean(len(x), self.problem.terminal_cost(shaped, z))

    @property
    def particles(self) -> int:
        """How many particles a lane is."""
        return self.number if self.joint else 1

    def _shaped(self, t: int, x: Tensor, u: Tensor) -> tuple[Tree, Tree]:
        n = len(x) * self.particles
        state = _shaped(x.reshape(n, -1), self.states[t], n)
        like = self.controls[t]
        if self.joint:
            return state, tree.rebuild(like, tree.pieces(u[0], tree.leaves(like)))
        return state, _shaped(u, like, n)

    def _rows(self, lanes: int, moved: Tree) -> Tensor:
        n = lanes * self.particles
        found = tree.leaves(moved)
        for leaf in found:
            if leaf.dim() == 0 or len(leaf) != n:
                raise InvalidValue(_CUT.format(f"dynamics returned {tuple(leaf.shape)}", n))
        rows = torch.cat([leaf.reshape(n, -1) for leaf in found], 1) if len(found) > 1 else found[0].reshape(n, -1)
        return rows.reshape(lanes, -1)

    def _mean(self, lanes: int, cost: Tensor) -> Tensor:
        if cost.shape != (lanes * self.particles,):
            raise InvalidValue(_CUT.format(f"a cost has shape {tuple(cost.shape)}", lanes * self.particles))
        return cost.reshape(lanes, -1).mean(1) if self.joint else cost


_CUT = (
    "{} for {} particles; the functions of the problem must work on any part of the cloud: what belongs to a particle "
    "comes in the data z, not from a tensor of all N"
)


def _shaped(rows: Tensor, like: Tree, n: int) -> Tree:
    """Rows ``[n, d]`` as a tree of leaves ``[n, ...]``."""
    held = tree.leaves(like)
    if len(held) == 1:
        return tree.rebuild(like, [rows.reshape(n, *held[0].shape[1:])])
    parts = torch.split(rows, [leaf[0].numel() for leaf in held], 1)
    return tree.rebuild(like, [part.reshape(n, *leaf.shape[1:]) for part, leaf in zip(parts, held, strict=True)])
