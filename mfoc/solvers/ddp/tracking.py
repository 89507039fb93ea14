"""The feedback around a solution of DDP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mfoc import printing, tree
from mfoc.checks import check_integer
from mfoc.errors import InvalidType, InvalidValue
from mfoc.problem import Problem
from mfoc.solving import Iterate, Solution
from mfoc.tree import Tree


@dataclass(frozen=True, eq=False)
class Tracking:
    """The feedback u_t(x) = u_t + K_t (x - x_t) around the trajectories x_t of a solution, within its box.

    Attributes:
        problem: the control problem.
        controls: u_t, of each stage.
        states: x_t, likewise.
        gains: K_t ``[B, m, n]``, on flat states and controls.
    """

    problem: Problem
    controls: Sequence[Tree]
    states: Sequence[Tree]
    gains: Sequence[Tensor]

    def __repr__(self) -> str:
        return f"Tracking({len(self.gains)} stages, {printing.sizes(self.controls)})"

    @torch.no_grad()
    def policy(self, t: int, x: Tree) -> Tree:
        """The control at stage t for the states of the same particles in the same order; it carries no gradient.

        Args:
            t: the stage, 0 .. T-1.
            x: the cloud's states, shaped as those of the solution.

        Raises:
            InvalidType, InvalidValue: t is no stage, or x has another structure or shape.
        """
        check_integer(0, len(self.gains) - 1, t=t)
        here, at, held = tree.leaves(x), tree.leaves(self.states[t]), tree.leaves(self.controls[t])
        if [leaf.shape for leaf in here] != [leaf.shape for leaf in at]:
            raise InvalidValue(
                f"x is {tree.describe(x)}; expected the states of the particles that were solved for, "
                f"{tree.describe(self.states[t])}"
            )
        n, K = len(at[0]), self.gains[t]
        moved = torch.cat([(a - b).reshape(n, -1) for a, b in zip(here, at, strict=True)], 1).reshape(len(K), -1, 1)
        rows = torch.cat([leaf.reshape(len(K), -1) for leaf in held], 1) + (K @ moved)[:, :, 0]
        if self.problem.region is not None:
            low, high = self.problem.limits(t)
            rows = torch.minimum(torch.maximum(rows, low), high)
        parts = torch.split(rows, [leaf.numel() // len(K) for leaf in held], 1)
        return tree.rebuild(
            self.controls[t], [part.reshape(leaf.shape) for part, leaf in zip(parts, held, strict=True)]
        )


def tracking(problem: Problem, solution: Solution[Any] | Iterate[Any]) -> Tracking:
    """The feedback that DDP found along with its controls.

    The gains are those of the last iteration that moved a problem: at a converged solution, of the solution. Under a
    bound that is active they are zero in the controls that it holds.

    Args:
        problem: what was solved.
        solution: of ``mfoc.solve`` by ``mfoc.DDP``, or an iterate of it.

    Raises:
        InvalidType, InvalidValue: another solver's, or none with a step behind it.
    """
    last = solution.last if isinstance(solution, Solution) else solution
    state = last.state if isinstance(last, Iterate) else None
    if not isinstance(state, dict) or "gains" not in state:
        raise InvalidType("solution does not come from mfoc.DDP(), which finds the gains of a feedback")
    if state["gains"] is None:
        raise InvalidValue("no step has been done: there are no gains yet")
    return Tracking(problem, list(solution.controls), list(state["states"][:-1]), list(state["gains"]))
