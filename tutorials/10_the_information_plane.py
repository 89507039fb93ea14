# %% [markdown]
# # The information plane and the bottleneck
#
# After this page you can measure what the layers of a network know of their input and of the label, tell an effect
# from an artefact of how it was measured, and train a network that keeps only the information it needs. It is for
# those who read or draw information planes; it supposes tutorial 02. It runs for about half a minute.
#
# ## The equation
#
# Two numbers, in nats, put a layer $T$ at a point of a plane: $I(X;T)$, what it knows of the input, and $I(T;Y)$, what
# of the label. It was said that networks first learn and then compress: that late in training they forget of $X$ what
# $Y$ does not need (Shwartz-Ziv & Tishby 2017). The bottleneck makes that a goal:
#
# $$ \min \; \mathbb{E} \, \ell(\text{decoder}(T), Y) + \beta \, I(X;T). $$
#
# It is a control problem, as information is a running cost.

# %%
import copy
import math
import os
from functools import partial
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import mfoc
from mfoc.analysis import information
from mfoc.figures import COLORS, INK, new_axes, of_class

SMOKE = bool(os.environ.get("MFOC_SMOKE"))  # tiny budgets, to see that everything runs
FIGURES = Path(os.environ.get("MFOC_FIGURES", "figures"))
FIGURES.mkdir(parents=True, exist_ok=True)
torch.set_num_threads(1)
D = torch.float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# %% [markdown]
# ## Information that is known
#
# A standard normal $X$, read through noise of variance $s$, is told to
# $\ln(1 + 1/s) / 2$ nats. `KDE(s)` does not know where $X$ comes from: it has $N$ draws, and bounds the information
# from the distances between them (Kolchinsky & Tracey 2017).

# %%
variances = torch.logspace(-7, 1, 9 if SMOKE else 33)
exact = [information.gaussian_information(1.0, float(s)) for s in variances]
figure, (axis,) = new_axes(8.6, 4.2)
axis.plot(variances, exact, color=INK, linewidth=2, label="exact, of the normal law")
for color, n in zip(COLORS, (30, 100) if SMOKE else (100, 1500), strict=False):
    draws = torch.randn(n, 1, generator=generator(), dtype=D)
    bounds = [information.KDE(float(s)).about_input(draws) for s in variances]
    low, high = [bound.lower for bound in bounds], [bound.upper for bound in bounds]
    axis.fill_between(variances, low, high, color=color, alpha=0.3, linewidth=0, label=f"bounds from {n} draws")
    axis.axhline(math.log(n), color=color, linestyle=":", linewidth=1.2, label=f"ln {n}")
    known = information.gaussian_information(1.0, 0.1)
    print(f"{n} draws, s = 0.1: {information.KDE(0.1).about_input(draws)}, exact {known:.3f} nats")
axis.set(xscale="log", xlabel="variance of the noise", ylabel="I(X;T) [nats]", ylim=(0, 8.6))
axis.set_title("N draws can show ln N nats, and no more")
figure.legend(frameon=False, loc="outside right center")
figure.savefig(FIGURES / "10_known_information.png")
figure

# %% [markdown]
# The bounds hold the truth while it is well below $\ln N$. Above that they count draws. And as $s \to 0$ the
# information itself has no limit. That is the trouble with networks: they have no noise.
#
# ## Does a network compress?
#
# All 1024 strings of ten signs, each with a class; two networks, alike but for their activation. The estimate counts
# which bin each unit falls into. The bins of tanh divide [-1, 1], those of ReLU the activity that there is.

# %%
signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 10)
form = torch.randn(10, 10, generator=generator(3))
classes = (torch.einsum("ni,ij,nj->n", signs, form, signs) > float(form.trace())).long()


def trained(activation, moments):
    """Copies of a network at some moments of its training."""
    torch.manual_seed(1)
    layers = [part for a, b in ((10, 8), (8, 6), (6, 4)) for part in (nn.Linear(a, b), activation())]
    net = nn.Sequential(*layers, nn.Linear(4, 2))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    kept = []
    for step in range(moments[-1] + 1):
        if step in moments:
            kept.append(copy.deepcopy(net))
        optimizer.zero_grad()
        F.cross_entropy(net(signs), classes).backward()
        optimizer.step()
    right = float((net(signs).argmax(1) == classes).float().mean())
    print(f"{activation.__name__}: {right:.1%} told right after {moments[-1]} steps")
    return kept


last = 40 if SMOKE else 2000
moments = sorted({round(last ** (k / 12)) for k in range(13)} | {0})
nets = {kind.__name__: trained(kind, moments) for kind in (nn.Tanh, nn.ReLU)}


def bins_of(name, count):
    return information.Binned(torch.linspace(-1, 1, count + 1)) if name == "Tanh" else information.Binned(count)


first, *later = [
    information.information_plane(net, signs, classes, estimator=bins_of("Tanh", 30), layers=["1", "3", "5"])
    for net in nets["Tanh"]
]
figure = first.plot(*later, title="A tanh network in training, 30 bins")
figure.savefig(FIGURES / "10_plane.png")
figure

# %% [markdown]
# This is the plane that started the discussion. 1 is the first hidden layer; 5 is the last one, whose path begins at
# the open marker. It learns of the labels, and then seems to forget of the input. Here is the last hidden layer of both
# trainings once more, with bins of several sizes.

# %%
figure, axes = new_axes(10.5, 4.0, 2)
for axis, (name, kept) in zip(axes, nets.items(), strict=True):
    for color, marker, count in zip(COLORS, "osD^", (4, 30, 1000, 100_000), strict=False):
        told = [
            information.information_plane(net, signs, classes, estimator=bins_of(name, count), layers=["5"]).layers[0]
            for net in kept
        ]
        path = [layer.about_input.lower for layer in told]
        print(f"{name}, {count} bins: I(X;T) up to {max(path):.2f}, {path[-1]:.2f} nats in the end")
        axis.plot(moments, path, marker=marker, markersize=4, color=color, label=f"{count:,} bins")
    axis.axhline(math.log(len(signs)), color=INK, linestyle=":", linewidth=1, label="ln N")
    axis.set_xscale("symlog", linthresh=1)
    axis.set(xlabel="step of the training", title=f"{name}: last hidden layer", xlim=(-0.2, 2 * last), ylim=(0, 7.6))
axes[0].set_ylabel("I(X;T) [nats]")
figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, loc="outside right center")
figure.savefig(FIGURES / "10_bins.png")
figure

# %% [markdown]
# Each line is a statement about the same network. With few bins the tanh layer compresses, as its units saturate into
# the outermost ones; with fine bins far less, and later. The ReLU layer seems to compress where its bins stretch with
# its largest value. (Its dip in the first steps is no matter of bins: for most inputs all its units are off.) What a
# figure of this kind says of a deterministic network, it says of the bins (Saxe et al. 2018).
#
# ## Compression as a goal
#
# Make the network noisy, and $I(X;T)$ is a number of its own. Alemi et al. (2017) bound it by
# $\mathbb{E}\, \mathrm{KL}(q(t|x) \,\|\, r(t))$, a running cost that is paid between encoder and decoder; any solver
# takes it from there. For Gaussian $X$ and $Y$ with linear networks the optimum is known (Chechik et al. 2005):
# directions of $X$ enter one by one, each at a critical trade-off.

# %%
mix = torch.randn(3, 3, generator=generator(5), dtype=D) + torch.eye(3, dtype=D)
correlations = torch.tensor([0.95, 0.8, 0.6], dtype=D)
sigma_x, sigma_xy, sigma_y = mix @ mix.mT, mix @ torch.diag(correlations), torch.eye(3, dtype=D)

# The costs are quadratic in x, y and the noise: a cloud with their exact mean and covariance stands for their law.
whole = torch.eye(9, dtype=D)
whole[:6, :6] = torch.cat([torch.cat([sigma_x, sigma_xy], 1), torch.cat([sigma_xy.mT, sigma_y], 1)])
root = 3 * torch.linalg.cholesky(whole).mT
x, y, noise = torch.cat([root, -root]).split(3, 1)
cloud = mfoc.Particles(x, {"y": y, "noise": noise})


class LinearGaussian(nn.Module):
    """A linear mean, and a log variance for each output that is the same for all t: ``[N, 2, m]``."""

    def __init__(self, latent, outputs):
        super().__init__()
        self.mean = nn.Linear(latent, outputs, dtype=D)
        self.log_variance = nn.Parameter(torch.zeros(outputs, dtype=D))

    def forward(self, t):
        return torch.stack([self.mean(t), self.log_variance.expand(len(t), -1)], 1)


def negative_log_likelihood(out, y):
    mean, log_variance = out.unbind(1)
    return ((y - mean).square() / log_variance.exp() + log_variance + math.log(2 * math.pi)).sum(1) / 2


def told_by(projection):
    """I(T;X) and I(T;Y) of T = A X + N(0, I), by the covariances."""
    left = sigma_x - sigma_xy @ torch.linalg.inv(sigma_y) @ sigma_xy.mT
    of_x = information.gaussian_information(projection @ sigma_x @ projection.mT, 1.0)
    return of_x, of_x - information.gaussian_information(projection @ left @ projection.mT, 1.0)


# %% [markdown]
# Now solve it at several trade-offs, and lay the two informations of each solution beside the optimum's.

# %%
lbfgs = mfoc.Gradient(partial(torch.optim.LBFGS, max_iter=20, line_search_fn="strong_wolfe", tolerance_change=1e-14))
optimum = information.gaussian_bottleneck(sigma_x, sigma_xy, sigma_y, 6.0)
print("critical trade-offs:", ", ".join(f"{float(b):.2f}" for b in optimum.critical_betas))
found = {}
for trade_off in (1.05, 6.0) if SMOKE else (1.05, 1.3, 2.0, 6.0, 30.0):
    torch.manual_seed(0)
    bottleneck = information.information_bottleneck(
        nn.Sequential(nn.Linear(3, 3, bias=False, dtype=D)),
        nn.Sequential(LinearGaussian(3, 3)),
        negative_log_likelihood,
        beta=1 / trade_off,  # Chechik's beta is the inverse of Alemi's
        latent=3,
        noise=1.0,
        prior="learned",
    )
    solution = mfoc.solve(bottleneck, lbfgs, cloud, steps=2 if SMOKE else 40)
    encoder, _ = bottleneck.modules(solution)
    found[trade_off] = told_by(encoder[0].weight.detach())
    best = [float(value) for value in optimum.curve(torch.tensor(trade_off, dtype=D))]
    told = zip(("I(T;X)", "I(T;Y)"), found[trade_off], best, strict=True)
    print(f"beta {trade_off:5.2f}: " + ", ".join(f"{name} {own:.4f}, optimum {least:.4f}" for name, own, least in told))

figure = optimum.plot()
axis = figure.axes[0]
axis.plot(*zip(*found.values(), strict=True), "x", color=COLORS[2], markersize=9, markeredgewidth=2, label="solved")
axis.set_title("The variational bottleneck finds the optimum")
axis.legend(frameon=False, loc="lower right")
figure.savefig(FIGURES / "10_bottleneck.png")
figure

# %% [markdown]
# The crosses were found by gradients, knowing nothing of eigenvalues. Below the first critical trade-off nothing gets
# through at all.
#
# ## A bottleneck for digits
#
# The same problem with networks, and two numbers $t$ for each digit. Cheap information spreads the digits out; dear
# information draws together what need not be told apart. The rate is $\mathbb{E}\, \mathrm{KL}(q(t|x) \,\|\, r(t))$.

# %%
raw = load_digits()
order = torch.randperm(len(raw.target), generator=generator())
digits = torch.tensor(raw.data, dtype=torch.float32)[order] / 16
labels = torch.tensor(raw.target)[order]
train, test = slice(0, 1200), slice(1200, None)
figure, axes = new_axes(10.5, 5.0, 2)
for axis, beta in zip(axes, (0.001, 0.3), strict=True):
    torch.manual_seed(0)
    bottleneck = information.information_bottleneck(
        nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)),
        nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 10)),
        F.cross_entropy,
        beta=beta,
        latent=2,
    )
    population = information.with_noise((digits[train], labels[train]), 2, batch_size=200)
    adam = mfoc.Gradient(partial(torch.optim.Adam, lr=5e-3))
    solution = mfoc.solve(bottleneck, adam, population, steps=20 if SMOKE else 600)
    rates = bottleneck.rates(solution, population)
    encoder, decoder = bottleneck.modules(solution)
    with torch.no_grad():
        mean, spread = encoder(digits[test]).chunk(2, 1)
        right = float((decoder(mean).argmax(1) == labels[test]).float().mean())
        codes = mean + F.softplus(spread) * torch.randn(mean.shape, generator=generator())
    print(f"beta {beta}: rate {rates.rate:.2f} nats, loss {rates.distortion:.2f}, {right:.1%} of held-out digits right")
    for digit in range(10):
        members = codes[labels[test] == digit]
        axis.plot(*members.T, linestyle="", markersize=3, alpha=0.6, **of_class(digit))
        axis.text(*members.median(0).values.tolist(), str(digit), fontsize=12, weight="bold", ha="center", va="center")
    axis.set(xlabel="$t_1$", ylabel="$t_2$", xlim=(-9, 9), ylim=(-9, 9), aspect="equal")
    axis.set_title(f"$\\beta$ = {beta}: rate {rates.rate:.1f} nats, {right:.0%} told right")
figure.savefig(FIGURES / "10_digits.png")
figure

# %% [markdown]
# ## What to change
#
# 1. Take 400 and 4000 draws. The bounds at s = 0.1 hardly move (0.974 to 1.638, and 0.979 to 1.648), and they follow
#    the line to smaller noise: draws buy the range, not the width of the bounds.
# 2. Stop the training early, `last = 200`. The networks tell nearly all right (97.9 % and 98.7 %), and with 1000 bins
#    little is lost (6.79 and 6.82 nats of 6.93): what looked like compression comes after the learning.
# 3. Let information cost more, `(1.0, 3.0)` for the digits. Nothing gets through at either: a rate of 0.00 nats, and
#    8.7 % told right.
