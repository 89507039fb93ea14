"""Inter-bank lending: R. Carmona, J.-P. Fouque, L.-H. Sun (2015), "Mean field games and systemic risk".

    dX = [a (m - X) + u] dt + sigma dW,    J = E int u^2 / 2 - q u (m - X) + eps / 2 (m - X)^2 dt + c / 2 (m - X_T)^2

(Communications in Mathematical Sciences 13(4)). Its closed-loop Nash equilibrium of N banks is
u = (q + (1 - 1/N) eta) (m - x), eta the solution of eq. (3.16) and (3.17).
"""

from functools import partial

import numpy as np
import pytest
import torch

import mfoc
from mfoc.lq import LinearQuadratic
from tests.problems import D, error, normal

A, Q, EPS, C, SIGMA, T = 1.0, 0.4, 1.5, 0.7, 0.3, 1.0


def eta(t, N=np.inf):
    """The published solution."""
    inverse = 1 - 1 / N**2
    root = np.sqrt((A + Q) ** 2 + inverse * (EPS - Q**2))
    plus, minus = -(A + Q) + root, -(A + Q) - root
    grown = np.exp((plus - minus) * (T - t))
    above = -(EPS - Q**2) * (grown - 1) - C * (plus * grown - minus)
    return above / ((minus * grown - plus) - C * inverse * (grown - 1))


def matrices():
    numbers = {"A": -A, "Abar": A, "B": 1.0, "R": 0.5, "cross": Q / 2, "crossbar": -Q / 2, "Q": 0.0}
    numbers |= {"Qbar": EPS / 2, "QbarT": C / 2, "sigma": SIGMA}
    # The weight of (x, u) must be convex by itself: Q + Qbar carries the cross term.
    return {name: torch.tensor([[number]], dtype=D) for name, number in numbers.items()}


@pytest.fixture
def lq():
    return LinearQuadratic.continuous(**matrices(), T=T, steps=10)


def test_the_equilibrium_is_the_published_one(lq):
    found = mfoc.lq.equilibrium(lq, torch.tensor([0.3], dtype=D))
    published = torch.from_numpy(Q + eta(np.linspace(0, T, 11)))
    assert error(found.K[:, 0, 0], published) < 1e-12
    assert error(found.states, torch.full((11, 1), 0.3, dtype=D)) < 1e-14  # lending moves no mean
    # The limit of N banks: their gain is its own, but for what a bank weighs in its own mean.
    off = [abs(Q + (1 - 1 / N) * eta(0.0, N) - float(found.K[0])) for N in (100, 1000)]
    assert off[0] / off[1] == pytest.approx(10, rel=0.02)


def test_selfishness_costs_nothing_there(lq):
    """The mean cannot be moved by a feedback on deviations: game and control have one answer."""
    m0, cov0 = torch.tensor([0.3], dtype=D), torch.tensor([[0.2]], dtype=D)
    assert error(mfoc.lq.equilibrium(lq, m0, cov0).value, lq.value(m0, cov0)) < 1e-13


def test_particles_find_it():
    """The same banks as particles without noise: a feedback by best responses, whose gains nothing is told of."""
    steps = 20

    def drift(t, x, u, z):
        return (A + u) * (mfoc.mean(x) - x)

    def running_cost(t, x, u, z):
        gap = (mfoc.mean(x) - x)[:, 0]
        return (0.5 * u**2 - Q * u + EPS / 2) * gap**2

    problem = mfoc.continuous(
        drift,
        lambda x, z: C / 2 * (mfoc.mean(x) - x)[:, 0] ** 2,
        [torch.zeros((), dtype=D) for _ in range(steps)],
        running_cost=running_cost,
        T=T,
        scheme=mfoc.heun,
    )
    lbfgs = mfoc.Gradient(partial(torch.optim.LBFGS, line_search_fn="strong_wolfe", max_iter=25, tolerance_change=0))
    picard = mfoc.meanfield.Picard(lbfgs, steps=1, damping=1.0)
    found = mfoc.solve(mfoc.Equilibrium(problem), picard, 4 * normal(6, 1), steps=3)
    middle = torch.from_numpy(Q + eta((np.arange(steps) + 0.5) * T / steps))
    assert error(torch.stack(found.controls), middle) < 2e-3
    assert found.residual < 1e-6
