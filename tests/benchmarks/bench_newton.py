"""NewtonCG against scipy and against torch's L-BFGS, in gradients' worth of work and in time.

    python -m tests.benchmarks.bench_newton

Problems: pendulums swung by one shared control per stage, free and in a box (where scipy's L-BFGS-B is the peer), and a
residual tanh network. All in float64 on one thread, from the same start, to a (projected) residual of 1e-8. scipy's
solvers are given mfoc's value, gradient and Hessian products, so that the methods are compared, not the evaluations.
Printed: J and the residual at the end of each, and thread-CPU times as multiples of NewtonCG's.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import torch
from scipy.optimize import Bounds, minimize

import mfoc
from mfoc.solvers.expansion import expand
from tests.benchmarks.timing import interleaved, machine, report

RUNS, TOL = 3, 1e-8


def pendulum(stages=20, **more):
    start = torch.tensor([[1.5, 0.0], [1.0, 0.2]], dtype=torch.float64)
    problem = mfoc.continuous(
        lambda t, x, u, z: torch.stack([x[:, 1], torch.sin(x[:, 0]) + u[0] - 0.1 * x[:, 1]], 1),
        lambda x, z: 10 * x.square().sum(1),
        [torch.zeros(1, dtype=torch.float64) for _ in range(stages)],
        running_cost=lambda t, x, u, z: 0.05 * u.square().sum() + x.square().sum(1),
        T=3.0,
        **more,
    )
    return problem, mfoc.Particles(start)


def network(stages=8, nodes=4, samples=40, step=0.25):
    generator = torch.Generator().manual_seed(1)

    def uniform(*shape):
        return 2 * torch.rand(*shape, generator=generator, dtype=torch.float64) - 1

    x = torch.pi * uniform(samples, 1)
    problem = mfoc.continuous(
        lambda t, x, u, z: torch.tanh(x @ u["W"].mT + u["b"]),
        lambda x, z: (x.sum(1) - z).square(),
        [{"W": 0.3 * uniform(nodes, nodes), "b": 0.3 * uniform(nodes)} for _ in range(stages)],
        running_cost=lambda t, x, u, z: (0.01 * (u["W"].square().sum() + u["b"].square().sum())).expand(len(x)),
        T=stages * step,
    )
    return problem, mfoc.Particles(x.repeat(1, nodes), x[:, 0].sin())


def tree_of(problem, vector):
    held = mfoc.tree.leaves(problem.controls)
    return mfoc.tree.rebuild(problem.controls, mfoc.tree.pieces(torch.from_numpy(np.array(vector)), held))


def by_mfoc(problem, cloud, solver, steps):
    return mfoc.solve(problem, solver, cloud, steps=steps, tol=TOL).controls


def by_scipy(problem, cloud, method):
    def function(vector):
        found = mfoc.evaluate(problem, tree_of(problem, vector), cloud)
        return float(found.value), mfoc.tree.ravel(found.gradient).numpy()

    at = {}

    def product(vector, direction):  # the graph is kept for as long as the point stays
        key = vector.tobytes()
        if key not in at:
            at.clear()
            at[key] = expand(problem, tree_of(problem, vector), cloud, gauss_newton=False)
        return at[key].product(torch.from_numpy(direction)).numpy()

    box = problem.bounds
    more = (
        {"hessp": product} if method == "trust-ncg" else {"bounds": None if box is None else Bounds(box.low, box.high)}
    )
    options = {"gtol": TOL} if method == "trust-ncg" else {"gtol": TOL, "ftol": 0, "maxiter": 5000, "maxfun": 20000}
    start = mfoc.tree.ravel(problem.controls).numpy()
    return tree_of(problem, minimize(function, start, jac=True, method=method, options=options, **more).x)


def residual(problem, controls, cloud):
    found = mfoc.evaluate(problem, controls, cloud)
    slope = found.gradient if problem.region is None else problem.region.stationary(controls, found.gradient)
    return float(found.value), float(mfoc.tree.norm(slope))


def compared(label, problem, cloud):
    newton = partial(by_mfoc, solver=mfoc.NewtonCG(), steps=200)
    gauss = partial(by_mfoc, solver=mfoc.NewtonCG(gauss_newton=True), steps=200)
    sides = {
        "NewtonCG": newton,
        "NewtonCG, Gauss-Newton": gauss,
        "scipy L-BFGS-B": partial(by_scipy, method="L-BFGS-B"),
    }
    if problem.bounds is None:
        lbfgs = partial(torch.optim.LBFGS, max_iter=100, tolerance_change=0, line_search_fn="strong_wolfe")
        sides["scipy trust-ncg"] = partial(by_scipy, method="trust-ncg")
        sides["torch L-BFGS by Gradient"] = partial(by_mfoc, solver=mfoc.Gradient(lbfgs), steps=50)
    ends = {}

    def run(name):
        ends[name] = sides[name](problem, cloud)

    times = interleaved({name: partial(run, name) for name in sides}, rounds=RUNS, warmup=0)
    for name in sides:
        value, slope = residual(problem, ends[name], cloud)
        print(f"{label}, {name}: J {value:.10g}, residual {slope:.1e}", flush=True)
        if name != "NewtonCG":
            report(f"solved to {TOL:.0e}, {label}", times.ratio(name, "NewtonCG"), of=name, to="NewtonCG")


def main():
    torch.set_num_threads(1)
    print(machine())
    problem, cloud = pendulum()
    mfoc.solve(problem, mfoc.Gradient(torch.optim.LBFGS), cloud, steps=1)  # the first optimiser imports for seconds
    compared("pendulum", problem, cloud)
    compared("in a box", replace(problem, bounds=mfoc.Box(-1.5, 1.0)), cloud)
    compared("tanh network", *network())


if __name__ == "__main__":
    main()
