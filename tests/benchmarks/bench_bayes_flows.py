"""Particle flows and the path-integral sampler: step times against Pyro's SVGD, log Z against references.

    python -m tests.benchmarks.bench_bayes_flows               everything
    python -m tests.benchmarks.bench_bayes_flows svgd          step times of SVGD against Pyro's, and agreement
    python -m tests.benchmarks.bench_bayes_flows mixture       log Z by Foellmer's sampler: two-dimensional mixture
    python -m tests.benchmarks.bench_bayes_flows funnel        ten-dimensional funnel
    python -m tests.benchmarks.bench_bayes_flows logistic      Bayesian logistic regression on breast_cancer

One thread. Times are medians of interleaved blocks of ten steps, in processor time. log Z is printed with its own error
bar (one standard deviation), the effective sample size of the weights and the unscaled J; -J is a lower bound of log Z.
"""

import argparse
import itertools
import math
import platform
import statistics
import time
from functools import partial

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.infer import SVGD, RBFSteinKernel
from sklearn.datasets import load_breast_cancer, load_diabetes

import mfoc
from paradigms.bayesian import AdamRule, CrossEntropy, Drift, GaussianDrift, PyroRBF, follmer, log_density, sample, svgd

# ---- SVGD against Pyro


def breast_cancer():
    """Standardised features with a constant `[569, 31]`, labels `[569]`."""
    x, y = load_breast_cancer(return_X_y=True)
    x = torch.tensor((x - x.mean(0)) / x.std(0), dtype=torch.float32)
    return torch.cat([x, torch.ones(len(x), 1)], 1), torch.tensor(y, dtype=torch.float32)


def logistic(x, y=None):
    w = pyro.sample("w", dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1))
    # Pyro's particles come as [n, 1, d]; the observations are to be [n, N]
    logits = (w.squeeze(-2) if w.dim() > 2 else w) @ x.mT
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=logits), obs=y)


def diabetes():
    x, y = load_diabetes(return_X_y=True)
    x, y = torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)
    return (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()


def linear(x, y=None):
    w = pyro.sample("w", dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal((w.squeeze(-2) if w.dim() > 2 else w) @ x.mT, 0.7), obs=y)


def network(x, y=None):
    """A 10-50-1 network; all its weights are one latent, because Pyro's SVGD mixes the particles of several."""
    w = pyro.sample("w", dist.Normal(torch.zeros(601), 1.0).to_event(1))
    w = w.squeeze(-2) if w.dim() > 2 else w
    first = w[..., :500].reshape(*w.shape[:-1], 50, 10)
    hidden = torch.tanh(x @ first.mT + w[..., None, 500:550])
    mean = (hidden @ w[..., 550:600, None]).squeeze(-1) + w[..., 600:]
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(mean, 0.7), obs=y)


def bench_svgd(steps):
    models = {
        "linear regression, d = 10": (linear, diabetes()),
        "logistic regression, d = 31": (logistic, breast_cancer()),
        "10-50-1 net, d = 601": (network, diabetes()),
    }
    print(f"{'model':30s} {'mode':13s} {'n':>3s} {'Pyro [ms]':>10s} {'ours [ms]':>10s} {'ratio':>6s} {'apart':>9s}")
    for name, (model, data) in models.items():
        density = log_density(model, data)
        for mode in ("univariate", "multivariate"):
            for n in (20, 50):
                print(f"{name:30s} {mode:13s} {n:3d} " + svgd_row(model, data, density, mode, n, steps), flush=True)


def svgd_row(model, data, density, mode, n, steps):
    """Twenty steps of Adam for agreement, in float32, then timed ones."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    theirs = SVGD(model, RBFSteinKernel(), pyro.optim.Adam({"lr": 1e-3}), n, max_plate_nesting=1, mode=mode)
    theirs.guide(*data)
    start = pyro.param("svgd_particles").detach().reshape(n, -1).clone()
    made = svgd(density, step=1e-3, kernel=PyroRBF(mode=mode), rule=AdamRule(), particles=start, steps=1)
    theirs.step(*data)
    apart = (sample(made).x[-1] - pyro.param("svgd_particles").detach().reshape(n, -1)).abs().max()
    state, h, block = made.flow.start(density, made.start), torch.tensor(1e-3), 10
    taken = {"theirs": [], "ours": []}
    for k in range(steps // block + 1):
        began = time.process_time()
        for _ in range(block):
            theirs.step(*data)
        middle = time.process_time()
        with torch.no_grad():
            for t in range(k * block, (k + 1) * block):
                state = made.flow.step(density, t, state, h, {})
        taken["ours"].append((time.process_time() - middle) / block)
        taken["theirs"].append((middle - began) / block)
    a, b = (1000 * statistics.median(taken[side][1:]) for side in ("theirs", "ours"))
    return f"{a:10.2f} {b:10.2f} {a / b:6.1f} {float(apart):9.1e}"


# ---- log Z


def solved(made, steps, rate, paths):
    """Solves with Adam (a short warm-up, then a cosine), printing where it stands."""
    solver = mfoc.Gradient(
        partial(torch.optim.Adam, lr=rate),
        lr_schedule=lambda k: min(1.0, (k + 1) / 20) * (0.01 + 0.99 * (1 + math.cos(math.pi * k / steps)) / 2),
    )
    began, reports = time.perf_counter(), max(1, steps // 4)

    def report(at):
        if at.step % reports == 0:
            print(
                f"  {at.step:5d} steps, {time.perf_counter() - began:5.0f} s: {made.evaluate(at, n=2000)}", flush=True
            )

    solution = made.solve(solver, steps=steps, hooks=[report])
    return solution, made.evaluate(solution, n=paths)


def by_cross_entropy(made, steps, every, **options):
    """Solves by the cross-entropy method with Adam and a cosine, printing where it stands."""
    began = time.perf_counter()

    def report(at):
        if at.step % max(1, steps // 4) == 0:
            evidence = made.evaluate(at, n=4000)
            print(f"  {at.step:5d} steps, {time.perf_counter() - began:5.0f} s: {evidence}", flush=True)

    cosine = lambda k: (1 + math.cos(math.pi * k / steps)) / 2  # noqa: E731
    adam = mfoc.Gradient(partial(torch.optim.Adam, lr=2e-3), lr_schedule=cosine)
    return made.solve(CrossEntropy(adam, every=every, paths=512, **options), steps=steps, hooks=[report])


def verdict(evidence, reference, error=0.0):
    bar = math.hypot(evidence.error, error)
    print(f"  {evidence}")
    print(
        f"  reference {reference:.4f} +- {error:.4f}: off by {evidence.log_z - reference:+.4f}, "
        f"{abs(evidence.log_z - reference) / bar:.1f} error bars; J + log Z (reference) = {evidence.J + reference:+.4f}"
    )


def bench_mixture(scale):
    """Nine Gaussians of variance 0.3 on a grid with spacing 5; log Z = 0."""
    print("mixture of nine Gaussians, d = 2")
    side = 5 * torch.arange(-1.0, 2.0)
    centres = torch.cartesian_prod(side, side)
    constant = math.log(9) + math.log(2 * math.pi * 0.3)
    target = log_density(
        lambda x: torch.logsumexp(-(x[:, None] - centres.to(x)).square().sum(2) / 0.6, 1) - constant,
        like=torch.zeros(2),
    )
    made = follmer(target, Drift(2), sigma=5.0, steps=40, spacing=1.5, particles=256, stop_score=True)
    verdict(solved(made, int(400 * scale), 5e-3, 20_000)[1], 0.0)


def bench_funnel(scale):
    """Neal's funnel: v ~ N(0, 9), nine x_i ~ N(0, exp v); log Z = 0.

    The hard case: J seeks modes, its paths keep away from the narrow neck and the wide mouth, and weights that never
    see them cannot tell how much is missing. So the drift is learned by the cross-entropy method. What is seen last
    lies beyond v = +-6, where the funnel is narrower than 0.05 or wider than 20; each side has 2.3 % of the mass.
    Compare the laws of v, printed last.
    """
    print("funnel, d = 10")

    def funnel(x):
        v, rest = x[:, 0], x[:, 1:]
        own = -0.5 * (v.square() / 9 + math.log(2 * math.pi * 9))
        return own - 0.5 * (rest.square().sum(1) * (-v).exp() + 9 * v + 9 * math.log(2 * math.pi))

    target = log_density(funnel, like=torch.zeros(10))
    made = follmer(target, Drift(10, clip=10.0), sigma=3.0, steps=100, spacing=3.0)
    solution = by_cross_entropy(made, int(16_000 * scale), every=40, particles=3000, keep=60)
    evidence = made.evaluate(solution, n=50_000)
    verdict(evidence, 0.0)
    weights, v = evidence.log_weights.double().softmax(0), evidence.x[:, 0]
    exact = torch.distributions.Normal(0.0, 3.0)
    edges = [-math.inf, -6, -4, -2, 0, 2, 4, 6, math.inf]
    for low, high in itertools.pairwise(edges):
        inside = (v >= low) & (v < high)
        mass = float(exact.cdf(torch.tensor(high)) - exact.cdf(torch.tensor(low)))
        print(f"  v in [{low:4}, {high:4}): weights {float(weights[inside].sum()):.3f}, exact {mass:.3f}")


def bench_logistic(scale):
    """Breast cancer, 31 weights with standard normal prior; the reference is importance sampling with 2e6 draws."""
    print("Bayesian logistic regression on breast_cancer, d = 31")
    x, y = breast_cancer()
    signed = x * (2 * y - 1)[:, None]

    def joint(w):
        prior = -0.5 * w.square().sum(1) - w.shape[1] / 2 * math.log(2 * math.pi)
        return F.logsigmoid(w @ signed.to(w).mT).sum(1) + prior

    target = log_density(joint, like=torch.zeros(31))
    mode, covariance = laplace(joint, 31)
    reference, error = importance(joint, mode, covariance)
    print(f"  Laplace's approximation {float(joint(mode[None]) + evidence_of(covariance)):.4f}")
    print("  from Laplace's drift, minimising J")
    base = GaussianDrift(mode, covariance)
    made = follmer(target, Drift(31, base=base).float(), steps=40, spacing=2.0, particles=256, stop_score=True)
    verdict(solved(made, int(200 * scale), 3e-3, 20_000)[1], reference, error)
    print("  from nothing, by the cross-entropy method")
    made = follmer(target, Drift(31, clip=10.0), steps=40, spacing=2.0)
    solution = by_cross_entropy(made, int(3600 * scale), every=60)
    verdict(made.evaluate(solution, n=20_000), reference, error)


def laplace(joint, d):
    """The mode and the inverse Hessian there, in float64."""
    w = torch.zeros(d, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([w], max_iter=300, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = -joint(w[None]).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    mode = w.detach()
    return mode, torch.linalg.inv(torch.func.hessian(lambda v: -joint(v[None])[0])(mode))


def evidence_of(covariance):
    return 0.5 * (len(covariance) * math.log(2 * math.pi) + torch.logdet(covariance))


def importance(joint, mode, covariance, rounds=40, n=50_000):
    """Log Z and its standard error, by draws from a Student-t law with nine degrees of freedom around the mode."""
    law = dist.MultivariateStudentT(torch.tensor(9.0, dtype=torch.float64), mode, torch.linalg.cholesky(covariance))
    torch.manual_seed(0)
    logs = []
    for _ in range(rounds):
        draws = law.sample((n,))
        logs.append(joint(draws) - law.log_prob(draws))
    logs = torch.cat(logs)
    weights = (logs - logs.max()).exp()
    mean = weights.mean()
    return float(mean.log() + logs.max()), float(weights.std() / mean / math.sqrt(len(weights)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["svgd", "mixture", "logistic", "funnel"])
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the number of steps of the solver")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, pyro {pyro.__version__}, {platform.machine()}, one thread")
    for what in options.what:
        if what == "svgd":
            bench_svgd(100)
        else:
            {"mixture": bench_mixture, "funnel": bench_funnel, "logistic": bench_logistic}[what](options.scale)


if __name__ == "__main__":
    main()
