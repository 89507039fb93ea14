"""Modified equations against SGD: exact moments on quadratics, exact means on a quartic, and simulated paths."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.polynomial import chebyshev
from scipy import integrate, linalg
from torch import nn

import mfoc
from mfoc.analysis.noise import (
    modified_equation,
    modified_equation_of,
    momentum_stationary_variance,
    sgd_stationary_covariance,
)
from mfoc.draws import watched
from mfoc.errors import InvalidType, InvalidValue
from tests import problems

D = torch.float64
RATES = (0.04, 0.02, 0.01, 0.005)


def slopes(errors, sizes):
    """Orders of convergence between successive sizes."""
    errors, sizes = np.log(np.abs(errors)), np.log(sizes)
    return np.diff(errors) / np.diff(sizes)


def linear(equation, d):
    """The matrix B of a linear drift z -> B z, read off from unit vectors."""
    rows = torch.eye(d, dtype=D)
    return equation.drift(0.0, rows, None, None).mT.numpy()


def noise_at_zero(equation, d):
    """sigma sigma' at z = 0."""
    root = equation.diffusion(0.0, torch.zeros(1, d, dtype=D), None, None)[0]
    root = root.diag() if root.dim() == 1 else root
    return (root @ root.mT).numpy()


def second_moment(B, Q, M, T):
    """E z z' at time T of dz = B z dt + noise of covariance Q dt: a linear equation, by an exponential."""
    d = len(B)
    eye = np.eye(d)
    step = np.zeros((d * d + 1, d * d + 1))
    step[:-1, :-1] = np.kron(B, eye) + np.kron(eye, B)
    step[:-1, -1] = Q.reshape(-1)
    return (linalg.expm(T * step) @ np.append(M.reshape(-1), 1.0))[:-1].reshape(d, d)


def chain_moment(A, Q, M, steps):
    for _ in range(steps):
        M = A @ M @ A.T + Q
    return M


H = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=D)
S = torch.tensor([[1.0, -0.4], [-0.4, 0.5]], dtype=D)


@pytest.mark.parametrize("order", [1, 2])
def test_weak_order_on_a_quadratic(order):
    """Second moments at time 1, of SGD by its recursion and of the diffusion by its Lyapunov equation."""
    start, errors = np.outer([1.0, -2.0], [1.0, -2.0]), []
    for lr in RATES:
        equation = modified_equation(lambda x: x @ H, S, lr, order=order)
        chain = chain_moment(np.eye(2) - lr * H.numpy(), lr**2 * S.numpy(), start, round(1 / lr))
        flow = second_moment(linear(equation, 2), noise_at_zero(equation, 2), start, 1.0)
        errors.append(np.linalg.norm(flow - chain))
    found = slopes(errors, RATES)
    assert found[-1] == pytest.approx(order, abs=0.1)
    assert np.all(np.abs(found - order) < 0.2)


@pytest.mark.parametrize("order", [1, 2])
def test_weak_order_with_momentum(order):
    """At a fixed friction, by time sqrt(lr): the order is in sqrt(lr)."""
    friction, h, s, errors = 0.7, 1.3, 0.8, []
    steps = (0.1, 0.05, 0.025, 0.0125)
    for step in steps:
        lr, momentum = step**2, 1 - friction * step
        equation = modified_equation(lambda x: h * x, s, lr, order=order, momentum=momentum)
        assert equation.friction == pytest.approx(friction)
        assert equation.time_step == pytest.approx(step)
        # x and the velocity -sqrt(lr) buffer of torch's v <- m v + g, x <- x - lr v
        A = np.array([[1 - lr * h, step * momentum], [-step * h, momentum]])
        kick = np.array([[-lr], [-step]])
        start = np.diag([4.0, 0.0])
        chain = chain_moment(A, s * kick @ kick.T, start, round(1 / step))
        flow = second_moment(linear(equation, 2), noise_at_zero(equation, 2), start, 1.0)
        errors.append(np.linalg.norm(flow - chain))
    assert slopes(errors, steps)[-1] == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("lr", [0.01, 0.0025])
def test_the_heavy_ball_that_is_followed_is_torchs(lr):
    """Without noise, order 2 is within O(lr) of torch.optim.SGD, an order better than order 1."""
    momentum, steps, errors = 0.8, 10, []
    weight = torch.tensor([1.0, -2.0], dtype=D, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=lr, momentum=momentum)
    for _ in range(steps):
        optimizer.zero_grad()
        (weight @ H @ weight / 2).backward()
        optimizer.step()
    for order in (1, 2):
        equation = modified_equation(lambda x: x @ H, 0.0, lr, order=order, momentum=momentum)
        start = equation.start(torch.tensor([[1.0, -2.0]], dtype=D))[0].numpy()
        end = linalg.expm(steps * equation.time_step * linear(equation, 4)) @ start
        errors.append(np.linalg.norm(end[:2] - weight.detach().numpy()))
    assert errors[1] < 0.35 * errors[0]


@pytest.mark.parametrize("order", [1, 2])
def test_weak_order_where_the_noise_grows_with_the_distance(order):
    """SGD on linear regression with Sigma(x) = c x^2 + s: the second order leaves the noise as it is."""
    a, c, s, m0, errors = 1.0, 2.0, 0.5, 4.0, []
    for lr in RATES:
        equation = modified_equation(lambda x: a * x, lambda x: c * x.square() + s, lr, order=order)
        x = torch.tensor([[0.0], [1.0]], dtype=D)
        rate = -float(equation.drift(0.0, x, None, None)[1])
        zero, one = equation.diffusion(0.0, x, None, None).square().flatten().tolist()
        grow, level = one - zero - 2 * rate, zero  # dm/dt = grow m + level
        flow = (m0 + level / grow) * math.exp(grow) - level / grow
        chain = m0
        for _ in range(round(1 / lr)):
            chain = ((1 - lr * a) ** 2 + lr**2 * c) * chain + lr**2 * s
        errors.append(flow - chain)
    assert slopes(errors, RATES)[-1] == pytest.approx(order, abs=0.1)


REACH, NODES = 1.6, 40


def quartic_gradient(x):
    return x + 1.2 * x**3


def quartic_noise(x):
    return 0.3 + 0.2 * x**2


@pytest.mark.parametrize("order", [1, 2])
def test_weak_order_on_a_quartic(order):
    """E sin(2 x) at time 1, to spectral accuracy: backward equations of the chain and of the diffusion."""
    nodes = REACH * chebyshev.chebpts1(NODES)
    to_coefficients = np.linalg.inv(chebyshev.chebvander(nodes / REACH, NODES - 1))

    def values(points):
        return chebyshev.chebvander(points / REACH, NODES - 1) @ to_coefficients

    derivative = np.stack([chebyshev.chebder(row, axis=0) for row in np.eye(NODES)], 1) / REACH
    slope = chebyshev.chebvander(nodes / REACH, NODES - 2) @ derivative @ to_coefficients
    measure, errors = np.sin(2 * nodes), []
    for lr in RATES:
        up, down = (nodes - lr * (quartic_gradient(nodes) + sign * np.sqrt(quartic_noise(nodes))) for sign in (1, -1))
        assert max(abs(up).max(), abs(down).max()) < REACH
        chain = np.linalg.matrix_power((values(up) + values(down)) / 2, round(1 / lr)) @ measure
        equation = modified_equation(quartic_gradient, quartic_noise, lr, order=order)
        x = torch.tensor(nodes, dtype=D)[:, None]
        b = equation.drift(0.0, x, None, None)[:, 0].numpy()
        q = equation.diffusion(0.0, x, None, None)[:, 0].numpy() ** 2
        flow = linalg.expm(b[:, None] * slope + q[:, None] / 2 * slope @ slope) @ measure
        errors.append((values(np.array([1.0])) @ (flow - chain)).item())
    assert slopes(errors, RATES)[-1] == pytest.approx(order, abs=0.15)


def test_in_the_long_run_the_second_order_errs_twice_as_much():
    a, s, lr = 1.0, 1.0, 0.1
    exact = sgd_stationary_covariance(a, s, lr)
    gaps = []
    for order in (1, 2):
        equation = modified_equation(lambda x: a * x, s, lr, order=order)
        rate, spread = -linear(equation, 1)[0, 0], noise_at_zero(equation, 1)[0, 0]
        gaps.append(exact - spread / (2 * rate))
    assert gaps[0] > 0
    assert gaps[1] / gaps[0] == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize("momentum", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("order", [1, 2])
def test_in_the_long_run_momentum_may_be_any(order, momentum):
    """At a friction that is not small, too, the noise is that of SGD: both orders are off by a share of lr a alone."""
    a, s, lr = 1.0, 1.0, 0.01
    equation = modified_equation(lambda x: a * x, s, lr, order=order, momentum=momentum)
    found = linalg.solve_continuous_lyapunov(linear(equation, 2), -noise_at_zero(equation, 2))[0, 0]
    assert found == pytest.approx(momentum_stationary_variance(a, s, lr, momentum), rel=lr * a)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_runs_may_start_at_one_point_expanded(momentum):
    point = torch.tensor([[1.0, -2.0]], dtype=D)
    equation = modified_equation(lambda x: torch.sin(x) @ H, S, 0.1, order=2, momentum=momentum)
    expanded = equation.simulate(point.expand(5, 2), 3, seed=0)
    torch.testing.assert_close(expanded, equation.simulate(point.repeat(5, 1), 3, seed=0))


def without_a_graph(x):
    x = x.detach().requires_grad_()
    return torch.autograd.grad(x.sin().sum(), x)[0]


def test_a_gradient_by_autograd_serves_to_simulate():
    start = torch.ones(3, 2, dtype=D)
    found = modified_equation(without_a_graph, S, 0.1).simulate(start, 4, seed=0)
    torch.testing.assert_close(found, modified_equation(torch.cos, S, 0.1).simulate(start, 4, seed=0))


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize(("gradient", "covariance"), [(without_a_graph, S), (torch.cos, lambda x: x.detach().square())])
def test_no_schedule_is_solved_for_without_derivatives_in_x(gradient, covariance, momentum):
    """Cut off from x, the gradient of J in the schedule would be silently wrong."""
    equation = modified_equation(gradient, covariance, 0.1, momentum=momentum)
    start = torch.ones(4, 2, dtype=D)
    noise = mfoc.schemes.brownian(4, 3, 2, seed=0, like=start)
    population = mfoc.Particles(equation.start(start), {"noise": noise})
    problem = equation.problem(3, lambda x, z: x.square().sum(1), like=start)
    with pytest.raises(InvalidValue, match="changes with x and cannot be differentiated"):
        mfoc.evaluate(problem, problem.controls, population)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_a_constant_gradient_needs_no_graph(momentum):
    equation = modified_equation(torch.ones_like, S, 0.1, momentum=momentum)
    start = torch.ones(4, 2, dtype=D)
    noise = mfoc.schemes.brownian(4, 3, 2, seed=0, like=start)
    problem = equation.problem(3, lambda x, z: x.square().sum(1), like=start)
    found = mfoc.evaluate(problem, problem.controls, mfoc.Particles(equation.start(start), {"noise": noise}))
    assert bool(torch.stack(mfoc.tree.leaves(found.gradient)).isfinite().all())


def test_one_step_of_euler_maruyama_a_step_is_sgd_itself():
    lr, steps, n = 0.1, 6, 5
    equation = modified_equation(lambda x: torch.sin(x) + x @ H, S, lr)
    start = torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=D)
    paths = equation.simulate(start, steps, substeps=1, seed=3)
    xi = mfoc.schemes.brownian(n, steps, 2, seed=3, like=start)
    root = torch.from_numpy(linalg.sqrtm(S.numpy()))
    x = start
    for k in range(steps):
        x = x - lr * (torch.sin(x) + x @ H - xi[:, k] @ root)
        torch.testing.assert_close(paths[k + 1], x)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("momentum", [0.0, 0.6])
def test_simulated_paths_have_the_moments_of_the_equation(momentum, order):
    lr, steps, n = 0.1, 15, 20_000
    equation = modified_equation(lambda x: x, 2.0, lr, order=order, momentum=momentum)
    start = torch.full((n, 1), 2.0, dtype=D)
    square = equation.simulate(start, steps, substeps=20, seed=0)[-1, :, 0].square()
    d = 2 if momentum else 1
    first = equation.start(start)[0].numpy()
    B, Q = linear(equation, d), noise_at_zero(equation, d)
    exact = second_moment(B, Q, np.outer(first, first), steps * equation.time_step)[0, 0]
    error = 4 * float(square.std()) / math.sqrt(n)
    assert float(square.mean()) == pytest.approx(exact, abs=error + 0.02 * exact)  # Euler-Maruyama has a bias


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_the_control_is_a_factor_of_the_learning_rate(order, momentum):
    """With u = 1/2, the equation is that of SGD whose gradients and noise are halved."""
    x = torch.randn(3, 4 if momentum else 2, generator=torch.Generator().manual_seed(0), dtype=D)

    def gradient(x):
        return torch.tanh(x) @ H

    whole = modified_equation(gradient, S, 0.1, order=order, momentum=momentum)
    half = modified_equation(lambda x: gradient(x) / 2, S / 4, 0.1, order=order, momentum=momentum)
    u = torch.tensor(0.5, dtype=D)
    torch.testing.assert_close(whole.drift(0.0, x, u, None), half.drift(0.0, x, None, None))
    torch.testing.assert_close(whole.diffusion(0.0, x, u, None), half.diffusion(0.0, x, None, None))


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_it_unpacks_to_what_continuous_takes(momentum):
    """The problem built by hand runs as its own does."""
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=D)
    equation = modified_equation(lambda x: torch.tanh(x) @ H, S, 0.1, order=2, momentum=momentum)
    drift, diffusion = equation
    controls = [torch.ones((), dtype=D) for _ in range(4)]
    T = 4 * equation.time_step
    by_hand = mfoc.continuous(drift, lambda x, z: x[:, 0], controls, diffusion=diffusion, T=T)
    noise = mfoc.schemes.brownian(3, 4, 2, seed=0, like=x)
    states = mfoc.rollout(by_hand, controls, mfoc.Particles(equation.start(x), {"noise": noise})).states
    torch.testing.assert_close(equation.weights(torch.stack(states)), equation.simulate(x, 4, substeps=1, seed=0))


@pytest.mark.parametrize("order", [1, 2])
def test_weak_order_with_momentum_off_the_quadratic(order):
    """Without noise, a nonlinear gradient: the flow, by scipy, against the heavy ball."""
    errors, sizes = [], (0.1, 0.05, 0.025)
    for size in sizes:
        lr, momentum = size**2, 1 - 0.7 * size
        equation = modified_equation(lambda x: torch.sin(x) + x**3, 0.0, lr, order=order, momentum=momentum)

        def field(t, y, equation=equation):
            return equation.drift(t, torch.tensor(y)[None], None, None)[0].numpy()

        flow = integrate.solve_ivp(field, (0, 1), [1.0, 0.0], rtol=1e-10, atol=1e-12).y[0, -1]
        x, buffer = 1.0, 0.0
        for _ in range(round(1 / size)):
            buffer = momentum * buffer + math.sin(x) + x**3
            x -= lr * buffer
        errors.append(flow - x)
    assert slopes(errors, sizes)[-1] == pytest.approx(order, abs=0.05)


def test_solving_for_the_schedule_finds_the_annealing():
    """The equation is a control problem: gradient descent on the schedule approaches the closed form."""
    a, s, m0, lr, steps = 1.0, 4.0, 0.5, 0.1, 10
    equation = modified_equation(lambda x: a * x, s, lr)
    x = torch.full((2000, 1), math.sqrt(2 * m0 / a), dtype=D)
    problem = equation.problem(steps, lambda x, z: a / 2 * x[:, 0].square(), like=x)
    noise = mfoc.schemes.brownian(2000, steps, 1, seed=0, like=x)
    noise = torch.cat([noise, -noise])  # antithetic
    population = mfoc.Particles(torch.cat([x, x]), {"noise": noise})
    solver = mfoc.Gradient(lambda leaves: torch.optim.SGD(leaves, lr=3.0))
    solution = mfoc.solve(problem, solver, population, steps=60)
    plan = mfoc.analysis.noise.optimal_annealing(a, s, m0, lr)
    found = torch.stack(solution.controls)
    assert float(solution.value) == pytest.approx(plan.loss(steps * lr), rel=0.1)
    assert float(found[-1]) < float(found[0])


# ---- of a problem


def small_net():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).double()


def cloud(n=12):
    x = torch.randn(n, 2, generator=torch.Generator().manual_seed(1), dtype=D)
    return mfoc.Particles(x, torch.arange(n) % 2)


def plain_gradients(problem, vector, particles):
    """The slow twin: each particle's gradient by a backward pass of its own."""
    rows = []
    for i in range(len(particles)):
        leaves = [piece.clone().requires_grad_() for piece in pieces(problem, vector)]
        cost = mfoc.rollout(problem, mfoc.tree.rebuild(problem.controls, leaves), particles[i : i + 1]).cost.sum()
        rows.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(cost, leaves)]))
    return torch.stack(rows)


def pieces(problem, vector):
    return mfoc.tree.pieces(vector, mfoc.tree.leaves(problem.controls))


@pytest.mark.parametrize("order", [1, 2])
def test_of_a_problem_it_has_the_gradient_and_the_noise_of_its_batches(order):
    problem, particles = mfoc.from_module(small_net(), F.cross_entropy), cloud()
    lr, batch_size = 0.2, 4
    equation = modified_equation_of(problem, particles, lr=lr, batch_size=batch_size, order=order)
    start = mfoc.tree.ravel(problem.controls).detach()
    x = torch.stack([start, 1.3 * start])
    drift, sigma = equation.drift(0.0, x, None, None), equation.diffusion(0.0, x, None, None)
    for row, b, root in zip(x, drift, sigma, strict=True):
        each = plain_gradients(problem, row, particles)
        torch.testing.assert_close(root @ root.mT, lr / batch_size * each.mT.cov(correction=0), rtol=1e-8, atol=1e-12)
        expected = -each.mean(0)
        if order == 2:
            step = 1e-5 * each.mean(0)
            bent = plain_gradients(problem, row + step, particles) - plain_gradients(problem, row - step, particles)
            expected = expected - lr / 2 * bent.mean(0) / 2e-5
        torch.testing.assert_close(b, expected, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("name", ["linear_quadratic", "pytrees", "tied", "conv"])
def test_of_problems_of_all_kinds(name):
    """Dicts, tied controls, states that are trees, no data: gradient and noise as by plain backward passes."""
    problem, particles = getattr(problems, name)()
    equation = modified_equation_of(problem, particles, lr=0.1, batch_size=3)
    x = mfoc.tree.ravel(problem.controls).detach()
    each = plain_gradients(problem, x, particles)
    torch.testing.assert_close(equation.drift(0.0, x[None], None, None)[0], -each.mean(0))
    root = equation.diffusion(0.0, x[None], None, None)[0]
    noise = 0.1 / 3 * each.mT.cov(correction=0)
    torch.testing.assert_close(root @ root.mT, noise, rtol=1e-8, atol=1e-10 * float(noise.max()))


def test_of_a_problem_it_runs_as_sgd_does():
    """The mean loss after a few steps of SGD with batches drawn with replacement."""
    problem, particles = mfoc.from_module(small_net(), F.cross_entropy), cloud()
    lr, batch_size, steps, runs = 0.5, 2, 4, 400
    equation = modified_equation_of(problem, particles, lr=lr, batch_size=batch_size)
    start = mfoc.tree.ravel(problem.controls).detach().expand(runs, -1)
    generator = torch.Generator().manual_seed(0)
    x = start
    each = torch.func.vmap(torch.func.grad(lambda v, s, z: loss(problem, v, s, z)), (0, 0, 0))
    for _ in range(steps):
        batch = torch.randint(len(particles), (runs, batch_size), generator=generator)
        x = x - lr * each(x, particles.state[batch], particles.data[batch])
    end = equation.simulate(start, steps, substeps=1, seed=0)[-1]
    for power in (1, 2):
        one, other = (x - start).pow(power), (end - start).pow(power)
        error = (one.var(0) + other.var(0)).div(runs).sqrt()
        assert bool(((one.mean(0) - other.mean(0)).abs() < 4.5 * error + 0.1 * one.mean(0).abs()).all())


def loss(problem, vector, state, data):
    controls = mfoc.tree.rebuild(problem.controls, pieces(problem, vector))
    return mfoc.rollout(problem, controls, mfoc.Particles(state, data)).cost.mean()


def test_particles_that_interact_are_refused():
    interacting = mfoc.Problem(
        lambda t, x, u, z: x + u * (mfoc.mean(x) - x), lambda x, z: x.square().sum(1), [torch.ones(2, dtype=D)]
    )
    with pytest.raises(InvalidValue, match="interact"):
        modified_equation_of(interacting, cloud().state, lr=0.1, batch_size=2)
    norm = mfoc.from_module(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).double(), F.cross_entropy)
    with pytest.raises(InvalidValue, match="interact"):
        modified_equation_of(norm, cloud(), lr=0.1, batch_size=2)
    weighted = mfoc.from_module(small_net(), nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0], dtype=D)))
    with pytest.raises(InvalidValue, match="single particles"):
        modified_equation_of(weighted, cloud(), lr=0.1, batch_size=2)
    with pytest.raises(InvalidValue, match="batch_size"):
        modified_equation_of(mfoc.from_module(small_net(), F.cross_entropy), cloud(), lr=0.1, batch_size=0)


# ---- what comes in, and what is refused


FORMS = {
    "number": 0.5,
    "variances": torch.full((2,), 0.5),
    "matrix": 0.5 * torch.eye(2),
    "field of variances": lambda x: torch.full_like(x, 0.5),
    "field of matrices": lambda x: 0.5 * torch.eye(2).expand(len(x), 2, 2),
}


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("name", FORMS)
def test_a_covariance_in_any_form_gives_the_same_paths(name, momentum):
    start = torch.ones(3, 2)
    expected, found = (
        modified_equation(lambda x: x, form, 0.1, momentum=momentum).simulate(start, 4, substeps=2, seed=0)
        for form in (0.5, FORMS[name])
    )
    assert found.shape == (5, 3, 2)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


def test_a_singular_covariance_has_a_root():
    line = torch.tensor([[1.0, 2.0], [2.0, 4.0]], dtype=D)
    root = modified_equation(lambda x: x, line, 1.0).diffusion(0.0, torch.zeros(1, 2, dtype=D), None, None)[0]
    torch.testing.assert_close(root @ root.mT, line)


def test_simulating_draws_from_no_global_generator():
    drawn = watched()
    modified_equation(lambda x: x, 1.0, 0.1).simulate(torch.ones(2, 1), 3, seed=0)
    assert not drawn()


X = torch.ones(3, 2, dtype=D)


def drift_of(gradient):
    return modified_equation(gradient, 1.0, 0.1, order=2).drift(0.0, X, None, None)


def of_a_problem():
    return modified_equation_of(mfoc.from_module(small_net(), F.cross_entropy), cloud(), lr=0.1, batch_size=2)


def noise_of(covariance):
    return modified_equation(lambda x: x, covariance, 0.1).diffusion(0.0, X, None, None)


REFUSED = {
    "no function": (lambda: modified_equation(1.0, 1.0, 0.1), InvalidType, "gradient is a float"),
    "order": (lambda: modified_equation(torch.sin, 1.0, 0.1, order=3), InvalidValue, "order is 3"),
    "rate": (lambda: modified_equation(torch.sin, 1.0, 0.0), InvalidValue, "lr"),
    "momentum": (lambda: modified_equation(torch.sin, 1.0, 0.1, momentum=1.0), InvalidValue, "momentum is 1.0"),
    "covariance by name": (lambda: modified_equation(torch.sin, "1", 0.1), InvalidType, "covariance is a str"),
    "negative": (lambda: modified_equation(torch.sin, -1.0, 0.1), InvalidValue, "eigenvalue -1"),
    "indefinite": (
        lambda: modified_equation(torch.sin, torch.diag(torch.tensor([1.0, -0.1])), 0.1),
        InvalidValue,
        "semidefinite",
    ),
    "not symmetric": (
        lambda: modified_equation(torch.sin, torch.ones(2, 2).triu(), 0.1),
        InvalidValue,
        "not symmetric",
    ),
    "three axes": (
        lambda: modified_equation(torch.sin, torch.ones(3, 2, 2), 0.1),
        InvalidValue,
        "covariance has shape",
    ),
    "size": (lambda: noise_of(torch.eye(3, dtype=D)), InvalidValue, "one size"),
    "dtype": (lambda: noise_of(torch.eye(2)), InvalidValue, "one kind"),
    "field's shape": (lambda: noise_of(lambda x: x[:, 0]), InvalidValue, "covariance returned"),
    "field's kind": (lambda: noise_of(lambda x: 1.0), InvalidType, "covariance returned a float"),
    "field not symmetric": (
        lambda: noise_of(lambda x: torch.ones(2, 2, dtype=D).triu().expand(3, 2, 2)),
        InvalidValue,
        "not symmetric",
    ),
    "field diverged": (lambda: noise_of(lambda x: x * math.nan), InvalidValue, "diverged"),
    "gradient's shape": (lambda: drift_of(lambda x: x.sum(1)), InvalidValue, "gradient returned"),
    "detached": (lambda: drift_of(lambda x: x.detach()), InvalidValue, "cannot be differentiated"),
    "by autograd.grad": (
        lambda: drift_of(lambda x: torch.autograd.grad(x.requires_grad_().sum(), x)[0]),
        InvalidValue,
        "torch.func",
    ),
    "a problem": (
        lambda: modified_equation(mfoc.from_module(small_net(), F.cross_entropy), 1.0, 0.1),
        InvalidType,
        "modified_equation_of",
    ),
    "weights of another problem": (
        lambda: of_a_problem().simulate(torch.ones(2, 3, dtype=D), 2, seed=0),
        InvalidValue,
        "expected torch.float64 .N, 17.",
    ),
    "weights of another dtype": (
        lambda: of_a_problem().simulate(torch.ones(2, 17), 2, seed=0),
        InvalidValue,
        "float32",
    ),
    "half precision": (lambda: noise_of(torch.eye(2).bfloat16()), InvalidValue, "eigenvalues"),
    "field in half precision": (
        lambda: noise_of(lambda x: torch.eye(2).half().expand(3, 2, 2)),
        InvalidValue,
        "eigenvalues",
    ),
    "a rate for each weight": (
        lambda: modified_equation(lambda x: x, 1.0, 0.1, order=2).drift(0.0, X, torch.ones(2, dtype=D), None),
        InvalidValue,
        "one number",
    ),
    "weights": (lambda: modified_equation(torch.sin, 1.0, 0.1).simulate(X[0], 2, seed=0), InvalidValue, "weights has"),
    "steps": (lambda: modified_equation(torch.sin, 1.0, 0.1).problem(0), InvalidValue, "steps"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_arguments_are_refused(name):
    act, error, words = REFUSED[name]
    with pytest.raises(error, match=words):
        act()
