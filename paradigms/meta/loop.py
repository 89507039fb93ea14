"""The inner loop: what it descends, the rule by which it does, and both as the dynamics of a control problem."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import mfoc
from mfoc import InvalidType, InvalidValue, deprecation, tree
from mfoc.checks import check_plain
from mfoc.derivatives import check_twice, gradients, twice_differentiable
from paradigms.meta.losses import TaskLoss
from paradigms.meta.stacked import StackedNetwork, Weights
from paradigms.meta.update_rules import Rule as Rule

State = dict[str, Any]
Pair = tuple[Any, Tensor]  # inputs: a tensor, or a tree of them for a network of several arguments


@dataclass(frozen=True)
class TaskObjective:
    """Losses of stacked weights and their slopes.

    Weights come in two parts: ``fast`` ones, which slopes are taken in, and the others, ``body``.

    Attributes:
        network: the network.
        loss: the loss.
        first_order: slopes are constants for the derivatives taken later.
        start: the first layer of the chain that is run: those before it have been.
    """

    network: StackedNetwork
    loss: TaskLoss
    first_order: bool = False
    start: int = 0

    def before(self, body: Weights, x: Tensor) -> Tensor:
        """Outputs of the layers before ``start`` ``[tasks, shots, ...]``."""
        return torch.cat([self.network(u, x, stop=self.start) for u, _, (x,) in self._parts(body, {}, (x,), True)])

    def check(self, weights: Weights, pair: Pair, name: str) -> None:
        """Refuses tasks that the network, with weights that are not stacked, or the loss cannot take.

        Raises:
            InvalidType, InvalidValue: inputs the network does not run on, targets that do not fit its outputs.
        """
        x, y = pair
        for label, leaf in [*tree.named_leaves(x, f"{name} x"), *tree.named_leaves(y, f"{name} y")]:
            check_plain("tensors [tasks, shots, ...]", **{label: leaf})
        if not all(bool(leaf.isfinite().all()) for leaf in tree.tensors(x)):
            raise InvalidValue(f"{name} x holds NaN or infinite values")
        wide = {key: leaf.detach()[None] for key, leaf in weights.items()}
        try:
            self.network.check(tree.map(lambda leaf: leaf[0], x))
            with torch.no_grad():
                output = self.network(wide, tree.map(lambda leaf: leaf[:1], x))
        except (InvalidType, InvalidValue):
            raise
        except (RuntimeError, IndexError, TypeError, ValueError, AttributeError) as error:
            like = next(iter(weights.values()))
            raise InvalidValue(
                f"net ({like.dtype} on {like.device}) cannot run on the {name} inputs of a task, "
                f"{_described(x)}: {error}"
            ) from error
        self.loss.check(output, y, name)

    def check_twice(self, fast: Weights, body: Weights, pair: Pair, cure: str) -> None:
        """Refuses a loss of the fast weights that cannot be differentiated twice, which its slopes are, by trying it.

        Raises:
            InvalidValue: an operation of the network or the loss has no second derivative.
        """
        with torch.enable_grad(), twice_differentiable():
            free = {name: tree.free(leaf) for name, leaf in fast.items()}
            total = self.loss.total(self.network({**free, **body}, pair[0], start=self.start), pair[1])
        check_twice(total, list(free.values()), "the derivative of an inner step", cure)

    def outputs(self, fast: Weights, body: Weights, x: Tensor) -> Any:
        """Outputs ``[tasks, shots, ...]``, a tree of them where the network returns one."""
        parts = [self.network({**f, **b}, x, start=self.start) for f, b, (x,) in self._parts(fast, body, (x,))]
        return tree.map(lambda *leaves: torch.cat(leaves), *parts)

    def value(self, fast: Weights, body: Weights, pair: Pair) -> Tensor:
        """The loss of each task ``[tasks]``."""
        found = [
            self.loss(self.network({**f, **b}, x, start=self.start), y)
            for f, b, (x, y) in self._parts(fast, body, pair)
        ]
        return found[0] if len(found) == 1 else torch.cat(found)

    def slopes(self, fast: Weights, body: Weights, pair: Pair) -> Weights:
        """The gradient of each task's loss in its own fast weights.

        The losses of all tasks are summed: no task's loss depends on the fast weights of another.
        """
        onward = torch.is_grad_enabled() and not self.first_order
        found = [self._slopes(f, b, part, onward) for f, b, part in self._parts(fast, body, pair)]
        if len(found) == 1:
            return found[0]
        return {name: torch.cat([part[name] for part in found]) for name in fast}

    def _slopes(self, fast: Weights, body: Weights, pair: Any, onward: bool) -> Weights:
        with torch.enable_grad():
            free = {name: leaf if onward and leaf.requires_grad else tree.free(leaf) for name, leaf in fast.items()}
            if not onward:
                body = {name: leaf.detach() for name, leaf in body.items()}
                pair = tree.map(torch.Tensor.detach, pair)
            with twice_differentiable() if onward else nullcontext():  # one derivative has faster attention
                total = self.loss.total(self.network({**free, **body}, pair[0], start=self.start), pair[1])
            leaves = list(free.values())
            found = gradients(total, leaves, create_graph=onward)
        return dict(zip(fast, found, strict=True))

    def _parts(
        self, fast: Weights, body: Weights, tensors: tuple[Tensor, ...], before: bool = False
    ) -> Iterator[tuple[Weights, Weights, tuple[Tensor, ...]]]:
        """All tasks, a part at a time where that is faster."""
        start, stop = (0, self.start) if before else (self.start, None)
        sizes = self.network.chunks({**fast, **body}, tensors[0], start=start, stop=stop)
        if len(sizes) == 1:
            yield fast, body, tensors
            return
        cut = [{name: torch.split(leaf, sizes) for name, leaf in part.items()} for part in (fast, body)]
        for i, some in enumerate(zip(*(torch.split(leaf, sizes) for leaf in tensors), strict=True)):
            yield *({name: pieces[i] for name, pieces in part.items()} for part in cut), some  # type: ignore[misc]


def _described(x: Any) -> str:
    found = [f"{tuple(leaf.shape[1:])} ({leaf.dtype} on {leaf.device})" for leaf in tree.leaves(x)]
    return ", ".join(found)


@deprecation.renamed(inner="objective")
@dataclass(frozen=True)
class Loop:
    """Stage 0 lifts the control into fast weights; each later stage is one move of them.

    A state is a dict: "fast", the adapted weights ``[tasks, ...]``; "body", those that are not, where there are any;
    or, when all layers before the first adapted one can be run once and for all, their outputs "support" and "query"
    ``[tasks, shots, ...]``; "memory", what a rule carries, where it does.

    Attributes:
        objective: losses and slopes.
        adapted: names of the weights that are adapted.
        move: the rule of the inner steps. For an equilibrium: None.
        settle: the jump ``settle(fast, body, support, steps)`` to the equilibrium, in so many steps towards it or in as
            many as it takes by itself when they are None. For steps of a rule: None.
        toward: the gradient is set to E[phi - phi_K], Reptile's; phi is carried as "start".
        shots_per_step: each step uses the next so many shots of the support, in turn; None: all of them.
    """

    objective: TaskObjective
    adapted: tuple[str, ...]
    move: Rule | None = None
    settle: Callable[[Weights, Weights, Pair, int | None], Weights] | None = None
    toward: bool = False
    shots_per_step: int | None = None

    def lift(self, phi: Weights, z: Any, control: Any = None) -> State:
        """The state after stage 0, with what a rule carries on from the control, where the control is given."""
        wide = self.objective.network.stacked(phi, len(z["support"][1]))
        if self.toward:
            return {"fast": {name: leaf.detach() for name, leaf in wide.items()}, "start": wide}
        state: State = {"fast": {name: wide[name] for name in self.adapted}}
        body = {name: leaf for name, leaf in wide.items() if name not in state["fast"]}
        if self.objective.start:
            for part in ("support", "query"):
                state[part] = self.objective.before(body, z[part][0])
        elif body:
            state["body"] = body
        if self.move is not None and control is not None:
            memory = self.move.begin(control, len(z["support"][1]))
            state |= {"memory": memory} if memory else {}
        return state

    def check(self, controls: Any, z: Any) -> None:
        """Refuses tasks that the network or the loss cannot take; see ``TaskObjective.check``."""
        for part in ("support", "query"):
            self.objective.check(controls["phi"], z[part], part)

    def check_twice(self, controls: Any, z: Any) -> None:
        """Refuses a support loss without second derivatives where an inner step is differentiated.

        The first task is asked, once: what the derivative of one step needs, that of all of them does.

        Raises:
            InvalidValue: an operation of the network or the loss has none.
        """
        if self.objective.first_order:
            return
        one = {part: tree.map(lambda leaf: leaf[:1].detach(), tuple(z[part])) for part in ("support", "query")}
        with torch.no_grad():
            x = self.lift(controls["phi"], one)
        steps = "first_order=True does without" if self.settle is None else "use maml(first_order=True)"
        self.objective.check_twice(x["fast"], x.get("body", {}), self.pair(x, one, "support"), steps)

    def pair(self, x: State, z: Any, part: str) -> Pair:
        """What the layers that are left run on, and the targets."""
        own, y = z[part]
        return x.get(part, own), y

    def step(self, k: int, x: State, u: Any, z: Any, steps: int | None = None) -> State:
        """One inner step, or the jump to the equilibrium, in another number of ``steps`` where it is given."""
        fast, body, support = x["fast"], x.get("body", {}), self.pair(x, z, "support")
        if self.settle is not None:
            return {**x, "fast": self.settle(fast, body, support, steps)}
        assert self.move is not None
        if (shots := self.shots_per_step) is not None:  # those whose turn it is
            rows = (torch.arange(shots, device=support[1].device) + k * shots) % support[1].shape[1]
            support = tree.map(lambda leaf: leaf[:, rows], tuple(support))
        slopes = self.objective.slopes(fast, body, support)
        fast, memory = self.move.step(k, fast, slopes, u, x.get("memory", {}))
        return {**x, "fast": fast, **({"memory": memory} if memory else {})}

    def cost(self, x: State, z: Any) -> Tensor:
        """The cost of the last fast weights ``[tasks]``: the loss on the query."""
        value = self.query_loss(x, z)
        if not self.toward:
            return value
        back = {name: (leaf - x["fast"][name]).detach() for name, leaf in x["start"].items()}
        paired = tree.dot(x["start"], back)
        return value.detach() + (paired - paired.detach())

    def states(self, controls: Any, z: Any, steps: Sequence[int]) -> Iterator[tuple[int, State]]:
        """The states after these numbers of inner steps, in order."""
        x = self.lift(controls["phi"], z, controls)
        if self.settle is not None:
            for k in sorted(steps):
                yield k, x if k == 0 else self.step(0, x, controls, z, k)
            return
        for k in range(max(steps) + 1):
            if k in steps:
                yield k, x
            if k < max(steps):
                x = self.step(k, x, controls, z)

    def query_loss(self, x: State, z: Any) -> Tensor:
        """The loss on the query ``[tasks]``."""
        return self.objective.value(x["fast"], x.get("body", {}), self.pair(x, z, "query"))

    def outputs(self, x: State, z: Any) -> Any:
        """The network's outputs on the query ``[tasks, shots, ...]``."""
        return self.objective.outputs(x["fast"], x.get("body", {}), self.pair(x, z, "query")[0])

    def problem(self, controls: Any, stages: int, weights: Sequence[float] | None) -> mfoc.Problem:
        """The control problem of a number of inner stages; ``weights`` are those of the multi-step loss."""
        last = 1.0 if weights is None else weights[-1]

        def dynamics(t: int, x: Any, u: Any, z: Any) -> State:
            return self.lift(u["phi"], z, u) if t == 0 else self.step(t - 1, x, u, z)

        def terminal_cost(x: Any, z: Any) -> Tensor:
            value = self.cost(x, z)
            return value if last == 1.0 else last * value

        def running_cost(t: int, x: Any, u: Any, z: Any) -> Tensor:
            assert weights is not None
            if t < 2 or weights[t - 2] == 0:  # phi_(t-1), the result of inner step t-1, enters stage t
                like: Tensor = next(iter(u["phi"].values()))
                return like.new_zeros(len(z["support"][1]))
            return weights[t - 2] * self.query_loss(x, z)

        return mfoc.Problem(
            dynamics,
            terminal_cost,
            controls,
            running_cost=None if weights is None or not any(weights[:-1]) else running_cost,
            horizon=stages + 1,
            schedule=mfoc.tied,
        )
