"""What an inner loop descends, the loss of each task and its slope, and the rule by which it does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mfoc import InvalidType, InvalidValue
from paradigms.meta.losses import TaskLoss
from paradigms.meta.stacked import StackedNetwork, Weights

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Rule:
    """How a slope moves the fast weights: phi <- phi - alpha * direction(slope, phi).

    Attributes:
        alpha: step ``k`` and the control to the step sizes: a number, or {name: tensor} that broadcasts over tasks.
        direction: slopes, fast weights and the control to the directions {name: ``[tasks, ...]``}; None: the slopes.
    """

    alpha: Callable[[int, Any], Any]
    direction: Callable[[Weights, Weights, Any], Weights] | None = None

    def __call__(self, k: int, phi: Weights, slopes: Weights, control: Any) -> Weights:
        """The fast weights after step ``k``, counted from 0."""
        alpha = self.alpha(k, control)
        ways = slopes if self.direction is None else self.direction(slopes, phi, control)
        if isinstance(alpha, int | float):
            moved = torch._foreach_add(list(phi.values()), [ways[name] for name in phi], alpha=-alpha)
            return dict(zip(phi, moved, strict=True))
        if isinstance(alpha, Tensor):
            return {name: phi[name] - alpha * ways[name] for name in phi}
        return {name: torch.addcmul(phi[name], alpha[name], ways[name], value=-1) for name in phi}


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
        """Refuses tasks that the network or the loss cannot take.

        Args:
            weights: the network's, not stacked.
            pair: inputs and targets.
            name: what to call them.

        Raises:
            InvalidType, InvalidValue: inputs the network does not run on, targets that do not fit its outputs.
        """
        x, y = pair
        if x.is_floating_point() and not bool(x.isfinite().all()):
            raise InvalidValue(f"{name} x holds NaN or infinite values")
        wide = {key: leaf.detach()[None] for key, leaf in weights.items()}
        try:
            with torch.no_grad():
                output = self.network(wide, x[:1])
        except (InvalidType, InvalidValue):
            raise
        except (RuntimeError, IndexError, TypeError, ValueError, AttributeError) as error:
            like = next(iter(weights.values()))
            raise InvalidValue(
                f"net ({like.dtype} on {like.device}) cannot run on the {name} inputs of a task, {tuple(x.shape[1:])} "
                f"({x.dtype} on {x.device}): {error}"
            ) from error
        self.loss.check(output, y, name)

    def outputs(self, fast: Weights, body: Weights, x: Tensor) -> Tensor:
        """Outputs ``[tasks, shots, ...]``."""
        return torch.cat(
            [self.network({**f, **b}, x, start=self.start) for f, b, (x,) in self._parts(fast, body, (x,))]
        )

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
            free = {
                name: leaf if onward and leaf.requires_grad else leaf.detach().requires_grad_()
                for name, leaf in fast.items()
            }
            if not onward:
                body = {name: leaf.detach() for name, leaf in body.items()}
                pair = tuple(leaf.detach() for leaf in pair)
            total = self.loss.total(self.network({**free, **body}, pair[0], start=self.start), pair[1])
            leaves = list(free.values())
            found = torch.autograd.grad(total, leaves, create_graph=onward, allow_unused=True, materialize_grads=True)
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
