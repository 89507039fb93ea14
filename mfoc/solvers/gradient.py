"""Gradient descent on the Hamiltonian: dJ/du_t = E dH_t/du, so any first-order optimiser is a solver."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mfoc import _tree
from mfoc._errors import InvalidType
from mfoc._tree import Tree
from mfoc.pontryagin import value_and_slopes
from mfoc.problem import Particles, Problem
from mfoc.solve import Info

# These treat each number by itself (LBFGS sees one vector anyway), so all controls may lie in one flat tensor: a step
# of the optimiser is then a handful of operations, however many layers there are. Others (Muon, Adafactor) look at
# the shape of a parameter, and are given the leaves.
_ELEMENTWISE = frozenset(
    getattr(torch.optim, name)
    for name in (
        ["Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "ASGD", "LBFGS", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD"]
    )
)  # fmt: skip


@dataclass(frozen=True)
class Gradient:
    """Any ``torch.optim`` optimiser on the controls: one forward and one backward pass a step.

    Back-propagation is the gradient step on H (Liu & Theodorou 2019, arXiv:1908.10920, sec. 3). The optimiser lives
    for one step: its memory is carried as plain tensors in the solver's state, so a step is pure and can be saved.
    Optimisers that evaluate several times a step (LBFGS) do so on the same batch.

    Attributes:
        optimizer: makes the optimiser from a list of tensors: ``functools.partial(torch.optim.SGD, lr=0.1)``.
        recompute: activation checkpointing at stage boundaries: one more forward pass, the memory of one stage.
    """

    optimizer: Callable[[list[Tensor]], torch.optim.Optimizer]
    recompute: bool = False

    def __post_init__(self) -> None:
        if not callable(self.optimizer):
            raise InvalidType(
                f"optimizer is a {type(self.optimizer).__name__}; expected a function of a list of tensors, "
                "such as functools.partial(torch.optim.SGD, lr=0.1)"
            )

    def init(self, problem: Problem, controls: Tree) -> Tree:
        """An optimiser that has seen nothing."""
        leaves = _tree.leaves(controls)
        optimizer = self._make(_parameters(leaves))
        groups = optimizer.param_groups
        flat = type(optimizer) in _ELEMENTWISE and len(groups) == 1 and len(groups[0]["params"]) == len(leaves)
        return _capture(self._make(_parameters([_tree.ravel(leaves)])) if flat else optimizer, flat)

    def step(self, problem: Problem, controls: Tree, state: Tree, particles: Particles) -> tuple[Tree, Tree, Info]:
        """One step of the optimiser; see ``mfoc.Solver``."""
        leaves = _tree.leaves(controls)
        flat = state["flat"]
        parameters = [_tree.ravel(leaves).detach().requires_grad_()] if flat else _parameters(leaves)
        optimizer = self._make(parameters)
        _restore(optimizer, state)
        values = _tree.pieces(parameters[0].detach(), leaves) if flat else [p.detach() for p in parameters]
        free = [value.detach().requires_grad_() for value in values]

        def closure() -> Tensor:
            value, slopes = value_and_slopes(problem, free, controls, particles, recompute=self.recompute)
            for parameter, slope in zip(parameters, [_tree.ravel(slopes)] if flat else slopes, strict=True):
                parameter.grad = slope
            return value

        value = closure()
        # Measured before the step: some optimisers write into .grad (SGD with Nesterov momentum may).
        info = Info(value, _tree.norm([p.grad for p in parameters]))
        optimizer.step(_once(value, closure))  # type: ignore[arg-type]
        return _tree.rebuild(controls, values), _capture(optimizer, flat), info

    def _make(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        optimizer = self.optimizer(parameters)
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise InvalidType(f"optimizer(...) returned a {type(optimizer).__name__}; expected a torch.optim.Optimizer")
        return optimizer


def _parameters(leaves: list[Tensor]) -> list[Tensor]:
    """Copies that an optimiser may write into."""
    return [leaf.detach().clone().requires_grad_() for leaf in leaves]


def _once(value: Tensor, closure: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The closure, with its first evaluation (already made) remembered."""
    pending = [value]
    return lambda: pending.pop() if pending else closure()


def _capture(optimizer: torch.optim.Optimizer, flat: bool) -> dict[str, Any]:
    """The optimiser's memory as plain values: per-parameter state and per-group hyper-parameters."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return {
        "flat": flat,
        "memory": [dict(optimizer.state.get(p, {})) for p in parameters],
        "groups": [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups],
    }


def _restore(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Gives a fresh optimiser a copy of the memory, so that the state it came from is left as it was."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for parameter, memory in zip(parameters, state["memory"], strict=True):
        if memory:
            optimizer.state[parameter] = _tree.copy(memory)
    for group, values in zip(optimizer.param_groups, state["groups"], strict=True):
        group.update(values)
