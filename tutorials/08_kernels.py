# %% [markdown]
# # Kernels: when gradient descent converges, and when it learns features
#
# After this page you can compute the tangent kernel of a network, predict its training from it before a step, know
# what an infinitely wide network would answer, and measure whether a training learned features. It is for those who
# ask why a training goes as it goes, and needs no other page. It runs for about half a minute.
#
# ## The equation
#
# For a moment a network $f(x, \theta)$ is linear in its weights. A step of gradient descent of size $\eta$ on the loss
# $L$ then moves the outputs $f$ on all samples as
#
# $$ f \leftarrow f - \eta \, \Theta \, \frac{\partial L}{\partial f}, \qquad
#    \Theta(x, x') = \frac{\partial f(x)}{\partial \theta} \cdot \frac{\partial f(x')}{\partial \theta}. $$
#
# $\Theta$ is the neural tangent kernel, NTK (Jacot, Gabriel & Hongler 2018). What follows depends on one question:
#
# | does $\Theta$ stay put?     | then training is                                                          |
# |-----------------------------|---------------------------------------------------------------------------|
# | yes (wide, or scaled up)    | lazy: kernel regression, whose rate and outcome are known before a step   |
# | no (narrow, or scaled down) | rich: features are learned, and no kernel of the start says where it ends |

# %%
import copy
import math
import os
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

from mfoc import plot
from mfoc.analysis.kernel import (
    KernelPredictor,
    empirical_ntk,
    infinite_kernels,
    laziness,
    ntk_convergence,
)
from mfoc.figures import COLORS, new_axes

SMOKE = bool(os.environ.get("MFOC_SMOKE"))  # tiny budgets, to see that everything runs
FIGURES = Path(os.environ.get("MFOC_FIGURES", "figures"))
FIGURES.mkdir(parents=True, exist_ok=True)
torch.set_num_threads(1)
torch.manual_seed(0)

# %% [markdown]
# The data are scikit-learn's digits, and the question most often whether one is odd. `ntk_net` makes networks whose
# kernel has a limit as they become wide, `descend` is plain gradient descent.

# %%
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
# ## The kernel of a network
#
# Its eigenvalues $\lambda$ are rates: along an eigenvector the error falls by the factor $1 - \eta \lambda / N$ a step.
# They spread over decades, so what counts is which of them the targets use.

# %%
few = digits[: 40 if SMOKE else 200]
goal = odd[: len(few)]
small = ntk_net(32)
theta = empirical_ntk(small, few)[:, :, 0, 0].double()
rates, directions = torch.linalg.eigh(theta)
rates, directions = rates.flip(0), directions.flip(1)
energy = (directions.mT @ goal.double()).square()[:, 0] / float(goal.square().sum())
tenth = len(few) // 10
print(
    f"{len(few)} rates from {float(rates[0]):.3g} to {float(rates[-1]):.2g}; the fastest {tenth} hold "
    f"{float(rates[:tenth].sum() / rates.sum()):.0%} of the trace and {float(energy[:tenth].sum()):.0%} of the targets"
)

# %%
places = range(1, len(rates) + 1)
held = {"of the trace": rates.cumsum(0) / rates.sum(), "of the targets": energy.cumsum(0)}
figure = plot.curves(
    {name: (places, share) for name, share in held.items()},
    x_label="eigenvectors, fastest first",
    y_label="share that they hold",
    log=False,
)
figure.axes[0].set(xscale="log", ylim=(0, 1.02))
figure.savefig(FIGURES / "08_spectrum.png")
figure

# %% [markdown]
# ## Does the kernel predict training?
#
# `ntk_convergence` does the arithmetic: the largest stable step, and the loss after every step if $\Theta$ stays as it
# is. Then it trains a copy and lays the measured loss beside the prediction. The network is that of Du, Zhai, Poczos &
# Singh (2018): $f(x) = m^{-1/2} \sum_r a_r \, \mathrm{relu}(w_r x)$, of which only $w$ is trained.

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
    report = found[width] = ntk_convergence(du_net(width), few, goal, nn.MSELoss(), steps=20 if SMOKE else 200)
    print(f"width {width:4d}: stable up to lr {report.stable_lr:.3g}, taken {report.lr:.3g}; gap {report.gap:.1%}")

figure = found[min(found)].plot()  # the narrowest, of the largest gap
figure.savefig(FIGURES / "08_predicted_training.png")
figure

# %% [markdown]
# All begin as predicted, the narrowest (drawn) too, and the gap shrinks with width. What is left of it is late and
# low: in the slow directions, which a small turn of the kernel changes most.
#
# ## Infinite width
#
# As the width grows, $\Theta$ tends to a kernel that can be written down. Then so can the outcome: the outputs of an
# ensemble of trained networks are Gaussian, with a mean and a variance that follow at any time of the training; so are
# those of a Bayesian network, by another kernel (NNGP). Here they are beside a few networks that were trained.

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
lr = count / float(torch.linalg.eigvalsh(ntk.ntk)[-1])
onehot = nn.functional.one_hot(labels[train]).float() - 0.1
outputs = []
for _ in range(members):
    net = ntk_net(width, outputs=10)
    descend(net, digits[train], onehot, lr, steps)
    outputs.append(net(digits[test]).detach().double())
soon = ntk.predict(digits[test], time=lr * steps / count)
mean, deviation = soon.mean.double(), soon.variance.double().sqrt()
within = ((torch.stack(outputs) - mean) / deviation[:, None]).abs() < 2
print(f"{float(within.double().mean()):.1%} of the networks' outputs are within 2 predicted deviations of the mean")


def share_right(told):
    return float((told == labels[test]).double().mean())


print(
    f"held-out digits right: networks {sum(share_right(out.argmax(1)) for out in outputs) / members:.1%}, NTK at the "
    f"same time {share_right(soon.mean.argmax(1)):.1%}, NTK in the end {share_right(ntk.classify(digits[test])):.1%}, "
    f"NNGP {share_right(nngp.classify(digits[test])):.1%}"
)

# %% [markdown]
# A trained network is nearly a draw from what the kernel predicts. And a prediction says how sure it is, without
# labels: errors are where the variance is large.

# %%
posterior = nngp.predict(digits[test])
wrong = posterior.mean.argmax(1) != labels[test]
fifths = [100 * float(wrong[group].double().mean()) for group in posterior.variance.argsort().chunk(5)]
print("NNGP errors, from the most certain fifth to the least: " + ", ".join(f"{rate:.1f} %" for rate in fifths))

figure, (axis,) = new_axes(6, 4.0)
line = torch.tensor([float(mean.min()), float(mean.max())])
spread = 2 * float(deviation.mean())
axis.fill_between(line, line - spread, line + spread, color=COLORS[0], alpha=0.2, linewidth=0, label="mean ± 2 sd")
axis.plot(line, line, color=COLORS[0], linewidth=1)
axis.plot(mean[:60].flatten(), outputs[0][:60].flatten(), ".", color=COLORS[1], markersize=3, label="one network")
axis.set(xlabel="output predicted", ylabel="output of a trained network", title="Before training, and after")
axis.legend(loc="upper left", frameon=False)
figure.savefig(FIGURES / "08_infinite_width.png")
figure

# %% [markdown]
# ## Lazy and rich
#
# Width is not the only way to be lazy. Take $\alpha (f(x, \theta) - f(x, \theta_0))$ for the network, and divide the
# rate by $\alpha^2$: the targets are then reached by a change of the weights of order $1 / \alpha$, over which $f$ is
# linear (Chizat, Oyallon & Bach 2019). A small $\alpha$ does the opposite. `laziness` measures the kernel along a
# training: how far it turned, and whether towards the targets.

# %%


class Centred(nn.Module):
    """alpha (f(x, theta) - f(x, theta_0))."""

    def __init__(self, net, alpha):
        super().__init__()
        self.net, self.start, self.alpha = net, copy.deepcopy(net).requires_grad_(False), alpha

    def forward(self, x):
        return self.alpha * (self.net(x) - self.start(x))


steps = 8 if SMOKE else 400
moments = sorted({max(1, round(steps * (k / 8) ** 2)) for k in range(1, 9)})
lr = len(few) / float(rates[0]) / 8  # small, as a kernel that grows makes steps unstable
unseen, their = digits[-800:], odd[-800:]
turns = {}
for alpha in (0.3, 1.0, 10.0):
    torch.manual_seed(1)
    net = Centred(ntk_net(64), alpha)
    kept = descend(net, few, goal, lr / alpha**2, steps, moments)
    report = laziness(net, kept, few[:60], goal[:60])
    error = float((net(few) - goal).detach().square().mean())
    share = float((net(unseen).sign() == their).double().mean())
    print(
        f"alpha {alpha:4g}: {report.regime}, turned by {report.index:.3f}; training error {error:.2g}, {share:.1%} "
        "of the held-out digits right"
    )
    turns[f"α = {alpha:g}: {report.regime}"] = moments, report.turn[1:]
    course = ", ".join(f"{float(share):.2f}" for share in report.alignment[::2])
    print(f"    alignment of the kernel with the targets on the way: {course}")

# %%
figure = plot.curves(turns, x_label="step", y_label="turn of the kernel, 1 - cos(kernel, first kernel)")
figure.savefig(FIGURES / "08_lazy_and_rich.png")
figure

# %% [markdown]
# Rich training turns the kernel towards the targets in its first steps. The lazy network keeps very nearly the kernel
# that it was born with.
#
# ## What to change
#
# 1. Learn nothing but noise: `odd = torch.randn(len(labels), 1).sign()`. The fastest 20 of 200 directions hold
#    then 12 % of the targets, about their share by number. Odd or even is learned fast as the kernel knows digits.
# 2. Take a step over the largest stable one, `ntk_convergence(..., lr=24.0)`. The prediction grows without bound, while
#    the measured loss of widths 32 and 512 goes down: the kernel shrinks until the step is stable. So the start
#    predicts that it cannot stay as it is, and no more than that.
# 3. Go further both ways with `alpha` in `(0.1, 100.0)`. At 100 the printed turn is zero to three places, and the
#    training error stays more than ten times that of 0.1: features make training faster, too.
