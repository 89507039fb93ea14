"""How the slopes of an inner step move the fast weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mfoc import tree
from mfoc.derivatives import gradients
from paradigms.meta.stacked import Weights


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
        directions = slopes if self.direction is None else self.direction(slopes, phi, control)
        if isinstance(alpha, int | float):
            moved = torch._foreach_add(list(phi.values()), [directions[name] for name in phi], alpha=-alpha)
            return dict(zip(phi, moved, strict=True))
        if isinstance(alpha, Tensor):
            return {name: phi[name] - alpha * directions[name] for name in phi}
        return {name: torch.addcmul(phi[name], alpha[name], directions[name], value=-1) for name in phi}

    def begin(self, control: Any, tasks: int) -> dict[str, Any]:
        """What is carried along with the fast weights, before the first step: nothing."""
        return {}

    def step(
        self, k: int, fast: Weights, slopes: Weights, control: Any, memory: dict[str, Any]
    ) -> tuple[Weights, dict[str, Any]]:
        """The fast weights after step ``k``, and what is carried on."""
        return self(k, fast, slopes, control), {}


@dataclass(frozen=True)
class AdaptedRule(Rule):
    """A rule whose own weights are fast weights, too: they descend the task's loss through the last step.

        W_k = W_(k-1) - alpha d/dW L(phi_k),   phi_k = phi_(k-1) - alpha direction_W(g_(k-1), phi_(k-1)),   W = W_(k-1)
        phi_(k+1) = phi_k - alpha direction_(W_k)(g_k, phi_k),   g_k = grad L(phi_k)

    This is what ``GBML(adapt_transform=True)`` of learn2learn does (Arnold, Iqbal, Sha 2021, "When MAML can adapt fast
    and how to assist when it cannot", arXiv:1910.13603): the derivative is - alpha <d direction/dW, g_k>, so that no
    loss is evaluated for it, and alpha is one number. Slopes g_k are never constants.

    Attributes:
        direction: as in ``Rule``, of a control whose "rule" is stacked ``[tasks, ...]``.
        first_order: the derivatives in W are constants for the derivatives taken later.
    """

    first_order: bool = False

    def begin(self, control: Any, tasks: int) -> dict[str, Any]:
        """The weights W_0 of each task."""
        return {"rule": {name: leaf.expand(tasks, *leaf.shape) for name, leaf in control["rule"].items()}}

    def step(
        self, k: int, fast: Weights, slopes: Weights, control: Any, memory: dict[str, Any]
    ) -> tuple[Weights, dict[str, Any]]:
        """The fast weights after step ``k``; with W_k, the slopes and the weights they were taken at."""
        rule = memory["rule"]
        if "slopes" in memory:
            rule = self._adapted(rule, memory, slopes, self.alpha(k, control))
        moved = self(k, fast, slopes, {**control, "rule": rule})
        return moved, {"rule": rule, "slopes": slopes, "weights": fast}

    def _adapted(self, rule: Weights, memory: dict[str, Any], slopes: Weights, alpha: Any) -> Weights:
        assert self.direction is not None
        before, weights, onward = memory["slopes"], memory["weights"], torch.is_grad_enabled() and not self.first_order
        with torch.enable_grad():
            free = {name: leaf if onward and leaf.requires_grad else tree.free(leaf) for name, leaf in rule.items()}
            if not onward:
                before, weights, slopes = (tree.detached(part) for part in (before, weights, slopes))
            directions = self.direction(before, weights, {"rule": free})
            # The slopes are seeds: they depend on the rule's weights in the graph, and are held for this derivative.
            moved, seeds = [directions[name] for name in slopes], list(slopes.values())
            ascent = gradients(moved, list(free.values()), seeds, create_graph=onward)
        return {name: leaf + alpha**2 * part for (name, leaf), part in zip(rule.items(), ascent, strict=True)}
