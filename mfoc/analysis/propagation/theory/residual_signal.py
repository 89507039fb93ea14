"""What the theory of residual networks says of one input, or of two, at each depth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mfoc.analysis.propagation.theory.signal_drawing import draw_course
from mfoc.printing import by_identity


@by_identity
@dataclass(frozen=True, repr=False, eq=False)
class ResidualSignal:
    """What ``ResidualPropagation.iterate`` found, from the input to the last state; print it, or ``.plot()`` it.

    Attributes:
        p: mean square of the states ``[L + 1]``.
        q: mean square of the pre-activations of each block ``[L]``.
        c: correlation of the states of two inputs ``[L + 1]``; None where it was not asked for.
        gradient: mean square of the loss's gradient in each state over that in the last ``[L + 1]``.
    """

    p: Tensor
    q: Tensor
    c: Tensor | None
    gradient: Tensor

    def __repr__(self) -> str:
        depth = len(self.q)
        told = f"after {depth} block{'s' * (depth != 1)}: p {float(self.p[0]):.4g} -> {float(self.p[-1]):.4g}"
        if self.c is not None:
            told += f", correlation {float(self.c[0]):.4g} -> {float(self.c[-1]):.4g}"
        return f"{told}, gradients {float(self.gradient[0]):.4g} times as large at the input as at the output"

    def plot(self) -> Any:
        """Length, correlation and gradient at each depth: a ``matplotlib`` figure.

        Raises:
            MissingExtra: matplotlib is not installed.
        """
        correlation = "correlation c of two states"
        panels = {"length p of the states": self.p, "gradient, squared, over the last": self.gradient}
        if self.c is not None:
            panels[correlation] = self.c
        blocks = f"{len(self.q)} block{'s' * (len(self.q) != 1)}"
        return draw_course(panels, linear=correlation, x_label="block", title=f"Residual network, {blocks}, by theory")
