"""DDPNOpt with and without feedback, beside Adam, Muon and K-FAC: stable learning rates, best loss, and step time.

    python -m tests.benchmarks.bench_ddpnopt                        digits and wine of scikit-learn, units of tanh
    python -m tests.benchmarks.bench_ddpnopt --activation ReLU
    python -m tests.benchmarks.bench_ddpnopt --only identity,Adam --seeds 2
    python -m tests.benchmarks.bench_ddpnopt --only identity --rates 4 5.7 8 11.3 16 22.6 32
    python -m tests.benchmarks.bench_ddpnopt --only ""              step times alone

A run trains a network of two hidden layers from the weights and on the batches of its seed; what is reported is the
mean loss over all data at its end. A learning rate, a power of two or one of those given, is stable where the loss of
every seed ends below a tenth of log(number of classes), which is what guessing costs. "widest" is the ratio of the ends
of the longest row of stable rates, "loss" the least median over seeds, at rates where all are stable, with the extremes
there. K-FAC is that of curvlinops (Fisher of the labels, one batch, no running mean), its steps plain; Muon is torch's
on matrices, with SGD at a tenth of its rate on the biases.
"""

import argparse
import math
import statistics
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits, load_wine
from torch import nn

import mfoc
from tests.benchmarks.timing import interleaved, machine, report

CURVATURES = {"identity": "SGD", "rmsprop": "RMSprop", "kronecker": "K-FAC of the data"}


def powers(low, high):
    """Powers of two, from 2^low to 2^high."""
    return [2.0**k for k in range(low, high + 1)]


def network(sizes, activation):
    layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), activation())]
    return nn.Sequential(*layers[:-1])


# ---- what is compared: given a network and a rate, a function that makes a step, and one that gives the network


def by_solver(make):
    def begin(net, lr):
        problem, solver = mfoc.from_module(net, F.cross_entropy), make(lr)
        at = [problem.controls, solver.init(problem, problem.controls)]

        def step(cloud):
            controls, state, info = solver.step(problem, *at, cloud)
            at[:] = controls, state
            return float(info.value)

        return step, lambda: mfoc.to_module(net, at[0])

    return begin


def by_torch(make):
    def begin(net, lr):
        optimisers = make(net, lr)

        def step(cloud):
            for optimiser in optimisers:
                optimiser.zero_grad()
            loss = F.cross_entropy(net(cloud.state), cloud.data)
            loss.backward()
            for optimiser in optimisers:
                optimiser.step()
            return loss.item()

        return step, lambda: net

    return begin


def muon(net, lr):
    matrices = [p for p in net.parameters() if p.dim() == 2]
    biases = [p for p in net.parameters() if p.dim() < 2]
    return [torch.optim.Muon(matrices, lr=lr, weight_decay=0.0), torch.optim.SGD(biases, lr=lr / 10)]


def kfac(net, lr, damping=1e-2):
    from curvlinops import KFACInverseLinearOperator, KFACLinearOperator

    parameters, loss = list(net.parameters()), nn.CrossEntropyLoss()

    def step(cloud):
        x, y = cloud.state, cloud.data
        value = loss(net(x), y)
        slopes = torch.autograd.grad(value, parameters)
        fisher = KFACLinearOperator(
            net, loss, parameters, [(x, y)], fisher_type="empirical", check_deterministic=False,
            separate_weight_and_bias=False,
        )  # fmt: skip
        inverse = KFACInverseLinearOperator(fisher, damping=damping, use_heuristic_damping=True)
        directions = inverse @ list(slopes)
        with torch.no_grad():
            for p, direction in zip(parameters, directions, strict=True):
                p.sub_(direction, alpha=lr)
        return value.item()

    return step, lambda: net


def rows():
    """Name, what begins a run, and the learning rates that are tried."""
    rates = {"identity": powers(-4, 8), "rmsprop": powers(-12, -2), "kronecker": powers(-10, 3)}
    found = []
    for curvature, plain in CURVATURES.items():
        for feedback in (False, True):
            name = f"DDPNOpt {curvature}" if feedback else f"{plain} ({curvature}, no feedback)"
            solver = partial(mfoc.DDPNOpt, curvature=curvature, feedback=feedback)
            found.append((name, by_solver(solver), rates[curvature]))
    found.append(("Adam", by_torch(lambda net, lr: [torch.optim.Adam(net.parameters(), lr=lr)]), powers(-12, 0)))
    found.append(("Muon", by_torch(muon), powers(-10, 4)))
    found.append(("K-FAC (curvlinops)", kfac, powers(-8, 3)))
    return found


# ---- runs


def data(name):
    x, y = (load_digits if name == "digits" else load_wine)(return_X_y=True)
    x, y = torch.tensor(x, dtype=torch.float32), torch.tensor(y)
    return (x / 16 if name == "digits" else (x - x.mean(0)) / x.std(0)), y


def final_loss(begin, lr, x, y, sizes, activation, steps, batch, seed):
    """The mean loss over all data after a run; infinite where it is not a number."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = network(sizes, activation)
    step, trained = begin(net, lr)
    generator = torch.Generator().manual_seed(1000 + seed)
    for _ in range(steps):
        index = torch.randint(len(x), (batch,), generator=generator)
        try:
            value = step(mfoc.Particles(x[index], y[index]))
        except torch.linalg.LinAlgError:  # a factor of curvlinops's that cannot be inverted
            return math.inf
        if not value < 1e6:
            return math.inf
    with torch.no_grad():
        loss = float(F.cross_entropy(trained()(x), y))
    return loss if math.isfinite(loss) else math.inf


def longest(rates, stable):
    """The ends of the longest row of neighbouring stable rates, or None."""
    runs, start = [], None
    for k, good in enumerate([*stable, False]):
        if good and start is None:
            start = k
        if not good and start is not None:
            runs.append((start, k - 1))
            start = None
    return max(runs, key=lambda run: run[1] - run[0], default=None)


def compare(name, chosen, arguments):
    x, y = data(name)
    classes = int(y.max()) + 1
    sizes = (x.shape[1], *arguments.hidden, classes)
    batch, steps = (128, 200) if name == "digits" else (len(x) // 2, 100)
    good, activation = math.log(classes) / 10, getattr(nn, arguments.activation)
    print(f"\n{name}, {sizes}, {arguments.activation}: {steps} steps of {batch}; stable below {good:.3f}")
    print(f"{'':36s} {'stable rates':>22s} {'widest':>7s} {'loss':>10s} {'least':>10s} {'most':>10s} {'at lr':>9s}")
    for label, begin, usual in chosen:
        rates = arguments.rates or usual
        losses = []
        for lr in rates:
            losses.append([])
            for seed in range(arguments.seeds):  # one seed that fails is enough
                losses[-1].append(final_loss(begin, lr, x, y, sizes, activation, steps, batch, seed))
                if losses[-1][-1] >= good:
                    break
        stable = [max(each) < good for each in losses]
        run = longest(rates, stable)
        if run is None:
            print(f"{label:36s} {'none':>22s}", flush=True)
            continue
        low, high = rates[run[0]], rates[run[1]]
        best = min((k for k, fine in enumerate(stable) if fine), key=lambda k: statistics.median(losses[k]))
        found = losses[best]
        print(
            f"{label:36s} {low:10.3g} to {high:8.3g} {high / low:7.0f} {statistics.median(found):10.3g} "
            f"{min(found):10.3g} {max(found):10.3g} {rates[best]:9.3g}",
            flush=True,
        )


# ---- time


def step_times(sizes, batch, rounds):
    """Thread-CPU time of a step, as a ratio to a loop by hand with SGD; all interleaved."""
    torch.manual_seed(0)
    cloud = mfoc.Particles(torch.randn(batch, sizes[0]), torch.randint(0, sizes[-1], (batch,)))
    sgd = by_torch(lambda net, lr: [torch.optim.SGD(net.parameters(), lr=lr)])
    gradient = by_solver(lambda lr: mfoc.Gradient(partial(torch.optim.SGD, lr=lr)))
    begins = {"SGD by hand": sgd, "mfoc.Gradient, SGD": gradient}
    begins |= {label: begin for label, begin, _ in rows() if "curvlinops" not in label}
    steps = {label: begin(network(sizes, nn.Tanh), 1e-3)[0] for label, begin in begins.items()}
    times = interleaved({label: partial(step, cloud) for label, step in steps.items()}, rounds=rounds, warmup=10)
    base = times.median("SGD by hand")
    print(f"\nstep of {sizes}, batch {batch}: SGD by hand {1e3 * base:.2f} ms of thread-CPU time")
    for label in list(steps)[1:]:
        report(f"step of {sizes}, batch {batch}", times.ratio(label, "SGD by hand"), of=label, to="SGD by hand")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--activation", default="Tanh", help="a module of torch.nn")
    parser.add_argument("--hidden", type=int, nargs="*", default=[64, 64])
    parser.add_argument("--data", default="digits,wine")
    parser.add_argument(
        "--rates", type=float, nargs="*", help="learning rates to try, rising, in place of powers of two"
    )
    parser.add_argument("--only", help="parts of the names of what is compared, parted by commas")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{machine()}, {arguments.seeds} seeds")
    for sizes, batch, rounds in (((64, 64, 64, 10), 128, 200), ((784, 256, 256, 10), 128, 60)):
        step_times(sizes, batch, rounds)
    wanted = arguments.only.split(",") if arguments.only is not None else [""]
    chosen = [row for row in rows() if any(part in row[0] for part in wanted if part or arguments.only is None)]
    for name in arguments.data.split(",") if chosen else ():
        compare(name, chosen, arguments)


if __name__ == "__main__":
    main()
