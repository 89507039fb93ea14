"""How the drift of the kernel falls with the width of a network."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mfoc.analysis.kernel.doors import check_samples
from mfoc.analysis.kernel.lazy import laziness
from mfoc.checks import check_between, check_callable, check_instance, check_integer, kind_of
from mfoc.errors import InvalidType, InvalidValue
from mfoc.figures import COLORS, new_axes
from mfoc.printing import by_identity, table
from mfoc.seeding import mixed_seed, seeded
from mfoc.statistics import student_t_quantile


@by_identity
@dataclass(frozen=True, eq=False)
class WidthDrift:
    """Kernel drift against width, and the power law through it.

    In NTK parametrisation with independent weights of mean zero a training that moves the outputs by O(1) moves the
    kernel by O(1 / width), relative to itself: a slope of -1 (Huang & Yau 2019, arXiv:1909.08156; Dyer & Gur-Ari 2019,
    arXiv:1909.11304), which is less steep where the drift is not small. Bounds by how far the weights move give -1/2
    (Lee et al. 2019, arXiv:1902.06720).
    In mean-field or muP parametrisation features move at any width: a slope of 0.

    Attributes:
        widths: ``[W]``.
        drifts: ||Theta_T - Theta_0|| / ||Theta_0|| ``[W, seeds]``.
        slope: of log drift against log width, by least squares.
        interval: of the slope.
        confidence: its level.
    """

    widths: tuple[int, ...]
    drifts: Tensor
    slope: float
    interval: tuple[float, float]
    confidence: float

    @property
    def verdict(self) -> str:
        """What follows, in a sentence."""
        low, high = self.interval
        said = f"drift ~ width^{self.slope:.2f} ({100 * self.confidence:.0f} % interval {low:.2f} to {high:.2f})"
        if high < 0:
            return f"lazier with width: {said}; theory: -1 in NTK parametrisation"
        if low > 0:
            return f"richer with width: {said}"
        return f"no trend with width can be told: {said}; theory: 0 in mean-field or muP parametrisation"

    def __str__(self) -> str:
        rows = [[w, f"{float(d.log().mean().exp()):.3g}"] for w, d in zip(self.widths, self.drifts, strict=True)]
        return f"{self.verdict}\n{table(['width', 'drift'], rows)}"

    def plot(self) -> Any:
        """Drift against width and the fitted power law, a ``matplotlib.figure.Figure``."""
        figure, (axis,) = new_axes(6.4, 4.0)
        axis.set(xlabel="width", ylabel="kernel drift  ‖Θ − Θ₀‖ / ‖Θ₀‖")
        for k, column in enumerate(self.drifts.mT.tolist()):
            axis.loglog(self.widths, column, "o", color=COLORS[0], alpha=0.5, label="" if k else "measured, each seed")
        centre = self.drifts.log().mean()
        logs = torch.tensor(self.widths, dtype=torch.float64, device="cpu").log()
        line = (centre + self.slope * (logs - logs.mean())).exp()
        axis.loglog(self.widths, line.tolist(), color=COLORS[1], label=f"$\\mathrm{{width}}^{{{self.slope:.2f}}}$")
        axis.set_xticks(self.widths, [str(width) for width in self.widths])
        axis.set_xticks([], minor=True)  # labels of their own, which would lie over these
        axis.set_title(self.verdict.split(";")[0], fontsize=10)
        axis.legend(frameon=False)
        return figure


def drift_against_width(
    make_net: Callable[[int], nn.Module],
    widths: Sequence[int],
    train: Callable[[nn.Module], Any],
    x: Tensor,
    *,
    seeds: int = 3,
    seed: int = 0,
    confidence: float = 0.95,
    trace: bool = False,
) -> WidthDrift:
    """Trains networks of several widths, and fits how the drift of their kernels falls with width.

    Args:
        make_net: ``make_net(width)``, a fresh network; it draws from the global generators, which are seeded for it and
            put back.
        widths: two or more.
        train: ``train(net)``, which trains it in place, or returns the trained module, its state dict, controls or a
            solution.
        x: samples ``[N, ...]`` of the kernel.
        seeds: networks of each width.
        seed: of their initial weights.
        confidence: level of the interval.
        trace: compare kernels summed over outputs.

    Raises:
        InvalidType, InvalidValue: no such function, fewer than two widths; as ``laziness``; a kernel that does not
            move.
    """
    check_callable("a function of the width that makes a network", make_net=make_net)
    check_callable("a function that trains a network", train=train)
    check_instance(list | tuple, "a list of widths", widths=widths)
    check_samples(x=x)
    check_integer(1, seeds=seeds)
    check_integer(0, seed=seed)
    check_between(0, 1, confidence=confidence)
    for width in widths:
        check_integer(1, width=width)
    if len(set(widths)) < 2:
        raise InvalidValue(f"widths is {list(widths)}; expected two or more that differ")
    if len(widths) * seeds < 3:
        raise InvalidValue("two networks leave no error to judge a slope by; expected three or more: seeds=2")
    drifts = torch.zeros(len(widths), seeds, dtype=torch.float64, device="cpu")
    for i, width in enumerate(widths):
        for k in range(seeds):
            with seeded(mixed_seed(seed, k), x.device):
                net = make_net(width)
                if not isinstance(net, nn.Module):
                    raise InvalidType(f"make_net({width}) returned {kind_of(net)}; expected a torch.nn.Module")
                start = copy.deepcopy(net)
                found = train(net)
            end = net if found is None else found
            drifts[i, k] = laziness(start, [start, end], x, trace=trace).drift[-1]
    if not bool((drifts > 0).all()):
        raise InvalidValue("the kernel did not move in a training; a power law is of drifts above zero: train longer")
    slope, half = _fit(torch.tensor(list(widths), device="cpu").double().log(), drifts.log(), confidence)
    return WidthDrift(tuple(widths), drifts, slope, (slope - half, slope + half), confidence)


def _fit(logs: Tensor, values: Tensor, confidence: float) -> tuple[float, float]:
    """The slope of ``values`` ``[W, seeds]`` against ``logs`` ``[W]``, and half of its Student interval."""
    across = (logs - logs.mean())[:, None].expand_as(values)
    spread = float(across.square().sum())
    slope = float((across * values).sum()) / spread
    rest = values - values.mean() - slope * across
    freedom = values.numel() - 2
    return slope, student_t_quantile(confidence, freedom) * math.sqrt(float(rest.square().sum()) / freedom / spread)
