# %% [markdown]
# # Control of the optimiser: learning rate, momentum, batch size
#
# After this page you can predict where SGD at a constant rate comes to rest, anneal its rate as is best, train without
# a search for the learning rate or the momentum, and choose a batch size by measurement. It is for whoever trains
# networks, and needs no other page. It runs for about a minute.
#
# ## The equation
#
# SGD is a stochastic process, and its learning rate $\eta$, momentum $\mu$ and batch size are controls of it. On
# $f(x) = a x^2 / 2$, seen through a gradient with noise of variance $\Sigma$,
#
# $$ x \leftarrow x - \eta \, (a x + \sqrt{\Sigma} \, z), \qquad z \sim N(0, 1), $$
#
# so at a constant rate the variance $C$ of $x$ settles where $C = (1 - \eta a)^2 C + \eta^2 \Sigma$, and the mean loss
# at $a C / 2$: a tenth of the rate, a tenth of the plateau, and ten times the wait. The best control of the rate takes
# the large one until the loss has come near its plateau, and goes down as $1/t$ from there (Li, Tai & E 2017).

# %%
import math
import os
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import mfoc
from mfoc.analysis.noise import NoiseScale, optimal_annealing, sgd_stationary_covariance
from mfoc.figures import COLORS, INK, look, new_axes
from mfoc.optim import CMSGD, AdaptiveBatch, LearningRateControl, OptimalAnnealing

SMOKE = bool(os.environ.get("MFOC_SMOKE"))  # tiny budgets, to see that everything runs
FIGURES = Path(os.environ.get("MFOC_FIGURES", "figures"))
FIGURES.mkdir(parents=True, exist_ok=True)
torch.set_num_threads(1)

# %% [markdown]
# ## The plateau, predicted and measured
#
# `OptimalAnnealing` is that control, as a scheduler; `optimal_annealing` says what loss it leads to.

# %%
a, noise, start = 1.0, 1.0, 3.0
steps, copies = (60, 200) if SMOKE else (1000, 4000)


def quadratic(lr, schedule=None):
    """The mean loss over independent copies, after each step."""
    draws = torch.Generator().manual_seed(0)
    x = nn.Parameter(torch.full((copies,), start, dtype=torch.float64))
    optimiser = torch.optim.SGD([x], lr=lr)
    scheduler = schedule(optimiser) if schedule else None
    losses = []
    for _ in range(steps):
        x.grad = a * x.detach() + math.sqrt(noise) * torch.randn(copies, generator=draws, dtype=torch.float64)
        optimiser.step()
        if scheduler:
            scheduler.step()
        losses.append(0.5 * a * float(x.detach().square().mean()))
    return losses


large, small = 0.2, 0.02
m0 = 0.5 * a * start**2
law = optimal_annealing(a, noise, m0, large)
measured = {
    f"constant, {large}": quadratic(large),
    f"constant, {small}": quadratic(small),
    "annealed": quadratic(large, lambda optimiser: OptimalAnnealing(optimiser, a, noise, m0)),
}
print(f"{'rate':14s} {'predicted':>10s} {'measured':>10s}   loss at the end")
plateaus = {lr: 0.5 * a * float(sgd_stationary_covariance(a, noise, lr)) for lr in (large, small)}
for name, predicted in zip(measured, [*plateaus.values(), float(law.loss(large * steps))], strict=True):
    tail = measured[name][-steps // 10 :] if name.startswith("constant") else measured[name][-1:]
    print(f"{name:14s} {predicted:10.5f} {sum(tail) / len(tail):10.5f}")

figure, (axis,) = new_axes(6.4, 4.0)
for color, width, (name, losses) in zip(COLORS, (5, 3.5, 2), measured.items(), strict=False):
    axis.plot(range(1, steps + 1), losses, color=color, linewidth=width, label=name)
times = torch.logspace(0, math.log10(steps), 200, dtype=torch.float64)
for level in plateaus.values():
    axis.axhline(level, color=INK, linestyle=":", linewidth=1.2)
axis.plot(times, law.loss(large * times), color=INK, linestyle=":", linewidth=1.2, label="predicted")
axis.set(xscale="log", yscale="log", xlabel="step", ylabel="mean loss", title="The plateau of a rate, and annealing")
axis.legend(frameon=False)
figure.savefig(FIGURES / "09_plateau.png")
figure

# %% [markdown]
# ## A network
#
# Nobody knows $a$ and $\Sigma$ of a network. `CMSGD` estimates $a$ in each coordinate as it goes, by a running
# regression of the gradient on the weight, and sets the momentum by critical damping,
# $\mu = \max(0, 1 - 2 \sqrt{\eta a})$, or 1 where $a \le 0$. `LearningRateControl` measures on a fresh batch which rate
# lowers the loss most along the direction of an optimiser, here Adam's. (`CSGD` controls the rate of SGD in each
# coordinate. On this network its cap is hardly ever reached, and it is SGD: see the second exercise.)

# %%
images, targets = load_digits(return_X_y=True)
order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
digits, labels = torch.tensor(images, dtype=torch.float32)[order] / 16, torch.tensor(targets)[order]
x, y, test_x, test_y = digits[:1297], labels[:1297], digits[1297:], labels[1297:]
BUDGET = 20 if SMOKE else 400
SEEDS = 1 if SMOKE else 2


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def trained(make, seed, *, controlled=False):
    """The optimiser after a training, and the test accuracy that it came to [%]."""
    net = network(seed)
    optimiser = make(net.parameters())
    control = LearningRateControl(optimiser) if controlled else None
    batches = torch.Generator().manual_seed(seed)
    for _ in range(BUDGET):
        rows, fresh = torch.randint(len(x), (2, 100), generator=batches)
        optimiser.zero_grad()
        F.cross_entropy(net(x[rows]), y[rows]).backward()
        try:
            if control:
                control.step(lambda fresh=fresh: F.cross_entropy(net(x[fresh]), y[fresh]))
            else:
                optimiser.step()
        except mfoc.InvalidValue:  # the gradient is not finite any more
            break
    return optimiser, 100 * float((net(test_x).argmax(1) == test_y).double().mean())


def accuracy(make, **kind):
    return sum(trained(make, seed, **kind)[1] for seed in range(SEEDS)) / SEEDS


def rows(title, begun, table):
    print(f"{title:22s}" + "".join(f"{value:>8g}" for value in begun))
    for name, row in table.items():
        print(f"{name:22s}" + "".join(f"{value:8.1f}" for value in row))


# %% [markdown]
# First the momentum that one begins with, at a rate of 0.05; then four decades of rates.

# %%
momenta = (0.5, 0.9, 0.99, 0.999)
of_momentum = {
    name: [accuracy(partial(make, lr=0.05, momentum=mu)) for mu in momenta]
    for name, make in {"SGD": torch.optim.SGD, "CMSGD": CMSGD}.items()
}
rows("accuracy [%], momentum", momenta, of_momentum)
optimiser, _ = trained(partial(CMSGD, lr=0.05, momentum=0.999), seed=0)
print(f"CMSGD, begun at a momentum of 0.999, ends at a mean of {optimiser.mean_momentum():.3f}")

rates = (1e-4, 1e-2, 1.0) if SMOKE else (1e-4, 1e-3, 1e-2, 0.1, 1.0)
sides = {
    "SGD": (partial(torch.optim.SGD, momentum=0.9), {}),
    "CMSGD": (CMSGD, {}),
    "Adam": (torch.optim.Adam, {}),
    "Adam, controlled": (torch.optim.Adam, {"controlled": True}),
}
of_rate = {name: [accuracy(partial(make, lr=lr), **kind) for lr in rates] for name, (make, kind) in sides.items()}
rows("accuracy [%], rate", rates, of_rate)

# %%
figure, (left, right) = new_axes(10, 4.0, 2)
looks = {name: look(name, index) for index, name in enumerate(("SGD", "Adam"))}
looks |= {"CMSGD": {"color": COLORS[1], "marker": "v"}, "Adam, controlled": {"color": COLORS[2], "marker": "^"}}
for axis, begun, table in ((left, rates, of_rate), (right, range(len(momenta)), of_momentum)):
    for name, row in table.items():
        axis.plot(begun, [100 - value for value in row], **looks[name], label=name)
    axis.set(yscale="log", ylabel="test error [%]", ylim=(1, 110), yticks=[1, 10, 100])
    axis.set_yticklabels(["1", "10", "100"])
    axis.legend(frameon=False)
left.set(xscale="log", xlabel="learning rate that one begins with", title="Learning rates, over four decades")
right.set_xticks(range(len(momenta)), [f"{mu:g}" for mu in momenta])
right.set(xlabel="momentum that one begins with", title="Momentum, at a rate of 0.05")
figure.savefig(FIGURES / "09_rates_and_momenta.png")
figure

# %% [markdown]
# Adam under control hardly knows which rate it began with, and CMSGD forgets the momentum that it was given. A tuned
# optimiser is as good as either: what control buys is not having to look. It is a greedy control, and what is best for
# one step is not best for a run (short-horizon bias: Wu et al. 2018); `LearningRateControl` warns of it.
#
# ## The noise scale, and batches that grow with it
#
# A batch far below
#
# $$ B = \frac{\mathrm{tr}(H \Sigma)}{G^\top H G} $$
#
# is mostly noise, one far above it wastes samples (McCandlish et al. 2018); $\Sigma$ is the covariance of the gradient
# of one sample, $G$ and $H$ are the gradient and the Hessian of the loss. As training converges $G$ shrinks and $B$
# grows. `NoiseScale` measures it along a solve; `AdaptiveBatch` lets the batches follow.

# %%
problem = mfoc.from_module(network(0), F.cross_entropy)
cycle = 5 if SMOKE else 50
batches = AdaptiveBatch((x, y), problem, batch_size=16, every=cycle)
scale = NoiseScale(problem, data=(x, y), every=cycle)
solver = mfoc.Gradient(partial(torch.optim.SGD, lr=0.5))
solution = mfoc.solve(problem, solver, batches, steps=4 * cycle if SMOKE else 400, hooks=[batches.measure, scale])
print(scale.values[0].verdict)
print(scale.values[-1].verdict)
print("batch size from step on:", ", ".join(f"{size} from {step}" for step, size in batches.schedule))

figure = scale.plot()
axis = figure.axes[0]
grown = [*batches.schedule, (solution.last.step, batches.schedule[-1][1])]
axis.step(*zip(*grown, strict=True), where="post", color=INK, label="batch size")
axis.axhline(len(x), color="#888888", linestyle=":", linewidth=1.2)
axis.text(0, len(x), "all samples", va="bottom", color="#666666", fontsize=8)
axis.set_title("The noise scale of the gradient, and batches that follow it")
axis.legend(frameon=False)
figure.savefig(FIGURES / "09_noise_scale.png")
figure

# %% [markdown]
# ## What to change
#
# 1. Make the noise four times as large, `noise = 4.0`. The plateaus are four times as high, 0.2222 and 0.0202, and so
#    is the annealed loss at the end, 0.0020: no control of the rate alone beats noise.
# 2. Compare SGD without momentum and `mfoc.optim.CSGD` as `sides`. Their rows are the same to the digit from a rate of
#    0.0001 to 0.1, where both tell 94.6 % right; at 1, CSGD is 0.2 % better. You still have to choose the rate.
# 3. Train by the adaptive batches at `lr=0.1`. The scale grows with the training there, too: the batches double from 16
#    to 256, and the last measurement asks for 478 samples.
