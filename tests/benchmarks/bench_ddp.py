"""DDP on one problem and on 256 in a batch, against ipopt (casadi, exact Hessians) on one.

    python -m tests.benchmarks.bench_ddp

Thread-CPU seconds on one thread, in float64. One problem and the batch are timed an iteration each in turn, over the
iterations that the one problem takes; then the batch is run until every problem of it is done.
"""

import time

import torch

import mfoc
from tests.benchmarks.timing import Times, machine, report
from tests.robots import ROBOTS, by_ipopt, in_torch

BATCH = 256


def iteration(stream):
    """The next iterate and its thread-CPU seconds."""
    start = time.thread_time()
    at = next(stream)
    return at, time.thread_time() - start


def compared(name, *, bounded, most=80):
    warm, cloud = in_torch(name)
    mfoc.solve(warm, mfoc.DDP(), cloud, steps=2)  # what is imported at the first derivative takes seconds
    sides = [in_torch(name, n, bounded=bounded, spread=0.05) for n in (1, BATCH)]
    streams = [mfoc.iterate(problem, mfoc.DDP(), cloud) for problem, cloud in sides]
    spent, done = [[], []], [None, None]
    for k in range(most):
        for side, stream in enumerate(streams):
            if done[side] is None:
                at, seconds = iteration(stream)
                spent[side].append(seconds)
                if at.info.extra["converged"] == (1, BATCH)[side]:
                    done[side] = k
    both = min(map(len, spent))  # iterations that both sides took
    times = Times({"one": spent[0][1:both], "many": spent[1][1:both]})
    one, many = times.median("one"), times.median("many")
    start = sides[0][1].state[0].numpy()
    by_ipopt(name, start, bounded=bounded)
    _, _, iterations, seconds = by_ipopt(name, start, bounded=bounded)
    print(
        f"{name:9s} {'boxed' if bounded else 'free '}  iterations {done[0]} for one, {done[1]} for all; an iteration "
        f"{1e3 * one:.0f} ms for one, {1e3 * many:.0f} ms for {BATCH}\n"
        f"    one problem {sum(spent[0]):.2f} s; {BATCH} problems {sum(spent[1]):.1f} s, "
        f"{1e3 * sum(spent[1]) / BATCH:.1f} ms each; ipopt {1e3 * seconds:.1f} ms in {iterations} iterations: "
        f"one by one {sum(spent[0]) / seconds:.0f} times ipopt's, in the batch {sum(spent[1]) / BATCH / seconds:.2f}",
        flush=True,
    )
    label = f"DDP, an iteration, {name}{', boxed' * bounded}"
    report(label, times.ratio("many", "one"), of=f"{BATCH} problems", to="one", target=f"below {BATCH}")


def main():
    torch.set_num_threads(1)
    print(machine())
    for name in ROBOTS:
        for bounded in (False, True):
            compared(name, bounded=bounded)


if __name__ == "__main__":
    main()
