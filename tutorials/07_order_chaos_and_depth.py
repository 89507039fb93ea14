# %% [markdown]
# # Order, chaos and depth
#
# After this page you can say, before a step of training, whether a deep network will train, at which variance of its
# weights to begin, and which block of a network of your own breaks the signal. It is for whoever sets up networks, and
# needs no other page. It runs for about a minute.
#
# ## The equation
#
# A network of random weights is a dynamical system in depth. Let a layer be $h \mapsto W \phi(h) + b$ with
# $W_{ij} \sim N(0, \sigma_w^2 / n)$ and $b_i \sim N(0, \sigma_b^2)$. As the width $n$ grows, all that an input
# leaves in a layer is two numbers: the variance $q$ of its pre-activations $h$, and, for two inputs, their correlation
# $c$. Both follow maps of one variable (Poole et al. 2016). At the fixed point $q^*$ of the first,
#
# $$ \chi_1 = \sigma_w^2 \, \mathbb{E}\, \phi'(\sqrt{q^*} z)^2, \qquad z \sim N(0, 1), $$
#
# is what a layer multiplies the mean square of a small difference by, and on the way back that of a gradient:
#
# | phase    | $\chi_1$ | two inputs       | gradients |
# |----------|----------|------------------|-----------|
# | ordered  | < 1      | become one       | vanish    |
# | critical | = 1      | stay told apart  | live      |
# | chaotic  | > 1      | become unrelated | explode   |

# %%
import math
import os
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
from mfoc.figures import COLORS, INK, new_axes

SMOKE = bool(os.environ.get("MFOC_SMOKE"))  # tiny budgets, to see that everything runs
FIGURES = Path(os.environ.get("MFOC_FIGURES", "figures"))
FIGURES.mkdir(parents=True, exist_ok=True)
torch.set_num_threads(1)
torch.manual_seed(0)

# %% [markdown]
# ## What theory says of one network
#
# `SignalPropagation` finds the fixed points. `xi_c` is how many layers it takes for a correlation to come nearer to its
# fixed point by a factor e: how far a network can tell two inputs apart.

# %%
critical = critical_line("tanh", bias_variance=0.05)[0]
print(f"tanh at bias variance 0.05 is critical at weight variance {critical:.3f}")
for weight_variance in (1.2, critical, 2.5):
    law = SignalPropagation("tanh", weight_variance, 0.05)
    print(f"  {weight_variance:.2f}: {law.phase:8s} chi_1 = {law.chi_1:.3f}, xi_c = {law.xi_c:.3g} layers")

# %% [markdown]
# ## The phase diagram
#
# The same for every pair of variances. Depth scales are long only near the line $\chi_1 = 1$. (From a shell:
# `mfoc phase-diagram --activation tanh`.)

# %%
count = (30, 25) if SMOKE else (200, 150)
figure = phase_diagram("tanh", torch.linspace(0.05, 4, count[0]), torch.linspace(0, 0.5, count[1])).plot()
figure.savefig(FIGURES / "07_phase_diagram.png")
figure

# %% [markdown]
# ## Does it decide what can be trained?
#
# Digits, tanh, width 64, $\sigma_b^2 = 0.05$, a few steps of SGD with momentum. All values of $\sigma_w^2$ are trained
# at once: the state of a particle is its pre-activations in each of the networks, the control of a stage is a stack of
# weight matrices, and the loss is the sum over the networks, which do not see one another.

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


depths = [4, 8] if SMOKE else [8, 16, 32, 48]
trained = torch.stack([accuracies(depth, steps=2 if SMOKE else 100) for depth in depths])
for depth, row in zip(depths, trained, strict=True):
    best = int(row.argmax())
    print(f"depth {depth:2d}: best at weight variance {variances[best]:.1f}, {row[best]:.0%}; at 4.0, {row[-1]:.0%}")

# %%
figure, (axis,) = new_axes(6.4, 4.2)
axis.grid(False)
step = float(variances[1] - variances[0])
edges = torch.cat([variances - step / 2, variances[-1:] + step / 2])
between = [(low + high) / 2 for low, high in pairwise(depths)]
rows = torch.tensor([depths[0] / 2, *between, depths[-1] + depths[0]])
mesh = axis.pcolormesh(edges, rows, trained, cmap="cividis", vmin=0.1, vmax=1)
figure.colorbar(mesh, label="training accuracy (0.1 is guessing)")
fine = torch.linspace(1.0, 4.0, 13 if SMOKE else 121)
reach = [6 * SignalPropagation("tanh", float(value), 0.05).xi_c for value in fine]
axis.plot(fine, reach, color="white", linewidth=4)
axis.plot(fine, reach, color=COLORS[1], linewidth=2, label="6 $\\xi_c$, how deep a signal reaches")
axis.set(
    xlabel="weight variance $\\sigma_w^2$",
    ylabel="depth [layers]",
    title="What trains, and how deep a signal reaches",
    xlim=(float(edges[0]), float(edges[-1])),
    ylim=(float(rows[0]), float(rows[-1])),
)
figure.legend(loc="outside lower center", frameon=False)
figure.savefig(FIGURES / "07_trainability.png")
figure

# %% [markdown]
# The deeper a network, the nearer to the critical variance it has to begin; the curve says about how near.
#
# ## A hundred layers
#
# `critical_init_` puts a network at criticality. For a stack like this one it does so by theory, with orthogonal
# weights, so that every direction of a gradient keeps its size. torch's default has $\sigma_w^2 = 1/3$.

# %%
depth = 10 if SMOKE else 100


def deep_net():
    torch.manual_seed(0)
    hidden = [part for _ in range(depth - 1) for part in (nn.Linear(128, 128), nn.Tanh())]
    return nn.Sequential(nn.Linear(64, 128), nn.Tanh(), *hidden, nn.Linear(128, 10))


nets = {"torch's default": deep_net(), "critical_init_": deep_net()}
critical_init_(nets["critical_init_"], images[train[:200]])
sgd = mfoc.Gradient(partial(torch.optim.SGD, lr=0.002, momentum=0.9))
courses = {}
for name, net in nets.items():
    before = diagnose(net, images[train[:50]], nn.functional.cross_entropy, targets=labels[train[:50]])
    print(f"{name}: {before.verdict}")
    problem = mfoc.from_module(net, nn.functional.cross_entropy)
    batches = mfoc.population((images[train], labels[train]), batch_size=50, seed=0)
    solution = mfoc.solve(problem, sgd, batches, steps=3 if SMOKE else 200)
    courses[name] = [entry["value"] for entry in solution.history]
    right = mfoc.to_module(net, solution)(images[test]).argmax(1) == labels[test]
    print(f"  trained: {right.double().mean():.1%} of the held-out digits right")

figure, (axis,) = new_axes(6.4, 3.6)
for color, dashes, (name, values) in zip(COLORS, ("--", "-"), courses.items(), strict=False):
    axis.plot(range(1, len(values) + 1), values, color=color, linestyle=dashes, label=name)
axis.axhline(math.log(10), color=INK, linestyle=":", linewidth=1.2, label="guessing, ln 10")
axis.set(xlabel="step", ylabel="cross-entropy of the batch [nats]", title=f"{depth} tanh layers, SGD with momentum")
axis.set_ylim(bottom=0)
axis.legend(frameon=False)
figure.savefig(FIGURES / "07_hundred_layers.png")
figure

# %% [markdown]
# ## A network that no theory covers
#
# `diagnose` takes any module. It cuts it into what repeats, runs it once, and measures of each block what it does to
# small differences, forward and backward, by random products with its Jacobian at the real input.

# %%
sentences = torch.randn(8, 12, 64, generator=torch.Generator().manual_seed(2))
for name, first in (("before", True), ("after", False)):
    layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True, norm_first=first)
    transformer = nn.TransformerEncoder(layer, 2 if SMOKE else 12, enable_nested_tensor=False)
    found = diagnose(transformer, sentences)
    print(f"norm {name} each sublayer: {found.verdict}")
    figure = found.plot()
    figure.savefig(FIGURES / f"07_transformer_norm_{name}.png")
figure

# %% [markdown]
# ## And width?
#
# Depth decides whether a network trains; width, whether the learning rate of a small network serves a large one.
# `width_check` is the coordinate check of Yang et al. (2022): how the change of each layer's output over a few steps
# scales with width.

# %%


def two_layers(width):
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))


check = width_check(
    two_layers,
    [32, 64, 128] if SMOKE else [64, 128, 256, 512],
    (images[train[:100]], labels[train[:100]]),
    partial(torch.optim.Adam, lr=1e-3),
    loss=nn.functional.cross_entropy,
)
print(check.verdict)
figure = check.plot()
figure.savefig(FIGURES / "07_width.png")
figure

# %% [markdown]
# ## What to change
#
# 1. Take ReLU: `critical_line("relu", bias_variance=0.0)` and `SignalPropagation("relu", weight_variance, 0.0)`. It is
#    critical at 2.000, the variance of He et al. (2015), and chi_1 is half the weight variance wherever you are.
# 2. Train the two layers of the width check by `partial(torch.optim.SGD, lr=0.1)`. The output layer grows as
#    width^0.71 and the first layer's change shrinks as width^-0.49: neither optimiser serves all widths at one rate.
# 3. Double the transformer, 24 layers. With the norm before each sublayer it still trains; with the norm after it,
#    `diagnose` finds rank collapse from block 15 on, the tokens of a sentence at a correlation of 0.9912.
