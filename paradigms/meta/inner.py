"""The inner loop: fast weights that follow the slope of the support loss, all tasks of a batch together."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mfoc import InvalidType, InvalidValue
from paradigms.meta.stacked import StackedNetwork, Weights

Loss = Callable[..., Tensor]
Pair = tuple[Tensor, Tensor]

# Torch losses whose mean is a plain mean over elements, so that all tasks can be evaluated in one call.
_PLAIN: tuple[Any, ...] = (
    F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss, F.soft_margin_loss, F.binary_cross_entropy,
    F.binary_cross_entropy_with_logits, F.cross_entropy, F.nll_loss,
)  # fmt: skip
_MODULES = (
    nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCEWithLogitsLoss, nn.BCELoss, nn.SoftMarginLoss,
    nn.CrossEntropyLoss, nn.NLLLoss,
)  # fmt: skip
_CROSS = (nn.CrossEntropyLoss, nn.NLLLoss)


class TaskLoss:
    """A loss of one task, ``loss(output [shots, ...], target [shots, ...]) -> scalar``, over all tasks: ``[tasks]``.

    Args:
        loss: a function of the outputs and targets of one task; torch losses are evaluated in one call for all tasks,
            others through ``torch.func.vmap``.
    """

    def __init__(self, loss: Loss | nn.Module) -> None:
        if isinstance(loss, type):
            raise InvalidType(f"loss is the class {loss.__name__}; make an instance, {loss.__name__}()")
        if not callable(loss):
            raise InvalidType(f"loss is a {type(loss).__name__}; expected a function loss(output, target) -> scalar")
        reduction = getattr(loss, "reduction", "mean")
        if reduction not in ("mean", "sum"):
            raise InvalidValue(f"loss has reduction={reduction!r}; expected one number a task: 'mean' or 'sum'")
        self._loss, self._sum = loss, reduction == "sum"
        self._each, self._all = _reduced(loss, "none"), _reduced(loss, "sum")

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """Outputs and targets ``[tasks, shots, ...]`` to losses ``[tasks]``."""
        if self._each is None:
            value: Tensor = torch.func.vmap(self._loss)(output, target)
            if value.dim() != 1:
                raise InvalidValue(
                    f"loss returned shape {tuple(value.shape[1:])} for one task; expected a scalar (its mean, say)"
                )
            return value
        each = self._each(output.flatten(0, 1), target.flatten(0, 1))
        if each.numel() > output.numel():
            raise InvalidValue(
                f"loss: outputs {tuple(output.shape[1:])} and targets {tuple(target.shape[1:])} of a task were "
                "broadcast; give the targets the shape of the outputs"
            )
        each = each.reshape(len(output), -1)
        return each.sum(1) if self._sum else each.mean(1)

    def total(self, output: Tensor, target: Tensor) -> Tensor:
        """The sum over tasks: the same number as ``self(output, target).sum()``, in fewer operations."""
        classes = not target.is_floating_point() and target.shape == output.shape[: target.dim()]
        # Class probabilities: the mean is over shots, not over the elements of the target.
        probable = target.is_floating_point() and (self._loss is F.cross_entropy or isinstance(self._loss, _CROSS))
        if self._all is None or probable or not (classes or target.shape == output.shape):
            return self(output, target).sum()
        value: Tensor = self._all(output.flatten(0, 1), target.flatten(0, 1))
        return value if self._sum else value * (len(target) / target.numel())


def _reduced(loss: Any, reduction: str) -> Loss | None:
    """The loss with another reduction, where its own is plain; None otherwise."""
    if isinstance(loss, nn.Module):
        weighted = any(True for _ in loss.buffers()) or getattr(loss, "ignore_index", -100) != -100
        if type(loss) not in _MODULES or weighted:
            return None
        single = copy.deepcopy(loss)
        single.reduction = reduction  # type: ignore[assignment]
        return single
    if loss not in _PLAIN:
        return None
    return lambda output, target: loss(output, target, reduction=reduction)


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
class Inner:
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
            found = torch.autograd.grad(total, leaves, create_graph=onward, allow_unused=True)
        return {
            name: torch.zeros_like(leaf) if slope is None else slope
            for (name, leaf), slope in zip(fast.items(), found, strict=True)
        }

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
