"""Optimal paths of an LQ problem: stage by stage, or by doubling in O(log T) batched operations."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mfoc.lq.modes import Mode
from mfoc.lq.riccati import Middle, Span, backward_pass, close, double, flow, span
from mfoc.printing import by_identity


@by_identity
class Course(NamedTuple):
    """An optimal path from each of s starts of each problem, and the P of the start."""

    states: Tensor  # [b, T+1, s, n]
    controls: Tensor  # [b, T, s, m], or T+1 of them in continuous time
    P: Tensor  # [b, n, n]


def stagewise_course(mode: Mode, starts: Tensor, steps: int, step: float | None) -> Course:
    """The optimal paths from ``starts`` ``[b, s, n]``, stage by stage; ``step`` is None in discrete time."""
    solved = backward_pass(mode, steps, step)
    x = starts.mT
    xs, us = [x], []
    for t, gain in enumerate(solved.K):
        us.append(-torch.bmm(gain, x))
        if t < steps:
            x = torch.bmm(solved.moves[t], torch.cat([x, us[t]], 1) if step is None else x)
            xs.append(x)
    return Course(torch.stack(xs, 1).mT, torch.stack(us, 1).mT, solved.P[0])


def stationary_course(mode: Mode, starts: Tensor, steps: int, step: float | None) -> Course | None:
    """The same for a time-invariant problem in O(log T) batched operations instead of T.

    Spans of 1, 2, 4, ... steps are made by doubling. Those that add up to the horizon are closed backwards from the
    terminal weight, which gives the states and costates at their joints; each span is then halved, all together, down
    to single steps. None where joints as large as eps^(-1/4) could cost half of the digits, as when control is nearly
    free: at that bound the error stays below 1e-9 in practice, in double precision.
    """
    parts = flow(mode)
    spans = [span(parts, step)]
    middles: list[Middle] = []
    sizes: list[Tensor] = []
    while 4 << len(middles) <= steps:
        whole, middle, size = double(spans[-1])
        spans.append(whole)
        middles.append(middle)
        sizes.append(size)
    P, closed = mode.QT, []
    for j, part in enumerate(spans):
        for _ in range(steps >> j if j == len(middles) else steps >> j & 1):
            move, before, size = close(part, P)
            closed.append((j, move, P))
            sizes.append(size)
            P = before
    if not float(torch.stack(sizes).amax()) < torch.finfo(starts.dtype).eps ** (-1 / 4):
        return None
    ends: dict[int, list[tuple[Tensor, Tensor]]] = {}
    x = starts
    for j, move, P_end in reversed(closed):
        begin, x = x, torch.bmm(x, move.mT)
        ends.setdefault(j, []).append((begin, torch.bmm(x, P_end)))
    states, costates = _subdivide(spans, middles, ends)
    if step is None:  # a stage answers to the costate of its end, a moment to its own
        states, at = torch.cat([states, x[:, None]], 1), states
    else:
        states = at = torch.cat([states, x[:, None]], 1)
        costates = torch.cat([torch.bmm(starts, P)[:, None], costates], 1)
    controls = _act(costates, -parts.R_inv_Bt.mT)
    return Course(states, controls if mode.cross is None else controls - _act(at, parts.shift.mT), P)


def _act(rows: Tensor, matrix: Tensor) -> Tensor:
    """``rows`` ``[b, c, s, n]`` times ``matrix`` ``[b, n, m]``."""
    return torch.bmm(rows.flatten(1, 2), matrix).reshape(*rows.shape[:3], -1)


def _subdivide(
    spans: list[Span], middles: list[Middle], ends: dict[int, list[tuple[Tensor, Tensor]]]
) -> tuple[Tensor, Tensor]:
    """Halves spans until they are single steps: the state at the start and costate at the end of each ``[b, T, s, n]``.

    ``spans[j]`` lasts 2^j steps and ``middles[j]`` halves one of 2^(j+1); ``ends[j]`` holds pairs ``[b, s, n]`` for
    the spans of 2^j steps in the horizon, which begins with the longest.
    """
    x, p = (torch.stack(part, 1) for part in zip(*ends[len(middles)], strict=True))
    b, _, s, n = x.shape
    x, p = x.flatten(1, 2), p.flatten(1, 2)
    for j in reversed(range(len(middles))):
        x_mid = torch.baddbmm(torch.bmm(x, middles[j].from_start.mT), p, middles[j].from_end.mT, alpha=-1)
        p_mid = torch.baddbmm(torch.bmm(p, spans[j].phi), x_mid, spans[j].theta)
        pairs = (x, x_mid), (p_mid, p)
        x, p = (torch.stack([y.view(b, -1, s, n) for y in pair], 2).view(b, -1, n) for pair in pairs)
        for begin, end in ends.get(j, []):
            x, p = torch.cat([x, begin], 1), torch.cat([p, end], 1)
    return x.view(b, -1, s, n), p.view(b, -1, s, n)
