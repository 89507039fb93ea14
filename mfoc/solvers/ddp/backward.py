"""The backward sweep of DDP: a policy that minimises a quadratic model stage by stage.

    v = V_x' + V_xx' d                       of stage t+1, at the state that closes the gap d = f_t(x_t, u_t) - x_(t+1)
    Q_y = L_y + F'v,  Q_yy = L_yy + F'V_xx'F + <v, f_yy>                                        y = (x, u), F = df/dy
    k = argmin over the box of k'Q_u + k'(Q_uu + mu)k / 2,   K = -(Q_uu + mu)^-1 Q_ux  on the free coordinates
    V_x = Q_x + K'Q_uu k + K'Q_u + Q_ux'k,   V_xx = Q_xx + K'Q_uu K + K'Q_ux + Q_ux'K

Jacobson & Mayne (1970); Tassa, Erez, Todorov (2012), "Synthesis and stabilization of complex behaviors", eqs. 5 and 11:
V is the value of the policy, whatever regularised or clamped it. Gaps: Mastalli et al. (2020), "Crocoddyl", sec. IV. A
step of length alpha goes alpha k along the feedforward and closes alpha of each gap. The model of what it does to J is
quadratic in alpha, and V_x is affine: V_x = s + alpha r, of which s and r are carried apart.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from mfoc.solvers.ddp.box import box_qp, masked
from mfoc.solvers.ddp.expansion import Curvatures, Slopes

Limits = list[tuple[Tensor, Tensor]]  # of the step in the control of each stage, [B, m] each


@dataclass(frozen=True, eq=False)
class Policy:
    """u_t + alpha k_t + K_t (x - x_t), and what the model expects of it.

    Attributes:
        feedforward: k ``[B, m]`` of each stage.
        gains: K ``[B, m, n]`` of each stage.
        linear: a ``[B]`` of the expected change of J, alpha a + alpha^2 b / 2.
        quadratic: b ``[B]``.
        scale: the largest diagonal entry of |Q_uu| ``[B]``.
        convex: whether some Q_uu + mu of the exact model was not positive definite, so that the convex one serves
            ``[B]``.
        multiplier: the largest entry of |V_x| at a stage with a gap ``[B]``.
    """

    feedforward: list[Tensor]
    gains: list[Tensor]
    linear: Tensor
    quadratic: Tensor
    scale: Tensor
    convex: Tensor
    multiplier: Tensor

    def expected(self, alpha: Tensor | float = 1.0) -> Tensor:
        """The expected change of J ``[B]`` by a step of length alpha."""
        return alpha * self.linear + alpha * alpha / 2 * self.quadratic

    def replaced(self, some: Tensor, other: Policy) -> Policy:
        """The same with the policies of some of the problems from another sweep."""

        def put(old: Any, new: Any) -> Any:
            if isinstance(old, list):
                return [put(a, b) for a, b in zip(old, new, strict=True)]
            return old.index_copy(0, some, new)

        return Policy(*(put(getattr(self, field.name), getattr(other, field.name)) for field in fields(self)))


def best_policy(
    slopes: Slopes,
    curvatures: Curvatures,
    gaps: list[Tensor] | None,
    limits: Limits | None,
    mu: Tensor,
    exact: Tensor,
) -> Policy:
    """The policy of the exact model for some problems, of the convex model for the others.

    The convex model drops the second derivatives of the dynamics (the Gauss-Newton model of iLQR) and the negative part
    of the costs': Q_yy is then positive semi-definite at all stages, whatever the trajectory. It also serves where the
    exact one is not convex in some control.
    """
    policy = backward(slopes, curvatures.mixed(exact), gaps, limits, mu, ~exact)
    bad = policy.convex.nonzero()[:, 0]
    if not len(bad):
        return policy
    gap = None if gaps is None else [d[bad] for d in gaps]
    within = None if limits is None else [(low[bad], high[bad]) for low, high in limits]
    every = torch.ones_like(bad, dtype=torch.bool)
    found = backward(slopes.of(bad), curvatures.convex(bad), gap, within, mu[bad], every)
    marked = policy.convex
    return replace(policy.replaced(bad, found), convex=marked)


def backward(
    slopes: Slopes,
    curvatures: Curvatures,
    gaps: list[Tensor] | None,
    limits: Limits | None,
    mu: Tensor,
    convex: Tensor,
) -> Policy:
    """One backward sweep for a batch of problems.

    Args:
        slopes: first derivatives.
        curvatures: second derivatives.
        gaps: d ``[B, n']`` of each stage; None where all are closed.
        limits: bounds of the step in each control; None where all are free.
        mu: what is added to the diagonal of Q_uu ``[B]``.
        convex: whose model is convex ``[B]``: what is not positive definite is so by rounding, and lifted. Another
            problem where it is not is only marked, and its policy stands still.
    """
    stages = len(slopes.jacobian)
    feedforward: list[Tensor] = [mu] * stages
    gains: list[Tensor] = [mu] * stages
    vx = torch.stack([slopes.terminal, torch.zeros_like(slopes.terminal)], 2)  # s and r
    vxx = curvatures.terminal
    a, b, scale, multiplier = (torch.zeros_like(mu) for _ in range(4))
    failed = torch.zeros_like(convex)
    for t in reversed(range(stages)):
        F, n = slopes.jacobian[t], slopes.widths[t]
        if gaps is not None:
            d = gaps[t][:, :, None]
            bend = vxx @ d
            multiplier = torch.maximum(multiplier, vx.sum(2).abs().amax(1))
            a = a + _inner(vx[:, :, :1], d)
            b = b + 2 * _inner(vx[:, :, 1:], d) + _inner(bend, d)
            vx = torch.cat([vx[:, :, :1], vx[:, :, 1:] + bend], 2)
        Qy = F.mT @ vx
        Qy[:, :, 0] += slopes.gradient[t]
        Q = F.mT @ (vxx @ F) + curvatures.cost[t]
        if curvatures.dynamics is not None:
            Q = Q + curvatures.dynamics(t, vx.sum(2))
        Quu, Qux, Qxx = Q[:, n:, n:], Q[:, n:, :n], Q[:, :n, :n]
        scale = torch.maximum(scale, Quu.diagonal(dim1=1, dim2=2).abs().amax(1))
        within = None if limits is None else limits[t]
        k, K, bad = _policy(Quu, Qy[:, n:].sum(2), Qux, mu, within, convex)
        failed = failed | bad
        feedforward[t], gains[t] = k[:, :, 0], K
        bent = Qux.mT + K.mT @ Quu
        a = a + _inner(k, Qy[:, n:, :1])
        b = b + 2 * _inner(k, Qy[:, n:, 1:]) + _inner(k, Quu @ k)
        vx = Qy[:, :n] + K.mT @ Qy[:, n:]
        vx[:, :, 1:] += bent @ k
        vxx = Qxx + bent @ K + K.mT @ Qux
        vxx = (vxx + vxx.mT) / 2
    return Policy(feedforward, gains, a, b, scale, failed, multiplier)


def control_slopes(slopes: Slopes) -> list[Tensor]:
    """dJ_i/du_t ``[B, m]`` of each stage, J_i the cost of problem i."""
    p, found = slopes.terminal, []
    stages = list(zip(slopes.widths, slopes.jacobian, slopes.gradient, strict=True))
    for n, jacobian, gradient in reversed(stages):
        both = gradient + (p[:, None] @ jacobian)[:, 0]
        p, slope = both[:, :n], both[:, n:]
        found.append(slope)
    return found[::-1]


def _policy(
    Quu: Tensor, Qu: Tensor, Qux: Tensor, mu: Tensor, limits: tuple[Tensor, Tensor] | None, lift: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The steps k ``[B, m, 1]``, the gains K ``[B, m, n]``, and where free coordinates are not convex ``[B]``.

    There k and K are zero, unless the matrix is to be lifted ``[B]``.
    """
    eye = torch.eye(Quu.shape[-1], dtype=Quu.dtype, device=Quu.device)
    H = Quu + mu[:, None, None] * eye
    factor, bad = torch.linalg.cholesky_ex(H)
    bad = bad > 0
    some_bad = bool(bad.any())
    if some_bad:
        H = torch.where(bad[:, None, None], _lifted(H), H)
        factor = torch.linalg.cholesky(H)
    if limits is None:
        both = -torch.cholesky_solve(torch.cat([Qu[:, :, None], Qux], 2), factor)
        k, K = both[:, :, :1], both[:, :, 1:]
    else:
        step, free = box_qp(H, Qu, *limits)
        k, K = step[:, :, None], -torch.linalg.solve(masked(H, free), torch.where(free[:, :, None], Qux, 0.0))
        if some_bad:  # what a bound holds may be concave
            bad = bad & (torch.linalg.cholesky_ex(masked(Quu + mu[:, None, None] * eye, free))[1] > 0)
    if some_bad:
        bad = bad & ~lift
        k, K = (torch.where(bad[:, None, None], 0.0, each) for each in (k, K))
    return k, K, bad


def _lifted(H: Tensor) -> Tensor:
    """Positive definite matrices: the spectrum reflected, and away from zero."""
    values, vectors = torch.linalg.eigh(H.nan_to_num(0.0, 0.0, 0.0))
    size = values.abs()
    size = torch.maximum(size, 1e-6 * size.amax(1, keepdim=True) + torch.finfo(H.dtype).tiny ** 0.5)
    lifted = (vectors * size[:, None]) @ vectors.mT
    symmetric: Tensor = (lifted + lifted.mT) / 2
    return symmetric


def _inner(left: Tensor, right: Tensor) -> Tensor:
    total: Tensor = (left * right).sum((1, 2))
    return total
