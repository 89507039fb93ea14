# %% [markdown]
# # Control of the optimiser: learning rate, momentum, batch size
#
# SGD is a stochastic process, x <- x - eta g, and its learning rate, momentum and batch size are controls of it. On a
# quadratic seen through noise the best ones are known in closed form. This page
#
# 1. predicts the plateau that SGD at a constant rate comes to, measures it, and anneals the rate as is best;
# 2. lets CSGD and CMSGD control the rate and the momentum of a network's training, beside Adam and its kin, over four
#    decades of learning rates;
# 3. measures the noise scale of the gradient as training goes on, and lets the batches grow with it.
#
# The first two follow Li, Tai & E (2017, arXiv:1511.06251), the third McCandlish et al. (2018, arXiv:1812.06162).

# %%
import functools
import importlib.util
import math
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import mfoc
from mfoc.analysis.noise import NoiseScale, optimal_annealing, sgd_stationary_covariance
from mfoc.figures import COLORS, new_axes, style
from mfoc.optim import CMSGD, CSGD, AdaptiveBatch, LearningRateControl, OptimalAnnealing

SMOKE = bool(os.environ.get("MFOC_SMOKE"))  # tiny budgets, to see that everything runs
FIGURES = Path(os.environ.get("MFOC_FIGURES", "figures"))
FIGURES.mkdir(parents=True, exist_ok=True)
torch.set_num_threads(1)

# %% [markdown]
# ## 1. The plateau, predicted and measured
#
# f(x) = a x^2 / 2, and the gradient is a x plus noise of variance Sigma. At a constant rate eta the variance of x
# settles where C = (1 - eta a)^2 C + eta^2 Sigma, so the loss stays at a C / 2: a tenth of the rate, a tenth of the
# plateau, and ten times the wait. The best control of the rate takes the large one until the loss has come near its
# plateau, and goes down as 1/t from there. `OptimalAnnealing` is that control as a scheduler; `optimal_annealing` says
# what loss it leads to.

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
for index, (name, losses) in enumerate(measured.items()):
    axis.plot(range(1, steps + 1), losses, color=COLORS[index], label=name)
for index, level in enumerate(plateaus.values()):
    axis.axhline(level, color=COLORS[index], linestyle=":", linewidth=1)
times = torch.logspace(0, math.log10(steps), 200, dtype=torch.float64)
axis.plot(times, law.loss(large * times), color="black", linestyle=":", linewidth=1, label="predicted")
axis.set(xscale="log", yscale="log", xlabel="step", ylabel="mean loss", title="The plateau of a rate, and annealing")
axis.legend(frameon=False)
figure.savefig(FIGURES / "09_plateau.png")

# %% [markdown]
# ## 2. A network
#
# Nobody knows a and Sigma of a network. `CSGD` and `CMSGD` estimate both in each coordinate as they go, by a running
# regression of the gradient on the weight, and control the rate or the momentum by the laws of the quadratic:
#
# | optimiser | control          | law                                                          |
# |-----------|------------------|--------------------------------------------------------------|
# | `CSGD`    | u, rate is lr u  | u = min(1, 2m / (lr Sigma)), m the loss above the minimum    |
# | `CMSGD`   | mu, the momentum | mu = max(0, 1 - 2 sqrt(lr a)), critical damping; 1 if a <= 0 |
#
# `LearningRateControl` is another way: it measures, on a fresh batch, the rate that lowers the loss most along the
# direction of any optimiser. We give it Adam's.

# %%
images, targets = load_digits(return_X_y=True)
order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
digits, labels = torch.tensor(images, dtype=torch.float32)[order] / 16, torch.tensor(targets)[order]
x, y, test_x, test_y = digits[:1297], labels[:1297], digits[1297:], labels[1297:]
BUDGET = 20 if SMOKE else 600
SEEDS = 1 if SMOKE else 2


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def trained(make, seed, *, cosine=False, controlled=False):
    """The test accuracy after a training, in per cent, and the optimiser."""
    net = network(seed)
    optimiser = make(net.parameters())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, BUDGET) if cosine else None
    control = LearningRateControl(optimiser) if controlled else None
    averaging = hasattr(optimiser, "train")  # schedule-free optimisers evaluate at an average
    if averaging:
        optimiser.train()
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
        except mfoc.errors.InvalidValue:  # the gradient is not finite any more
            break
        if schedule:
            schedule.step()
    if averaging:
        optimiser.eval()
    with torch.no_grad():
        return 100 * float((net(test_x).argmax(1) == test_y).float().mean()), optimiser


def accuracy(make, **kind):
    return sum(trained(make, seed, **kind)[0] for seed in range(SEEDS)) / SEEDS


# %% [markdown]
# First an honest result. CSGD caps the rate near the inverse curvature. At every rate at which this network trains the
# cap is not reached: u stays at 1, or soon comes to it from any u0, and CSGD **is** SGD. It does not spare one the
# choice of lr.

# %%
for lr in (0.01, 0.1, 1.0):
    plain = accuracy(functools.partial(torch.optim.SGD, lr=lr))
    found, optimiser = trained(functools.partial(CSGD, lr=lr), 0)
    controlled = accuracy(functools.partial(CSGD, lr=lr))
    print(f"lr {lr:5g}: SGD {plain:.1f} %, CSGD {controlled:.1f} %; mean u {optimiser.mean_control():.3f}")
begun = [accuracy(functools.partial(CSGD, lr=0.1, u0=u0)) for u0 in (0.01, 0.1, 1.0)]
print("CSGD at lr 0.1, from u0 = 0.01, 0.1 and 1: " + ", ".join(f"{value:.1f} %" for value in begun))

# %% [markdown]
# The momentum is another matter. With SGD a momentum of 0.999 ruins what 0.9 does well. CMSGD forgets the one that it
# is given and finds its own.

# %%
momenta = (0.5, 0.9, 0.99, 0.999)
of_momentum = {
    "SGD": [accuracy(functools.partial(torch.optim.SGD, lr=0.05, momentum=mu)) for mu in momenta],
    "CMSGD": [accuracy(functools.partial(CMSGD, lr=0.05, momentum=mu)) for mu in momenta],
}
for mu, plain, controlled in zip(momenta, *of_momentum.values(), strict=True):
    print(f"momentum {mu:5g}: SGD {plain:.1f} %, CMSGD {controlled:.1f} %")
found, optimiser = trained(functools.partial(CMSGD, lr=0.05, momentum=0.999), 0)
print(f"mean momentum at the end, begun at 0.999: {optimiser.mean_momentum():.3f}")

# %% [markdown]
# Now four decades of learning rates, and the rivals of one who does not want to tune: Adam, Adam with a cosine, and
# Prodigy and schedule-free Adam where they are installed (`pip install --no-deps prodigyopt schedulefree`).
# Prodigy's rate is a factor of the one that it finds, and meant to be 1.

# %%
rates = (1e-4, 1e-2, 1.0) if SMOKE else (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)
sides = {
    "SGD, momentum 0.9": (functools.partial(torch.optim.SGD, momentum=0.9), {}),
    "CMSGD": (CMSGD, {}),
    "Adam": (torch.optim.Adam, {}),
    "Adam, cosine": (torch.optim.Adam, {"cosine": True}),
    "Adam, controlled": (torch.optim.Adam, {"controlled": True}),
}
if importlib.util.find_spec("prodigyopt"):
    import prodigyopt

    sides["Prodigy"] = (prodigyopt.Prodigy, {})
if importlib.util.find_spec("schedulefree"):
    import schedulefree

    sides["schedule-free Adam"] = (schedulefree.AdamWScheduleFree, {})
of_rate = {
    name: [accuracy(functools.partial(make, lr=lr), **kind) for lr in rates] for name, (make, kind) in sides.items()
}
print(f"{'accuracy, %, at lr':20s}" + "".join(f"{lr:>8g}" for lr in rates))
for name, row in of_rate.items():
    print(f"{name:20s}" + "".join(f"{value:8.1f}" for value in row))

figure, (left, right) = new_axes(10.0, 4.0, 2)
for index, (name, row) in enumerate(of_rate.items()):
    ours = name in ("CMSGD", "Adam, controlled")
    left.plot(
        rates,
        [100 - value for value in row],
        **style(index),
        marker="o" if ours else None,
        linewidth=2.2 if ours else 1.2,
        label=name,
    )
left.set(xscale="log", yscale="log", xlabel="learning rate that one begins with", ylabel="test error, %")
left.set_title("Four decades of learning rates")
left.set_ylim(0.25, 130)
left.legend(frameon=False, fontsize=8, loc="lower center", ncols=2)
for name, index in (("SGD", 0), ("CMSGD", 1)):
    right.plot(
        range(len(momenta)), [100 - value for value in of_momentum[name]], **style(index), marker="o", label=name
    )
right.set_xticks(range(len(momenta)), [f"{mu:g}" for mu in momenta])
right.set(xlabel="momentum that one begins with", ylabel="test error, %")
right.set_title("Momentum, at a rate of 0.05")
right.legend(frameon=False)
figure.savefig(FIGURES / "09_rates_and_momenta.png")

# %% [markdown]
# Adam under control hardly knows which rate it began with. CMSGD is flat in the momentum, and in the rate as far as SGD
# can train at all in so many steps; below, its momentum makes up for much. A tuned optimiser is still as good as
# either: what control buys is not having to look for it. It is a greedy control, and what is best for one step is not
# best for a run (short-horizon bias: Wu et al. 2018, arXiv:1803.02021): along SGD's own direction it keeps the rate far
# too small, as `tests/benchmarks/bench_optimisers.py` shows, and `LearningRateControl` warns of it.
#
# ## 3. The noise scale, and batches that grow with it
#
# Batches far below B = tr(H Sigma) / (G'HG) are mostly noise, those far above it waste samples; Sigma is the covariance
# of the gradient of one sample, G and H are the gradient and Hessian of the loss. As training converges G shrinks, and
# the scale grows. `NoiseScale` measures it along a solve, with intervals; `AdaptiveBatch` lets the batches follow.

# %%
problem = mfoc.from_module(network(0), F.cross_entropy)
cycle = 5 if SMOKE else 50
batches = AdaptiveBatch((x, y), problem, batch_size=16, every=cycle)
scale = NoiseScale(problem, data=(x, y), every=cycle)
solver = mfoc.Gradient(functools.partial(torch.optim.SGD, lr=0.5))
solution = mfoc.solve(problem, solver, batches, steps=4 * cycle if SMOKE else 600, hooks=[batches.measure, scale])
print(scale.values[0].verdict)
print(scale.values[-1].verdict)
print("batch size from step on:", ", ".join(f"{size} from {step}" for step, size in batches.schedule))

figure = scale.plot()
axis = figure.axes[0]
grown = [*batches.schedule, (solution.last.step, batches.schedule[-1][1])]
axis.step(*zip(*grown, strict=True), where="post", color="black", label="batch size")
axis.axhline(len(x), color="#999999", linestyle=":", linewidth=1)
axis.text(0, len(x), "all samples", va="bottom", color="#666666", fontsize=8)
axis.set_title("The noise scale of the gradient, and batches that follow it")
axis.legend(frameon=False)
figure.savefig(FIGURES / "09_noise_scale.png")
