"""Batches: those of ``mfoc.population`` against plain indexing and torch's DataLoader, at an epoch's end, from a file.

    python -m tests.benchmarks.bench_population [--megabytes 1000]

Batches of 128 images of 784 numbers. The file is written to a temporary folder, as large as asked for or as an eighth
of the free disk allows, and deleted.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

import mfoc
from tests.benchmarks.timing import device, interleaved, machine, quick, report

BATCH, PIXELS = 128, 784
PER_ROUND = 40  # batches


class Rows(Dataset[Any]):
    """A dataset that does nothing but look up."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.x[i], self.y[i]


class Stream(IterableDataset[Any]):
    """The same, one after another."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Any]:
        return (self.rows[i] for i in range(len(self.rows)))


def data(count: int) -> tuple[Tensor, Tensor]:
    """Images and labels."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, PIXELS, generator=generator), torch.randint(10, (count,), generator=generator)


def forever(loader: DataLoader[Any]) -> Iterator[Any]:
    """Epoch after epoch."""
    while True:
        yield from loader


def batches(population: Callable[[int], Any]) -> Callable[[], None]:
    """A side: the next batches."""
    steps = itertools.count()

    def side() -> None:
        for _ in range(PER_ROUND):
            population(next(steps))

    return side


def taken(loader: DataLoader[Any]) -> Callable[[], None]:
    """A side: the next batches of a DataLoader."""
    stream = forever(loader)

    def side() -> None:
        for _ in range(PER_ROUND):
            next(stream)

    return side


def in_memory(rounds: int) -> None:
    """Against indexing by a permutation, which nobody can do without."""
    x, y = (part.to(device()) for part in data(20_000))
    order = torch.randperm(len(x)).to(device())
    per_epoch = len(x) // BATCH

    def indexed(step: int) -> tuple[Tensor, Tensor]:
        index = order[step % per_epoch * BATCH :][:BATCH]
        return x[index], y[index]

    population = mfoc.population((x, y), batch_size=BATCH)
    times = interleaved({"mfoc": batches(population), "indexing": batches(indexed)}, rounds=rounds)
    print(f"{PER_ROUND / times.median('mfoc'):.0f} batches a second")
    ratio = times.ratio("mfoc", "indexing")
    report("batches from memory", ratio, of="mfoc", to="x[index], y[index]", target="at most 1", headline=True)


def from_datasets(rounds: int) -> None:
    """Against torch's DataLoader, in this process."""
    rows = Rows(*data(20_000))
    stream = Stream(rows)
    sides = {
        "mfoc": batches(mfoc.population(DataLoader(rows, batch_size=BATCH, shuffle=True))),
        "torch": taken(DataLoader(rows, batch_size=BATCH, shuffle=True)),
        "mfoc, iterable": batches(mfoc.population(DataLoader(stream, batch_size=BATCH))),
        "torch, iterable": taken(DataLoader(stream, batch_size=BATCH)),
    }
    times = interleaved(sides, rounds=rounds)
    for kind, end in (("Dataset", ""), ("IterableDataset", ", iterable")):
        ratio = times.ratio(f"mfoc{end}", f"torch{end}")
        report(f"batches of a {kind}", ratio, of="mfoc", to="DataLoader", target="at most 1.1", headline=not end)


def at_an_epochs_end(rounds: int) -> None:
    """The two sides of an epoch's boundary in turn, as a solve that looks back takes them."""
    population = mfoc.population(data(20_000), batch_size=BATCH)
    end = population.batches_per_epoch

    def sides(one: int, other: int) -> Callable[[], None]:
        return lambda: [population(step) for _ in range(PER_ROUND // 2) for step in (one, other)] and None

    times = interleaved({"across": sides(end - 2, end), "within": sides(end - 3, end - 2)}, rounds=rounds)
    report("batches in turn", times.ratio("across", "within"), of="of two epochs", to="of one", target="at most 1.05")


def allocated() -> float:
    """MiB that this process has allocated and uses, mapped files (the system's cache) left out; 0 if not known."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon")), 0.0)


def from_a_file(megabytes: int, rounds: int) -> None:
    """An epoch of a file of images, uint8, and what it adds to this process's memory."""
    with tempfile.TemporaryDirectory() as folder:
        size = min(megabytes * 2**20, shutil.disk_usage(folder).free // 8)
        count = size // PIXELS
        images = np.lib.format.open_memmap(f"{folder}/x.npy", "w+", np.uint8, (count, PIXELS))
        block = np.random.default_rng(0).integers(0, 256, (min(count, 10_000), PIXELS), np.uint8)
        for first in range(0, count, len(block)):
            images[first : first + len(block)] = block[: count - first]
        images.flush()
        del images
        x = np.load(f"{folder}/x.npy", mmap_mode="r")
        population = mfoc.population((x, np.zeros(count, np.uint8)), batch_size=BATCH)
        population(0)
        before, most, began = allocated(), 0.0, time.thread_time()
        for step in range(population.batches_per_epoch):
            population(step)
            if step % 20 == 0:
                most = max(most, allocated())
        spent = time.thread_time() - began
        per_second, more = population.batches_per_epoch / spent, max(0.0, most - before)
        print(
            f"an epoch of a file of {size / 2**20:.0f} MiB: {per_second:.0f} batches a second, {more:.0f} MiB allocated"
        )

        plain = torch.from_numpy(np.array(x[:20_000]))
        held = mfoc.population((plain, torch.zeros(len(plain))), batch_size=BATCH)
        times = interleaved({"file": batches(population), "memory": batches(held)}, rounds=rounds)
        report("batches of a file", times.ratio("file", "memory"), of="mapped", to="held as floats")


def main() -> None:
    """Prints all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.empty(8_000_000).fill_(0.0)  # glibc keeps freed pages from here on
    print(machine())
    in_memory(arguments.rounds)
    from_datasets(arguments.rounds)
    if quick() or device() != "cpu":
        return
    at_an_epochs_end(arguments.rounds)
    from_a_file(arguments.megabytes, arguments.rounds)


if __name__ == "__main__":
    main()
