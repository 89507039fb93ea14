"""CSGD and CMSGD beside SGD, Adam, Prodigy and schedule-free: test accuracy against the learning rate one begins with.

    python -m tests.benchmarks.bench_optimisers                           digits of scikit-learn
    python -m tests.benchmarks.bench_optimisers --mnist mnist10k.npz      MNIST: 8,000 to train on, 2,000 to test on
    python -m tests.benchmarks.bench_optimisers --only CSGD,Adam --seeds 2

The .npz file has arrays ``images`` uint8 [N, 28, 28] and ``labels`` [N]. All train a network of one hidden layer of 128
rectified units on batches of 100, for a seed from the same weights and on the same batches. What is called controlled
runs with LearningRateControl. A row is one setting: mean and standard deviation of the test accuracy over seeds, the
lowest of them, and the mean loss on all training data at the end. Under the table stands each optimiser at its best and
at its worst rate. (Which is best is seen on the test data themselves: alike for all, and a little flattering.)

Prodigy and schedule-free are left out, with a line that says so, unless they are installed:

    pip install --no-deps prodigyopt schedulefree
"""

import argparse
import logging
import platform
import statistics
from dataclasses import dataclass
from functools import partial
from importlib import import_module

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from mfoc import optim
from mfoc.errors import InvalidValue

HIDDEN, BATCH = 128, 100


@dataclass(frozen=True)
class Setting:
    """An optimiser with its learning rate: ``make(parameters)`` makes it."""

    name: str
    lr: float
    make: object
    momentum: float | None = None
    cosine: bool = False
    controlled: bool = False


def settings():
    """Everything that is compared, in the order of the table."""
    sgd, adam = torch.optim.SGD, torch.optim.Adam
    wide, low = (0.01, 0.05, 0.1, 0.2, 0.5, 1.0), (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
    rows = [Setting("SGD", lr, partial(sgd, lr=lr)) for lr in wide]
    rows += [Setting("CSGD", lr, partial(optim.CSGD, lr=lr)) for lr in wide]
    for momentum in (0.9, 0.99, 0.999):
        rows += [Setting("SGD", lr, partial(sgd, lr=lr, momentum=momentum), momentum) for lr in wide]
        rows += [Setting("CMSGD", lr, partial(optim.CMSGD, lr=lr, momentum=momentum), momentum) for lr in wide]
    rows += [Setting("Adam", lr, partial(adam, lr=lr)) for lr in low]
    rows += [Setting("Adam, cosine", lr, partial(adam, lr=lr), cosine=True) for lr in low]
    decades = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
    rows += [Setting("Adam, controlled", lr, partial(adam, lr=lr), controlled=True) for lr in decades]
    rows += [Setting("SGD, controlled", lr, partial(sgd, lr=lr), controlled=True) for lr in decades]
    if prodigy := installed("prodigyopt"):
        rows += [Setting("Prodigy", lr, partial(prodigy.Prodigy, lr=lr)) for lr in (0.3, 1.0, 3.0)]
        rows += [Setting("Prodigy, cosine", 1.0, partial(prodigy.Prodigy, lr=1.0), cosine=True)]
    if free := installed("schedulefree"):
        rows += [Setting("schedule-free SGD", lr, partial(free.SGDScheduleFree, lr=lr)) for lr in wide]
        rows += [Setting("schedule-free Adam", lr, partial(free.AdamWScheduleFree, lr=lr)) for lr in low]
    return rows


def installed(name):
    """A package that is compared with, or None and a line that says how to get it."""
    try:
        return import_module(name)
    except ModuleNotFoundError:
        print(f"{name} is not installed and is left out: pip install --no-deps {name}")
        return None


def train(setting, data, steps, seed):
    """Test accuracy in per cent, and the loss on all training data, at the end of a run."""
    (x, y), (test_x, test_y) = data
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(x.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 10))
    batches, others = torch.Generator().manual_seed(1000 + seed), torch.Generator().manual_seed(2000 + seed)
    optimiser = setting.make(net.parameters())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps) if setting.cosine else None
    control = optim.LearningRateControl(optimiser) if setting.controlled else None
    averages = hasattr(optimiser, "eval")  # schedule-free evaluates at an average of its iterates
    if averages:
        optimiser.train()
    for _ in range(steps):
        rows = torch.randint(len(x), (BATCH,), generator=batches)
        optimiser.zero_grad()
        F.cross_entropy(net(x[rows]), y[rows]).backward()
        fresh = torch.randint(len(x), (BATCH,), generator=others)
        try:
            if control:
                control.step(lambda fresh=fresh: F.cross_entropy(net(x[fresh]), y[fresh]))
            else:
                optimiser.step()
        except InvalidValue:  # a gradient is not finite: the rest go on to NaN, ours stop here
            break
        if schedule:
            schedule.step()
    if averages:
        optimiser.eval()
    with torch.no_grad():
        right = (net(test_x).argmax(1) == test_y).float().mean()
        return 100 * float(right), float(F.cross_entropy(net(x), y))


def spread(sample):
    return statistics.stdev(sample) if len(sample) > 1 else 0.0


def table(rows, data, steps, seeds):
    """Runs and prints every setting, then what each optimiser does at its best and at its worst."""
    head = f"{'optimiser':18s}  {'momentum':>8s}"
    print(f"{head}  {'lr':>7s}  {'accuracy, %':>13s}  {'lowest':>6s}  {'training loss':>13s}")
    found = {}
    for row in rows:
        runs = [train(row, data, steps, seed) for seed in range(seeds)]
        accuracy = [run[0] for run in runs]
        momentum = "" if row.momentum is None else f"{row.momentum:g}"
        mean = statistics.mean(accuracy)
        found.setdefault((row.name, momentum), []).append((mean, spread(accuracy), row.lr))
        print(
            f"{row.name:18s}  {momentum:>8s}  {row.lr:7g}  {mean:6.2f} ± {spread(accuracy):4.2f}  {min(accuracy):6.2f}"
            f"  {statistics.mean(run[1] for run in runs):13.4f}",
            flush=True,
        )
    print(f"\n{head}  {'at best, %':>13s}  {'lr':>7s}  {'at worst, %':>11s}  {'lr':>7s}")
    for (name, momentum), means in found.items():
        (top, deviation, rate), (least, _, bad) = max(means), min(means)
        print(f"{name:18s}  {momentum:>8s}  {top:6.2f} ± {deviation:4.2f}  {rate:7g}  {least:11.2f}  {bad:7g}")


def digits():
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    return (x[:1297], y[:1297]), (x[1297:], y[1297:])


def mnist(path):
    with np.load(path) as stored:
        x, y = torch.tensor(stored["images"]).flatten(1).float() / 255, torch.tensor(stored["labels"]).long()
    return (x[:8000], y[:8000]), (x[8000:], y[8000:])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", help="an .npz file with images and labels, in place of digits")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--only", help="names of optimisers, parted by commas, such as CSGD,Adam (with its cosine)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("mfoc.optim").setLevel(logging.ERROR)  # that control is no good for SGD is what the table shows
    data = mnist(arguments.mnist) if arguments.mnist else digits()
    rows = settings()
    names = [row.name.split(",")[0] for row in rows]
    if arguments.only:
        wanted = [name.strip() for name in arguments.only.split(",")]
        rows = [row for row, name in zip(rows, names, strict=True) if name in wanted]
        if not rows:
            parser.error(f"no optimiser is called {arguments.only}; there are {', '.join(dict.fromkeys(names))}")
    print(
        f"{platform.machine()}, torch {torch.__version__}, 1 thread; {'MNIST' if arguments.mnist else 'digits'}, "
        f"{arguments.steps} steps of {BATCH}, {arguments.seeds} seeds"
    )
    table(rows, data, arguments.steps, arguments.seeds)


if __name__ == "__main__":
    main()
