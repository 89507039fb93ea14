"""What ``mfoc.solve`` costs beside a hand-written PyTorch loop, and the memory of ``recompute=True``.

    python -m tests.benchmarks.bench_solve

On a GPU (``make bench-gpu``) batches and widths are eight times as large.
Both sides draw batches from memory and keep the value of each step. They take turns in one process on one thread: after
each block of steps the population of the solve runs a block of the loop by hand. A block has as many steps as there are
between two snapshots of a solve, so each holds one; what comes before the first step is not in them.
"""

import itertools
import resource
import subprocess
import sys
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

import mfoc
from tests.benchmarks.timing import Times, clock, device, machine, quick, report

BLOCK = 32  # steps
SAMPLES = 8192
WIDER = 1 if device() == "cpu" else 8


def chain(*widths, activation=nn.ReLU):
    layers = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), activation()]
    return nn.Sequential(*layers[:-1])


def convnet():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 49, 10),
    )  # fmt: skip


def by_hand(net, loss, factory, x, y, batch):
    """The loop that one would write, shuffled epochs, and the loss of each step kept; it goes on where it was."""
    optimizer, generator = factory(list(net.parameters())), torch.Generator().manual_seed(0)
    values, per_epoch, at = [], len(x) // batch, {"step": 0, "order": None}

    def run(steps):
        for step in range(at["step"], at["step"] + steps):
            if step % per_epoch == 0:
                at["order"] = torch.randperm(len(x), generator=generator).to(x.device)
            rows = at["order"][step % per_epoch * batch :][:batch]
            optimizer.zero_grad()
            value = loss(net(x[rows]), y[rows])
            value.backward()
            optimizer.step()
            values.append(value.item())
        at["step"] += steps

    return run


class Turns(mfoc.Population):
    """A population that lets another side work after each block of batches, and notes what both took."""

    def __init__(self, source, other):
        self.size, self.batch_size, self.batches_per_epoch = source.size, source.batch_size, source.batches_per_epoch
        self.taken, self._source, self._other = {"mfoc": [], "by hand": []}, source, other
        self._next, self._began = BLOCK, None

    def __call__(self, step):
        if step == self._next:
            ended = clock()
            if self._began is not None:
                self.taken["mfoc"].append(ended - self._began)
            began = clock()
            self._other(BLOCK)
            self._began = clock()
            if step > BLOCK:
                self.taken["by hand"].append(self._began - began)
            self._next += BLOCK
        return self._source(step)

    def epoch(self):
        return self._source.epoch()


def in_turns(net, loss, factory, x, y, batch, blocks):
    """Seconds of each block of steps, of ``mfoc.solve`` and of the loop by hand; the first two warm up."""
    problem, source = mfoc.from_module(net, loss), mfoc.population((x, y), batch_size=batch)
    turns = Turns(source, by_hand(net, loss, factory, x, y, batch))
    mfoc.solve(problem, mfoc.Gradient(factory), turns, steps=BLOCK * (blocks + 3))
    return Times({name: taken[1 : blocks + 1] for name, taken in turns.taken.items()})


def compare(name, make, shape, factories, *, batch=128, blocks=40, target="", outputs=10):
    batch, blocks = batch * WIDER, blocks // (3 if quick() else 1)
    samples = SAMPLES * WIDER
    for label, factory in factories.items():
        torch.manual_seed(0)
        x = torch.randn(samples, *shape).to(device())
        y = (torch.randint(0, outputs, (samples,)) if outputs > 1 else torch.randn(samples, 1)).to(device())
        loss, net = (F.cross_entropy if outputs > 1 else F.mse_loss), make().to(device())
        times = in_turns(net, loss, factory, x, y, batch, blocks)
        ours, theirs = (1e6 / BLOCK * times.median(side) for side in ("mfoc", "by hand"))
        print(f"{'':4s}{ours:.0f} us and {theirs:.0f} us a step")
        report(
            f"solve, {name}, {label}", times.ratio("mfoc", "by hand"), of="mfoc.solve", to="by hand", target=target,
            headline=bool(target),
        )  # fmt: skip


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
    if len(sys.argv) > 1 and sys.argv[1] in ("store", "recompute"):  # a process of its own for each memory figure
        print(peak_memory(sys.argv[1] == "recompute"))
        return
    torch.set_num_threads(1)
    torch.empty(8_000_000).fill_(0.0)  # as loading data does: glibc then keeps freed pages
    print(machine())
    sgd, adam = partial(torch.optim.SGD, lr=0.01), partial(torch.optim.Adam, lr=1e-3)
    usual = {"SGD": sgd, "momentum": partial(torch.optim.SGD, lr=0.01, momentum=0.9), "Adam": adam}
    wide = 256 * WIDER
    compare(f"MLP 784-{wide}-{wide}-10", partial(chain, 784, wide, wide, 10), (784,), usual, target="at most 1.05")
    compare("net 10-50-1", partial(chain, 10, 50, 1, activation=nn.Tanh), (10,), usual, blocks=90, outputs=1,
            target="at most 1.10")  # fmt: skip
    wide = 64 * WIDER
    compare(f"20 layers of {wide}", partial(chain, *[wide] * 21), (wide,), usual, target="at most 1.10", outputs=wide)
    if quick():
        return
    compare("conv net", convnet, (1, 28, 28), {"SGD": sgd, "Adam": adam}, blocks=4)
    if device() != "cpu":
        return
    stored, recomputed = (
        float(
            subprocess.run(
                [sys.executable, "-m", "tests.benchmarks.bench_solve", mode], capture_output=True, text=True, check=True
            ).stdout
        )
        for mode in ("store", "recompute")
    )
    print(
        f"peak memory of a step (24 blocks, batch 8192): stored {stored:.0f} MiB, recompute=True {recomputed:.0f} MiB"
    )


if __name__ == "__main__":
    main()
