"""What a solve is made of: solvers, what a step saw, iterates, and the solution."""

from __future__ import annotations

import enum
import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, overload, runtime_checkable

from torch import Tensor

from mfoc import printing, tree
from mfoc.checks import check_instance
from mfoc.drawing.names import names_for
from mfoc.particles import Particles
from mfoc.populations import Population
from mfoc.problem import Controls, HasControls, Problem
from mfoc.tree import Tree


@dataclass(frozen=True, eq=False)
class Info:
    """What a step saw at the controls it started from.

    Attributes:
        value: J on the batch, a scalar tensor.
        gradient: E dH/du, shaped as the controls.
        extra: numbers a solver reports about itself.
        projected: the projected gradient, where controls are bounded; None where all are free.
        violation: norm of the constraints that are not met; zero where there are none.
    """

    value: Tensor
    gradient: Tree
    extra: dict[str, float] = field(default_factory=dict)
    projected: Tree | None = None
    violation: float = 0.0

    @classmethod
    def later(cls, value: Tensor, recover: Callable[[], Tree]) -> Info:
        """What a step saw, whose gradient is made when it is first read, by ``recover()``."""
        made = object.__new__(cls)
        made.__dict__.update(value=value, extra={}, _recover=recover)
        return made

    if not TYPE_CHECKING:  # else every name would be an attribute

        def __getattr__(self, name: str) -> Any:
            """The gradient of what was made by ``later``, which does not have it yet."""
            own = self.__dict__
            if name == "gradient":
                if (recover := own.get("_recover")) is not None:
                    own.setdefault("gradient", recover())  # another thread may have been faster
                    own.pop("_recover", None)
                if name in own:
                    return own[name]
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __getstate__(self) -> dict[str, Any]:
        _ = self.gradient  # a copy or a pickle has it
        return dict(self.__dict__)

    @cached_property
    def residual(self) -> float:
        """||E dH/du||, of the projected gradient where controls are bounded, and the violation of constraints."""
        return math.hypot(*tree.floats(tree.norms(self.slopes)), self.violation)

    @property
    def slopes(self) -> Tree:
        """What the residual is the norm of."""
        return self.gradient if self.projected is None else self.projected

    def __repr__(self) -> str:
        extra = "".join(f", {name} {printing.short(number, digits=4)}" for name, number in self.extra.items())
        return f"Info(J = {float(self.value):.6g}, residual {self.residual:.3g}{extra})"


@runtime_checkable
class Solver(Protocol):
    """What ``solve`` needs of a solver; both methods are pure.

    A solver whose objective is not the problem's own J on the particles given (``Minimax``: the adversary moves them)
    also has ``evaluate(problem, controls, state, particles) -> Evaluation``, by which the solution is judged. One that
    answers the adversary of a game says so by a true attribute ``plays_games``: ``solve`` gives a game to no other; so
    does one that keeps controls within ``Problem.bounds``, by ``respects_bounds``, and one that meets constraints on
    states, by ``meets_constraints`` and a method ``violation(problem, controls, state, particles) -> float``.

    One that can make its steps in place, bit for bit those of ``step``, has ``in_place(problem, controls, state)``,
    which returns an ``InPlace``, or None where it cannot.
    """

    def init(self, problem: Problem, controls: Tree) -> Tree:
        """The state before the first step: a pytree of tensors and plain values."""

    def step(self, problem: Problem, controls: Tree, state: Tree, particles: Particles) -> tuple[Tree, Tree, Info]:
        """One step: new controls, new state, and what was seen at the old controls."""


class InPlace(Protocol):
    """A solver at work on controls and a state of its own, for speed: ``solve`` copies them when they are asked for."""

    @property
    def controls(self) -> Tree:
        """The controls where it is; they move with it."""

    @property
    def taken(self) -> int | None:
        """How many steps it has made; None in the middle of one, which may have failed."""

    def step(
        self, particles: Particles, done: Callable[[Tensor, list[Tensor]], bool] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """One step; J and the leaves of dJ/du before it, in tensors that later steps leave alone.

        Where ``done``, which takes these, says True, no step is made.
        """

    @property
    def shaped(self) -> Callable[[list[Tensor]], Tree]:
        """A function that makes a tree, shaped as the controls, of its leaves; it holds on to no tensor."""

    def copies(self) -> tuple[Tree, Tree]:
        """Controls and state where it is, as ``step`` of the solver would have returned them."""


@dataclass(frozen=True, eq=False)
class Iterate(HasControls[Controls]):
    """Where a solve stands after ``step`` steps.

    Attributes:
        step: steps done.
        controls: the controls after them.
        state: the solver's state after them.
        info: what the last step saw at the controls it started from; None at step 0 and after loading.
        history: the records of ``solve`` up to here, as in ``Solution``; a solve that starts here carries them on.
        origin: what it is an iterate of, in plain values: problem, solver, population, and a fingerprint of the last
            batch. ``solve`` does not go on from it with something else unless asked to. None: not known.
    """

    step: int
    controls: Controls
    state: Tree
    info: Info | None = None
    history: Sequence[dict[str, float]] = field(default=(), repr=False)
    origin: Mapping[str, Any] | None = field(default=None, repr=False)

    @classmethod
    def later(
        cls,
        step: int,
        recover: Callable[[], tuple[Tree, Tree]],
        info: Info | None,
        history: Sequence[dict[str, float]],
        origin: Mapping[str, Any] | None,
    ) -> Iterate:
        """An iterate whose controls and state are made when they are first read, by ``recover()``."""
        made = object.__new__(cls)
        made.__dict__.update(step=step, info=info, history=history, origin=origin, _recover=recover)
        return made

    if not TYPE_CHECKING:  # else every name would be an attribute

        def __getattr__(self, name: str) -> Any:
            """Controls and state of an iterate made by ``later``, which does not have them yet."""
            own = self.__dict__
            if name in ("controls", "state"):
                if (recover := own.get("_recover")) is not None:
                    controls, state = recover()
                    own.setdefault("controls", controls)  # another thread may have been faster
                    own.setdefault("state", state)
                    own.pop("_recover", None)
                if name in own:
                    return own[name]
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def held(self) -> bool:
        """Whether controls and state are its own already."""
        return "_recover" not in self.__dict__

    def __getstate__(self) -> dict[str, Any]:
        _ = self.controls  # a copy or a pickle has them
        return dict(self.__dict__)

    def __repr__(self) -> str:
        seen = "" if self.info is None else f", {self.info}"
        return f"Iterate(step {self.step}, {printing.sizes(self.controls)}{seen})"


class Past(Sequence[dict[str, float]]):
    """The first records of a list that grows: every iterate has its own past, and there is one list.

    Args:
        records: the list.
        count: how many of them.
        settle: a bound method that fills in what is still to be read from the device; called before a record is read.
            Its object is not kept alive: the solve that ends fills in everything.
    """

    def __init__(self, records: list[dict[str, float]], count: int, settle: Callable[[], object] | None = None) -> None:
        self._records, self._count = records, count
        self._settle = None if settle is None else weakref.WeakMethod(settle)

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> dict[str, float]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, float]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, float] | list[dict[str, float]]:
        settle = None if self._settle is None else self._settle()
        if settle is not None:
            settle()
        return (
            self._records[: self._count][index] if isinstance(index, slice) else self._records[range(len(self))[index]]
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (self[:],)


class Status(enum.Enum):
    """Why a solve ended."""

    CONVERGED = "converged"
    MAX_STEPS = "max_steps"
    STOPPED = "stopped"
    INTERRUPTED = "interrupted"
    NONFINITE = "nonfinite"
    DIVERGED = "diverged"


@dataclass(frozen=True, eq=False)
class Solution(HasControls[Controls]):
    """The outcome of a solve.

    Attributes:
        controls: the last good controls.
        value: J at these controls, on the batch of the last step (the whole population when it is not batched), or that
            of the next where one was begun. NaN where the solve was interrupted before J was known.
        residual: ||E dH/du|| there.
        status: why the solve ended. DIVERGED: J rose above its lowest value by a million times its size in the first
            five steps (of a solve of less than ten: in the first): the largest |J|, or ||dJ/du|| (1 + ||u||) where that
            is more. The controls are then those of the lowest value seen.
        history: one record a step, plain numbers: value and residual at the controls the step started from, the
            seconds since the start when it began, and what the solver reports of itself. The final J is ``value``.
            A resumed solve carries on the records, and their clock, of what it started from.
        last: the iterate to resume from, with ``start=``.
        message: the status in words; for NONFINITE, the stage and the step.
        problem: what was solved, and
        population: on what. None in a copy that was pickled: functions and streams of data stay behind.
    """

    controls: Controls
    value: float
    residual: float
    status: Status
    history: list[dict[str, float]]
    last: Iterate[Controls]
    message: str
    problem: Problem[Controls] | None = field(default=None, repr=False)
    population: Population | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "problem": None, "population": None}

    def __repr__(self) -> str:
        return "\n".join(f"{name:9s} {what}" for name, what in self._lines())

    def _repr_html_(self) -> str:
        head, *lines = self._lines()
        return printing.html_table(head, lines)

    @property
    def solver_name(self) -> str:
        """What the solver is called in figures: "EMSA", "Adam" (a ``Gradient`` by its optimiser); empty: not known."""
        solver = (self.last.origin or {}).get("solver")
        if not isinstance(solver, Mapping):
            return ""
        optimizer = solver.get("optimizer")
        of = optimizer if isinstance(optimizer, Mapping) and solver.get("type") == "Gradient" else solver
        return str(of.get("type", ""))

    def plot(self, *others: Solution[Any], names: Sequence[str] = ()) -> Any:
        """A figure of J and of the residual, by step and by second; of other solutions beside it.

        J and the residual are those each step saw, on its batch. By step the line ends with the solution itself.

        Args:
            *others: solutions to compare with.
            names: one for each solution; that of its solver when not given.

        Raises:
            InvalidType: one of the others is no solution, or a name is no string.
            InvalidValue: the number of names is another, or two are alike.
            MissingExtra: matplotlib is not installed.
        """
        from mfoc.drawing.lines import Run, course

        solutions = (self, *others)
        check_instance(Solution, "what mfoc.solve returned", **{f"others[{k}]": one for k, one in enumerate(others)})
        called = names_for(names, [one.solver_name or "solve" for one in solutions])
        return course(
            [
                Run(name, one.history, one.last.step, one.value, one.residual, one.message)
                for name, one in zip(called, solutions, strict=True)
            ]
        )

    def _lines(self) -> list[tuple[str, str]]:
        start = "" if not self.history else f", from {self.history[0]['value']:.6g} at step {self.history[0]['step']}"
        return [
            ("Solution", f"{self.status.value}: {self.message}"),
            ("J", f"{self.value:.6g}{start}"),
            ("residual", f"{self.residual:.3g} (||E dH/du||)"),
            ("steps", f"{self.last.step}"),
            ("controls", printing.sizes(self.controls)),
        ]


Hook = Callable[[Iterate], object]
