"""Value functions in closed form, up to a one-line minimisation or a quadrature."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.interpolate import make_interp_spline
from scipy.linalg import expm
from scipy.optimize import minimize
from torch import Tensor

import mfoc


def cole_hopf(g: Callable[[Tensor], Tensor], x: Tensor, sigma: float, r: float, T: float = 1.0) -> Tensor:
    """V(0, x) of dx = u dt + sigma dW, cost int r |u|^2 / 2 dt + g(x_T): -lambda log E exp(-g(x + sigma W_T) / lambda).

    lambda = sigma^2 r. Fleming & Soner (2006), sec. VI.5. The expectation by 60 Gauss-Hermite nodes in each dimension.
    """
    places, weights = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(60))
    d, scale = x.shape[1], sigma**2 * r
    nodes = torch.cartesian_prod(*[places] * d).reshape(-1, d)
    mass = torch.cartesian_prod(*[weights / weights.sum()] * d).reshape(-1, d).prod(1)
    ends = x[:, None, :] + sigma * T**0.5 * nodes
    found: Tensor = -scale * torch.logsumexp(-g(ends.flatten(0, 1)).view(len(x), -1) / scale + mass.log(), 1)
    return found


def hopf_lax(g: Callable[[Tensor], Tensor], A: Tensor, x: Tensor, T: float = 1.0) -> Tensor:
    """V(0, x) of dx = (A x + u) dt, cost int |u|^2 / 2 dt + g(x_T).

    To end in y costs (y - e^(AT) x)' G^-1 (y - e^(AT) x) / 2 with the Gramian G = int_0^T e^(As) e^(A's) ds; the least
    over y by scipy, from several starts. Evans (2010), "Partial Differential Equations", sec. 3.3, for A = 0.
    """
    a = A.numpy()
    times, weights = np.polynomial.legendre.leggauss(20)
    gramian = sum(
        w * T / 2 * expm(a * T * (s + 1) / 2) @ expm(a * T * (s + 1) / 2).T for s, w in zip(times, weights, strict=True)
    )
    inverse, flow = torch.from_numpy(np.linalg.inv(gramian)), torch.from_numpy(expm(a * T))
    return torch.stack([_least(g, inverse, flow @ point) for point in x])


def _least(g: Callable[[Tensor], Tensor], inverse: Tensor, centre: Tensor) -> Tensor:
    def cost(y: np.ndarray) -> tuple[float, np.ndarray]:
        end = torch.from_numpy(y).requires_grad_()
        total = g(end[None])[0] + (end - centre) @ inverse @ (end - centre) / 2
        (slope,) = torch.autograd.grad(total, [end])
        return total.item(), slope.numpy()

    starts = [centre.numpy() + shift for shift in (0.0, 1.0, -1.0)]
    ends = [minimize(cost, start, jac=True, method="BFGS", options={"gtol": 1e-10}).fun for start in starts]
    return torch.tensor(min(ends), dtype=centre.dtype)


def bellman_by_search(problem: mfoc.Problem, axis: Tensor, controls: Tensor, *, degree: int) -> Tensor:
    """V(0, .) on a one-dimensional grid: the least over a list of controls, by loops and scipy's interpolation.

    States that leave the grid find the value where they left it.
    """
    values = problem.terminal_cost(axis[:, None], None)
    for t in reversed(range(problem.stages)):
        spline = make_interp_spline(axis.numpy(), values.numpy(), k=degree)
        found = []
        for x in axis:
            cloud = x.expand(len(controls), 1)
            pairs = list(zip(cloud, controls, strict=True))
            moved = torch.cat([problem.dynamics(t, y[None], u[None], None) for y, u in pairs])[:, 0]
            assert problem.running_cost is not None
            cost = torch.cat([problem.running_cost(t, y[None], u[None], None) for y, u in pairs])
            after = torch.from_numpy(spline(moved.clamp(axis[0], axis[-1]).numpy()))
            found.append((cost + after).min())
        values = torch.stack(found)
    return values
