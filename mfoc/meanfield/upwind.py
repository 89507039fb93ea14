"""A controlled diffusion on the nodes of an interval as a Markov chain, so that its two equations are monotone.

    L V_i = up_i (V_(i+1) - V_i) + down_i (V_(i-1) - V_i),     up, down = D / h^2 +- v / (2 h),
    v = b + u,     D = max(sigma^2 / 2, |v| h / 2),

with reflecting ends: central differences where the noise carries them, upwind ones elsewhere, after H. J. Kushner, P.
Dupuis (2001), "Numerical methods for stochastic control problems in continuous time", sec. 5.3, and Y. Achdou, I.
Capuzzo-Dolcetta (2010), "Mean field games: numerical methods", SIAM J. Numer. Anal. 48(3). Rows of L sum to zero: its
transpose conserves mass. Rates are non-negative: an implicit step keeps densities so. Second order in h where
|v| h <= sigma^2, else first.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mfoc.printing import by_identity


@by_identity
class Chain(NamedTuple):
    """Moves of each step: dt times the rates, ``[T, n]`` each; none leads out of the interval."""

    up: Tensor
    down: Tensor

    @staticmethod
    def of(velocity: Tensor, sigma: float, h: float, dt: float) -> Chain:
        """The chain of velocities ``[T, n]``."""
        spread = (velocity.abs() * (h / 2)).clamp_min(sigma**2 / 2) / h**2
        up, down = ((spread + sign * velocity / (2 * h)) * dt for sign in (1, -1))
        up, down = up.clamp_min(0), down.clamp_min(0)  # of what rounding leaves of zero
        up[..., -1], down[..., 0] = 0, 0
        return Chain(up, down)

    def densities(self, first: Tensor) -> Tensor:
        """m_0..m_T ``[T+1, n]`` by implicit steps (1 - dt L') m_(t+1) = m_t."""
        none = torch.zeros_like(self.up[:, :1])
        below, above = torch.cat([none, self.up[:, :-1]], 1), torch.cat([self.down[:, 1:], none], 1)
        return _march(below, self.up + self.down, above, first, torch.zeros_like(self.up))

    def costs(self, last: Tensor, sources: Tensor) -> Tensor:
        """V_0..V_T ``[T+1, n]`` by implicit steps (1 - dt L) V_t = V_(t+1) + sources_t."""
        below, leaving, above, sources = (x.flip(0) for x in (self.down, self.up + self.down, self.up, sources))
        return _march(below, leaving, above, last, sources).flip(0)


def _march(below: Tensor, leaving: Tensor, above: Tensor, start: Tensor, sources: Tensor) -> Tensor:
    """Solves (1 + leaving) y_i - below y_(i-1) - above y_(i+1) = y of the step before + sources, step after step.

    By elimination without pivots, which signs allow: nothing non-negative turns negative. In Python's numbers: a step
    waits for the one before and a node for its neighbour, so that there is nothing to do for a tensor's operations.
    """
    y: list[float] = start.tolist()
    n, path = len(y), [y]
    for low, out, high, source in zip(*(x.tolist() for x in (below, leaving, above, sources)), strict=True):
        right = [old + new for old, new in zip(y, source, strict=True)]
        ratio, carried = [0.0] * n, [0.0] * n
        before, brought = 0.0, 0.0
        for i in range(n):
            pivot = 1.0 + out[i] - low[i] * before
            ratio[i] = before = high[i] / pivot
            carried[i] = brought = (right[i] + low[i] * brought) / pivot
        y, after = carried, 0.0
        for i in range(n - 1, -1, -1):
            y[i] = after = carried[i] + ratio[i] * after
        path.append(y)
    return torch.tensor(path, dtype=start.dtype, device=start.device)


def slope_of(V: Tensor, velocity: Tensor, sigma: float, h: float) -> Tensor:
    """The derivative of L V in the velocity ``[..., n]``."""
    forward, central, backward = _slopes(V, h)
    reach = sigma**2 / h
    return torch.where(velocity > reach, forward, torch.where(velocity < -reach, backward, central))


def best_control(V: Tensor, drift: Tensor, weight: float, sigma: float, h: float) -> Tensor:
    """The minimiser u of weight u^2 + L V at each node ``[..., n]``, exactly.

    L V is affine in the velocity on each of three pieces: the best of the three minimisers is taken.
    """
    reach, far = sigma**2 / h, torch.inf
    best, least = torch.zeros_like(V), torch.full_like(V, torch.inf)
    for slope, (low, high) in zip(_slopes(V, h), ((reach, far), (-reach, reach), (-far, -reach)), strict=True):
        u = (drift - slope / (2 * weight)).clamp(low, high) - drift
        v = drift + u
        # What the diffusion beyond sigma^2 / 2 costs is in the slope; the pieces meet at v = +-reach.
        centre = reach if low == reach else -reach if high == -reach else 0.0
        cost = weight * u.square() + slope * (v - centre) + _slopes(V, h)[1] * centre
        best, least = torch.where(cost < least, u, best), torch.minimum(cost, least)
    return best


def _slopes(V: Tensor, h: float) -> tuple[Tensor, Tensor, Tensor]:
    """Forward, central and backward differences of ``[..., n]``; what would reach out of the interval is zero."""
    step = V.diff(dim=-1) / h
    forward, backward = torch.nn.functional.pad(step, (0, 1)), torch.nn.functional.pad(step, (1, 0))
    return forward, (forward + backward) / 2, backward
