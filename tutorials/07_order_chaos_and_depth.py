# %% [markdown]
# # Order, chaos and depth
#
# A network of random weights is a dynamical system in depth. Let a layer be h -> W phi(h) + b with
# W_ij ~ N(0, sigma_w^2 / n) and b_i ~ N(0, sigma_b^2). As the width n grows, everything that an input leaves in a layer
# is two numbers: the variance q of its pre-activations h, and, for two inputs, their correlation c. Both follow maps of
# one variable (Poole et al. 2016), and
#
#     chi_1 = sigma_w^2 E phi'(sqrt(q*) z)^2,    z ~ N(0, 1),    q* the fixed point of the length map,
#
# says what a layer does to a small difference, and on the way back to a gradient: it multiplies its mean square.
#
# | phase    | chi_1 | two inputs       | gradients |
# |----------|-------|------------------|-----------|
# | ordered  | < 1   | become one       | vanish    |
# | critical | = 1   | stay told apart  | live      |
# | chaotic  | > 1   | become unrelated | explode   |
#
# This page draws the phases, checks on real digits that they decide what can be trained, builds a network of 100
# layers that trains, and then asks the same questions of networks that no theory covers.

# %%
import math
import os
import time
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

import mfoc
from mfoc.analysis.propagation import (
    SignalPropagation,
    critical_init_,
    critical_line,
    diagnose,
    phase_diagram,
    width_check,
)
from mfoc.plot import COLORS, new_figure, tidy

SMOKE = bool(os.environ.get("MFOC_SMOKE"))  # tiny budgets, to see that everything runs
FIGURES = Path(os.environ.get("MFOC_FIGURES", "figures"))
FIGURES.mkdir(parents=True, exist_ok=True)
torch.set_num_threads(1)
torch.manual_seed(0)

# %% [markdown]
# ## What theory says of one network
#
# At sigma_b^2 = 0.05, tanh is critical at sigma_w^2 = 1.76. Below it a network forgets, above it, it scrambles: `xi_c`
# is the number of layers over which correlations approach their fixed point by a factor e.

# %%
for weight_variance in (1.2, critical_line("tanh", bias_variance=0.05)[0], 2.5):
    print(SignalPropagation("tanh", weight_variance, 0.05), end="\n\n")

print(SignalPropagation("tanh", 2.5, 0.05).iterate(depth=40, q0=1.0, c0=0.9))

# %% [markdown]
# ## The phase diagram
#
# The same for every pair of variances. Depth scales are long only near the line chi_1 = 1; at a distance from it
# nothing passes through more than a few layers. (`mfoc phase-diagram --activation tanh` draws this from a shell.)

# %%
count = (30, 25) if SMOKE else (300, 250)
diagram = phase_diagram("tanh", torch.linspace(0.05, 4, count[0]), torch.linspace(0, 0.5, count[1]))
print(diagram)
diagram.plot().savefig(FIGURES / "07_phase_diagram.png")

# %% [markdown]
# ## Does it decide what can be trained?
#
# Digits, tanh, width 64, sigma_b^2 = 0.05, SGD with momentum for 150 steps. All values of sigma_w^2 are trained
# at once: a particle's state is its pre-activations in each of the networks, the control of a stage is a batch of
# weight matrices, and the loss is the sum over networks, which do not see one another.

# %%
raw = load_digits()
images = torch.tensor(raw.data, dtype=torch.float32)
images = (images - images.mean(0)) / (images.std(0) + 1e-3)
images = images / images.square().mean(1, keepdim=True).sqrt()  # q = 1 for every input
labels = torch.tensor(raw.target)
order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
train, test = order[:1400], order[1400:]
count, width = (4 if SMOKE else 11), 64
variances = torch.linspace(1.0, 4.0, count)


def stack(depth):
    """`depth` hidden layers and a readout in each of the networks, at their own sigma_w^2."""
    generator = torch.Generator().manual_seed(depth)

    def layer(outputs, variance):
        weights = torch.randn(count, width, outputs, generator=generator) * (variance / width).sqrt()[:, None, None]
        return {"W": weights, "b": math.sqrt(0.05) * torch.randn(count, 1, outputs, generator=generator)}

    return [layer(width, variances) for _ in range(depth)] + [layer(10, torch.full((count,), 0.1))]


def dynamics(t, x, u, z):
    """`[N, networks, width]` to the same: in every network a layer of its own."""
    h = x if t == 0 else x.tanh()
    return torch.baddbmm(u["b"], h.transpose(0, 1), u["W"]).transpose(0, 1)


def loss(x, z):
    each = nn.functional.cross_entropy(x.flatten(0, 1), z.repeat_interleave(count), reduction="none")
    return each.view(len(x), count).sum(1)


def accuracies(depth, steps):
    """Share of the training digits told right by each of the networks, `[networks]`, after a few steps."""
    problem = mfoc.Problem(dynamics, loss, stack(depth))
    inputs = images[train, None].expand(-1, count, -1)
    batches = mfoc.population((inputs, labels[train]), batch_size=32, seed=0)
    sgd = mfoc.Gradient(partial(torch.optim.SGD, lr=0.2 / depth, momentum=0.9))  # as much change at any depth
    solution = mfoc.solve(problem, sgd, batches, steps=steps)
    outputs = mfoc.rollout(problem, solution, mfoc.Particles(inputs, labels[train])).states[-1]
    return (outputs.argmax(-1) == labels[train, None]).double().mean(0)


depths = [4, 8] if SMOKE else [8, 16, 24, 32, 48, 64]
started = time.perf_counter()
trained = torch.stack([accuracies(depth, steps=2 if SMOKE else 150) for depth in depths])
print(f"{count * len(depths)} networks in {time.perf_counter() - started:.0f} s")

figure = new_figure(6.4, 4.2)
axis = figure.subplots()
step = float(variances[1] - variances[0])
edges = torch.cat([variances - step / 2, variances[-1:] + step / 2])
between = [(low + high) / 2 for low, high in pairwise(depths)]
rows = torch.tensor([depths[0] / 2, *between, depths[-1] + depths[0]])
mesh = axis.pcolormesh(edges, rows, trained, cmap="cividis", vmin=0.1, vmax=1)
figure.colorbar(mesh, label="training accuracy (0.1 is guessing)")
fine = torch.linspace(1.0, 4.0, 301)
reach = [6 * SignalPropagation("tanh", float(value), 0.05).xi_c for value in fine]
axis.plot(fine, reach, color="white", linewidth=4)
axis.plot(fine, reach, color=COLORS[1], linewidth=2, label="6 $\\xi_c$: as deep as a signal can be told")
axis.set(
    xlabel="weight variance $\\sigma_w^2$",
    ylabel="depth [layers]",
    title="Tanh on digits: what trains, and how deep theory says a signal reaches",
    xlim=(float(edges[0]), float(edges[-1])),
    ylim=(float(rows[0]), float(rows[-1])),
)
axis.legend(loc="upper right")
figure.savefig(FIGURES / "07_trainability.png")

# %% [markdown]
# ## A hundred layers
#
# `critical_init_` puts any network at criticality: by theory for a stack like this one, with orthogonal weights, so
# that not only the mean square of a gradient but every direction keeps its size. torch's default has sigma_w^2 = 1/3.

# %%
depth = 10 if SMOKE else 100


def deep_net():
    torch.manual_seed(0)
    hidden = [part for _ in range(depth - 1) for part in (nn.Linear(128, 128), nn.Tanh())]
    return nn.Sequential(nn.Linear(64, 128), nn.Tanh(), *hidden, nn.Linear(128, 10))


nets = {"torch's default": deep_net(), "critical_init_": deep_net()}
print(critical_init_(nets["critical_init_"], images[train[:200]]), end="\n\n")
for name, net in nets.items():
    print(
        f"{name}: {diagnose(net, images[train[:50]], nn.functional.cross_entropy, targets=labels[train[:50]]).verdict}"
    )

sgd = mfoc.Gradient(partial(torch.optim.SGD, lr=0.002, momentum=0.9))
courses = {}
for name, net in nets.items():
    problem = mfoc.from_module(net, nn.functional.cross_entropy)
    batches = mfoc.population((images[train], labels[train]), batch_size=50, seed=0)
    solution = mfoc.solve(problem, sgd, batches, steps=3 if SMOKE else 250)
    courses[name] = [entry["value"] for entry in solution.history]
    right = mfoc.to_module(net, solution)(images[test]).argmax(1) == labels[test]
    print(f"{depth} layers, {name}: {right.double().mean():.1%} of the held-out digits")

figure = new_figure(6.4, 3.6)
axis = figure.subplots()
for color, (name, values) in zip(COLORS, courses.items(), strict=False):
    axis.plot(values, color=color, label=name)
axis.axhline(math.log(10), color="#888888", linestyle=":", label="guessing, ln 10")
axis.set(xlabel="step", ylabel="cross-entropy of the batch", title=f"{depth} tanh layers, momentum SGD, lr 0.002")
axis.legend()
tidy(axis)
figure.savefig(FIGURES / "07_hundred_layers.png")

# %% [markdown]
# ## Networks that no theory covers
#
# `diagnose` takes any module. It cuts it into what repeats, runs it once, and measures chi of every block forward and
# backward by random products with its Jacobian at the real input. Its first line is a verdict.

# %%
import torchvision

resnet = torchvision.models.resnet18(num_classes=10)
pictures = torch.randn(4 if SMOKE else 16, 3, 64, 64, generator=torch.Generator().manual_seed(1))
print(diagnose(resnet, pictures), end="\n\n")

sentences = torch.randn(8, 12, 64, generator=torch.Generator().manual_seed(2))
layers = 2 if SMOKE else 12
for name, first in (("norm before", True), ("norm after", False)):
    layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True, norm_first=first)
    transformer = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
    found = diagnose(transformer, sentences)
    print(f"a transformer with its {name} each sublayer\n{found}", end="\n\n")
    found.plot().savefig(FIGURES / f"07_transformer_{name.replace(' ', '_')}.png")

# %% [markdown]
# ## And width?
#
# Depth decides whether a network can be trained, width whether the learning rate that trains a small one trains a large
# one. `width_check` is the coordinate check of Yang et al. 2022 with a verdict: how the change of every layer's output
# over a few steps scales with width.

# %%


def two_layers(width):
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))


check = width_check(
    two_layers,
    [32, 64, 128] if SMOKE else [64, 128, 256, 512, 1024],
    (images[train[:100]], labels[train[:100]]),
    partial(torch.optim.Adam, lr=1e-3),
    loss=nn.functional.cross_entropy,
)
print(check)
check.plot().savefig(FIGURES / "07_width.png")
