"""HJB and Fokker-Planck equations on a grid: against LQ closed forms, and against autograd on the discrete J."""

from dataclasses import replace

import pytest
import torch

import mfoc
from mfoc.lq import LinearQuadratic, equilibrium
from mfoc.meanfield import DensityProblem
from tests.problems import D, distance

NUMBERS = {"A": -0.2, "B": 1.0, "Q": 0.3, "R": 0.5, "QT": 0.3, "Abar": 0.4, "Qbar": 0.9, "S": 0.6, "QbarT": 0.8}
NUMBERS |= {"ST": 0.5, "sigma": 0.4}
START = torch.tensor([0.6], dtype=D), torch.tensor([[0.1]], dtype=D)


def bell(n, wide=3.0, mean=0.6, variance=0.1):
    x = torch.linspace(-wide, wide, n, dtype=D)
    m = torch.exp(-((x - mean) ** 2) / (2 * variance))
    return x, m / (m.sum() * (x[1] - x[0]))


def linear_quadratic(n, steps):
    """The LQ problem of NUMBERS on a grid."""
    x, density = bell(n)
    k, h = NUMBERS, float(x[1] - x[0])

    def mean(m):
        return (x * m).sum() * h

    return DensityProblem(
        x, density, 1.0, steps, k["sigma"], k["R"],
        drift=lambda t, x, m: k["A"] * x + k["Abar"] * mean(m),
        running_cost=lambda t, x, m: k["Q"] * x**2 + k["Qbar"] * (x - k["S"] * mean(m)) ** 2,
        terminal_cost=lambda x, m: k["QT"] * x**2 + k["QbarT"] * (x - k["ST"] * mean(m)) ** 2,
    )  # fmt: skip


def exact():
    spec = {name: torch.tensor([[number]], dtype=D) for name, number in NUMBERS.items()}
    return LinearQuadratic.continuous(**spec, T=1.0, steps=10)


def solved(steps):
    """What game and control pay, and where their means end, with this many steps of time ``[4]``."""
    problem = linear_quadratic(61, steps)
    both = [problem.equilibrium(damping=1.0), problem.optimum(damping=0.8)]
    assert all(found.converged for found in both)
    ends = [float((problem.x * found.density[-1]).sum() * problem.h) for found in both]
    return torch.tensor([found.value for found in both] + ends, dtype=D)


def test_both_problems_have_the_lq_answers_to_first_order_in_time():
    lq = exact()
    game, path, value = equilibrium(lq, *START), lq.path(START[0]), lq.value(*START)
    expected = torch.stack([game.value, value, game.states[-1, 0], path.states[-1, 0]])
    coarse, fine = solved(10), solved(20)
    ratios = (coarse - expected) / (fine - expected)
    assert float((ratios - 2).abs().max()) < 0.2
    # Extrapolated to no step in time, what is left is the grid in space; and game and control differ as they should.
    limit = 2 * fine - coarse
    assert distance(limit, expected) < 1e-3
    assert float(limit[0] - limit[1]) == pytest.approx(float(expected[0] - expected[1]), rel=0.02)
    assert float(limit[2] - limit[3]) == pytest.approx(float(expected[2] - expected[3]), rel=0.02)


def test_what_control_adds_to_the_game_is_known():
    """x (-2 qbar s (1 - s) m + abar E V_x) in the running cost, and -2 qbarT sT (1 - sT) m x at the end."""
    problem, k = linear_quadratic(41, 3), NUMBERS
    x, h = problem.x, problem.h
    m = torch.stack([bell(41, mean=0.1 * t, variance=0.2)[1] for t in range(4)])
    V, u = x**2 * torch.arange(1.0, 5.0, dtype=D)[:, None], torch.zeros(3, 41, dtype=D)
    game, control = (problem._couplings(u, m, V, game) for game in (True, False))
    means = (x * m).sum(1) * h
    slopes = (m[1:, 1:-1] * ((V[:-1, 2:] - V[:-1, :-2]) / (2 * h))).sum(
        1
    ) * h  # central: nothing is far from the middle
    rates = -2 * k["Qbar"] * k["S"] * (1 - k["S"]) * means[1:] + k["Abar"] * slopes
    assert distance(control - game, x * rates[:, None]) < 1e-4
    end = problem._slope(lambda free: free @ problem._end(free), m[-1]) - problem._end(m[-1])
    assert distance(end, -2 * k["QbarT"] * k["ST"] * (1 - k["ST"]) * means[-1] * x) < 1e-12


def test_in_the_game_v_is_the_cost_to_go():
    problem = linear_quadratic(61, 10)
    found = problem.equilibrium(damping=1.0, tol=1e-12)
    assert float((found.V[0] * problem.density).sum() * problem.h) == pytest.approx(found.value, rel=1e-10)
    second = found.V[0].diff(n=2)[25:35] / problem.h**2  # V is P x^2 + ...
    assert float(second.mean()) == pytest.approx(2 * float(exact().riccati().P[0]), rel=0.05)


@pytest.mark.parametrize("sigma", [0.4, 0.05, 0.0])
def test_mass_is_kept_and_nothing_turns_negative(sigma):
    found = replace(linear_quadratic(61, 20), sigma=sigma).equilibrium(damping=1.0, iterations=5, tol=0.0)
    assert float((found.density.sum(1) * (6 / 60) - 1).abs().max()) < 1e-12
    assert float(found.density.min()) >= 0


def dense_cost(problem, u):
    """J of a feedback ``[T, n]`` by implicit steps with dense matrices; the drift is that of the law at their ends."""
    n, h, dt = len(problem.x), problem.h, problem.dt
    m, total = problem.density, torch.zeros((), dtype=D)
    for t in range(problem.steps):
        after = m
        for _ in range(60):  # the law at the end of the step is in its own equation
            v = problem.drift((t + 1) * dt, problem.x, after) + u[t]
            up, down = (problem.sigma**2 / 2 / h**2 + sign * v / (2 * h) for sign in (1, -1))
            up, down = up[:-1], down[1:]
            L = torch.diag(up, 1) + torch.diag(down, -1)
            L = L - torch.diag(L.sum(1))
            after = torch.linalg.solve(torch.eye(n, dtype=D) - dt * L.mT, m)
        m = after
        running = problem.weight * u[t] ** 2 + problem.running_cost((t + 1) * dt, problem.x, m)
        total = total + dt * h * (m * running).sum()
    return total + h * (m * problem.terminal_cost(problem.x, m)).sum()


def test_the_optimum_is_stationary_for_the_discrete_j():
    """Couplings in drift and costs that are not quadratic: crowds slow down and cost."""
    x, density = bell(25, wide=1.5, mean=0.3)
    problem = DensityProblem(
        x, density, 0.5, 4, 0.8, 0.5,
        drift=lambda t, x, m: -torch.tanh(m) * x,
        running_cost=lambda t, x, m: torch.log1p(m) + x**2,
        terminal_cost=lambda x, m: (x - (m**2).sum() * 0.1) ** 2,
    )  # fmt: skip
    optimum, game = problem.optimum(tol=1e-12), problem.equilibrium(tol=1e-12)
    assert optimum.converged
    assert game.converged
    u = optimum.controls.clone().requires_grad_()
    cost = dense_cost(problem, u)
    assert float(cost.detach()) == pytest.approx(optimum.value, rel=1e-10)
    assert float(torch.autograd.grad(cost, u)[0].abs().max()) < 1e-10
    v = game.controls.clone().requires_grad_()
    cost = dense_cost(problem, v)
    assert float(cost.detach()) == pytest.approx(game.value, rel=1e-10)
    assert float(torch.autograd.grad(cost, v)[0].abs().max()) > 1e-4
    assert game.value > optimum.value


def test_a_potential_game_is_the_control_problem_of_half_the_cost():
    """d/dm <m, m> = 2 m: players who pay 2 m are the population that pays m."""
    x, density = bell(41, wide=2.0)

    def of(factor):
        return DensityProblem(x, density, 0.5, 8, 0.5, 1.0, running_cost=lambda t, x, m: factor * m + x**2)

    game, optimum = of(2.0).equilibrium(tol=1e-12), of(1.0).optimum(tol=1e-12)
    assert distance(game.controls, optimum.controls) < 1e-9
    assert distance(game.density, optimum.density) < 1e-10


def test_without_coupling_or_cost_there_is_heat():
    x, density = bell(81, wide=4.0, mean=0.0, variance=0.2)
    found = DensityProblem(x, density, 1.0, 20, 0.6).equilibrium()
    assert found.value == 0
    variance = float((x**2 * found.density[-1]).sum() * (x[1] - x[0]))
    assert variance == pytest.approx(0.2 + 0.36, rel=1e-5)


def test_what_does_not_converge_says_so(caplog):
    found = linear_quadratic(31, 4).equilibrium(iterations=2)
    assert not found.converged
    assert "not converged" in repr(found)
    assert "residual" in caplog.text
    assert "tensor(" not in repr(found)


def test_dtypes_follow_the_grid():
    problem = linear_quadratic(31, 4)
    found = replace(problem, x=problem.x.float(), density=problem.density.float(), running_cost=None, drift=None,
                    terminal_cost=lambda x, m: x**2).equilibrium(tol=1e-5)  # fmt: skip
    assert {found.density.dtype, found.V.dtype, found.controls.dtype, found.times.dtype} == {torch.float32}
    assert found.converged


def test_bad_arguments():
    x, density = bell(11)
    good = DensityProblem(x, density, 1.0, 4, 0.5)
    for change, words in [
        ({"x": x**3}, "one spacing"),
        ({"density": 2 * density}, "integral 2"),
        ({"density": density[1:]}, "three nodes"),
        ({"sigma": -1.0}, "sigma"),
        ({"T": 0.0}, "T is"),
    ]:
        with pytest.raises(mfoc.InvalidValue, match=words):
            replace(good, **change)
    with pytest.raises(mfoc.InvalidType, match="one dtype"):
        replace(good, density=density.float())
    with pytest.raises(mfoc.InvalidType, match="drift"):
        replace(good, drift=lambda x: x)
    with pytest.raises(mfoc.InvalidValue, match=r"running_cost returned .*\(11,\)"):
        replace(good, running_cost=lambda t, x, m: m.sum()).equilibrium()
    with pytest.raises(mfoc.InvalidValue, match="damping"):
        good.optimum(damping=1.5)
