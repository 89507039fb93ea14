"""The order of the semi-Lagrangian scheme in two dimensions, its speed, and the error of a fitted value function.

    python -m tests.benchmarks.bench_hjb

Orders: dx = (A x + u) dt with a spiralling A, cost int |u|^2 / 2 dt + g(x_T) with a smooth g that is no polynomial. The
exact value is the Hopf-Lax formula; errors are the largest at 81 states of [-1, 1]^2. Cubic interpolation, dt ~ dx
(order 1 is expected, at least .9 asked) and dt ~ dx^2 (order 2, at least 1.8). The same with noise against Cole-Hopf.
Speed: thread-CPU seconds, and terms a second, as ``most_terms`` counts them.
Fit: linear-quadratic problems in 4 and 6 dimensions against Riccati.
"""

import math
import time

import torch

import mfoc
from tests.oracles.hjb import cole_hopf, hopf_lax

D = torch.float64
A = torch.tensor([[0.0, 1.0], [-1.0, 0.2]], dtype=D)
T, SIGMA, R = 0.5, 0.5, 1.0
EVALUATIONS = 2 + 1 + 16  # of a point, as mfoc.hjb.solve estimates them: two controls tried, the last stage's, Newton


def end(x):
    return x.square().sum(1) / 2 + 0.3 * (2 * x[:, 0] + x[:, 1]).sin()


def problem(stages, *, noise=False):
    def rate(t, x, u, z):
        return (R / 2 * u.square().sum()).expand(len(x))

    def drift(t, x, u, z):
        return u.expand_as(x) if noise else x @ A.T + u

    controls = [torch.zeros(2, dtype=D)] * stages
    diffusion = SIGMA if noise else None
    return mfoc.continuous(drift, lambda x, z: end(x), controls, running_cost=rate, T=T, diffusion=diffusion)


def orders(name, exact, sizes, *, noise=False):
    axis = torch.linspace(-1, 1, 9, dtype=D)
    x = torch.cartesian_prod(axis, axis)
    truth, before = exact(x), None
    print(name)
    for points, stages in sizes:
        begin = time.thread_time()
        made = problem(stages, noise=noise)
        value = mfoc.hjb.solve(made, [torch.linspace(-3, 3, points, dtype=D)] * 2, candidates=torch.zeros(1, 2))
        spent, error = time.thread_time() - begin, float((value(0, x) - truth).abs().max())
        order, terms = "", points**2 * stages * EVALUATIONS * value.bellman.nodes * 16
        if before is not None:
            order = f"order in dx {math.log(before[1] / error) / math.log((points - 1) / before[0]):.2f}"
        before = points - 1, error
        speed = f"{spent:6.1f} s, {terms / spent:.0e} terms a second"
        print(f"  {points:4d}^2 points {stages:4d} stages: error {error:.2e} {order:20s} {speed}")


def fits():
    print("fitted value functions, linear-quadratic, on states of optimal paths: relative errors (root mean square)")
    for n, paths, steps in ((4, 200, 500), (6, 400, 1000)):
        torch.manual_seed(0)
        matrix = torch.eye(n, dtype=D) + 0.05 * torch.randn(n, n, dtype=D)
        B = 0.2 * torch.randn(n, n, dtype=D)
        eye = torch.eye(n, dtype=D)
        lq = mfoc.lq.LinearQuadratic.discrete(matrix, B, 0.1 * eye, 0.2 * eye, eye, horizon=10)
        begin = time.thread_time()
        candidates = torch.zeros(1, n)
        value = mfoc.hjb.fit(lq.problem(), torch.randn(paths, n, dtype=D), steps=steps, candidates=candidates)
        spent, x, P = time.thread_time() - begin, torch.randn(200, n, dtype=D), lq.riccati().P
        found = mfoc.hjb.verify(lq.problem(), value, x)
        best = (x * (x @ P[0])).sum(1)
        u, rms = lq.feedback(0, x), (value(0, x) - best).square().mean().sqrt() / best.std()
        off = (value.policy(0, x) - u).norm() / u.norm()
        regret = (found.cost.mean() - best.mean()) / best.mean()
        print(f"  {n} states, {paths} paths: V {rms:.1e}, policy {off:.1e}, regret {regret:.1e}, {spent:.0f} s")


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(f"{torch.get_num_threads()} thread, torch {torch.__version__}")
    orders("dt ~ dx", lambda x: hopf_lax(end, A, x, T), [(16, 5), (31, 10), (61, 20)])
    orders("dt ~ dx^2", lambda x: hopf_lax(end, A, x, T), [(16, 5), (31, 20), (61, 80)])
    noisy = [(16, 3), (31, 6), (61, 12)]
    orders("with noise, dt ~ dx", lambda x: cole_hopf(end, x, SIGMA, R, T), noisy, noise=True)
    orders("with noise, dt ~ dx^2", lambda x: cole_hopf(end, x, SIGMA, R, T), [(16, 3), (31, 12)], noise=True)
    fits()
