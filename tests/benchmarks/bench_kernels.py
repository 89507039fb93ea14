"""Infinite kernels on scikit-learn's digits, beside a network of width 2048 that is trained on the same split.

    python -m tests.benchmarks.bench_kernels                 accuracies, how near the trained network comes, and times
    python -m tests.benchmarks.bench_kernels --points 1000   training points

The network in NTK parametrisation is trained by plain gradient descent for the time that the kernel is told; its
outputs are compared with the mean and the spread that are predicted for them. Adam trains torch's own layers.
"""

import argparse
import math
import platform
import time

import torch
from sklearn.datasets import load_digits
from torch import nn

from mfoc.analysis.kernel import KernelPredictor, infinite_kernels

WIDTH, SW2, SB2 = 2048, 2.0, 0.1


def digits(points):
    """Inputs of unit mean square on average, labels; training and held-out."""
    x, y = (torch.from_numpy(part) for part in load_digits(return_X_y=True))
    x = x - x.mean(0)
    x, order = x / x.square().mean().sqrt(), torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return x[order[:points]], y[order[:points]], x[order[points:]], y[order[points:]]


def accuracy(found, labels):
    return f"{100 * float((found == labels).double().mean()):.1f} %"


def kernel_rows(x, y, new, labels):
    for kernel in ("nngp", "ntk"):
        for depth in (2, 3):
            predictor = KernelPredictor("relu", depth, weight_variance=SW2, bias_variance=SB2, kernel=kernel)
            begin = time.perf_counter()
            plain = accuracy(predictor.fit(x, y).classify(new), labels)
            seconds = time.perf_counter() - begin
            best = predictor.with_best_ridge(x, y)
            ridged = accuracy(best.fit(x, y).classify(new), labels)
            print(f"  {kernel}, {depth} layers: ridge 0 {plain} in {seconds:.2f} s; ridge {best.ridge:.1e} {ridged}")


def forward(weights, x):
    w1, b1, w2, b2 = weights
    h = (math.sqrt(SW2 / x.shape[1]) * x @ w1 + math.sqrt(SB2) * b1).relu()
    return math.sqrt(SW2 / h.shape[1]) * h @ w2 + math.sqrt(SB2) * b2


def descend(x, targets, rate, steps, seed, centred=False):
    """Gradient descent on sum (f - y)^2 / 2, float32, from standard normal weights: what the outputs then are.

    Centred: f less what it is at the start.
    """
    generator = torch.Generator().manual_seed(seed)
    shapes = [(x.shape[1], WIDTH), (WIDTH,), (WIDTH, targets.shape[1]), (targets.shape[1],)]
    weights = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    start = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        targets = targets + centred * forward(start, x)
    for _ in range(steps):
        loss = (forward(weights, x) - targets).square().sum() / 2
        with torch.no_grad():
            for weight, slope in zip(weights, torch.autograd.grad(loss, weights), strict=True):
                weight -= rate * slope
    return lambda new: (forward(weights, new) - centred * forward(start, new)).detach().double()


def trained_rows(x, y, new, labels, steps, nets):
    machine = KernelPredictor("relu", 2, weight_variance=SW2, bias_variance=SB2, kernel="ntk").fit(x, y)
    rate = float(1 / torch.linalg.eigvalsh(machine.ntk)[-1])
    mean, variance = machine.predict(new, time=rate * steps)
    print(f"  ntk, 2 layers, at time {rate * steps:.3g}: {accuracy(mean.argmax(1), labels)}")
    small, aims = x.float(), machine.targets.float()
    found = torch.stack([descend(small, aims, rate, steps, seed)(new.float()) for seed in range(nets)])
    centred = descend(small, aims, rate, steps, 0, centred=True)(new.float())
    for name, outputs in (*((f"seed {seed}", each) for seed, each in enumerate(found)), ("seed 0, centred", centred)):
        near = torch.corrcoef(torch.stack([outputs.flatten(), mean.flatten()]))[0, 1]
        off = (outputs - mean).square().mean().sqrt()
        right = accuracy(outputs.argmax(1), labels)
        print(f"  width {WIDTH}, gradient descent, {name}: {right}, off the mean by {off:.4f}, correlation {near:.4f}")
    size, told = mean.square().mean().sqrt(), variance.mean().sqrt()
    print(f"  predicted: outputs of size {size:.4f}, off the mean by {told:.4f} over initialisations, centred by 0")


def adam_row(x, y, new, labels, epochs=60):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(x.shape[1], WIDTH), nn.ReLU(), nn.Linear(WIDTH, 10))
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    x, new = x.float(), new.float()
    for _ in range(epochs):
        for part in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[part]), y[part]).backward()
            optimizer.step()
    print(f"  width {WIDTH}, Adam, {epochs} epochs of cross-entropy: {accuracy(net(new).argmax(1), labels)}")


def times(points=500):
    x = torch.randn(points, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    settings = {"depth": 4, "weight_variance": 1.5, "bias_variance": 0.05}
    for name in ("relu", "gelu", "erf", "silu", "tanh", "hardtanh", "elu"):
        infinite_kernels(x[:3], activation=name, **settings)  # its rule is found once
        begin = time.process_time()
        infinite_kernels(x, activation=name, **settings)
        print(f"  {name:9s} {time.process_time() - begin:.2f} s")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=500)
    parser.add_argument("--steps", type=int, default=600, help="of gradient descent")
    parser.add_argument("--nets", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {platform.machine()}, one thread")
    data = digits(options.points)
    print(f"digits, ReLU, {options.points} training points, {len(data[2])} held out")
    kernel_rows(*data)
    trained_rows(*data, options.steps, options.nets)
    adam_row(*data)
    print("both kernels of 500 points, 4 layers, CPU time")
    times()


if __name__ == "__main__":
    main()
