"""Derivatives of a batch of problems along its trajectories, all lanes in one call of ``torch.func.vmap``."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import grad_and_value, hessian, jacfwd, vmap

from mfoc import tree
from mfoc.solvers.ddp.lanes import Lanes
from mfoc.tree import Tree

logger = logging.getLogger(__name__)

_CHUNK = 2**17  # numbers in the widest intermediate value of a call: as many lanes at once as stay in the cache
_TENSOR = 2**26  # numbers of second derivatives of the dynamics that are held; beyond, each stage is asked in its turn


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
        dynamics: ``dynamics(t, v)`` is the second derivative of <v, f_t> in (x, u); None where it is left out.
    """

    cost: list[Tensor]
    terminal: Tensor
    dynamics: Callable[[int, Tensor], Tensor] | None

    def of(self, some: Tensor) -> Curvatures:
        """Those of some of the problems."""
        whole, size = self.dynamics, len(self.terminal)

        def part(t: int, v: Tensor) -> Tensor:
            assert whole is not None
            return whole(t, v.new_zeros(size, v.shape[1]).index_copy(0, some, v))[some]

        cost = [each[some] for each in self.cost]
        return Curvatures(cost, self.terminal[some], None if whole is None else part)

    def convex(self, some: Tensor) -> Curvatures:
        """Of some of the problems, the convex part of the costs' alone."""
        return Curvatures([_convex(part[some]) for part in self.cost], _convex(self.terminal[some]), None)


def slopes(lanes: Lanes, xs: list[Tensor], us: list[Tensor]) -> Slopes:
    """First derivatives at states ``[B, n]`` and controls ``[B, m]`` of each stage, for all problems."""
    stages, b = lanes.problem.stages, lanes.size
    everyone = torch.arange(b, device=xs[0].device)
    moved, jacobian, gradient = _empty(stages), _empty(stages), _empty(stages)
    total = xs[0].new_zeros(b)
    for group in lanes.groups():
        dynamics, running = _joined(lanes, group[0])
        n = xs[group[0]].shape[1]

        def of(y: Tensor, z: Tree, f: Any = dynamics, cost: Any = running) -> tuple[Tensor, ...]:
            jac, value = jacfwd(lambda y: (f(y, z),) * 2, has_aux=True)(y)
            return value, jac, *_slope(cost, y, z)

        y, z = _gathered(lanes, xs, us, group, everyone)
        width = y.shape[1] * max(n, 1)
        found = mapped(of, y, z, lanes, width)
        split = [leaf.reshape(len(group), b, *leaf.shape[1:]) for leaf in found]
        for i, t in enumerate(group):
            moved[t], jacobian[t], gradient[t] = (leaf[i] for leaf in split[:3])
        total = total + split[3].sum(0)
    z = lanes.of_lanes(everyone)
    terminal, last = mapped(lambda x, z: _slope(lanes.single_terminal, x, z), xs[-1], z, lanes, xs[-1].shape[1])
    return Slopes([x.shape[1] for x in xs[:-1]], moved, jacobian, gradient, terminal, total + last)


def curvatures(lanes: Lanes, xs: list[Tensor], us: list[Tensor], some: Tensor, *, dynamics: bool) -> Curvatures:
    """Second derivatives for some of the problems; with ``dynamics``, those of f too."""
    stages, a = lanes.problem.stages, len(some)
    cost, curved = _empty(stages), _empty(stages)
    wide = a * sum(x.shape[1] * (x.shape[1] + u.shape[1]) ** 2 for x, u in zip(xs, us, strict=False))
    held = dynamics and wide <= _TENSOR
    for group in lanes.groups():
        f, running = _joined(lanes, group[0])

        def of(y: Tensor, z: Tree, f: Any = f, running: Any = running) -> tuple[Tensor, ...]:
            second = hessian(running)(y, z)
            return (second, jacfwd(jacfwd(f))(y, z)) if held else (second,)

        y, z = _gathered(lanes, xs, us, group, some)
        width = y.shape[1] ** 2 * (xs[group[0]].shape[1] if held else 1)
        found = [leaf.reshape(len(group), a, *leaf.shape[1:]) for leaf in mapped(of, y, z, lanes, width)]
        for i, t in enumerate(group):
            cost[t], curved[t] = found[0][i], found[-1][i]
    z = lanes.of_lanes(some)
    last = xs[-1][some]
    (terminal,) = mapped(lambda x, z: (hessian(lanes.single_terminal)(x, z),), last, z, lanes, last.shape[1] ** 2)

    def contracted(t: int, v: Tensor) -> Tensor:
        if held:
            return torch.einsum("bk,bkij->bij", v, curved[t])
        f, _ = _joined(lanes, t)
        y = torch.cat([xs[t][some], us[t][some]], 1)
        both = torch.cat([y, v], 1)
        width = y.shape[1]
        return mapped(lambda yv, z: (hessian(lambda y: f(y, z) @ yv[width:])(yv[:width]),), both, z, lanes, width**2)[0]

    return Curvatures(cost, terminal, contracted if dynamics else None)


def mapped(function: Callable[..., Any], y: Tensor, z: Tree, lanes: Lanes, width: int) -> list[Tensor]:
    """A function of one lane over all of them, in chunks; lane by lane where it cannot be mapped.

    Args:
        function: ``function(y, z)``: flat (state, control) of a lane and its data to a tuple of tensors.
        y: ``[L, d]``.
        z: data of the lanes; that of the cloud for joint problems.
        lanes: the batch.
        width: numbers in the widest intermediate value of a lane.
    """
    chunk = max(1, _CHUNK // width)
    shared = lanes.joint or z is None
    try:
        whole = vmap(function, in_dims=(0, None) if shared else (0, 0), chunk_size=chunk if chunk < len(y) else None)
        return list(whole(y, z))
    except RuntimeError as error:  # control flow that depends on values, an operation without a batching rule
        logger.info("the lanes cannot be differentiated in one batch (%s); one by one", str(error).splitlines()[0])
        each = [function(y[i], z if shared else tree.map(lambda leaf, i=i: leaf[i], z)) for i in range(len(y))]
        return [torch.stack(column) for column in zip(*each, strict=True)]


def _joined(lanes: Lanes, t: int) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """Dynamics and running cost of one lane as functions of the flat (x, u) ``[n + m]`` and its data."""
    moved, running = lanes.single(t)
    n = lanes.width(t)

    def f(y: Tensor, z: Tree) -> Tensor:
        return moved(y[:n], y[n:], z)

    def cost(y: Tensor, z: Tree) -> Tensor:
        return y.new_zeros(()) if lanes.problem.running_cost is None else running(y[:n], y[n:], z)

    return f, cost


def _slope(cost: Callable[..., Tensor], y: Tensor, z: Tree) -> tuple[Tensor, Tensor]:
    return grad_and_value(cost)(y, z)


def _gathered(lanes: Lanes, xs: list[Tensor], us: list[Tensor], group: list[int], some: Tensor) -> tuple[Tensor, Tree]:
    """(x, u) of some problems at the stages of a group, one lane each, and their data."""
    y = torch.cat([torch.stack([xs[t] for t in group]), torch.stack([us[t] for t in group])], 2)[:, some]
    return y.reshape(-1, y.shape[-1]), lanes.of_lanes(some.repeat(len(group)))


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
