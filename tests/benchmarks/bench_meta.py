"""Meta-learning: speed against learn2learn's loop, memory of many inner steps, quality on sinusoids and Omniglot.

    python -m tests.benchmarks.bench_meta                                  speed and memory
    python -m tests.benchmarks.bench_meta --threads 2                      the same on two threads
    python -m tests.benchmarks.bench_meta --sinusoids                      quality on sinusoids, minutes
    python -m tests.benchmarks.bench_meta --omniglot omniglot_small.npz    quality on held-out characters

The file has arrays ``images`` uint8 [N, 28, 28] and ``character`` [N]. Speeds are ratios of thread-CPU times
of one evaluation of the query loss and its gradient in the initial weights, on the same tasks and threads (one,
unless told otherwise), the two sides interleaved.
"""

import argparse
import contextlib
import copy
import importlib.util
import io
import math
import os
import resource
import subprocess
import sys
import time
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import mfoc
from paradigms.meta import evaluate, few_shot, maml, meta_sgd, sinusoids, tasks
from tests.benchmarks.timing import interleaved, machine, quick, report


def sine_net():
    return nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))


def conv_net(norm=True, pool=False, width=32):
    """Four 3 x 3 convolutions, with strides or pools, as in Finn et al. (2017), sec. 5.2."""
    layers, channels = [], 1
    for _ in range(4):
        layers.append(nn.Conv2d(channels, width, 3, stride=1 if pool else 2, padding=1))
        layers += [nn.BatchNorm2d(width)] if norm else []
        layers.append(nn.ReLU())
        layers += [nn.MaxPool2d(2)] if pool else []
        channels = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * (1 if pool else 4), 5))


def images(count, queries=1):
    generator = torch.Generator().manual_seed(0)
    x, a = (torch.rand(count, 5 * k, 1, 28, 28, generator=generator) for k in (1, queries))
    y, b = (torch.arange(5).repeat_interleave(k).expand(count, -1) for k in (1, queries))
    return tasks((x, y), (a, b))


def compare(name, net, loss, cloud, steps, first_order=False, rounds=9, target=""):
    """Prints the ratio of times and how far the gradients are apart."""
    if importlib.util.find_spec("learn2learn") is None:
        print(f"{name}: learn2learn is not installed")
        return
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        import learn2learn

    def our_side(net, cloud):
        made = maml(net, loss, cloud, inner_steps=steps, inner_lr=0.01, first_order=first_order)
        return lambda: list(mfoc.evaluate(made.problem, made.problem.controls, cloud).gradient["phi"].values())

    def their_side(net, cloud):
        learner = learn2learn.algorithms.MAML(net, lr=0.01, first_order=first_order)
        (x, y), (a, b) = cloud.data["support"], cloud.data["query"]

        def run():
            net.zero_grad()
            total = 0.0
            for i in range(len(cloud)):
                clone = learner.clone()
                for _ in range(steps):
                    clone.adapt(loss(clone(x[i]), y[i]))
                total = total + loss(clone(a[i]), b[i])
            (total / len(cloud)).backward()
            return [p.grad.clone() for p in net.parameters()]

        return run

    # In double precision: in single, a pre-activation that rounds to the other side of a ReLU's kink shows.
    exact = [part(copy.deepcopy(net).double(), cloud.to(torch.float64)) for part in (our_side, their_side)]
    gap = max(float((p - q).abs().max()) for p, q in zip(*(side() for side in exact), strict=True))
    ours, theirs = (part(net, cloud) for part in (our_side, their_side))
    times = interleaved({"ours": ours, "learn2learn": theirs}, rounds=rounds)
    order = "first order" if first_order else "second order"
    print(f"gradients of the next apart {gap:.0e} (double); ours {1e3 * times.median('ours'):.1f} ms")
    report(
        f"MAML, {name}, {len(cloud)} tasks, {steps} steps, {order}",
        times.ratio("learn2learn", "ours"),
        of="learn2learn",
        to="ours",
        target=target,
        headline=bool(target),
    )


def speed():
    torch.manual_seed(0)
    torch.empty(8_000_000).fill_(0.0)  # glibc then keeps freed pages, as after loading a data set
    linear = nn.Sequential(nn.Linear(1, 40), nn.Linear(40, 40), nn.Linear(40, 1))
    if quick():
        compare("sine net 40-40", sine_net(), F.mse_loss, sinusoids(tasks=25)(0), 5)
        compare("4 conv of 32, stride, batch norm", conv_net(), F.cross_entropy, images(32), 1, rounds=3,
                target="at least 3")  # fmt: skip
        return
    for count in (25, 4):
        cloud = sinusoids(tasks=count)(0)
        for order in (False, True):
            compare("sine net 40-40", sine_net(), F.mse_loss, cloud, 5, order)
        compare("linear layers 40-40", linear, F.mse_loss, cloud, 5)
    for count in (32, 4):
        for steps in (1, 5):
            target = "at least 3" if (count, steps) == (32, 1) else ""
            name = "4 conv of 32, stride, batch norm"
            compare(name, conv_net(), F.cross_entropy, images(count), steps, rounds=5, target=target)
        compare("4 conv of 32, stride, batch norm", conv_net(), F.cross_entropy, images(count), 1, True, rounds=5)
        compare("4 conv of 32, stride", conv_net(norm=False), F.cross_entropy, images(count), 1, rounds=5)
        compare("4 conv of 32, pool, batch norm", conv_net(pool=True), F.cross_entropy, images(count), 1, rounds=5)


def peak_memory(recompute, steps):
    """Peak memory of one evaluation, less that of the process before it, in MiB."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    made = maml(conv_net(), F.cross_entropy, images(16), inner_steps=steps, inner_lr=0.01)
    cloud = made.population(0)
    small = maml(conv_net(), F.cross_entropy, images(2), inner_steps=1, inner_lr=0.01)
    mfoc.evaluate(small.problem, small.problem.controls, small.population(0))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    mfoc.evaluate(made.problem, made.problem.controls, cloud, recompute=recompute)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def memory():
    for steps in (5, 20):
        found = [
            float(subprocess.run([sys.executable, "-m", "tests.benchmarks.bench_meta", f"--memory={how},{steps}"],
                                 capture_output=True, text=True,
                                 check=True, env=os.environ).stdout)
            for how in ("stored", "recompute")
        ]  # fmt: skip
        print(
            f"memory, 4 conv of 32, 16 tasks, {steps:2d} inner steps: stored {found[0]:6.0f} MiB, "
            f"recompute=True {found[1]:6.0f} MiB",
            flush=True,
        )


def regression(iterations):
    """Finn et al. (2017), sec. 5.1: 10 shots, 1 inner step of size 0.01 in training."""
    torch.manual_seed(0)
    law = sinusoids(tasks=50, shots=10, queries=20, seed=0)
    made = maml(sine_net(), F.mse_loss, law, inner_steps=1, inner_lr=0.01)
    decay = mfoc.Gradient(partial(torch.optim.Adam, lr=2e-3), lr_schedule=lambda k: min(1.0, 2 - 2 * k / iterations))
    began = time.perf_counter()
    solution = made.solve(decay, steps=iterations)
    spent = time.perf_counter() - began
    test = sinusoids(tasks=100, shots=10, queries=100, seed=1)
    table = evaluate(made, solution, test, steps=(0, 1, 5, 10), batches=20, progress=False)
    print(f"sinusoids, 10 shots, MAML, {iterations} iterations in {spent:.0f} s\n{table}", flush=True)


def warped(x, generator):
    """Images `[N, 1, 28, 28]` turned, scaled, sheared and moved a little."""

    def spread(width):
        return (2 * torch.rand(len(x), generator=generator) - 1) * width

    angle, scale, aspect, shear = spread(math.radians(15)), 1 + spread(0.15), 1 + spread(0.1), spread(0.2)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    rows = [torch.stack(row, 1) for row in ((aspect * cos, shear - sin, spread(0.12)), (sin, cos, spread(0.12)))]
    return F.grid_sample(x, F.affine_grid(torch.stack(rows, 1), x.shape, align_corners=False), align_corners=False)


def omniglot(path, iterations, algorithm, held_out=30, copies=9):
    """5-way 1-shot on characters that were not trained on; trained on each drawing and warped copies of it."""
    with np.load(path) as stored:
        x, y = torch.tensor(stored["images"])[:, None].float() / 255, torch.tensor(stored["character"]).long()
    kinds = torch.randperm(int(y.max()) + 1, generator=torch.Generator().manual_seed(0))
    new = torch.isin(y, kinds[:held_out])
    generator = torch.Generator().manual_seed(5)
    images = torch.cat([x[~new]] + [warped(x[~new], generator) for _ in range(copies)])
    torch.manual_seed(0)
    law = few_shot(images, y[~new].repeat(copies + 1), ways=5, shots=1, queries=3, tasks=16, rotations=True, seed=0)
    made = algorithm(conv_net(), F.cross_entropy, law, inner_steps=1, inner_lr=0.4)
    test = few_shot(x[new], y[new], ways=5, shots=1, queries=15, tasks=50, seed=1)
    print(f"Omniglot: {int((~new).sum())} drawings to train on, {held_out} characters held out", flush=True)
    began, last = time.perf_counter(), None
    schedule = mfoc.Gradient(partial(torch.optim.Adam, lr=3e-3), lr_schedule=lambda k: 0.1 ** (k / iterations))
    for step in range(iterations // 4, iterations + 1, iterations // 4):
        solution = made.solve(schedule, steps=step, start=last)
        last = solution.last
        table = evaluate(made, solution, test, steps=(1, 3, 5), batches=4 if step < iterations else 12, progress=False)
        print(f"after {step} iterations, {time.perf_counter() - began:.0f} s\n{table}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sinusoids", action="store_true")
    parser.add_argument("--omniglot", help="an .npz file with images and characters")
    parser.add_argument("--algorithm", choices=("maml", "meta_sgd"), default="maml", help="for Omniglot")
    parser.add_argument("--iterations", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:  # a process of its own for each figure
        how, steps = arguments.memory.split(",")
        print(peak_memory(how == "recompute", int(steps)))
        return
    torch.set_num_threads(arguments.threads)
    print(machine())
    if arguments.sinusoids:
        regression(arguments.iterations or 15000)
    if arguments.omniglot:
        omniglot(
            arguments.omniglot, arguments.iterations or 4800, {"maml": maml, "meta_sgd": meta_sgd}[arguments.algorithm]
        )
    if not arguments.sinusoids and not arguments.omniglot:
        if not quick():
            memory()
        speed()


if __name__ == "__main__":
    main()
