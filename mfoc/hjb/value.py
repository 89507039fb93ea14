"""Value functions, V(t, x) and what follows from them: the gradient and the feedback policy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mfoc import tree
from mfoc.checks import check_integer, check_tensor
from mfoc.derivatives import gradients
from mfoc.drawing import fields
from mfoc.errors import InvalidValue
from mfoc.hjb.bellman import Bellman
from mfoc.hjb.paths import ClosedLoop, follow
from mfoc.hjb.splines import Grid
from mfoc.problem import Problem

TERMS = 1 << 21  # numbers of one temporary: stencil points times nodes of the noise times states


@dataclass(frozen=True, eq=False)
class Value(ABC):
    """A value function of a problem, at its stages t = 0 .. T.

    Attributes:
        bellman: the problem as dynamic programming sees it.
    """

    bellman: Bellman

    @abstractmethod
    def evaluate(self, t: int, x: Tensor) -> Tensor:
        """V(t, x) ``[N]``, differentiable in x ``[N, n]``; arguments are not checked."""

    @abstractmethod
    def start(self, t: int, x: Tensor) -> Tensor | None:
        """Controls ``[N, m]`` near which the best may lie, or None."""

    @property
    @abstractmethod
    def dimension(self) -> int:
        """Numbers n of a state."""

    @property
    @abstractmethod
    def like(self) -> Tensor:
        """A tensor of the dtype and on the device of the values."""

    @property
    def problem(self) -> Problem:
        """The control problem."""
        return self.bellman.problem

    def __call__(self, t: int, x: Tensor) -> Tensor:
        """The value ``[N]``: the least expected cost from stage t on, started from states x ``[N, n]``.

        Raises:
            InvalidType, InvalidValue: t is no stage 0 .. T, or x is not ``[N, n]``.
        """
        return self.evaluate(t, self._checked(t, x, self.problem.stages))

    def gradient(self, t: int, x: Tensor) -> Tensor:
        """dV/dx ``[N, n]``: the costate p_t of an optimal path through x, where particles do not interact."""
        with torch.enable_grad():
            free = tree.free(self._checked(t, x, self.problem.stages))
            return gradients(self.evaluate(t, free), [free])[0]

    def policy(self, t: int, x: Tensor) -> Tensor:
        """The optimal feedback u(t, x) ``[N, m]``, minimised anew at each state ``[N, n]``: not from a table.

        It carries no gradient.

        Raises:
            InvalidType, InvalidValue: t is no stage 0 .. T-1, or x is not ``[N, n]``.
        """
        x = self._checked(t, x, self.problem.stages - 1).detach()
        rows = max(1, TERMS // self.width)
        return torch.cat([self._improved(t, part)[0] for part in torch.split(x, rows)])

    def closed_loop(self, x: Tensor, *, seed: int = 0) -> ClosedLoop:
        """The paths of ``policy`` from states x ``[N, n]``, with their controls and costs.

        What any other feedback pays on the problem is ``mfoc.rollout(mfoc.feedback(problem, module), ...)``.

        Args:
            x: initial states.
            seed: of the noise: each path has one of its own.

        Raises:
            InvalidType, InvalidValue: x is not ``[N, n]``.
        """
        check_integer(0, seed=seed)
        return follow(self.bellman, self.policy, self._checked(0, x, 0).detach(), self.bellman.draw(len(x), seed))

    @property
    def width(self) -> int:
        """Numbers behind one evaluation at one state, in the largest temporary."""
        return self.bellman.nodes * int(4**self.dimension)

    def _improved(self, t: int, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.bellman.best(t, x, lambda y: self.evaluate(t + 1, y), self.start(t, x))

    def _checked(self, t: int, x: Any, last: int) -> Tensor:
        check_integer(0, last, t=t)
        check_tensor(f"floating-point states [N, {self.dimension}], N >= 1", x=x)
        if x.dim() != 2 or x.shape[1] != self.dimension or not len(x):
            raise InvalidValue(f"x has shape {tuple(x.shape)}; expected states [N, {self.dimension}], N >= 1")
        if (x.dtype, x.device) != (self.like.dtype, self.like.device):
            raise InvalidValue(
                f"x is {x.dtype} on {x.device} and the value {self.like.dtype} on {self.like.device}: x.to(value.like)"
            )
        checked: Tensor = x
        return checked


@dataclass(frozen=True, eq=False)
class GridValue(Value):
    """A value function on a grid, interpolated by splines. Beyond the grid it goes on linearly.

    Attributes:
        grid: the points.
        values: ``[T+1, n_1, ..., n_d]``.
        controls: the best control of each point ``[T, P, m]``, points as in ``grid.points()``.
        leaving: share of points which the best control takes off the grid in the next stage, averaged over the noise
            ``[T]``: there the value rests on extrapolation.
    """

    grid: Grid
    values: Tensor
    controls: Tensor
    leaving: Tensor

    @property
    def dimension(self) -> int:
        """See ``Value``."""
        return len(self.grid.axes)

    @property
    def like(self) -> Tensor:
        """See ``Value``."""
        return self.values

    def evaluate(self, t: int, x: Tensor) -> Tensor:
        """See ``Value``."""
        return self.grid.evaluate(self.grid.coefficients(self.values[t]), x)

    def start(self, t: int, x: Tensor) -> Tensor:
        """See ``Value``: the best control of the nearest grid point."""
        return self.controls[t][self.grid.nearest(x)]

    def _improved(self, t: int, x: Tensor) -> tuple[Tensor, Tensor]:
        coefficients = self.grid.coefficients(self.values[t + 1])  # made once, not at each evaluation
        return self.bellman.best(t, x, lambda y: self.grid.evaluate(coefficients, y), self.start(t, x))

    def plot(self, t: int = 0) -> Any:
        """A figure of V(t, .): a line in one dimension, beside that of the end; contours in two.

        Raises:
            InvalidValue: there are three dimensions, or t is no stage.
            MissingExtra: matplotlib is not installed.
        """
        check_integer(0, self.problem.stages, t=t)
        if self.dimension > 2:
            raise InvalidValue("the grid has 3 dimensions; expected 1 or 2 (evaluate a slice: value(t, x))")
        title = f"value function, stage {t} of {self.problem.stages}"
        if self.dimension == 1:
            lines = {f"stage {s}": self.values[s] for s in dict.fromkeys((t, self.problem.stages))}
            return fields.value_lines(self.grid.axes[0], lines, title)
        return fields.value_map(self.grid.axes[0], self.grid.axes[1], self.values[t], title, ("$x_1$", "$x_2$"))

    def __repr__(self) -> str:
        most = float(self.leaving.max())
        noise = "" if self.bellman.nodes == 1 else f", noise at {self.bellman.nodes} nodes"
        return f"GridValue({self.problem.stages} stages, {self.grid}, {self.grid.kind}{noise}; {most:.1%} leave it)"


@dataclass(frozen=True, eq=False)
class FittedValue(Value):
    """A value function fitted by a network: V(t, x) = Phi(x) + (1 - t/T) net(t, x), exact at the end.

    Attributes:
        net: ``[N, 1 + n]`` -> ``[N, 1]``, of scaled stage and state.
        centre: of the states that were fitted ``[n]``.
        spread: their standard deviation ``[n]``.
        scale: of the values, a scalar tensor.
        value_error: root mean square error of the values on paths held out, relative to their standard deviation.
        gradient_error: of the gradients, relative to their root mean square.
        converged: share of the starts whose optimal path was found; the others were left out.
    """

    net: nn.Module
    centre: Tensor
    spread: Tensor
    scale: Tensor
    value_error: float = float("nan")
    gradient_error: float = float("nan")
    converged: float = 1.0

    @property
    def dimension(self) -> int:
        """See ``Value``."""
        return len(self.centre)

    @property
    def like(self) -> Tensor:
        """See ``Value``."""
        return self.centre

    @property
    def width(self) -> int:
        """See ``Value``."""
        return self.bellman.nodes * 1024

    def evaluate(self, t: int, x: Tensor) -> Tensor:
        """See ``Value``."""
        return self.bellman.terminal(x) + self.above_terminal(torch.full_like(x[:, :1], t), x)

    def above_terminal(self, t: Tensor, x: Tensor) -> Tensor:
        """V at a stage of its own ``[N, 1]`` for each state ``[N, n]``, less Phi(x): what the network says ``[N]``."""
        share = t / self.problem.stages
        scaled = torch.cat([2 * share - 1, (x - self.centre) / self.spread], 1)
        found: Tensor = self.net(scaled)
        return (1 - share[:, 0]) * self.scale * found[:, 0]

    def start(self, t: int, x: Tensor) -> None:
        """See ``Value``."""
        return

    @torch.no_grad()
    def plot(self, t: int = 0) -> Any:
        """A figure of V(t, .) where it was fitted: contours in two dimensions, else along each coordinate.

        Raises:
            InvalidValue: t is no stage.
            MissingExtra: matplotlib is not installed.
        """
        check_integer(0, self.problem.stages, t=t)
        title = f"fitted value function, stage {t} of {self.problem.stages}"
        if self.dimension != 2:
            return fields.value_slices(self.centre, self.spread, lambda x: self.evaluate(t, x), title)
        steps = torch.linspace(-2.5, 2.5, 61, dtype=self.centre.dtype, device=self.centre.device)
        first, second = (self.centre[k] + steps * self.spread[k] for k in range(2))
        values = self.evaluate(t, torch.cartesian_prod(first, second)).view(len(steps), len(steps))
        return fields.value_map(first, second, values, title, ("$x_1$", "$x_2$"))

    def __repr__(self) -> str:
        return (
            f"FittedValue({self.problem.stages} stages, {self.dimension} states; held-out error of the value "
            f"{self.value_error:.2g}, of its gradient {self.gradient_error:.2g}; {self.converged:.0%} of paths found)"
        )
