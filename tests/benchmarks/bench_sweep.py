"""Backward sweeps through many small stages, and through a few large ones.

    python -m tests.benchmarks.bench_sweep

A thousand trivial stages show what a stage costs beside its own arithmetic: a loop by hand, the gradient with stored
and recomputed stages, the costates, and a step of MSA with one gradient step; then four times as many stages. Then the
time and the peak memory of a deep network, a process for each memory figure.
"""

from __future__ import annotations

import resource
import subprocess
import sys

import torch
from torch import nn

import mfoc
from mfoc.minimisers import Descent
from tests.benchmarks.timing import device, interleaved, machine, quick, report

N, D = (32, 4) if device() == "cpu" else (4096, 64)
WAYS = ("stored", "recompute", "one by one")


def bend(x, u):
    return x + 0.01 * torch.tanh(x * u)


def chain(stages, *, move=bend, running=False, kind=False):
    """``move`` at each stage."""
    controls = [torch.full((D,), 0.1 * (t % 7), device=device()) for t in range(stages)]
    problem = mfoc.Problem(
        lambda t, x, u, z: move(x, u),
        lambda x, z: x.square().sum(1),
        controls,
        running_cost=(lambda t, x, u, z: x.square().sum(1)) if running else None,
        kind=(lambda t: "step") if kind else None,
    )
    return problem, mfoc.Particles(torch.randn(N, D, generator=torch.Generator().manual_seed(0)).to(device()))


def by_hand(problem, cloud, move, running):
    def gradient():
        free = [u.detach().requires_grad_() for u in problem.controls]
        x, total = cloud.state, torch.zeros(N, device=device())
        for u in free:
            if running:
                total = total + x.square().sum(1)
            x = move(x, u)
        return torch.autograd.grad((total + x.square().sum(1)).mean(), free)

    return gradient


def sides(problem, cloud, *, move=bend, running=False, **_):
    trajectory, msa = mfoc.rollout(problem, problem, cloud), mfoc.MSA(Descent(0.1))
    return {
        "by hand": by_hand(problem, cloud, move, running),
        "stored": lambda: mfoc.evaluate(problem, problem, cloud),
        "recompute": lambda: mfoc.evaluate(problem, problem, cloud, recompute=True),
        "costates": lambda: mfoc.costates(problem, problem, trajectory, cloud),
        "MSA": lambda: msa.step(problem, problem.controls, {}, cloud),
    }


def small_stages(stages=1000, rounds=7):
    cases = {
        "plain": {},
        "of one kind": {"kind": True},
        "with a running cost": {"running": True},
        "an addition each": {"move": torch.add},
    }
    for label, how in list(cases.items())[: 1 if quick() else None]:
        problem, cloud = chain(stages, **how)
        times = interleaved(sides(problem, cloud, **how), rounds=rounds)
        line = "   ".join(f"{side} {1e6 * times.median(side) / stages:.0f}" for side in times.taken)
        print(f"{stages} stages, {label}: us a stage: {line}")
        name, head = f"backward sweep, {stages} small stages, {label}", label == "plain"
        for side, to, target in (
            ("stored", "by hand", ""),
            ("recompute", "stored", "at most 3"),
            ("costates", "stored", "at most 3"),
            ("MSA", "costates", "at most 2"),
        ):
            report(name, times.ratio(side, to), of=side, to=to, target=target, headline=head and bool(target))


def growth(few=1000, many=4000, rounds=4):
    """A stage must not cost more where there are more of them."""
    both = {}
    for stages in (few, many):
        for side, work in sides(*chain(stages)).items():
            both[f"{side}, {stages}"] = work
    times = interleaved(both, rounds=rounds, warmup=1)
    for side in ("stored", "recompute", "costates", "MSA"):
        ratio = times.ratio(f"{side}, {many}", f"{side}, {few}")
        report("backward sweep, growth", ratio, of=f"{side}, {many} stages", to=f"{few}", target=f"about {many // few}")


def deep(batch):
    """24 residual blocks of 256 and 512 units."""
    torch.manual_seed(0)
    blocks = [
        mfoc.networks.Residual(nn.Sequential(nn.Linear(256, 512), nn.Tanh(), nn.Linear(512, 256))) for _ in range(24)
    ]
    x = torch.randn(batch, 256).to(device())
    return mfoc.from_module(nn.Sequential(*blocks).to(device()), nn.MSELoss()), mfoc.Particles(x, x)


def evaluate(problem, cloud, way):
    recompute = {"stored": False, "recompute": True, "one by one": 1}[way]
    return lambda: mfoc.evaluate(problem, problem, cloud, recompute=recompute)


def peak_memory(way, batch=4096):
    """Peak memory of a gradient, less that of the process before it, in MiB."""
    problem, cloud = deep(batch)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    evaluate(problem, cloud, way)()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def large_stages(rounds=5):
    problem, cloud = deep(512 if device() == "cpu" else 8192)
    times = interleaved({way: evaluate(problem, cloud, way) for way in WAYS}, rounds=rounds, warmup=1)
    for way in WAYS[1:]:
        report("gradient, 24 large blocks", times.ratio(way, "stored"), of=way, to="stored", target="about 4/3")
    if device() != "cpu":
        return
    found = {}
    for way in WAYS:
        run = [sys.executable, "-m", "tests.benchmarks.bench_sweep", way]
        found[way] = float(subprocess.run(run, capture_output=True, text=True, check=True).stdout)
    print(
        "peak memory of a gradient, 24 large blocks: " + ", ".join(f"{way} {mib:.0f} MiB" for way, mib in found.items())
    )


def main():
    torch.set_num_threads(1)
    if len(sys.argv) > 1:  # a process of its own for each memory figure
        print(peak_memory(sys.argv[1]))
        return
    torch.empty(8_000_000).fill_(0.0)  # as loading a data set does: glibc then keeps freed pages
    print(machine())
    small_stages(*(400, 5) if quick() else ())
    if quick():
        return
    growth()
    large_stages()


if __name__ == "__main__":
    main()
