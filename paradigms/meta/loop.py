"""The inner loop as the dynamics of a control problem."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

import mfoc
from mfoc import deprecation
from paradigms.meta.objective import Pair, Rule, TaskObjective
from paradigms.meta.stacked import Weights

State = dict[str, Any]


class Settling(Protocol):
    """A jump of the fast weights to an equilibrium."""

    @property
    def steps(self) -> int:
        """How many steps are taken towards it."""

    def __call__(self, fast: Weights, body: Weights, pair: Pair, steps: int | None = None) -> Weights:
        """The settled fast weights; ``steps`` is another number of steps."""


@deprecation.renamed(inner="objective")
@dataclass(frozen=True)
class Loop:
    """Stage 0 lifts the control into fast weights; each later stage is one move of them.

    A state is a dict: "fast", the adapted weights ``[tasks, ...]``; "body", those that are not, where there are any;
    or, when all layers before the first adapted one can be run once and for all, their outputs "support" and "query"
    ``[tasks, shots, ...]``.

    Attributes:
        objective: losses and slopes.
        adapted: names of the weights that are adapted.
        move: ``move(k, fast, slopes, control)`` to the fast weights after inner step k; see ``Rule``. For an
            equilibrium: None.
        settle: the jump to the equilibrium; None for steps.
        toward: the gradient is set to E[phi - phi_K], Reptile's; phi is carried as "start".
        shots_per_step: each step uses the next so many shots of the support, in turn; None: all of them.
    """

    objective: TaskObjective
    adapted: tuple[str, ...]
    move: Rule | None = None
    settle: Settling | None = None
    toward: bool = False
    shots_per_step: int | None = None

    def lift(self, phi: Weights, z: Any) -> State:
        """The state after stage 0."""
        tasks = len(z["support"][0])
        wide = {name: leaf.expand(tasks, *leaf.shape) for name, leaf in phi.items()}
        state: State = {"fast": {name: wide[name] for name in self.adapted}}
        body = {name: leaf for name, leaf in wide.items() if name not in state["fast"]}
        if self.toward:
            return {"fast": {name: leaf.detach() for name, leaf in wide.items()}, "start": wide}
        if self.objective.start:
            for part in ("support", "query"):
                state[part] = self.objective.before(body, z[part][0])
        elif body:
            state["body"] = body
        return state

    def check(self, controls: Any, z: Any) -> None:
        """Refuses tasks that the network or the loss cannot take; see ``TaskObjective.check``."""
        for part in ("support", "query"):
            self.objective.check(controls["phi"], z[part], part)

    def pair(self, x: State, z: Any, part: str) -> Pair:
        """What the layers that are left run on, and the targets."""
        own, y = z[part]
        return x.get(part, own), y

    def step(self, k: int, x: State, u: Any, z: Any) -> State:
        """One inner step, or the jump to the equilibrium."""
        if self.settle is not None:
            return self._settled(x, z)
        assert self.move is not None
        fast, body, support = x["fast"], x.get("body", {}), self.pair(x, z, "support")
        if self.shots_per_step is not None:
            support = self._turn(k, support)
        return {**x, "fast": self.move(k, fast, self.objective.slopes(fast, body, support), u)}

    def _settled(self, x: State, z: Any, steps: int | None = None) -> State:
        assert self.settle is not None
        return {**x, "fast": self.settle(x["fast"], x.get("body", {}), self.pair(x, z, "support"), steps)}

    def _turn(self, k: int, pair: Pair) -> Pair:
        """The shots whose turn it is at step ``k``."""
        assert self.shots_per_step is not None
        x, y = pair
        rows = (torch.arange(self.shots_per_step, device=x.device) + k * self.shots_per_step) % x.shape[1]
        return x[:, rows], y[:, rows]

    def cost(self, x: State, z: Any) -> Tensor:
        """The cost of the last fast weights ``[tasks]``: the loss on the query."""
        value = self.query_loss(x, z)
        if not self.toward:
            return value
        way = {name: (leaf - x["fast"][name]).detach() for name, leaf in x["start"].items()}
        paired = sum((leaf * way[name]).flatten(1).sum(1) for name, leaf in x["start"].items())
        assert isinstance(paired, Tensor)
        return value.detach() + (paired - paired.detach())

    def states(self, controls: Any, z: Any, steps: Sequence[int]) -> Iterator[tuple[int, State]]:
        """The states after these numbers of inner steps, in order."""
        x = self.lift(controls["phi"], z)
        if self.settle is not None:
            for k in sorted(steps):
                yield k, x if k == 0 else self._settled(x, z, k)
            return
        for k in range(max(steps) + 1):
            if k in steps:
                yield k, x
            if k < max(steps):
                x = self.step(k, x, controls, z)

    def query_loss(self, x: State, z: Any) -> Tensor:
        """The loss on the query ``[tasks]``."""
        return self.objective.value(x["fast"], x.get("body", {}), self.pair(x, z, "query"))

    def outputs(self, x: State, z: Any) -> Tensor:
        """The network's outputs on the query ``[tasks, shots, ...]``."""
        return self.objective.outputs(x["fast"], x.get("body", {}), self.pair(x, z, "query")[0])

    def problem(self, controls: Any, stages: int, weights: Sequence[float] | None) -> mfoc.Problem:
        """The control problem of a number of inner stages; ``weights`` are those of the multi-step loss."""
        last = 1.0 if weights is None else weights[-1]

        def dynamics(t: int, x: Any, u: Any, z: Any) -> State:
            return self.lift(u["phi"], z) if t == 0 else self.step(t - 1, x, u, z)

        def terminal_cost(x: Any, z: Any) -> Tensor:
            value = self.cost(x, z)
            return value if last == 1.0 else last * value

        def running_cost(t: int, x: Any, u: Any, z: Any) -> Tensor:
            assert weights is not None
            if t < 2 or weights[t - 2] == 0:  # phi_(t-1), the result of inner step t-1, enters stage t
                like: Tensor = next(iter(u["phi"].values()))
                return like.new_zeros(len(z["support"][0]))
            return weights[t - 2] * self.query_loss(x, z)

        return mfoc.Problem(
            dynamics,
            terminal_cost,
            controls,
            running_cost=None if weights is None or not any(weights[:-1]) else running_cost,
            horizon=stages + 1,
            schedule=mfoc.tied,
        )
