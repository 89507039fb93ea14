"""Step time of ``mfoc.Gradient`` against a hand-written PyTorch loop, and the memory of ``recompute=True``.

    python tests/benchmarks/bench_gradient.py

Both sides run interleaved in one process on one thread; the ratio of the median step times is reported.
"""

import platform
import resource
import statistics
import subprocess
import sys
import time
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

import mfoc


def mlp():
    return nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))


def convnet():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 49, 10),
    )  # fmt: skip


def by_hand(net, optimizer, x, y):
    def step():
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def by_mfoc(net, solver, x, y):
    problem = mfoc.from_module(net, F.cross_entropy)
    cloud = mfoc.Particles(x, y)
    at = [problem.controls, solver.init(problem, problem.controls)]

    def step():
        controls, state, info = solver.step(problem, *at, cloud)
        at[:] = controls, state
        return info.value.item()

    return step


def ratio(make_net, shape, factory, rounds):
    torch.manual_seed(0)
    x, y = torch.randn(shape), torch.randint(0, 10, (shape[0],))
    net = make_net()
    mine = by_mfoc(net, mfoc.Gradient(factory), x, y)
    theirs = by_hand(net, factory(list(net.parameters())), x, y)
    times = {mine: [], theirs: []}
    for k in range(rounds + 20):
        for step in (mine, theirs) if k % 2 else (theirs, mine):
            start = time.perf_counter()
            step()
            if k >= 20:
                times[step].append(time.perf_counter() - start)
    ours, hand = (1e3 * statistics.median(times[s]) for s in (mine, theirs))
    return ours, hand


def peak_memory(recompute):
    """Peak memory of one step on a deep network, less that of the process before it, in MiB."""
    torch.manual_seed(0)
    blocks = [
        mfoc.networks.Residual(nn.Sequential(nn.Linear(256, 512), nn.Tanh(), nn.Linear(512, 256))) for _ in range(24)
    ]
    problem = mfoc.from_module(nn.Sequential(*blocks), nn.MSELoss())
    x = torch.randn(8192, 256)
    solver = mfoc.Gradient(partial(torch.optim.SGD, lr=0.01), recompute=recompute)
    state = solver.init(problem, problem.controls)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    solver.step(problem, problem.controls, state, mfoc.Particles(x, x))
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main():
    if len(sys.argv) > 1:  # a process of its own for each memory figure
        print(peak_memory(sys.argv[1] == "recompute"))
        return
    torch.set_num_threads(1)
    # As loading a data set does: glibc then keeps freed pages instead of giving them back at every step.
    torch.empty(8_000_000).fill_(0.0)
    print(f"{platform.processor() or platform.machine()}, 1 thread, torch {torch.__version__}")
    for name, make, shape, rounds in (("mlp", mlp, (128, 784), 400), ("conv", convnet, (128, 1, 28, 28), 60)):
        for label, factory in (
            ("SGD", partial(torch.optim.SGD, lr=0.01)),
            ("Adam", partial(torch.optim.Adam, lr=1e-3)),
        ):
            ours, hand = ratio(make, shape, factory, rounds)
            print(f"{name:5s} {label:5s} mfoc {ours:7.3f} ms   by hand {hand:7.3f} ms   ratio {ours / hand:.3f}")
    stored, recomputed = (
        float(subprocess.run([sys.executable, __file__, mode], capture_output=True, text=True, check=True).stdout)
        for mode in ("store", "recompute")
    )
    print(
        f"peak memory of a step (24 blocks, batch 8192): stored {stored:.0f} MiB, recompute=True {recomputed:.0f} MiB"
    )


if __name__ == "__main__":
    main()
