"""What a training step costs with CSGD and CMSGD, as a multiple of the step with SGD.

    python -m tests.benchmarks.bench_optimiser_step

A network of 500,000 weights on batches of 100: forward, backward, and the optimiser. All sides take turns in one
process on one thread; the ratio of the medians of their thread-CPU times is printed. ``fused`` is one compiled
kernel.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from mfoc.optim import CMSGD, CSGD
from tests.benchmarks.timing import interleaved, machine, quick, report

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
    if quick():
        sides = {name: make for name, make in sides.items() if "fused" not in name}
    steps = {name: training(make) for name, make in sides.items()}  # the first rounds compile
    times = interleaved(steps, rounds=30 if quick() else ROUNDS)
    print(machine())
    for name in list(sides)[1:]:
        report("training step, 500,000 weights", times.ratio(name, base := "SGD (foreach)"), of=name, to=base)


if __name__ == "__main__":
    main()
