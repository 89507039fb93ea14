"""A deep network of equal blocks, compiled once for all of them, against the same uncompiled: time and graphs.

    python -m tests.benchmarks.bench_compile [--stages 20] [--width 256]

Twenty residual blocks on batches of 64, by ``torch.compile`` with inductor, which needs a C++ compiler: without one the
script says so. The dynamics are one function of (x, u), compiled as it is; the first solve, which compiles, is not
timed.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import mfoc
from tests.benchmarks.timing import interleaved, machine, report

STEPS = 10
SGD = mfoc.Gradient(partial(torch.optim.SGD, lr=0.01))


def block(t: int, x: Tensor, u: dict[str, Tensor], z: Tensor) -> Tensor:
    """A normalised residual block with a gelu: much that can be fused."""
    scaled = (x - x.mean(1, keepdim=True)) * (x.var(1, keepdim=True) + 1e-5).rsqrt()
    return x + torch.nn.functional.gelu(scaled * u["gain"] + u["shift"]) @ u["weight"]


def problem(dynamics: Callable[..., Tensor], stages: int, width: int) -> mfoc.Problem[Any]:
    """Regression by a stack of blocks."""
    generator = torch.Generator().manual_seed(0)
    controls = [
        {
            "gain": torch.ones(width),
            "shift": torch.zeros(width),
            "weight": torch.randn(width, width, generator=generator) / width,
        }
        for _ in range(stages)
    ]
    return mfoc.Problem(dynamics, lambda x, z: (x - z).square().mean(1), controls)


def graphs_made() -> int:
    """How many graphs dynamo has made in this process."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def main() -> None:
    """Prints the ratio, and what compiling took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stages", type=int, default=20)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.empty(8_000_000).fill_(0.0)  # glibc keeps freed pages from here on
    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)
    print(machine())
    generator = torch.Generator().manual_seed(1)
    source = tuple(torch.randn(64, arguments.width, generator=generator) for _ in range(2))
    plain = problem(block, arguments.stages, arguments.width)
    fast = mfoc.compiled(plain)
    began = time.perf_counter()
    try:
        mfoc.solve(fast, SGD, source, steps=1)
    except Exception as error:  # of many kinds: no compiler, or one that fails
        print(f"torch.compile does not work here: {str(error).splitlines()[0]}")
        return
    print(f"{graphs_made()} graphs for {arguments.stages} stages, made in {time.perf_counter() - began:.0f} s")
    sides = {
        "compiled": lambda: mfoc.solve(fast, SGD, source, steps=STEPS),
        "eager": lambda: mfoc.solve(plain, SGD, source, steps=STEPS),
    }
    times = interleaved(sides, rounds=arguments.rounds)
    print(f"{1000 * times.median('compiled') / STEPS:.2f} ms a step compiled")
    report(f"solve, {arguments.stages} blocks, SGD", times.ratio("compiled", "eager"), of="compiled", to="eager")


if __name__ == "__main__":
    main()
