"""Mean-field variational inference: step times against Pyro, and calibration on digits.

    python -m tests.benchmarks.bench_variational            # both
    python -m tests.benchmarks.bench_variational speed      # or one of: speed, digits

All sides of a comparison take turns in one process on one thread; see ``timing``.
"""

import math
import statistics
import sys
from functools import partial

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from sklearn.datasets import load_diabetes, load_digits
from torch import nn

import mfoc
from paradigms.bayesian import accuracy, ece, nll, predict, variational
from tests.benchmarks.timing import interleaved, machine, quick, report

NOISE = 0.7
ACTIVATIONS = {"tanh": (torch.tanh, nn.Tanh), "relu": (torch.relu, nn.ReLU)}


def diabetes():
    x, y = (torch.tensor(part, dtype=torch.float32) for part in load_diabetes(return_X_y=True))
    return (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()


def pyro_model(activation):
    """A 10-50-1 network written so that Pyro can vectorise it over particles."""

    def model(x, y):
        w1 = pyro.sample("w1", dist.Normal(0.0, 1.0).expand([50, 10]).to_event(2))
        b1 = pyro.sample("b1", dist.Normal(0.0, 1.0).expand([50]).to_event(1))
        w2 = pyro.sample("w2", dist.Normal(0.0, 1.0).expand([1, 50]).to_event(2))
        b2 = pyro.sample("b2", dist.Normal(0.0, 1.0).expand([1]).to_event(1))
        h = activation(x @ w1.mT + b1.unsqueeze(-2))
        mean = (h @ w2.mT + b2.unsqueeze(-2)).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, NOISE), obs=y)

    return model


def by_pyro(activation, x, y, samples, vectorised, options):
    model = pyro_model(activation)
    guide = AutoNormal(model)
    elbo = Trace_ELBO(num_particles=samples, vectorize_particles=vectorised, max_plate_nesting=1)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3, **options}), elbo)
    return lambda: svi.step(x, y) / len(x)


def by_mfoc(layer, x, y, samples, estimator, options):
    net = nn.Sequential(nn.Linear(10, 50), layer(), nn.Linear(50, 1))
    f = variational(net, (x, y[:, None]), likelihood="gaussian", noise=NOISE, samples=samples, estimator=estimator)
    solver = mfoc.Gradient(partial(torch.optim.Adam, lr=1e-3, **options))
    stream = mfoc.iterate(f.problem, solver, f.population)
    return lambda: next(stream).info.value.item()


def by_hand(activation, x, y, samples, options):
    """The same step written out for this network: what the arithmetic and the optimiser cost."""
    net = nn.Sequential(nn.Linear(10, 50), nn.Linear(50, 1))
    parts = [torch.cat([layer.weight, layer.bias[:, None]], 1).flatten() for layer in net]
    loc = torch.cat(parts).detach().requires_grad_()
    rho = torch.full_like(loc, math.log(math.expm1(0.1))).requires_grad_()
    optimizer = torch.optim.Adam([loc, rho], lr=1e-3, **options)
    n, widened, sizes = len(x), F.pad(x, (0, 1), value=1.0), [50 * 11, 51]

    def step():
        scale = F.softplus(rho)
        w1, w2 = torch.addcmul(loc, torch.randn(samples, len(loc)), scale).split(sizes, 1)
        hidden = activation((w1.reshape(-1, 11).mT.contiguous().mT @ widened.mT).view(samples, 50, n))
        mean = torch.baddbmm(w2[:, None, 50:], w2[:, None, :50], hidden)[:, 0]
        misfit = (y - mean).square().sum() * (0.5 / (samples * n * NOISE**2)) + math.log(NOISE * math.sqrt(2 * math.pi))
        kl = 0.5 * (torch.dot(scale, scale) + torch.dot(loc, loc)) - scale.log().sum() - 0.5 * len(loc)
        loss = misfit + kl / n
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def speed():
    torch.set_num_threads(1)
    torch.empty(8_000_000).fill_(0.0)  # glibc then keeps freed pages, as after loading a data set
    x, y = diabetes()
    print(f"{machine()}, Pyro {pyro.__version__}")
    print(f"SVI step on diabetes, 10-50-1, {len(x)} rows, Adam; thread-CPU time, medians (quartiles of the rounds)")
    if quick():
        compare("tanh", x, y, 32, {})
        return
    for activation in ACTIVATIONS:
        for samples in (1, 8, 32):
            for fused in (False, True):
                compare(activation, x, y, samples, {"fused": True} if fused else {})


def compare(activation, x, y, samples, options):
    function, layer = ACTIVATIONS[activation]
    pyro.clear_param_store()
    torch.manual_seed(0)
    vectorised = by_pyro(function, x, y, samples, True, options)
    pyro.clear_param_store()
    steps = {"Pyro vectorised": vectorised, "by hand": by_hand(function, x, y, samples, options)}
    steps |= {name: by_mfoc(layer, x, y, samples, name, options) for name in ("weights", "local", "flipout")}
    # The two Pyro sides have parameters of the same names: the store holds those of one at a time.
    times = interleaved(steps, rounds=30 if quick() else 60, warmup=5)
    pyro.clear_param_store()
    steps = {"Pyro loop": by_pyro(function, x, y, samples, False, options), "weights": steps["weights"]}
    name = f"SVI step, {activation}, S={samples}{', fused Adam' if options else ''}"
    print(f"{name}: " + ", ".join(f"{side} {1e3 * times.median(side):.2f} ms" for side in times.taken))
    first = activation == "tanh" and samples == 32
    target = "at least 2.5" if first else ""
    ratio = times.ratio("Pyro vectorised", "weights")
    report(name, ratio, of="Pyro vectorised", to="mfoc", target=target, headline=first and not options)
    report(name, times.ratio("weights", "by hand"), of="mfoc", to="by hand")
    report(name, interleaved(steps, rounds=12).ratio("Pyro loop", "weights"), of="Pyro loop", to="mfoc")


# The weight of the KL, in units of 1/N, and the width of the prior. At full weight J is -ELBO/N. The light one, a cold
# posterior (Wenzel et al. 2020, arXiv:2002.02405), was chosen among 0.03, 0.1 and 0.3 on other splits than below.
LAWS = {"Bayes": (1.0, 3.0), "cold": (0.03, 1.0)}
MEASURES = {"accuracy": accuracy, "ECE": ece, "NLL": nll}


def digits(seeds=5, train=1200, hidden=50, steps=3000):
    """Bayesian and point networks of one architecture: the same initial weights, batches, optimiser and steps."""
    torch.set_num_threads(1)
    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x, dtype=torch.float32) / 16, torch.tensor(y)
    rows = []
    for seed in range(seeds):
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
        fit, test = order[:train], order[train:]
        rows.append(one_digits((x[fit], y[fit]), x[test], y[test], seed, hidden, steps))
        print(f"seed {seed}: " + "   ".join(line(rows[-1], what) for what in MEASURES), flush=True)
    for what in MEASURES:
        mean = {key: statistics.mean(row[key] for row in rows) for key in rows[0]}
        wins = [sum(row[who, what] < row["point", what] for row in rows) for who in LAWS]
        print(f"mean {line(mean, what)}   lower than the point net on {wins} of {seeds} seeds")


def line(row, what):
    return f"{what}: " + ", ".join(f"{who} {row[who, what]:.4f}" for who in ("point", *LAWS))


def one_digits(data, x_test, y_test, seed, hidden, steps):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))
    solver = mfoc.Gradient(
        partial(torch.optim.Adam, lr=1e-2), lr_schedule=lambda k: 0.5 * (1 + math.cos(math.pi * min(k / steps, 1)))
    )
    batches = mfoc.population(data, batch_size=128, seed=seed)
    point = mfoc.solve(mfoc.from_module(net, F.cross_entropy), solver, batches, steps=steps)
    with torch.no_grad():
        found = {"point": mfoc.to_module(net, point.controls)(x_test).softmax(1)}
    for who, (weight, width) in LAWS.items():
        f = variational(
            net, data, likelihood="categorical", prior=dist.Normal(0.0, width), tau=weight / len(data[0]),
            batch_size=128, estimator="local", init_scale=0.02, seed=seed,
        )  # fmt: skip
        found[who] = predict(f.readout(f.solve(solver, steps=steps)), x_test, samples=200)
    return {(who, what): measure(p, y_test) for who, p in found.items() for what, measure in MEASURES.items()}


def main():
    wanted = sys.argv[1:] or ["speed", *([] if quick() else ["digits"])]
    for name in wanted:
        {"speed": speed, "digits": digits}[name]()


if __name__ == "__main__":
    main()
