"""The method of Dormand and Prince with steps as long as a tolerance allows."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mfoc import tree
from mfoc.checks import check_integer, check_non_negative, check_positive
from mfoc.errors import InvalidValue
from mfoc.schemes.runge_kutta import Drift, advanced
from mfoc.tree import Tree

logger = logging.getLogger(__name__)

# Dormand & Prince (1980), J. Comput. Appl. Math. 6(1):19-26, table 2. The last row is that of the fifth order.
_NODES = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_TABLEAU: tuple[tuple[float, ...], ...] = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)  # fifth order less fourth

# Hairer, Norsett, Wanner (1993), Solving Ordinary Differential Equations I, sec. II.4, eq. (4.13)
_SAFETY, _LEAST, _MOST = 0.9, 0.2, 10.0


@dataclass(frozen=True)
class dopri5:
    """Dormand-Prince 5(4): within each stage, steps as long as ``atol + rtol |x|`` allows; the control is held.

    A step is accepted where the error estimate of every particle (root mean square over its entries, in units of that
    tolerance) is at most one. What is differentiated are the accepted steps, with their lengths held constant: the
    gradient is that of the discretised problem to rounding, not that of an adjoint equation integrated backwards.
    J jumps by errors of the size of the tolerance where the number of steps changes.

    All particles take the same steps, since the drift has one time: each is as exact as was asked for in any batch,
    but its value moves within the tolerance with the others. ``mfoc.interacting`` finds that; so on minibatches say
    ``continuous(..., interacting="batch")``, and for values that do not depend on the batch at all take ``rk4``.
    Where the tolerance cannot be met the state becomes NaN, with a warning in the log that says why.

    Attributes:
        rtol: relative tolerance of a step.
        atol: absolute tolerance of a step, in units of the state.
        max_steps: most steps tried in a stage.
    """

    rtol: float = 1e-6
    atol: float = 1e-8
    max_steps: int = 200

    def __post_init__(self) -> None:
        check_non_negative(rtol=self.rtol)
        check_positive(atol=self.atol)
        check_integer(1, max_steps=self.max_steps)

    def __call__(self, drift: Drift, s: float, x: Tree, u: Tree, z: Tree, h: float) -> Tree:
        """The state at time s + h, NaN where the tolerance cannot be met; see ``mfoc.schemes``.

        Raises:
            InvalidValue: ``rtol`` is below the resolution of the state's dtype.
        """
        self._check_resolution(x)
        # The whole stage is tried first: it is often one step, and a rejected one costs little more than a first guess.
        done, step, tried = 0.0, h, 0  # times since s, so that nothing is lost where s is large
        first = drift(s, x, u, z)
        while True:
            last = step >= (h - done) * (1 - 4 * sys.float_info.epsilon)
            step = h - done if last else step
            y, slopes = _step(drift, s + done, x, u, z, step, first)
            ratio = self._error(x, y, slopes, step)
            tried += 1
            if ratio <= 1 and last:
                return y
            if not math.isfinite(ratio) and not _finite([x, first]):
                return y  # the state was lost before: whoever runs the problem says where
            if ratio <= 1:
                x, first, done = y, slopes[-1], done + step
            step *= _factor(ratio)
            if tried >= self.max_steps or s + done + step == s + done:
                return self._lost(y, s + done, step, tried)

    def _check_resolution(self, x: Tree) -> None:
        # The error estimate does not see rounding: in bfloat16 ever shorter steps would be accepted and add to nothing.
        for leaf in tree.leaves(x):
            if tree.differentiable(leaf) and 0 < self.rtol < torch.finfo(leaf.dtype).eps:
                raise InvalidValue(
                    f"rtol is {self.rtol} and the state has dtype {leaf.dtype}, which resolves "
                    f"{torch.finfo(leaf.dtype).eps:.1g}; allow a larger rtol, take a wider dtype, or a scheme of fixed "
                    "steps, such as rk4"
                )

    def _lost(self, x: Tree, time: float, step: float, tried: int) -> Tree:
        # No error: a line search that probes so far off has to come back, and a solve that gets here ends with a status
        # and its last good iterate, as it does where a scheme of fixed steps blows up.
        why = f"{tried} steps were not enough" if tried >= self.max_steps else f"steps of {step:.3g} are too long"
        logger.warning(
            "dopri5 cannot meet rtol=%g, atol=%g from time %.6g on: %s. The state explodes, or the drift is stiff or "
            "jumps; allow a larger tolerance or max_steps, or take a scheme of fixed steps, such as rk4",
            self.rtol, self.atol, time, why,
        )  # fmt: skip
        return tree.map(lambda leaf: leaf * math.nan if tree.differentiable(leaf) else leaf, x)

    @torch.no_grad()
    def _error(self, x: Tree, y: Tree, slopes: Sequence[Tree], h: float) -> float:
        """The largest error of a particle in units of the tolerance; NaN or infinite where the step has blown up."""
        zero = tree.map(lambda leaf: torch.zeros_like(leaf) if tree.differentiable(leaf) else leaf, x)
        gaps = advanced(zero, h, *((c, k) for c, k in zip(_ERROR, slopes, strict=True) if c))
        squares, count = None, 0
        for gap, a, b in _rows(gaps, x, y):
            square = (gap / (self.atol + self.rtol * torch.maximum(a.abs(), b.abs()))).abs().square().sum(1)
            squares, count = (square if squares is None else squares + square), count + gap.shape[1]
        return 0.0 if squares is None or not squares.numel() else math.sqrt(float(squares.max()) / max(count, 1))


def _step(drift: Drift, s: float, x: Tree, u: Tree, z: Tree, h: float, first: Tree) -> tuple[Tree, list[Tree]]:
    """One step from x, whose slope is ``first``: where it leads, and the seven slopes; the last is that at the end."""
    slopes, y = [first], x
    for node, row in zip(_NODES[1:], _TABLEAU, strict=True):
        y = advanced(x, h, *((c, k) for c, k in zip(row, slopes, strict=True) if c))
        slopes.append(drift(s + node * h, y, u, z))
    return y, slopes


def _factor(ratio: float) -> float:
    """By what the length of a step is multiplied after an error of ``ratio`` tolerances."""
    if not math.isfinite(ratio):
        return _LEAST
    factor = _MOST if ratio == 0 else min(_MOST, _SAFETY * ratio**-0.2)
    return max(factor, _LEAST) if ratio > 1 else max(factor, 1.0)


def _rows(*trees: Tree) -> Iterator[tuple[Tensor, ...]]:
    """The floating-point leaves of several trees beside one another, each ``[N, n]``."""
    for row in zip(*map(tree.leaves, trees), strict=True):
        if tree.differentiable(row[0]):
            yield tuple(leaf.unsqueeze(-1).flatten(1) for leaf in row)


def _finite(trees: Any) -> bool:
    return all(bool(leaf.isfinite().all()) for leaf in tree.tensors(trees))
