# %% [markdown]
# # Learning to learn
#
# After this lesson you can train the start of a network, and its step sizes, so that it learns new tasks from a few
# examples, and measure how well it does. It is for those who can train a network by hand. It runs for about a minute.
#
# ## The equation
#
# Which weights to start from is a control problem over a law of tasks. A particle is a task; its state $\phi$ is what
# this task has made of the common start; time is the inner step; the control $u$ is what the tasks share:
#
# $$ \phi_0 = u, \qquad \phi_{k+1} = \phi_k - \alpha \nabla L_{support}(\phi_k), \qquad
#    J(u) = E_{task} \, L_{query}(\phi_K) $$
#
# Solved by its gradient this is MAML (Finn, Abbeel, Levine 2017). The costates run backwards through the inner steps,
#
# $$ p_k = (I - \alpha \nabla^2 L_{support}(\phi_k)) \; p_{k+1} $$
#
# so what makes MAML "second order" is the costate equation. First-order MAML leaves the Hessian out.

# %%
import os
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import mfoc
from mfoc.figures import COLORS, INK, look, new_axes
from paradigms.meta import adapt, evaluate, few_shot, maml, meta_sgd, sinusoids

SMOKE = bool(os.environ.get("MFOC_SMOKE"))  # tiny budgets, to see that everything runs
FIGURES = Path(os.environ.get("MFOC_FIGURES", "figures"))
FIGURES.mkdir(parents=True, exist_ok=True)
torch.set_num_threads(1)

# %% [markdown]
# ## Sine waves
#
# A task is a sine wave of unknown amplitude (0.1 to 5) and phase (0 to pi), seen at ten points. `sinusoids` is a
# population of such tasks; new waves, of another seed, are for the judgement. One inner step is trained for.

# %%
shots, iterations = 10, 30 if SMOKE else 1000
waves, new_waves = sinusoids(tasks=25, shots=shots), sinusoids(tasks=200, shots=shots, queries=50, seed=1)
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))


def adam(lr, steps):
    """Adam whose rate falls to zero over the second half."""
    return mfoc.Gradient(partial(torch.optim.Adam, lr=lr), lr_schedule=lambda k: min(1.0, 2 - 2 * k / steps))


def judged(formulation, controls, steps=(0, 1, 5, 10)):
    return evaluate(formulation, controls, new_waves, steps=steps, progress=False)


meta = maml(net, F.mse_loss, waves, inner_steps=1, inner_lr=0.01)
learned = meta.solve(adam(1e-3, iterations), steps=iterations)
print("MAML:", judged(meta, learned))

# %% [markdown]
# For comparison the same network is trained on all waves at once. It learns their mean, and little can be learned from
# there.

# %%


def all_waves(step):
    """The waves of a batch as plain points."""
    (x, y), (a, b) = waves(step).data["support"], waves(step).data["query"]
    return mfoc.Particles(torch.cat([x, a], 1).flatten(0, 1), torch.cat([y, b], 1).flatten(0, 1))


pooled = mfoc.solve(mfoc.from_module(net, F.mse_loss), adam(1e-3, iterations), all_waves, steps=iterations)
joint = maml(mfoc.to_module(net, pooled), F.mse_loss, waves, inner_steps=1, inner_lr=0.01)
print("All waves at once:", judged(joint, joint.problem))

# %% [markdown]
# One new wave, and what its ten points make of the two networks. `adapt` returns an ordinary module. (A wave is a
# combination of sin x and cos x, which can be read off its points.)

# %%
x, y = (part[3] for part in new_waves(0).data["support"])
line = torch.linspace(-5, 5, 200)[:, None]
basis = [torch.cat([at.sin(), at.cos()], 1) for at in (line, x)]
wave = basis[0] @ torch.linalg.lstsq(basis[1], y).solution
figure, axes = new_axes(10, 3.8, 2)
networks = {"MAML": (meta, learned), "All waves at once": (joint, joint.problem)}
for axis, (name, (made, controls)) in zip(axes, networks.items(), strict=True):
    axis.plot(line, wave, color="#bbbbbb", linewidth=5, label="the wave")
    axis.plot(x, y, "o", color=INK, markersize=5, zorder=3, label="ten points")
    with torch.no_grad():
        axis.plot(line, made.readout(controls)(line), color=INK, linestyle=":", label="before")
        for steps, color, style in ((1, COLORS[0], "--"), (10, look("meta")["color"], "-")):
            label = f"after {steps} step{'s' * (steps > 1)}"
            after = adapt(made, controls, (x, y), steps=steps)(line)
            axis.plot(line, after, color=color, linestyle=style, linewidth=2, label=label)
    axis.set(title=name, xlabel="x", ylabel="y", ylim=(-3.5, 3.5))
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
figure.savefig(FIGURES / "06_sinusoids.png")
figure

# %% [markdown]
# ## The step sizes are controls too
#
# Meta-SGD (Li et al. 2017) gives each weight a step size of its own and learns it with the start. Trained for one inner
# step it makes far more of it than MAML does. Beyond that it blows up, for nothing in J asks what a second step does.
#
# The remedy is to put what is wanted into J: five steps, with a weight on the loss after each (`step_losses`, a running
# cost). Five bold steps from random weights would blow up in training, so this one sets out from MAML's solution, with
# a smaller learning rate.

# %%
horizon = 5
calm = 20 if SMOKE else 300
free = meta_sgd(net, F.mse_loss, waves, inner_steps=1, inner_lr=0.01)
steady = meta_sgd(
    meta.readout(learned), F.mse_loss, waves, inner_steps=horizon, inner_lr=0.01, step_losses=[1 / horizon] * horizon
)
rates = free.solve(adam(1e-3, iterations), steps=iterations)
held = steady.solve(adam(1e-4, calm), steps=calm)

cases = {"MAML, 1 step": (meta, learned), "Meta-SGD, 1 step": (free, rates)}
cases[f"Meta-SGD, {horizon} steps"] = (steady, held)
tables = {name: judged(made, controls, range(11)) for name, (made, controls) in cases.items()}
for name, table in tables.items():
    said = ", ".join(f"{k}: {table[k].loss.value:.3g}" for k in (0, 1, 2, 5, 10))
    print(f"{name:17s} mean query loss after inner steps {said}")
first, *others = tables
figure = tables[first].plot(label=first, beside={name: tables[name] for name in others})
figure.axes[0].set(yscale="log", ylim=(0.05, 10))  # a cross at the top: a loss that is not finite
figure.savefig(FIGURES / "06_step_sizes.png")
figure

# %% [markdown]
# ## Digits from one example each
#
# The network learns to tell two digits apart from one example of each. It is trained on tasks made of the digits 0 to
# 6 and tested on 7, 8 and 9, of which it has seen none. Turned by 90, 180 and 270 degrees the seven digits are 28
# classes to learn to learn from.

# %%
images, labels = load_digits(return_X_y=True)
images, labels = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(labels)
old = labels < 7
seen = few_shot(images[old], labels[old], ways=2, shots=1, queries=5, tasks=16, rotations=True, seed=0)
unseen = few_shot(images[~old], labels[~old], ways=2, shots=1, queries=15, tasks=200, seed=1)
torch.manual_seed(0)
conv = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding=1, stride=2), nn.BatchNorm2d(16), nn.ReLU(),
    nn.Conv2d(16, 16, 3, padding=1, stride=2), nn.BatchNorm2d(16), nn.ReLU(),
    nn.Flatten(), nn.Linear(64, 2),
)  # fmt: skip
digits = maml(conv, F.cross_entropy, seen, inner_steps=3, inner_lr=0.1, step_losses=[0.2, 0.3, 0.5])
start = digits.solve(mfoc.Gradient(partial(torch.optim.Adam, lr=3e-3)), steps=5 if SMOKE else 200)
for name, controls in (("random", digits.problem), ("meta-learned", start)):
    table = evaluate(digits, controls, unseen, steps=(3,), progress=False)
    share = table[3].accuracy
    print(f"{name:12s} start: accuracy after three steps {share.value:.1%} [{share.low:.1%}, {share.high:.1%}]")

# %% [markdown]
# ## What to change
#
# 1. **Three digits.** Set `ways=3` in both `few_shot` and end the network in `nn.Linear(64, 3)`. The meta-learned start
#    now reads 80.2 % after three steps, and a random one 74.7 %, where guessing reads 33 %.
# 2. **Fewer shots.** Set `shots = 5`. After ten steps MAML's loss is 1.70 in place of 0.87, and no better than after
#    five, 1.65: five points do not say what the wave does between them.
# 3. **First order.** Give the first `maml` the argument `first_order=True`, which leaves the Hessian out of the
#    costate. What it saves has a price here: the loss is 2.12 after one step, not 1.67, and 1.39 after ten, not 0.87.
