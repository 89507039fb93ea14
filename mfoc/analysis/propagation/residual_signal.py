"""What the theory of residual networks says of one input, or of two, at each depth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mfoc.figures import new_axes, style
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
        panels = {"length p of the states": self.p, "gradient, squared, over the last": self.gradient}
        if self.c is not None:
            panels["correlation c of two states"] = self.c
        figure, axes = new_axes(3.4 * len(panels), 3.2, len(panels))
        for axis, (title, values) in zip(axes, panels.items(), strict=True):
            axis.plot(range(len(values)), values.tolist(), linewidth=1.8, **style(0))
            axis.set(xlabel="block", title=title)
            axis.title.set_fontsize(10)
            if values is not self.c:
                axis.set_yscale("log")
        figure.suptitle(f"Residual network, {len(self.q)} blocks", fontsize=10)
        return figure
