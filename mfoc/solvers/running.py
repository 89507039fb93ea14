"""An optimiser at work on controls of its own."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mfoc import tree
from mfoc.bounds import Region
from mfoc.errors import InvalidValue
from mfoc.solving import Info
from mfoc.tree import Tree

_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")  # there is no public way to ask
Evaluate = Callable[[list[Tensor]], tuple[Tensor, list[Tensor]]]
Done = Callable[[Tensor, list[Tensor]], bool]


class Running:
    """A ``torch.optim`` optimiser that moves copies of the controls, step by step, in place.

    Args:
        make: makes the optimiser from a list of tensors.
        controls: where it starts; they are copied.
        state: the memory it starts with, as ``state`` returns it; it is copied.
        region: where the controls may lie. The optimiser is given the projected gradient.
        factor: the learning rate of step k as a multiple of the optimiser's own.

    Attributes:
        controls: where it is: a tree of views of what the optimiser writes into.
        leaves: the same, which require grad,
        free: as a tree.
        shaped: makes a tree like the controls of its leaves.
        taken: how many steps it has made; None while one is written.
    """

    def __init__(
        self,
        make: Callable[[list[Tensor]], torch.optim.Optimizer],
        controls: Tree,
        state: dict[str, Any],
        *,
        region: Region | None = None,
        factor: Callable[[int], float] | None = None,
    ) -> None:
        self._parameters = fresh(controls)
        self.optimizer = make(self._parameters)
        self._rates = [] if factor is None else [group["lr"] for group in self.optimizer.param_groups]
        _restore(self.optimizer, state)
        self._factor, self._region = factor, region
        self._writes, self._steps = state["writes_gradients"], state["steps"]
        self.leaves = [tree.free(p) for p in self._parameters]
        shapes = tree.map(lambda leaf: leaf.detach().new_empty(0), controls)
        self.shaped = functools.partial(tree.rebuild, shapes)
        self.controls = self.shaped([p.detach() for p in self._parameters])
        self.free = self.shaped(self.leaves)
        self._projected: Tree = None  # the gradient of the last evaluation, in bounds
        self.taken: int | None = 0

    def step(self, evaluate: Evaluate, done: Done | None = None) -> tuple[Tensor, list[Tensor]]:
        """One step along a gradient.

        Args:
            evaluate: takes ``leaves`` to the objective and its gradient for each. Optimisers that evaluate several
                times a step call it again, with their own values in the same tensors.
            done: takes objective and gradient; where it says True, no step is made.

        Returns:
            The objective and its gradient before the step, in tensors that no later step writes into.
        """
        value, slopes = self._evaluated(evaluate)
        if self._writes:
            slopes = [slope.clone() for slope in slopes]
        if done is not None and done(value, slopes):
            return value, slopes
        if self._factor is not None:
            for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
                group["lr"] = rate * self._factor(self._steps)
        pending = [value]  # what was just evaluated is the first answer an optimiser gets

        def closure() -> Tensor:
            return pending.pop() if pending else self._again(evaluate)

        taken, self.taken = self.taken, None
        try:
            self.optimizer.step(closure)  # type: ignore[arg-type]
        except InvalidValue:  # CSGD refuses what is not finite; the solve stops there, and says where it came from
            if math.isfinite(value) and math.isfinite(tree.norm(slopes)):
                raise
        self._steps += 1
        self.taken = None if taken is None else taken + 1
        return value, slopes

    def info(self, value: Tensor, slopes: list[Tensor]) -> Info:
        """What the last step saw, of what it returned."""
        gradient = self.shaped(slopes)
        return Info(value, gradient, projected=self._projected)

    def _evaluated(self, evaluate: Evaluate) -> tuple[Tensor, list[Tensor]]:
        torch.clear_autocast_cache()  # which has the leaves as they were
        value, slopes = evaluate(self.leaves)
        followed = slopes
        if self._region is not None:
            self._projected = self._region.stationary(self.controls, self.shaped(slopes))
            followed = tree.leaves(self._projected)
        for parameter, slope in zip(self._parameters, followed, strict=True):
            parameter.grad = slope
        return value, slopes

    def _again(self, evaluate: Evaluate) -> Tensor:
        """What an optimiser that evaluates several times a step is told, at controls of its own choice."""
        if self._region is not None:
            raise InvalidValue(
                f"{type(self.optimizer).__name__} evaluates several times a step, at controls that the bounds may not "
                "admit; use one that evaluates once (SGD, Adam), NewtonCG() within a Box, or EMSA()"
            )
        return self._evaluated(evaluate)[0]

    def state(self) -> dict[str, Any]:
        """The memory: plain values, and tensors that move with it."""
        return {**capture(self.optimizer), "writes_gradients": self._writes, "steps": self._steps}

    @property
    def keeps_memory(self) -> bool:
        """Whether all that the optimiser remembers is in ``state``, as it is of those of torch and of this library.

        Not where it has hooks, or a ``step`` of its own (a scheduler gives it one): they may remember anything.
        """
        optimizer: Any = self.optimizer
        known = type(optimizer).__module__.startswith(("torch.optim.", "mfoc.optim."))
        hooked = any(getattr(optimizer, name) for name in _HOOKS)
        return known and not hooked and "step" not in vars(optimizer)


def fresh(controls: Tree) -> list[Tensor]:
    """Copies of the leaves that an optimiser may write into."""
    return [leaf.detach().clone().requires_grad_() for leaf in tree.leaves(controls)]


def writes_gradients(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimiser writes into .grad (SGD with Nesterov momentum does on a GPU): two steps will show."""
    gradients = []
    for _ in range(2):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.ones_like(parameter)
                gradients.append((parameter.grad, parameter.grad._version))
        optimizer.step(lambda: torch.ones((), device="cpu"))  # type: ignore[arg-type, return-value]
    return any(gradient._version != before for gradient, before in gradients)


def capture(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimiser's memory as plain values: per-parameter state and per-group hyper-parameters."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return {
        "memory": [dict(optimizer.state.get(p, {})) for p in parameters],
        "groups": [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups],
    }


def _restore(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Gives a fresh optimiser a copy of the memory, so that the state it came from is left as it was."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for parameter, memory in zip(parameters, state["memory"], strict=True):
        if memory:
            optimizer.state[parameter] = tree.copy(memory)
    for group, values in zip(optimizer.param_groups, state["groups"], strict=True):
        if unknown := sorted(values.keys() - group.keys()):
            name = type(optimizer).__name__
            raise InvalidValue(f"the state is that of another optimizer: {name} has no {', '.join(unknown)}")
        group.update({key: tree.copy(value) for key, value in values.items()})
