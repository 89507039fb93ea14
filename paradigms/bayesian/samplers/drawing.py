"""Figures of samplers: an estimate of the evidence by the number of paths, and draws with how they moved."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mfoc.figures import COLORS, INK, new_axes

_COUNTS = 60


def running_evidence(log_weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Estimates of log Z and their standard errors from the first n paths: n, both at n ``[k]`` each.

    Args:
        log_weights: of the paths ``[N]``; minus infinity where a weight is zero.
    """
    logs = log_weights.detach().double().cpu()
    most = len(logs)
    spaced = torch.logspace(0, math.log10(max(most, 1)), _COUNTS, dtype=torch.float64, device="cpu").round().long()
    counts = torch.unique(spaced.clamp(1, most))
    scaled = (logs - logs.max()).exp()
    first, second = (scaled.pow(k).cumsum(0)[counts - 1] / counts for k in (1, 2))
    spread = ((second - first.square()).clamp_min(0) * counts / (counts - 1)).sqrt()  # NaN of a single path
    return counts, first.log() + logs.max(), spread / first / counts.sqrt()


def draw_evidence(
    log_weights: Tensor, log_z: float, error: float, ess: float, bound: float, bound_error: float, exact: float | None
) -> Any:
    """The log of Z by the number of paths with two standard errors and its lower bound, and the law of the weights.

    Args:
        log_weights: of the paths ``[N]``.
        log_z: the estimate from all of them.
        error: its standard error.
        ess: effective sample size, as a share.
        bound: a lower bound of log Z.
        bound_error: its standard error.
        exact: log Z where it is known.
    """
    figure, (left, right) = new_axes(9.2, 3.8, 2)
    counts, running, errors = running_evidence(log_weights)
    shown = running.isfinite()
    x, y, spread = counts[shown], running[shown], 2 * errors[shown].nan_to_num(0)
    left.fill_between(x, y - spread, y + spread, color=COLORS[0], alpha=0.2, linewidth=0, label="± 2 standard errors")
    left.plot(x, y, color=COLORS[0], linewidth=1.8, label="log Z, the first paths")
    known = math.isfinite(error)
    label = f"all paths: {log_z:.3f} ± {2 * error:.2g}" if known else f"one path: {log_z:.3f}"
    end, bar = {"color": COLORS[0], "marker": "o", "linestyle": ""}, [2 * error if known else 0]
    left.errorbar([len(log_weights)], [log_z], yerr=bar, markersize=6, capsize=4, label=label, **end)
    lower = {"color": COLORS[1], "linewidth": 1.4, "linestyle": "--", "label": f"lower bound −J: {bound:.3f}"}
    if math.isfinite(bound):
        width = 2 * bound_error if math.isfinite(bound_error) else 0.0
        left.axhspan(bound - width, bound + width, color=COLORS[1], alpha=0.2, linewidth=0)
        left.axhline(bound, **lower)
    else:  # a path without weight
        left.plot([], [], **lower)
    if exact is not None:
        left.axhline(exact, color=INK, linewidth=1.2, linestyle=":", label=f"exact: {exact:.3f}")
    if len(log_weights) > 1:
        left.set_xscale("log")
    left.set(xlabel="paths", ylabel="log Z [nats]")
    left.set_title("log of the evidence", fontsize=10, loc="left")
    left.legend(frameon=False, fontsize=8)
    _weights(right, log_weights, log_z, ess)
    return figure


def _weights(axis: Any, log_weights: Tensor, log_z: float, ess: float) -> None:
    """How much the paths differ in weight: all at zero where the control is optimal."""
    found = log_weights.detach().double().cpu() - log_z
    kept = found[found.isfinite()]
    lost = len(found) - len(kept)
    low, high = float(kept.min()), float(kept.max())
    middle, half = (low + high) / 2, max((high - low) / 2, 0.5)
    axis.hist(kept.numpy(), bins=30, range=(middle - half, middle + half), color=COLORS[0], alpha=0.5)
    axis.axvline(0, color=INK, linewidth=1, linestyle=":", label="all of them, were the control optimal")
    axis.set(xlabel="log weight − log Z [nats]", ylabel="paths")
    none = f", {lost} without any" if lost else ""
    axis.set_title(f"weights of the paths: ESS {ess:.1%} of {len(found)}{none}", fontsize=10, loc="left")
    axis.legend(frameon=False, fontsize=8, loc="upper left")
    axis.set_ylim(top=1.2 * axis.get_ylim()[1])  # room for the legend


def draw_draws(x: Tensor, moved: Tensor, axes: tuple[int, int]) -> Any:
    """The draws in two of their coordinates (a histogram where there is one), and the share that moved by step.

    Args:
        x: clouds kept ``[k, n, d]``.
        moved: share of the particles that moved in each step.
        axes: which coordinates.
    """
    figure, (left, right) = new_axes(8.6, 3.8, 2)
    points = x.detach().cpu().double().flatten(0, 1)
    a, b = axes
    if points.shape[1] == 1:
        left.hist(points[:, 0].numpy(), bins=40, color=COLORS[0], alpha=0.5)
        left.set(xlabel="x", ylabel="draws")
    else:
        last = x[-1].detach().cpu().double()
        left.plot(points[:, a], points[:, b], ".", color=COLORS[0], markersize=3, alpha=0.35, label="all draws")
        left.plot(last[:, a], last[:, b], "o", color=COLORS[1], markersize=4, markerfacecolor="none", label="the last")
        left.set(xlabel=f"coordinate {a}", ylabel=f"coordinate {b}")
        left.set_aspect("equal", adjustable="datalim")
        left.legend(frameon=False, fontsize=8)
    left.set_title(f"{len(points)} draws", fontsize=10, loc="left")
    share = 100 * moved.detach().cpu().double()
    right.plot(range(1, len(share) + 1), share, color=COLORS[0], linewidth=1.4, marker="." if len(share) < 50 else "")
    right.axhline(float(share.mean()), color=INK, linewidth=1, linestyle=":", label=f"mean {float(share.mean()):.0f} %")
    right.set(xlabel="step", ylabel="particles that moved [%]", ylim=(-2, 102))
    right.xaxis.get_major_locator().set_params(integer=True)
    right.set_title("moves accepted", fontsize=10, loc="left")
    right.legend(frameon=False, fontsize=8)
    return figure
