"""Adversarial training: what YOPO costs and how robust it makes a network, against PGD training.

    python -m tests.benchmarks.bench_adversarial                          step times, and accuracies on digits
    python -m tests.benchmarks.bench_adversarial --mnist mnist10k.npz     accuracies on MNIST at epsilon 0.3 too

The file has arrays ``images`` uint8 [N, 28, 28] and ``labels`` [N]. All methods start from the same network and see
the same batches; they run on one thread, interleaved epoch by epoch, and evaluations are not counted in their times.
"""

import argparse
import math
import statistics
import time
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import mfoc
from paradigms.adversarial import PGD, YOPO, FromTorchattacks, as_attack, evaluate, game
from tests.benchmarks.timing import interleaved, machine, quick, report

try:
    import torchattacks
except ImportError:
    torchattacks = None


def digits_net():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(512, 10),
    )  # fmt: skip


def light_net():
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 4, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 49, 100), nn.ReLU(), nn.Linear(100, 10),
    )  # fmt: skip


def small_cnn():
    """The network for MNIST of Zhang et al. (2019)."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(1024, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 10),
    )  # fmt: skip


def wide_first_net():
    """Most of the work is in the first layer."""
    return nn.Sequential(
        nn.Conv2d(1, 64, 7, padding=3), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(1024, 10)
    )


def step_times(make_net, shape, rounds):
    """Reports how many times longer a step takes with PGD than with YOPO of the same number of steps."""
    torch.manual_seed(0)
    x, y = torch.rand(128, *shape), torch.randint(0, 10, (128,))
    formulation = game(make_net(), F.cross_entropy, (x, y), epsilon=0.1)
    problem, cloud = formulation.problem, mfoc.Particles(x, y)
    methods = {"PGD-10": PGD(10), "YOPO-5-3": YOPO(5, 3), "PGD-40": PGD(40), "YOPO-5-10": YOPO(5, 10)}
    solvers = {name: mfoc.Minimax(inner, partial(torch.optim.Adam, lr=1e-3)) for name, inner in methods.items()}
    at = {name: (problem.controls, solver.init(problem, problem.controls)) for name, solver in solvers.items()}

    def step(name):
        at[name] = solvers[name].step(problem, *at[name], cloud)[:2]

    times = interleaved({name: partial(step, name) for name in solvers}, rounds=rounds, warmup=1)
    print(f"{make_net.__name__}, a step: " + ", ".join(f"{n} {1e3 * times.median(n):.1f} ms" for n in solvers))
    for long, short in (("PGD-10", "YOPO-5-3"), ("PGD-40", "YOPO-5-10")):
        report(f"adversarial step, {make_net.__name__}", times.ratio(long, short), of=long, to=short)


def attack_times(make_net, shape, rounds):
    """Reports PGD-10, ours as an attack of torchattacks beside theirs."""
    if torchattacks is None:
        print("torchattacks is not installed")
        return
    torch.manual_seed(0)
    net, x, y = make_net(), torch.rand(128, *shape), torch.randint(0, 10, (128,))
    formulation = game(net, F.cross_entropy, (x, y), epsilon=0.1)
    attacks = {"ours": as_attack(formulation, PGD(10, 0.025), net), "theirs": torchattacks.PGD(net, 0.1, 0.025, 10)}
    times = interleaved({name: partial(attack, x, y) for name, attack in attacks.items()}, rounds=rounds, warmup=1)
    name = f"PGD-10 attack, {make_net.__name__}"
    report(name, times.ratio("ours", "theirs"), of="mfoc", to="torchattacks", headline=make_net is digits_net)


def one_cycle(total, warm=0.1):
    """Learning-rate factor: up linearly for a share ``warm`` of the steps, then down to zero along a cosine."""

    def factor(k):
        if k < warm * total:
            return (k + 1) / (warm * total)
        return 0.5 * (1 + math.cos(math.pi * (k - warm * total) / ((1 - warm) * total)))

    return factor


def robust_accuracy(net, data, epsilon):
    attacks = {"PGD-20": PGD(20)}
    return evaluate(net, data, epsilon=epsilon, attacks=attacks, progress=False)["PGD-20"].value


def compete(make_net, train, test, methods, *, epsilon, epochs, lr, ramp, goal, seed):
    """Trains with each method, interleaved epoch by epoch.

    ``ramp`` is the share of the steps in which the ball grows to its radius; ``goal`` the robust accuracy to reach.

    Returns:
        For each method: clean, PGD-20 and APGD-CE accuracy, seconds of training, seconds to the goal.
    """
    torch.manual_seed(seed)
    formulation = game(make_net(), F.cross_entropy, train, epsilon=epsilon, batch_size=128, seed=seed)
    per_epoch = formulation.population.batches_per_epoch
    total = epochs * per_epoch
    outer = mfoc.Gradient(partial(torch.optim.Adam, lr=lr), lr_schedule=one_cycle(total))
    grow = (lambda k: min(1.0, (k + 1) / (ramp * total))) if ramp else None
    runs = {
        name: mfoc.iterate(formulation.problem, mfoc.Minimax(inner, outer, seed, grow), formulation.population)
        for name, inner in methods.items()
    }
    seconds, reached, at = dict.fromkeys(methods, 0.0), dict.fromkeys(methods, math.inf), {}
    few = (test[0][:1000], test[1][:1000])
    for _ in range(epochs):
        for name, run in runs.items():
            began = time.perf_counter()
            for _ in range(per_epoch):
                at[name] = next(run)
            seconds[name] += time.perf_counter() - began
            if reached[name] == math.inf and robust_accuracy(formulation.readout(at[name]), few, epsilon) >= goal:
                reached[name] = seconds[name]
    apgd = FromTorchattacks(lambda net: torchattacks.APGD(net, eps=epsilon, steps=20, loss="ce"))
    rows = {}
    for name in methods:
        attacks = {"PGD-20": PGD(20), "APGD-CE": apgd}
        table = evaluate(formulation.readout(at[name]), test, epsilon=epsilon, attacks=attacks, progress=False)
        rows[name] = [row.value for row in table.rows] + [seconds[name], reached[name]]
    return rows


def table_of(title, runs):
    print(f"\n{title}: mean over {len(runs)} seeds ± standard deviation; medians of the seconds")
    print(f"{'training':10s}  {'clean':>15s}  {'PGD-20':>15s}  {'APGD-CE':>15s}  {'seconds':>8s}  {'to the goal':>11s}")
    for name in runs[0]:
        columns = list(zip(*(run[name] for run in runs), strict=True))
        shown = [
            f"{statistics.mean(c):7.2%} ± {statistics.stdev(c) if len(c) > 1 else 0:5.2%}" for c in columns[:3]
        ]  # fmt: skip
        times = [statistics.median(c) for c in columns[3:]]
        print(f"{name:10s}  {'  '.join(shown)}  {times[0]:8.1f}  {times[1]:11.1f}", flush=True)


def digits():
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(labels)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    return (x[:1297], y[:1297]), (x[1297:], y[1297:])


def mnist(path):
    with np.load(path) as stored:
        x, y = torch.tensor(stored["images"])[:, None].float() / 255, torch.tensor(stored["labels"]).long()
    return (x[:8000], y[:8000]), (x[8000:], y[8000:])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", help="an .npz file with images and labels")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--skip-times", action="store_true")
    parser.add_argument("--skip-digits", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.empty(8_000_000).fill_(0.0)  # as loading a data set does: glibc then keeps freed pages
    print(machine())
    if not arguments.skip_times:
        nets = [
            (digits_net, (1, 8, 8), 15),
            (light_net, (1, 28, 28), 9),
            (small_cnn, (1, 28, 28), 3),
            (wide_first_net, (1, 28, 28), 3),
        ]
        for make_net, shape, rounds in nets[: 1 if quick() else None]:
            step_times(make_net, shape, rounds)
            attack_times(make_net, shape, rounds)
    if quick():
        return
    if torchattacks is None:
        print("without torchattacks there is no APGD-CE to judge the trained networks by")
        return
    if not arguments.skip_digits:
        methods = {"PGD-10": PGD(10), "YOPO-5-3": YOPO(5, 3, step_size=0.1 / 3)}
        settings = {"epsilon": 0.1, "epochs": 30, "lr": 1e-2, "ramp": 0, "goal": 0.8}
        runs = [compete(digits_net, *digits(), methods, seed=s, **settings) for s in range(arguments.seeds)]
        table_of(f"digits, {settings}", runs)
    if arguments.mnist:
        methods = {"PGD-10": PGD(10), "YOPO-5-3": YOPO(5, 3)}
        settings = {"epsilon": 0.3, "epochs": 15, "lr": 8e-3, "ramp": 0.4, "goal": 0.7}
        data = mnist(arguments.mnist)
        runs = [compete(light_net, *data, methods, seed=s, **settings) for s in range(arguments.seeds)]
        table_of(f"MNIST, {settings}", runs)


if __name__ == "__main__":
    main()
