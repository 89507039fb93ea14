"""Derivatives of a batch of problems along its trajectories, all stages of all problems in one evaluation.

Lanes are independent, so that one backward pass gives one row of a derivative for each lane. A lane is put there once
for each row: a single pass over a larger batch then gives all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mfoc import tree
from mfoc.derivatives import check_twice, gradients, twice_differentiable
from mfoc.solvers.ddp.lanes import Lanes

_CHUNK = 2**14  # copies of lanes in one pass: what they leave behind stays in the cache
_ROWS = 12  # components of a state up to which all second derivatives of the dynamics are taken at once

Function = Callable[[Tensor, Tensor], Tensor]  # of (x, u) [L, n + m] and the number of each lane's problem [L]


@dataclass(frozen=True, eq=False)
class Slopes:
    """First derivatives, and the values they are taken at.

    Attributes:
        widths: n of each stage.
        moved: f_t ``[B, n']`` of each stage.
        jacobian: d f_t / d(x, u) ``[B, n', n + m]`` of each stage.
        gradient: d L_t / d(x, u) ``[B, n + m]`` of each stage.
        terminal: d Phi / dx ``[B, n]``.
        cost: sum_t L_t + Phi ``[B]``.
    """

    widths: list[int]
    moved: list[Tensor]
    jacobian: list[Tensor]
    gradient: list[Tensor]
    terminal: Tensor
    cost: Tensor

    def of(self, some: Tensor) -> Slopes:
        """Those of some of the problems."""
        moved, jacobian, gradient = (
            [leaf[some] for leaf in each] for each in (self.moved, self.jacobian, self.gradient)
        )
        return Slopes(self.widths, moved, jacobian, gradient, self.terminal[some], self.cost[some])


@dataclass(frozen=True, eq=False)
class Curvatures:
    """Second derivatives.

    Attributes:
        cost: of L_t in (x, u) ``[B, n + m, n + m]`` of each stage.
        terminal: of Phi ``[B, n, n]``.
        dynamics: ``dynamics(t, v)`` is the second derivative of <v, f_t> in (x, u), zero for problems whose model does
            without; None where all do.
    """

    cost: list[Tensor]
    terminal: Tensor
    dynamics: Callable[[int, Tensor], Tensor] | None

    def convex(self, some: Tensor | None = None) -> Curvatures:
        """The convex part of the costs' alone, of some of the problems."""
        cost, last = self.cost, self.terminal
        if some is not None:
            cost, last = [each[some] for each in cost], last[some]
        together: dict[torch.Size, list[int]] = {}
        for t, each in enumerate(cost):
            together.setdefault(each.shape, []).append(t)
        found = _empty(len(cost))
        for group in together.values():
            whole = _convex(torch.cat([cost[t] for t in group]))
            for t, part in zip(group, whole.chunk(len(group)), strict=True):
                found[t] = part
        return Curvatures(found, _convex(last), None)

    def mixed(self, exact: Tensor) -> Curvatures:
        """Of all problems: these where ``exact`` ``[B]``, else the convex part of the costs'."""
        if exact.all():
            return self
        rough = (~exact).nonzero()[:, 0]
        part = self.convex(rough)
        cost = [old.index_copy(0, rough, new) for old, new in zip(self.cost, part.cost, strict=True)]
        return Curvatures(cost, self.terminal.index_copy(0, rough, part.terminal), self.dynamics)


def slopes(lanes: Lanes, xs: list[Tensor], us: list[Tensor]) -> Slopes:
    """First derivatives at states ``[B, n]`` and controls ``[B, m]`` of each stage, for all problems."""
    everyone = torch.arange(lanes.size, device=xs[0].device)
    stages, total = lanes.problem.stages, xs[0].new_zeros(lanes.size)
    moved, jacobian, gradient = _empty(stages), _empty(stages), _empty(stages)
    for group in lanes.groups():
        f, running = _joined(lanes, group[0])
        y, index = _gathered(xs, us, group, everyone)
        values, jacobians = _first(f, y, index, xs[group[0] + 1].shape[1])
        costs, rows = _first(running, y, index, 1)
        for i, t in enumerate(group):
            at = slice(i * lanes.size, (i + 1) * lanes.size)
            moved[t], jacobian[t], gradient[t] = values[at], jacobians[at], rows[at, 0]
        total = total + costs.reshape(len(group), -1).sum(0)
    last, terminal = _first(_terminal(lanes), xs[-1], everyone, 1)
    return Slopes([x.shape[1] for x in xs[:-1]], moved, jacobian, gradient, terminal[:, 0], total + last[:, 0])


def check_curved(lanes: Lanes, xs: list[Tensor], us: list[Tensor], *, exact: bool) -> None:
    """Refuses costs, and with ``exact`` dynamics, without second derivatives: the first problem is asked.

    Those of the dynamics are taken near the optimum alone, so that a solve would fail at its end.

    Raises:
        InvalidValue: an operation has none.
    """
    first = torch.zeros(1, dtype=torch.long, device=xs[0].device)
    asked: list[tuple[Function, Tensor]] = [(_terminal(lanes), xs[-1][first])]
    dynamics = []
    for group in lanes.groups():
        f, running = _joined(lanes, group[0])
        y = _gathered(xs, us, group[:1], first)[0]
        asked.append((running, y))
        dynamics.append((f, y))
    _check_curved(asked, "DDP, of the costs,", "use Gradient, EMSA or MSA", first)
    if exact:
        _check_curved(dynamics, "DDP, of the dynamics,", "DDP(second_order=False) does without", first)


def _check_curved(asked: list[tuple[Function, Tensor]], what: str, cure: str, index: Tensor) -> None:
    for function, y in asked:
        with torch.enable_grad(), twice_differentiable():
            free = tree.free(y)
            out = function(free, index)
        check_twice(out, [free], what, cure)


def curvatures(lanes: Lanes, xs: list[Tensor], us: list[Tensor], some: Tensor, exact: Tensor) -> Curvatures:
    """Second derivatives for some of the problems; those of f for the ones among them that are ``exact`` ``[A]``."""
    stages, a, chosen = lanes.problem.stages, len(some), exact.nonzero()[:, 0]
    cost, bends = _empty(stages), _empty(stages)
    for group in lanes.groups():
        f, running = _joined(lanes, group[0])
        (found,) = _second(running, *_gathered(xs, us, group, some), 1)
        for t, part in zip(group, found.reshape(len(group), a, *found.shape[1:]), strict=True):
            cost[t] = part
        wide = xs[group[0] + 1].shape[1]
        if len(chosen) and wide <= _ROWS:
            tensor = torch.stack(_second(f, *_gathered(xs, us, group, some[chosen]), wide), 1)
            for t, part in zip(group, tensor.reshape(len(group), len(chosen), *tensor.shape[1:]), strict=True):
                bends[t] = part
    (terminal,) = _second(_terminal(lanes), xs[-1][some], some, 1)

    def contracted(t: int, v: Tensor) -> Tensor:
        v = v[chosen]
        if bends[t] is not None:
            found = torch.einsum("bk,bkij->bij", v, bends[t])
        else:
            f, _ = _joined(lanes, t)
            y, index = _gathered(xs, us, [t], some[chosen])
            weights = v.new_zeros(lanes.size, v.shape[1]).index_copy(0, some[chosen], v)
            (found,) = _second(lambda y, i: (f(y, i) * weights[i]).sum(1, keepdim=True), y, index, 1)
        return found if len(chosen) == a else found.new_zeros(a, *found.shape[1:]).index_copy(0, chosen, found)

    return Curvatures(cost, terminal, contracted if len(chosen) else None)


def _first(function: Function, y: Tensor, index: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Values ``[L, k]`` and derivatives ``[L, k, d]`` of a function of each lane."""
    values, rows = [], []
    for part, i in _chunks(y, index, k):
        many = part.repeat(k, 1).requires_grad_()
        with torch.enable_grad():
            out = function(many, i.repeat(k)).reshape(k, len(part), k).diagonal(dim1=0, dim2=2)
        values.append(out.detach())
        rows.append(gradients(out, [many])[0].reshape(k, len(part), -1).transpose(0, 1))
    return torch.cat(values), torch.cat(rows)


def _second(function: Function, y: Tensor, index: Tensor, k: int) -> list[Tensor]:
    """The second derivatives ``[L, d, d]`` of each of the k components of a function of each lane."""
    d, blocks = y.shape[1], []
    for part, i in _chunks(y, index, k * d):
        n = len(part)
        many = part.repeat(k * d, 1).requires_grad_()
        with torch.enable_grad(), twice_differentiable():
            out = function(many, i.repeat(k * d)).reshape(k, d * n, k).diagonal(dim1=0, dim2=2)
            (slope,) = gradients(out, [many], create_graph=True)
            row = slope.reshape(k, d, n, d).diagonal(dim1=1, dim2=3)
        H = gradients(row, [many])[0].reshape(k, d, n, d).transpose(1, 2)
        blocks.append((H + H.mT) / 2)
    return list(torch.cat(blocks, 1))


def _chunks(y: Tensor, index: Tensor, copies: int) -> Any:
    size = max(1, _CHUNK // max(copies, 1))
    return zip(y.split(size), index.split(size), strict=True)  # type: ignore[no-untyped-call]


def _joined(lanes: Lanes, t: int) -> tuple[Function, Function]:
    """Dynamics ``[L, n']`` and running cost ``[L, 1]`` as functions of the flat (x, u)."""
    n = lanes.width(t)

    def f(y: Tensor, index: Tensor) -> Tensor:
        return lanes.dynamics(t, y[:, :n], y[:, n:], lanes.of_lanes(index))

    def cost(y: Tensor, index: Tensor) -> Tensor:
        return lanes.running_cost(t, y[:, :n], y[:, n:], lanes.of_lanes(index))[:, None]

    return f, cost


def _terminal(lanes: Lanes) -> Function:
    return lambda x, index: lanes.terminal_cost(x, lanes.of_lanes(index))[:, None]


def _gathered(xs: list[Tensor], us: list[Tensor], group: list[int], some: Tensor) -> tuple[Tensor, Tensor]:
    """(x, u) of some problems at the stages of a group, one lane each, and the numbers of the lanes' problems."""
    y = torch.cat([torch.stack([xs[t] for t in group]), torch.stack([us[t] for t in group])], 2)[:, some]
    return y.reshape(-1, y.shape[-1]), some.repeat(len(group))


def _convex(H: Tensor) -> Tensor:
    """Symmetric matrices without the negative part of their spectra."""
    size = H.abs().amax((1, 2))
    eye = torch.eye(H.shape[-1], dtype=H.dtype, device=H.device)
    lift = 1e-10 * size + torch.finfo(H.dtype).tiny
    bad = torch.linalg.cholesky_ex(H + lift[:, None, None] * eye)[1] > 0
    if not bad.any():
        return H
    values, vectors = torch.linalg.eigh(H[bad])
    H = H.clone()
    H[bad] = (vectors * values.clamp_min(0.0)[:, None]) @ vectors.mT
    return H


def _empty(stages: int) -> list[Any]:
    return [None] * stages
