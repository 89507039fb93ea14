"""Networks of binary and ternary weights on 10,000 digits of MNIST: ``mfoc.DiscreteMSA``, straight-through and Bop.

    python -m tests.benchmarks.bench_discrete --mnist mnist10k.npz [--activations ReLU]

Without ``--mnist`` the digits are those of scikit-learn, 1,400 of 8 x 8 to train on.

8,000 digits to train on and 2,000 to test, 784-256-256-256-10 with batch norm after each layer, batches of 100, the
same batches for all: straight-through (Courbariaux et al. 2016) by Adam on latent weights, Bop (Helwegen et al. 2019).
Biases and batch norm by Adam everywhere, at one rate. Each method has three settings, and the one that is tested is the
best of them after training on 7,000 of the 8,000 digits, on the other 1,000, with ReLU, over three seeds. Printed: that
accuracy; test accuracy at the end, its mean and each of fresh seeds; and the size of the packed networks.
"""

import argparse
import time
from functools import partial
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import mfoc
from mfoc.networks import packed
from tests.oracles.discrete import Bop, straight_through_, train

BATCH, LR = 100, 1e-2
CHOOSING, TESTING = 1000, 10  # the first seeds of the two

SETTINGS = {
    "DiscreteMSA": [{"a": 0.999}, {"a": 0.9998}, {"a": 0.9999}],
    "straight-through": [{"rate": 3e-3}, {"rate": 1e-2}, {"rate": 3e-2}],
    "Bop": [{"gamma": 1e-3, "tau": 1e-6}, {"gamma": 2e-4, "tau": 1e-6}, {"gamma": 2e-4, "tau": 1e-7}],
}


def network(activation, seed, inputs):
    torch.manual_seed(seed)
    sizes, parts = (inputs, 256, 256, 256, 10), []
    for n, m in pairwise(sizes):
        parts += [nn.Linear(n, m, bias=False), nn.BatchNorm1d(m), activation()]
    return nn.Sequential(*parts[:-1])


def accuracy(net, data):
    x, _, test_x, test_y = data
    mfoc.networks.refresh_averages(net.train(), x.split(BATCH))
    with torch.no_grad():
        return 100 * float((net.eval()(test_x).argmax(1) == test_y).double().mean())


def by_mfoc(levels, activation, data, seed, epochs, a):
    net, steps = network(activation, seed, data[0].shape[1]), len(data[0]) // BATCH
    problem = mfoc.from_module(net, F.cross_entropy)
    others = mfoc.Gradient(partial(torch.optim.Adam, lr=LR))
    solver = mfoc.DiscreteMSA(levels, rho=0.25, a=a, per=steps, others=others)
    batches = mfoc.population(data[:2], batch_size=BATCH, seed=seed)
    solution = mfoc.solve(solver.discretised(problem), solver, batches, steps=epochs * steps)
    return mfoc.to_module(net, solution)


def batches_of(data, seed, epochs):
    source = mfoc.population(data[:2], batch_size=BATCH, seed=seed)
    for k in range(epochs * len(data[0]) // BATCH):
        cloud = source(k)
        yield cloud.state, cloud.data


def by_straight_through(levels, activation, data, seed, epochs, rate):
    net = network(activation, seed, data[0].shape[1])
    latent = straight_through_(net, ternary=levels == "ternary")
    others = [p for part in net if isinstance(part, nn.BatchNorm1d) for p in part.parameters()]
    optimiser = torch.optim.Adam([{"params": latent, "lr": rate}, {"params": others, "lr": LR}])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda k: 0.95 ** (k // (len(data[0]) // BATCH)))

    def after():
        schedule.step()
        for weight in latent:
            weight.data.clamp_(-1, 1)

    train(net, [optimiser.step], batches_of(data, seed, epochs), after)
    return net


def by_bop(levels, activation, data, seed, epochs, gamma, tau):
    assert levels == "binary"
    net = network(activation, seed, data[0].shape[1])
    weights = [part.weight for part in net if isinstance(part, nn.Linear)]
    for weight in weights:
        weight.data = torch.where(weight.data >= 0, 1.0, -1.0)
    others = torch.optim.Adam([p for part in net if isinstance(part, nn.BatchNorm1d) for p in part.parameters()], lr=LR)
    bop, steps = Bop([weight.data for weight in weights], gamma, tau), len(data[0]) // BATCH
    count = iter(range(10**9))

    def flip():
        bop.gamma = gamma * 0.95 ** (next(count) // steps)
        bop.step([weight.grad for weight in weights])

    train(net, [flip, others.step], batches_of(data, seed, epochs))
    return net


def load(path):
    if path is None:
        x, y = (torch.from_numpy(part) for part in load_digits(return_X_y=True))
        x, order = x.float() / 8 - 1, torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
        x, y = x[order], y[order]
        return x[:1400], y[:1400], x[1400:], y[1400:]
    with np.load(path) as found:
        x = torch.from_numpy(found["images"]).float().flatten(1) / 127.5 - 1
        y = torch.from_numpy(found["labels"]).long()
    return x[:8000], y[:8000], x[8000:], y[8000:]


def trained(method, levels, activation, data, seed, epochs, setting):
    make = {"DiscreteMSA": by_mfoc, "straight-through": by_straight_through, "Bop": by_bop}[method]
    return make(levels, activation, data, seed, epochs, **setting)


def choose(method, levels, data, epochs):
    """The setting that is best on the last eighth of the digits to train on."""
    x, y, _, _ = data
    last = len(x) // 8
    held_out = (x[:-last], y[:-last], x[-last:], y[-last:])
    found = []
    for setting in SETTINGS[method]:
        seeds = range(CHOOSING, CHOOSING + 3)
        nets = [trained(method, levels, nn.ReLU, held_out, seed, epochs, setting) for seed in seeds]
        found.append(np.mean([accuracy(net, held_out) for net in nets]))
        print(f"    {method} {levels} {setting}: {found[-1]:.1f} % of the digits held out", flush=True)
    return SETTINGS[method][int(np.argmax(found))]


def report(method, levels, activation, data, epochs, setting, seeds):
    start, found = time.thread_time(), []
    for seed in range(TESTING, TESTING + seeds):
        net = trained(method, levels, activation, data, seed, epochs, setting)
        found.append(accuracy(net, data))
    seconds = (time.thread_time() - start) / seeds
    name, each = f"{method} {levels} {activation.__name__}", " ".join(f"{value:.2f}" for value in found)
    print(f"{name:34s} {np.mean(found):6.2f} %  ({each})  {seconds:5.1f} s a seed  {setting}", flush=True)
    if method == "DiscreteMSA":
        size, before = packed.stored_bytes(packed.pack(net)), packed.stored_bytes(net)
        print(f"    packed {size:,} bytes of {before:,}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mnist", help="an npz with images uint8 [10000, 28, 28] and labels [10000]")
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--activations", nargs="+", choices=["ReLU", "Hardtanh"], default=["ReLU", "Hardtanh"])
    parser.add_argument("--methods", nargs="+", choices=[*SETTINGS], default=[*SETTINGS])
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = load(given.mnist)
    runs = [(method, levels) for method in given.methods for levels in ("binary", "ternary")]
    runs = [run for run in runs if run != ("Bop", "ternary")]  # Bop has two levels
    chosen = {run: choose(*run, data, given.epochs) for run in runs}
    for name in given.activations:
        for run in runs:
            report(*run, getattr(nn, name), data, given.epochs, chosen[run], given.seeds)


if __name__ == "__main__":
    main()
