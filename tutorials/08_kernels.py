# %% [markdown]
# # Kernels: when gradient descent converges, and when it learns features
#
# For a moment of its training a network f(x, theta) is linear in its weights, and its outputs f on the samples move as
#
#     f <- f - lr Theta dL/df,    Theta(x, x') = <df(x)/dtheta, df(x')/dtheta>
#
# Theta is the neural tangent kernel (NTK; Jacot, Gabriel & Hongler 2018). Two questions decide what follows from it:
#
# | does Theta stay put?        | then training is                                                          |
# |-----------------------------|---------------------------------------------------------------------------|
# | yes (wide, or scaled up)    | lazy: kernel regression, whose rate and outcome are known before a step   |
# | no (narrow, or scaled down) | rich: features are learned, and no kernel of the start says where it ends |
#
# This page computes the kernel of a network, predicts trainings with it and checks them, goes to infinite width, and
# measures which of the two a training was. All on scikit-learn's digits.

# %%
import copy
import math
import os
import time
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

from mfoc.analysis.kernel import (
    KernelPredictor,
    NTKOperator,
    drift_against_width,
    empirical_ntk,
    infinite_kernels,
    laziness,
    ntk_convergence,
)
from mfoc.analysis.propagation import critical_line
from mfoc.errors import InvalidValue
from mfoc.figures import COLORS, new_axes

SMOKE = bool(os.environ.get("MFOC_SMOKE"))  # tiny budgets, to see that everything runs
FIGURES = Path(os.environ.get("MFOC_FIGURES", "figures"))
FIGURES.mkdir(parents=True, exist_ok=True)
torch.set_num_threads(1)
torch.manual_seed(0)

raw = load_digits()
digits = torch.tensor(raw.data, dtype=torch.float32)
digits = digits - digits.mean(0)
digits = digits / digits.norm(dim=1, keepdim=True)  # of length 1, as the theorem below wants them
labels = torch.tensor(raw.target)
order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
digits, labels = digits[order], labels[order]
odd = (2.0 * (labels % 2) - 1)[:, None]  # +1 for odd digits, -1 for even ones


class Times(nn.Module):
    """Multiplies by a number."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


def ntk_net(width, outputs=1, hidden=2, alpha=1.0):
    """ReLU layers in NTK parametrisation: all weights N(0, 1), every layer times sqrt(2 / inputs) instead."""
    sizes = [digits.shape[1]] + [width] * hidden
    parts = []
    for fan_in, fan_out in zip(sizes, [*sizes[1:], outputs], strict=True):
        layer = nn.Linear(fan_in, fan_out, bias=False)
        nn.init.normal_(layer.weight)
        parts += [layer, Times(math.sqrt(2 / fan_in)), nn.ReLU()]
    return nn.Sequential(*parts[:-1], Times(alpha))


def descend(net, x, y, lr, steps, moments=()):
    """Gradient descent on the mean over samples of |f - y|^2 / 2; copies of the network at the start and then."""
    free = [p for p in net.parameters() if p.requires_grad]
    kept = [copy.deepcopy(net)]
    for step in range(1, steps + 1):
        slopes = torch.autograd.grad((net(x) - y).square().sum() / (2 * len(x)), free)
        with torch.no_grad():
            for p, slope in zip(free, slopes, strict=True):
                p -= lr * slope
        if step in moments:
            kept.append(copy.deepcopy(net))
    return kept


# %% [markdown]
# ## Linear, for a moment
#
# Move the weights against the gradient by a share of their length. What the outputs do beyond their first derivative is
# of second order, so that its share in their change shrinks with the step; with ReLU, too, though it has kinks.

# %%
few = digits[: 40 if SMOKE else 200]
goal = odd[: len(few)]
small = ntk_net(32)
theta = empirical_ntk(small, few)[:, :, 0, 0].double()
start = small(few).detach().double()
slope = (start - goal) / len(few)  # dL/df of the mean of (f - y)^2 / 2

free = list(small.parameters())
gradient = torch.autograd.grad((small(few) - goal).square().mean() / 2, free)
size = math.sqrt(sum(float(g.square().sum()) for g in gradient))
length = math.sqrt(sum(float(p.detach().square().sum()) for p in free))
for share in (0.1, 0.01, 0.001):
    lr = share * length / size
    moved = copy.deepcopy(small).double()
    with torch.no_grad():
        for p, g in zip(moved.parameters(), gradient, strict=True):
            p -= lr * g
    change = moved(few.double()).detach() - copy.deepcopy(small).double()(few.double()).detach()
    error = float((change + lr * theta @ slope).norm() / change.norm())
    print(f"weights moved by {share:6.1%} of their length: the kernel misses {error:.1%} of the outputs' change")

# %% [markdown]
# The eigenvalues of Theta are rates: along an eigenvector the error falls by the factor 1 - lr lambda / N a step. They
# spread over decades, so the question is which of them the targets use.

# %%
values, vectors = torch.linalg.eigh(theta)
values, vectors = values.flip(0), vectors.flip(1)
energy = (vectors.mT @ goal.double()).square()[:, 0] / float(goal.square().sum())
tenth = max(1, len(few) // 10)
print(
    f"{len(few)} eigenvalues from {float(values[0]):.3g} to {float(values[-1]):.2g}; the first {tenth} hold "
    f"{float(values[:tenth].sum() / values.sum()):.0%} of the trace and "
    f"{float(energy[:tenth].sum()):.0%} of the targets"
)

figure, (left, right) = new_axes(10.5, 3.8, 2)
places = range(1, len(values) + 1)
left.loglog(places, values, ".", color=COLORS[0])
left.set(xlabel="index", ylabel="eigenvalue of the kernel", title="Rates: from fast to slow directions")
right.semilogx(places, energy.cumsum(0), color=COLORS[1], label="of the targets, odd or even")
right.semilogx(places, values.cumsum(0) / values.sum(), color=COLORS[0], label="of the kernel's trace")
right.set(xlabel="eigenvectors, fastest first", ylabel="share they hold", ylim=(0, 1.02), title="What they hold")
right.legend()
figure.savefig(FIGURES / "08_spectrum.png")

# %% [markdown]
# ## Does the kernel predict training?
#
# `ntk_convergence` does the arithmetic: eigenvalues, the largest stable step, the loss after every step if Theta stays
# as it is; then it trains a copy and lays the measured loss beside the prediction. The network is that of Du, Zhai,
# Poczos & Singh (2018): f(x) = sum_r a_r relu(w_r x) / sqrt(m), only w trained. Their theorem is the last line.

# %%


def du_net(width):
    net = nn.Sequential(nn.Linear(64, width, bias=False), nn.ReLU(), nn.Linear(width, 1, bias=False))
    nn.init.normal_(net[0].weight)
    with torch.no_grad():
        net[2].weight.copy_(torch.randn(1, width).sign() / math.sqrt(width))
    net[2].weight.requires_grad_(False)
    return net


found = {}
for width in (8, 64) if SMOKE else (32, 512, 4096):
    found[width] = ntk_convergence(du_net(width), few, goal, nn.MSELoss(), steps=20 if SMOKE else 300)
    print(f"width {width}\n{found[width]}\n")

figure, axes = new_axes(10.5, 3.6, len(found))
for color, axis, (width, report) in zip(COLORS, axes, found.items(), strict=False):
    axis.plot(report.measured, color=color, linewidth=2.2, label="measured")
    axis.plot(report.predicted, color="black", linewidth=1.2, linestyle="--", label="predicted")
    axis.set(xlabel="step", yscale="log", title=f"width {width}: gap {report.gap:.0%}")
    axis.legend()
losses = torch.cat([curve for report in found.values() for curve in (report.measured, report.predicted)])
for axis in axes:
    axis.set_ylim(float(losses.min()) / 2, float(losses.max()) * 2)
axes[0].set_ylabel("mean squared error")
figure.savefig(FIGURES / "08_predicted_training.png")

# %% [markdown]
# All begin as predicted, and the gap (its definition is in `NTKConvergence`) shrinks with width. What is left of it is
# late and low: in the slow directions, which a small turn of the kernel changes most. The theorem asks for a width that
# nobody has; that its condition fails says nothing against convergence. The rates of the kernel at hand, and the
# largest stable step, are of more use.
#
# ## Infinite width
#
# As the width grows, Theta tends to a kernel that can be written down. Then so can the outcome: before training the
# outputs are a Gaussian process (kernel NNGP), and the outputs of an ensemble of trained networks are Gaussian with a
# mean and a variance that follow from both kernels, at any time of the training. Here it is beside a few networks.

# %%
count, width, members, steps = (60, 64, 2, 10) if SMOKE else (300, 512, 3, 100)
train, test = slice(0, count), slice(count, count + (100 if SMOKE else 800))
settings = {"activation": "relu", "depth": 3, "weight_variance": 2.0}
limit = infinite_kernels(few, **settings).ntk
for n in (32, 128, 512):
    distance = float((empirical_ntk(ntk_net(n), few, trace=True) - limit).norm() / limit.norm())
    print(f"width {n:3d}: the kernel at the start is {distance:.1%} off its limit")

ntk = KernelPredictor(**settings, kernel="ntk").fit(digits[train], labels[train])
nngp = KernelPredictor(**settings, kernel="nngp").fit(digits[train], labels[train])
print(ntk, nngp, sep="\n")

lr = count / float(torch.linalg.eigvalsh(ntk.ntk)[-1])  # of the mean over samples of |f - y|^2 / 2
onehot = nn.functional.one_hot(labels[train]).float() - 0.1
outputs = []
started = time.perf_counter()
for _ in range(members):
    net = ntk_net(width, outputs=10)
    descend(net, digits[train], onehot, lr, steps)
    outputs.append(net(digits[test]).detach())
print(f"{members} networks of width {width}, {steps} steps each: {time.perf_counter() - started:.0f} s")
outputs = torch.stack(outputs).double()

started = time.perf_counter()
soon = ntk.predict(digits[test], time=lr * steps / count)
print(f"the kernel at the same time: {time.perf_counter() - started:.1f} s")
mean, deviation = soon.mean.double(), soon.variance.double().sqrt()
scores = (outputs - mean) / deviation[:, None]
print(
    f"standard scores of the networks' outputs under the prediction: mean {float(scores.mean()):.2f}, "
    f"standard deviation {float(scores.std()):.2f}, {float((scores.abs() < 2).double().mean()):.1%} within 2"
)


def right_of(labels_told):
    return float((labels_told == labels[test]).double().mean())


told = {
    "each network": sum(right_of(out.argmax(1)) for out in outputs) / members,
    "NTK, same time": right_of(soon.mean.argmax(1)),
    "NTK, trained to the end": right_of(ntk.classify(digits[test])),
    "NNGP posterior": right_of(nngp.classify(digits[test])),
}
for name, share in told.items():
    print(f"{name:24s} {share:.1%} of the held-out digits")

# %% [markdown]
# A trained network is nearly a draw from what the kernels predict: its scores are a little wider than standard ones, as
# its width is finite. And the prediction says how sure it is, without labels: the errors are where the variance is
# large.

# %%
posterior = nngp.predict(digits[test])
wrong = posterior.mean.argmax(1) != labels[test]
groups = posterior.variance.argsort().chunk(5)
rates = [float(wrong[group].double().mean()) for group in groups]
print("NNGP errors from the most to the least certain fifth: " + ", ".join(f"{rate:.1%}" for rate in rates))

figure, (left, right) = new_axes(10.5, 4.0, 2)
line = torch.tensor([float(mean.min()), float(mean.max())])
spread = float(deviation.mean())
left.fill_between(
    line, line - 2 * spread, line + 2 * spread, color=COLORS[0], alpha=0.18, linewidth=0, label="mean ± 2 sd"
)
left.plot(line, line, color=COLORS[0], linewidth=1)
shown = slice(0, 60)
left.plot(
    mean[shown].flatten(), outputs[0][shown].flatten(), ".", color=COLORS[1], markersize=3, label="one trained network"
)
left.set(
    xlabel="mean predicted by the NTK",
    ylabel="output of the network",
    title=f"Held-out digits, width {width}, {steps} steps",
)
left.legend(loc="upper left")
right.bar(range(1, 6), [100 * rate for rate in rates], color=COLORS[2])
right.set_xticks(range(1, 6), ["most\ncertain", "2", "3", "4", "least\ncertain"])
right.set(
    xlabel="fifths of the held-out digits, by the variance of the NNGP",
    ylabel="told wrong [%]",
    title="The variance knows where errors are",
)
figure.savefig(FIGURES / "08_infinite_width.png")

# %% [markdown]
# ## Depth: the kernel forgets
#
# Off the critical line of tutorial 07 depth spoils the kernel in two ways (Xiao, Pennington & Schoenholz 2020). In the
# ordered phase all inputs become one: the kernel tends to a constant, its condition number grows without bound, and
# gradient descent stalls. In the chaotic phase all inputs become strangers: the kernel tends to a multiple of the
# identity, trains at once, and knows nothing of a digit it has not seen. At criticality both happen slowly. The right
# panel is what an infinitely wide network tells after 1000 steps at half of its largest stable step.

# %%
depths = [2, 8] if SMOKE else [2, 4, 8, 16, 32]
phases = {"ordered": 0.8, "critical": critical_line("tanh", bias_variance=0.05)[0], "chaotic": 4.0}
inputs = 8.0 * digits.double()  # variance 1 a pixel
train, test = slice(0, 40 if SMOKE else 100), slice(100, 140 if SMOKE else 250)
figure, (left, right) = new_axes(10.5, 3.8, 2)
for color, (name, variance) in zip(COLORS, phases.items(), strict=False):
    conditions, shares = [], []
    for depth in depths:
        deep = KernelPredictor("tanh", depth, variance, 0.05, kernel="ntk").fit(inputs[train], labels[train])
        rates = torch.linalg.eigvalsh(deep.ntk)
        conditions.append(float(rates[-1] / rates[0]))
        shares.append(right_of(deep.classify(inputs[test], time=1000 / float(rates[-1]))))
    row = ", ".join(f"{d}: {c:.2g} ({s:.0%})" for d, c, s in zip(depths, conditions, shares, strict=True))
    print(f"{name:9s} condition number (held-out digits told) at depth {row}")
    left.loglog(depths, conditions, "o-", color=color, label=f"{name}, $\\sigma_w^2$ = {variance:.2f}")
    right.semilogx(depths, [100 * share for share in shares], "o-", color=color, label=name)
left.set(xlabel="depth [layers]", ylabel="condition number of the NTK", title="Can it be trained?")
right.set(xlabel="depth [layers]", ylabel="held-out digits told right [%]", title="Does it tell what it has not seen?")
for axis in (left, right):
    axis.set_xticks(depths, [str(depth) for depth in depths])
    axis.minorticks_off()
left.legend()
figure.savefig(FIGURES / "08_depth.png")

# %% [markdown]
# ## Lazy and rich
#
# Width is not the only way to be lazy. Multiply the outputs by alpha and centre them, alpha (f(x, theta) - f(x,
# theta_0)), and divide the rate by alpha^2: the targets are then reached by a change of the weights of order 1 / alpha,
# over which f is linear (Chizat, Oyallon & Bach 2019). A small alpha is the opposite. `laziness` measures the kernel
# along a training: how far it turned, and whether towards the targets.

# %%


class Centred(nn.Module):
    """alpha (f(x, theta) - f(x, theta_0))."""

    def __init__(self, net, alpha):
        super().__init__()
        self.net, self.start, self.alpha = net, copy.deepcopy(net).requires_grad_(False), alpha

    def forward(self, x):
        return self.alpha * (self.net(x) - self.start(x))


steps = 8 if SMOKE else 600
moments = sorted({max(1, round(steps * (k / 8) ** 2)) for k in range(1, 9)})
lr = len(few) / float(values[0]) / 8  # small, as a kernel that grows makes steps unstable
unseen, their = digits[-800:], odd[-800:]
figure, (left, right) = new_axes(10.5, 3.8, 2)
for color, alpha in zip(COLORS, (0.3, 1.0, 10.0), strict=False):
    torch.manual_seed(1)
    net = Centred(ntk_net(64), alpha)
    kept = descend(net, few, goal, lr / alpha**2, steps, moments)
    report = laziness(net, kept, few[:60], goal[:60])
    error = float((net(few) - goal).detach().square().mean())
    share = float((net(unseen).sign() == their).double().mean())
    print(f"alpha {alpha:g}: {report}")
    print(f"  training error {error:.2g}, {share:.1%} of the held-out digits told odd or even\n")
    left.plot(moments, report.turn[1:], "o-", color=color, label=f"alpha = {alpha:g}: {report.regime}")
    right.plot([0, *moments], report.alignment, "o-", color=color)
left.set(xlabel="step", ylabel="turn, 1 - cos(kernel, first kernel)", title="How far the kernel turned", yscale="log")
right.set(xlabel="step", ylabel="alignment of the kernel with the targets", title="And whether towards the targets")
left.legend()
figure.savefig(FIGURES / "08_lazy_and_rich.png")

# %% [markdown]
# Rich training turns the kernel towards the targets in its first steps; what is gained so is partly given back later.
# The lazy network keeps very nearly the kernel it was born with.
#
# In NTK parametrisation width does the same: theory says that the kernel drifts as 1 / width. `drift_against_width`
# trains networks of several widths and fits the power.

# %%


def briefly(net):
    descend(net, few, goal, lr, steps=5 if SMOKE else 50)


drift = drift_against_width(
    ntk_net,
    [16, 32, 64] if SMOKE else [32, 64, 128, 256, 512],
    briefly,
    few[:60],
    seeds=2 if SMOKE else 3,
)
print(drift)
drift.plot().savefig(FIGURES / "08_drift_against_width.png")

# %% [markdown]
# ## Ten thousand points
#
# Digits with noise on them, 10,000 of ten outputs each: a kernel of 100,000 rows. It would not fit, and says so before
# it tries. But products with it cost a few passes through the network, and the largest eigenvalues, which bound the
# learning rate, a few dozen products.

# %%
count = 500 if SMOKE else 10_000
chosen = torch.arange(count) % len(digits)
noisy = digits[chosen] + 0.02 * torch.randn(count, 64, generator=torch.Generator().manual_seed(3))
net = ntk_net(64, outputs=10)
try:
    empirical_ntk(net, noisy, memory=2**20 if SMOKE else 2**33)
except InvalidValue as error:
    print(error)

operator = NTKOperator(net, noisy)
started = time.perf_counter()
product = operator @ torch.ones(count, 10)
print(f"{operator}: a product in {time.perf_counter() - started:.2f} s")
started = time.perf_counter()
top = operator.top(10, tol=1e-2)
print(
    f"ten largest eigenvalues: {float(top.values[0]):.4g} to {float(top.values[-1]):.4g}, each within "
    f"{float(top.errors.max() / top.values[0]):.1%} of the largest; {top.products} products, "
    f"{time.perf_counter() - started:.1f} s"
)
print(
    f"they hold {float(top.values.sum() / operator.trace()):.0%} of the trace; the largest stable step of the mean of "
    f"|f - y|^2 / 2 is {2 * count / float(top.values[0]):.3g}"
)
