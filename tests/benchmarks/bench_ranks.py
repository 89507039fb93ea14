"""What ``mfoc.solve`` costs when the population is split over two ranks.

    python -m tests.benchmarks.bench_ranks

Efficiency is the CPU time of a step of one process on the whole batch, over the sum of the CPU times of both ranks at
the same batch: 1 where nothing is lost. It is the time of the process, with that of gloo's own threads, and not the
wall time, which says nothing on shared cores. One process on half the batch, twice at once, says how much of the loss
is the smaller batch and the busier caches; what is left is that of the ranks. All sides take turns, in the same
processes.
"""

import multiprocessing
import os
import socket
import statistics
import time
from functools import partial

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

import mfoc
from tests.benchmarks.timing import Times, machine, quick, report

SAMPLES, RANKS = 4096, 2
STEPS = 20  # between two readings of the clock


class Clocked(mfoc.Population):
    """A population that notes the CPU time of the process at each ``STEPS``-th batch."""

    def __init__(self, source):
        self.size, self.batch_size, self.batches_per_epoch = source.size, source.batch_size, source.batches_per_epoch
        self._source, self.read = source, []

    def __call__(self, step):
        if step % STEPS == 0:
            self.read.append(time.process_time())
        return self._source(step)

    def epoch(self):
        return self._source.epoch()


def seconds(batch):
    """CPU seconds of this process for one step: the median of blocks, of which the first warms up."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    x, y = torch.randn(SAMPLES, 784), torch.randint(0, 10, (SAMPLES,))
    source = Clocked(mfoc.population((x, y), batch_size=batch))
    solver = mfoc.Gradient(partial(torch.optim.SGD, lr=0.01))
    mfoc.solve(mfoc.from_module(net, F.cross_entropy), solver, source, steps=4 * STEPS + 1)
    taken = [after - before for before, after in zip(source.read, source.read[1:], strict=False)]
    return statistics.median(taken[1:]) / STEPS


def wire(numbers=271_000, times=50):
    """CPU seconds of this process for one all-reduce of gloo's, of as many numbers as the network has."""
    buffer = torch.zeros(numbers)
    dist.all_reduce(buffer)
    began = time.process_time()
    for _ in range(times):
        dist.all_reduce(buffer)
    return (time.process_time() - began) / times


def work(rank, port, rounds, batches, queue):
    """One rank: a solve of its own on half a batch, one together with the other, and one of its own on all of it."""
    torch.set_num_threads(1)
    torch.empty(8_000_000).fill_(0.0)  # as loading data does: glibc then keeps freed pages
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    store = dist.TCPStore("127.0.0.1", port, RANKS, is_master=rank == 0)
    for k in range(rounds):
        for batch in batches:
            found = {"half": seconds(batch // RANKS)}
            dist.init_process_group("gloo", rank=rank, world_size=RANKS, store=dist.PrefixStore(f"{k}/{batch}", store))
            found["together"], found["wire"] = seconds(batch), wire()
            dist.barrier()
            dist.destroy_process_group()
            found["whole"] = seconds(batch)  # both at once, as busy as when they work together
            queue.put((batch, k, rank, found))


def measured(rounds, batches):
    """For each batch the CPU seconds of a step, round by round: one process on all of it, and the sum over ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=work, args=(rank, port, rounds, batches, queue)) for rank in range(RANKS)]
    for process in processes:
        process.start()
    found = [queue.get() for _ in range(rounds * len(batches) * RANKS)]
    for process in processes:
        process.join()
    sides = {}
    for batch in batches:
        of = [[each for b, k, _, each in found if (b, k) == (batch, turn)] for turn in range(rounds)]
        sides[batch] = Times(
            {
                "whole": [sum(each["whole"] for each in turn) / RANKS for turn in of],
                **{name: [sum(each[name] for each in turn) for turn in of] for name in ("half", "together", "wire")},
            }
        )
    return sides


def main():
    print(machine())
    for batch, times in measured(2 if quick() else 7, (512, 2048)).items():
        target = {512: "at least 0.75", 2048: "at least 0.90"}[batch]
        whole, half, together, wire_ = (1e3 * times.median(side) for side in ("whole", "half", "together", "wire"))
        print(
            f"{'':4s}batch {batch}, CPU ms a step: one process {whole:.2f}; the sum of two on half of it, apart "
            f"{half:.2f}, as ranks {together:.2f}, of which gloo's all-reduce alone {wire_:.2f}"
        )
        report(
            f"CPU efficiency of two ranks, MLP 784-256-256-10, batch {batch}", times.ratio("whole", "together"),
            of="one process", to="two ranks", target=target,
        )  # fmt: skip
        report(
            f"CPU efficiency of two ranks beside two solves apart, batch {batch}", times.ratio("half", "together"),
            of="two apart, half a batch each", to="two ranks",
        )  # fmt: skip


if __name__ == "__main__":
    main()
