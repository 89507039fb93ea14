"""How time and memory grow: with particles N, with stages T, and along a solve; and batches a second from memory.

    python -m tests.benchmarks.bench_growth

Time of an evaluation (J and its gradient) should grow as N and as T: a point where it grows faster than the power 1.15
between neighbours is flagged. Memory should be flat over 4,000 steps of a solve. Batches are of 128 from a tensor.
"""

from __future__ import annotations

import math
import resource
import sys
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch

import mfoc
from tests.benchmarks.timing import Ratio, clock, device, interleaved, machine, quick, report

STEEP = 1.15  # the power of growth from which a point is flagged


def problem(stages: int) -> mfoc.Problem:
    return mfoc.Problem(
        lambda t, x, u, z: x + 0.01 * torch.tanh(x @ u),
        lambda x, z: x.square().sum(1),
        [0.1 * torch.eye(4, device=device()) for _ in range(stages)],
        running_cost=lambda t, x, u, z: x.square().sum(1),
    )


def evaluation(n: int, stages: int) -> Callable[[], object]:
    made, cloud = problem(stages), mfoc.Particles(torch.ones(n, 4, device=device()))
    return lambda: mfoc.evaluate(made, made, cloud)


def curve(name: str, sizes: list[int], make: Callable[[int], Callable[[], object]], rounds: int) -> None:
    """Prints seconds against sizes; reports how far the last is from growing with the size alone."""
    times = interleaved({str(size): make(size) for size in sizes}, rounds=rounds)
    flagged = []
    fixed = times.least(str(sizes[0]))  # what does not grow at all is in the smallest
    print(f"{name}:")
    for before, size in pairwise([0, *sizes]):
        least, mark = times.least(str(size)), ""
        if before:
            earlier = times.least(str(before))
            power = math.log(least / earlier) / math.log(size / before)
            mark = f"  power {power:.2f}"
            if power > STEEP and least > 2 * fixed:
                flagged.append(size)
                mark += "  SUPER-LINEAR"
        print(f"  {size:9,d}  {1e3 * least:10.3f} ms{mark}", flush=True)
    last, middle = str(sizes[-1]), str(sizes[len(sizes) // 2])
    share = sizes[-1] / sizes[len(sizes) // 2]
    found = times.ratio(last, middle)
    each = Ratio(found.median / share, found.low / share, found.high / share)
    report(
        f"growth with {name}", each, of=f"a {name[0]} of {last}", to=f"a {name[0]} of {middle}", target="at most 1.5"
    )
    if flagged:
        print(f"  grows faster than linearly at {', '.join(map(str, flagged))}")


def resident() -> float:
    """MiB that this process holds now, or has held at most where /proc does not say."""
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * resource.getpagesize() / 2**20
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 2**20 if sys.platform == "darwin" else most / 2**10


def memory(steps: int) -> None:
    seen: list[float] = []

    def look(at: mfoc.Iterate) -> None:
        if at.step % (steps // 8) == 0:
            seen.append(resident())

    mfoc.solve(
        problem(3), mfoc.Gradient(partial(torch.optim.SGD, lr=1e-3)), torch.ones(64, 4, device=device()),
        steps=steps, hooks=[look],
    )  # fmt: skip
    more = seen[-1] - seen[1]
    print(f"memory over {steps:,} steps: {' '.join(f'{each:.1f}' for each in seen)} MiB{'  GROWS' * (more > 2)}")
    ratio = seen[-1] / seen[1]
    report(
        "memory of a long solve",
        Ratio(ratio, ratio, ratio),
        of="at the end",
        to="after a quarter",
        target="at most 1.02",
    )


def batches(count: int) -> None:
    x, y = torch.randn(60_000, 32).to(device()), torch.arange(60_000, device=device()) % 10
    source = mfoc.population((x, y), batch_size=128, seed=0)
    for k in range(500):
        source(k)
    began = clock()
    for k in range(count):
        source(k)
    print(f"batches of 128 from memory: {count / (clock() - began):,.0f} a second (15,000 expected)")


def main() -> None:
    torch.set_num_threads(1)
    torch.empty(8_000_000).fill_(0.0)
    print(machine())
    short = quick()
    most = (5 if short else 6) + (device() != "cpu")
    curve("N, particles", [10**k for k in range(2, most + 1)], lambda n: evaluation(n, 3), 5 if short else 9)
    stages = [1, 10, 100, 400] if short else [1, 10, 100, 400, 1000, 2000, 4000]
    curve("T, stages", stages, lambda t: evaluation(64, t), 5 if short else 7)
    memory(800 if short else 4000)
    batches(5_000)


if __name__ == "__main__":
    main()
