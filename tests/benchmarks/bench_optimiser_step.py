"""What a training step costs with CSGD and CMSGD, as a multiple of the step with SGD.

    python -m tests.benchmarks.bench_optimiser_step

A network of 500,000 weights on batches of 100: forward, backward, and the optimiser. All sides take turns in one
process on one thread; the ratio of the 20th percentiles of their thread-CPU times is printed. ``fused`` is one compiled
kernel.
"""

import platform
import time
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from mfoc.optim import CMSGD, CSGD

ROUNDS = 100


def training(make):
    """A function that makes one training step."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 192), nn.ReLU(), nn.Linear(192, 10))
    x, y = torch.randn(100, 784), torch.randint(10, (100,))
    optimiser = make(net.parameters())

    def step():
        optimiser.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimiser.step()

    return step


def main():
    sides = {
        "SGD (foreach)": partial(torch.optim.SGD, lr=0.01, foreach=True),
        "Adam (foreach)": partial(torch.optim.Adam, lr=1e-3, foreach=True),
        "CSGD": partial(CSGD, lr=0.01),
        "CMSGD": partial(CMSGD, lr=0.01),
        "CSGD, fused": partial(CSGD, lr=0.01, fused=True),
        "CMSGD, fused": partial(CMSGD, lr=0.01, fused=True),
    }
    torch.set_num_threads(1)
    steps = {name: training(make) for name, make in sides.items()}
    times = {name: [] for name in sides}
    for step in steps.values():
        step()  # compiles
    for _ in range(ROUNDS):
        for name, step in steps.items():
            began = time.thread_time()
            step()
            times[name].append(time.thread_time() - began)
    fast = {name: sorted(taken)[ROUNDS // 5] for name, taken in times.items()}
    print(f"{platform.machine()}, torch {torch.__version__}, one thread")
    for name, taken in fast.items():
        print(f"{name:16s} {1e3 * taken:6.2f} ms  {taken / fast['SGD (foreach)']:5.2f} x SGD")


if __name__ == "__main__":
    main()
