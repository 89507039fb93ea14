"""Gradient descent on the Hamiltonian: dJ/du_t = E dH_t/du, so any first-order optimiser is a solver."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from mfoc import tree
from mfoc.bounds import Region
from mfoc.checks import check_callable, check_non_negative, check_signature, kind_of
from mfoc.deprecation import renamed
from mfoc.errors import InvalidType, InvalidValue, MfocError
from mfoc.identity import Plain, described
from mfoc.particles import Particles
from mfoc.pontryagin import value_and_slopes
from mfoc.problem import Problem
from mfoc.segments import check_recompute
from mfoc.solvers.running import Done, Evaluate, Running, capture, fresh, writes_gradients
from mfoc.solving import Info, InPlace
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

    Over ranks a step is that of one process to rounding. Two things make rounding visible: ``torch.optim.LBFGS`` on
    minibatches, whose differences of gradients are of different batches and whose line search compares values that are
    nearly equal, and optimisers that divide a slope by its size (Adam) where it is zero but for rounding, as that of a
    bias before a batch norm is. The ranks agree with one another to the bit all the same. (Line searches of adaptive
    ``EMSA`` magnify it too, along directions in which H is flat.)

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

    def settings(self, problem: Problem) -> dict[str, Plain]:
        """What a run is known by: the optimiser and its hyper-parameters, however it is made."""
        optimizer = self._make(fresh(problem.controls))
        made = {"type": type(optimizer).__qualname__, "groups": described(capture(optimizer)["groups"])}
        rest = {field.name: described(getattr(self, field.name)) for field in fields(self)}
        return {"type": type(self).__qualname__, **rest, "optimizer": made}

    def changed(self, state: Tree, fresh: Tree, before: Mapping[str, Plain]) -> Tree:
        """The memory of a run with the hyper-parameters that were changed since.

        Args:
            state: the memory.
            fresh: that of an optimiser that has seen nothing.
            before: the ``settings`` that the run was made with.
        """
        old = before.get("optimizer", {}).get("groups", [])
        for group, now, then in zip(state["groups"], fresh["groups"], old, strict=False):
            group.update({key: one for key, one in now.items() if key not in then or described(one) != then[key]})
        return state

    def init(self, problem: Problem, controls: Tree) -> Tree:
        """An optimiser that has seen nothing."""
        optimizer = self._make(fresh(controls))
        if any(group.get("line_search_fn") for group in optimizer.param_groups):
            problem.check_potential("a line search")
        writes = writes_gradients(self._make(fresh(controls)))
        return {**capture(optimizer), "writes_gradients": writes, "steps": 0}

    def step(self, problem: Problem, controls: Tree, state: Tree, particles: Particles) -> tuple[Tree, Tree, Info]:
        """One step of the optimiser; see ``mfoc.Solver``."""
        running = self._running(controls, state, problem.region)
        return _landed(running, self._evaluation(problem, running, particles), controls, problem.region)

    def in_place(self, problem: Problem, controls: Tree, state: Tree) -> InPlace | None:
        """``step`` after ``step`` of one optimiser, whose bits are those of an optimiser a step; see ``mfoc.Solver``.

        None where controls are bounded, and where the optimiser may remember more than its state says.
        """
        if problem.region is not None:
            return None
        running = self._running(controls, state, None)
        if not running.keeps_memory:
            return None
        return _InPlace(running, functools.partial(self._evaluation, problem, running))

    def follow(
        self, evaluate: Evaluate, controls: Tree, state: Tree, region: Region | None = None
    ) -> tuple[Tree, Tree, Info]:
        """``step`` along a gradient from anywhere.

        ``evaluate`` takes the leaves of the controls, which require grad, to the objective and its gradient for each;
        ``region`` is where the controls may lie.
        """
        return _landed(self._running(controls, state, region), evaluate, controls, region)

    def _running(self, controls: Tree, state: Tree, region: Region | None) -> Running:
        factor = None if self.lr_schedule is None else self._factor
        return Running(self._make, controls, state, region=region, factor=factor)

    def _evaluation(self, problem: Problem, running: Running, particles: Particles) -> Evaluate:
        return lambda leaves: value_and_slopes(problem, running.free, leaves, particles, recompute=self.recompute)

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
        for group in optimizer.param_groups:  # a learning rate that is a tensor may be written into, and is the user's
            group.update({key: tree.copy(value) for key, value in group.items() if isinstance(value, Tensor)})
        return optimizer


def _landed(running: Running, evaluate: Evaluate, controls: Tree, region: Region | None) -> tuple[Tree, Tree, Info]:
    """One step of an optimiser that is not used again; admissible controls, where they are bounded."""
    info = running.info(*running.step(evaluate))
    moved = running.controls
    return moved if region is None else region.land(controls, moved, info.gradient), running.state(), info


class _InPlace:
    """One optimiser at work on a problem; see ``mfoc.solving.InPlace``."""

    def __init__(self, running: Running, evaluation: Callable[[Particles], Evaluate]) -> None:
        self._running, self._evaluation = running, evaluation

    @property
    def taken(self) -> int | None:
        return self._running.taken

    @property
    def controls(self) -> Tree:
        return self._running.controls

    def step(self, particles: Particles, done: Done | None = None) -> tuple[Tensor, list[Tensor]]:
        return self._running.step(self._evaluation(particles), done)

    @property
    def shaped(self) -> Callable[[list[Tensor]], Tree]:
        return self._running.shaped

    def copies(self) -> tuple[Tree, Tree]:
        return tree.copy(self._running.controls), tree.copy(self._running.state())
