"""Gradient descent on the Hamiltonian: dJ/du_t = E dH_t/du, so any first-order optimiser is a solver."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from mfoc import tree
from mfoc.bounds import Region
from mfoc.checks import check_callable, check_non_negative, check_signature, kind_of
from mfoc.deprecation import renamed
from mfoc.errors import InvalidType, InvalidValue, MfocError
from mfoc.particles import Particles
from mfoc.pontryagin import value_and_slopes
from mfoc.problem import Problem
from mfoc.segments import check_recompute
from mfoc.solving import Info
from mfoc.tree import Tree

Class = TypeVar("Class", bound=type)


def _says_where_settings_go(cls: Class) -> Class:
    """The settings of an optimiser, or none at all, in the place of what makes it: refused with what to write."""
    run, own = cls.__init__, {field.name for field in fields(cls)}  # type: ignore[misc]

    @functools.wraps(run)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        given = args[0] if args else kwargs.get("optimizer")
        unknown = {key: value for key, value in kwargs.items() if key not in own}
        if unknown or given is None:
            what = (
                f"{cls.__name__} takes no {', '.join(unknown)}; settings of the optimizer go with it,"
                if unknown
                else "optimizer is missing; expected what makes one, such as"
            )
            raise InvalidType(f"{what} {_example(given, unknown)}")
        if len(args) > 1 and not isinstance(args[1], bool):
            raise InvalidType(
                f"{cls.__name__} takes recompute as its second argument and was given {args[1]!r}; settings of the "
                f"optimizer go with it, {_example(given, {})}"
            )
        run(self, *args, **kwargs)

    cls.__init__ = init  # type: ignore[misc]
    return cls


def _example(optimizer: Any, settings: dict[str, Any]) -> str:
    """How to write an optimiser with these settings; the parts that are not known are made up."""
    name = optimizer.__name__ if isinstance(optimizer, type) else type(optimizer).__name__
    known = hasattr(torch.optim, name) and name != "Optimizer"
    written = ", ".join(f"{key}={value!r}" for key, value in settings.items()) or "lr=0.1"
    return f"functools.partial(torch.optim.{name if known else 'SGD'}, {written})"


@renamed(schedule="lr_schedule")
@_says_where_settings_go
@dataclass(frozen=True)
class Gradient:
    """Any ``torch.optim`` optimiser on the controls: one forward and one backward pass a step.

    Back-propagation is the gradient step on H (Liu & Theodorou 2019, arXiv:1908.10920, sec. 3). The optimiser lives
    for one step: its memory is carried as plain tensors in the solver's state, so a step is pure and can be saved.
    Optimisers that evaluate several times a step (LBFGS) do so on the same batch.

    Where controls are bounded (``Problem.bounds``) the optimiser is given the projected gradient, and lands on
    admissible controls: it rests where they are stationary, whatever its metric. It solves problems of every class of
    control.

    Attributes:
        optimizer: makes the optimiser from a list of tensors: ``functools.partial(torch.optim.SGD, lr=0.1)``.
        recompute: activation checkpointing, of sqrt(T) stages at a time or of as many as an integer says; see
            ``mfoc.evaluate``.
        lr_schedule: the learning rate of step k as a multiple of the optimiser's own: ``lambda k: 0.99 ** k``.
    """

    optimizer: Callable[[list[Tensor]], torch.optim.Optimizer]
    recompute: bool | int = False
    lr_schedule: Callable[[int], float] | None = None

    respects_bounds: ClassVar[bool] = True

    def __post_init__(self) -> None:
        example = "a function of a list of tensors, such as"
        if isinstance(self.optimizer, torch.optim.Optimizer):
            raise InvalidType(
                f"optimizer is {kind_of(self.optimizer)} of tensors of its own; expected {example} "
                f"{_example(self.optimizer, {})}"
            )
        if isinstance(self.optimizer, str):
            raise InvalidType(f"optimizer is the string {self.optimizer!r}; expected {example} {_example(None, {})}")
        foreign = isinstance(self.optimizer, type) and not issubclass(self.optimizer, torch.optim.Optimizer)
        if foreign or isinstance(self.optimizer, nn.Module):
            what = f"the class {self.optimizer.__name__}" if foreign else kind_of(self.optimizer)
            raise InvalidType(f"optimizer is {what}; expected {example} {_example(None, {})}")
        check_callable(f"{example} {_example(None, {})}", optimizer=self.optimizer)
        if not isinstance(self.optimizer, type):  # a class's own errors say which setting is missing
            check_signature(("tensors",), optimizer=self.optimizer)
        check_recompute(self.recompute)
        check_callable("a function of the step", optional=True, lr_schedule=self.lr_schedule)
        check_signature(("k",), optional=True, lr_schedule=self.lr_schedule)

    def init(self, problem: Problem, controls: Tree) -> Tree:
        """An optimiser that has seen nothing."""
        optimizer = self._make(_parameters(controls))
        if any(group.get("line_search_fn") for group in optimizer.param_groups):
            problem.check_potential("a line search")
        writes = _writes_gradients(self._make(_parameters(controls)))
        return {**_capture(optimizer), "writes_gradients": writes, "steps": 0}

    def step(self, problem: Problem, controls: Tree, state: Tree, particles: Particles) -> tuple[Tree, Tree, Info]:
        """One step of the optimiser; see ``mfoc.Solver``."""

        def evaluate(leaves: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
            return value_and_slopes(problem, leaves, controls, particles, recompute=self.recompute)

        return self.follow(evaluate, controls, state, problem.region)

    def follow(
        self,
        evaluate: Callable[[list[Tensor]], tuple[Tensor, list[Tensor]]],
        controls: Tree,
        state: Tree,
        region: Region | None = None,
    ) -> tuple[Tree, Tree, Info]:
        """``step`` along a gradient from anywhere.

        ``evaluate`` takes the leaves of the controls, which require grad, to the objective and its gradient for each;
        ``region`` is where the controls may lie.
        """
        parameters = _parameters(controls)
        optimizer = self._make(parameters)
        rates = [group["lr"] for group in optimizer.param_groups] if self.lr_schedule is not None else []
        _restore(optimizer, state)
        for group, rate in zip(optimizer.param_groups, rates, strict=False):
            group["lr"] = rate * self._factor(state["steps"])
        free = [p.detach().requires_grad_() for p in parameters]  # views: they follow what the optimiser writes

        rebuilt = functools.partial(tree.rebuild, controls)

        def closure() -> tuple[Tensor, list[Tensor]]:
            value, slopes = evaluate(free)
            followed = slopes if region is None else tree.leaves(region.stationary(controls, rebuilt(slopes)))
            for parameter, slope in zip(parameters, followed, strict=True):
                parameter.grad = slope
            return value, slopes

        def again() -> Tensor:
            """What an optimiser that evaluates several times a step is told, at controls of its own choice."""
            if region is not None:
                raise InvalidValue(
                    f"{type(optimizer).__name__} evaluates several times a step, at controls that the bounds may not "
                    "admit; use one that evaluates once (SGD, Adam), NewtonCG() within a Box, or EMSA()"
                )
            return closure()[0]

        value, slopes = closure()
        writes = state["writes_gradients"]
        gradient = rebuilt([slope.clone() for slope in slopes] if writes else slopes)
        projected = None if region is None else region.stationary(controls, gradient)
        info = Info(value, gradient, projected=projected)
        pending = [value]  # what was just evaluated is the first answer an optimiser gets
        try:
            optimizer.step(lambda: pending.pop() if pending else again())  # type: ignore[arg-type, return-value]
        except InvalidValue:  # CSGD refuses what is not finite; the solve stops there, and says where it came from
            if math.isfinite(value) and math.isfinite(info.residual):
                raise
        moved = rebuilt([p.detach() for p in parameters])
        moved = moved if region is None else region.land(controls, moved, gradient)
        after = {**_capture(optimizer), "writes_gradients": writes, "steps": state["steps"] + 1}
        return moved, after, info

    def _factor(self, step: int) -> float:
        assert self.lr_schedule is not None
        factor = self.lr_schedule(step)
        returned: dict[str, Any] = {f"lr_schedule({step})": factor}
        check_non_negative(**returned)
        return factor

    def _make(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        try:
            optimizer = self.optimizer(parameters)
        except MfocError:
            raise
        except (TypeError, ValueError) as error:  # a setting it does not know, or refuses
            kind = InvalidType if isinstance(error, TypeError) else InvalidValue
            raise kind(f"optimizer(...) failed: {error}; expected such as {_example(None, {})}") from error
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise InvalidType(f"optimizer(...) returned {kind_of(optimizer)}; expected a torch.optim.Optimizer")
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if not held <= {id(parameter) for parameter in parameters}:
            raise InvalidValue("optimizer(...) holds tensors of its own; it must hold those it is called with")
        return optimizer


def _parameters(controls: Tree) -> list[Tensor]:
    """Copies that an optimiser may write into."""
    return [leaf.detach().clone().requires_grad_() for leaf in tree.leaves(controls)]


def _writes_gradients(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimiser writes into .grad (SGD with Nesterov momentum does on a GPU): two steps will show."""
    gradients = []
    for _ in range(2):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.ones_like(parameter)
                gradients.append((parameter.grad, parameter.grad._version))
        optimizer.step(lambda: torch.ones(()))  # type: ignore[arg-type, return-value]
    return any(gradient._version != before for gradient, before in gradients)


def _capture(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
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
        group.update(values)
