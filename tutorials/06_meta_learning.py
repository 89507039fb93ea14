# %% [markdown]
# # Learning to learn
#
# A network that has to learn new tasks from a few examples should start from good weights. Which ones is a control
# problem over a law of tasks. A particle is a task; its state phi is the network that this task has made of the common
# start; time is the inner step; the control is what the tasks share:
#
#     phi_0 = u,   phi_(k+1) = phi_k - alpha grad L_support(phi_k),   J = E_task[ L_query(phi_K) ]
#
# Solved by its gradient this is MAML (Finn, Abbeel, Levine 2017). The costate of the fast weights follows
# p_k = (I - alpha H) p_(k+1) with the Hessian H of the support loss: what makes MAML "second order" is the adjoint
# equation, and first-order MAML is the same with H left out.

# %%
import os
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import nn

import mfoc
from mfoc import plot
from paradigms.meta import adapt, evaluate, few_shot, maml, meta_sgd, sinusoids

SMOKE = bool(os.environ.get("MFOC_SMOKE"))  # tiny budgets, to see that everything runs
FIGURES = Path(os.environ.get("MFOC_FIGURES", "figures"))
FIGURES.mkdir(parents=True, exist_ok=True)
torch.set_num_threads(1)


def show(axis, title, x, y):
    axis.set_title(title, fontsize=11)
    axis.set(xlabel=x, ylabel=y)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(True, axis="y", color="#dddddd", linewidth=0.6)


# %% [markdown]
# ## Sine waves
#
# A task is a sine wave of unknown amplitude (0.1 to 5) and phase (0 to pi), seen at ten points. The network has two
# hidden layers of 40; one inner step of size 0.01 is trained for. `sinusoids` is a population: batch n is a function of
# the seed and n. For comparison the same network is trained on all waves at once, which is MAML with no inner step: it
# learns their mean, and little can be learned from there.

# %%
iterations = 30 if SMOKE else 4000
waves, new_waves = sinusoids(tasks=25, shots=10), sinusoids(tasks=200, shots=10, queries=50, seed=1)
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))
adam = mfoc.Gradient(partial(torch.optim.Adam, lr=1e-3), lr_schedule=lambda k: min(1.0, 2 - 2 * k / iterations))

problem = maml(net, F.mse_loss, waves, inner_steps=1, inner_lr=0.01)
solution = problem.solve(adam, steps=iterations)
table = evaluate(problem, solution, new_waves, steps=(0, 1, 5, 10), progress=False)
print(table)

pooled = mfoc.from_module(net, F.mse_loss)


def all_waves(n):
    """The waves of a batch as plain points."""
    (x, y), (a, b) = waves(n).data["support"], waves(n).data["query"]
    return mfoc.Particles(torch.cat([x, a], 1).flatten(0, 1), torch.cat([y, b], 1).flatten(0, 1))


joint = mfoc.to_module(net, mfoc.solve(pooled, adam, all_waves, steps=iterations).controls)
start = maml(joint, F.mse_loss, waves, inner_steps=1, inner_lr=0.01)
print("from the network trained on all waves at once:")
print(evaluate(start, start.problem, new_waves, steps=(0, 1, 5, 10), progress=False))

# %% [markdown]
# One wave, and what ten points make of the two networks. `adapt` returns an ordinary module. (A wave is a combination
# of sin x and cos x, which is read off its points.)

# %%
x, y = (part[3] for part in new_waves(0).data["support"])
line = torch.linspace(-5, 5, 200)[:, None]
wave = torch.cat([line.sin(), line.cos()], 1) @ torch.linalg.lstsq(torch.cat([x.sin(), x.cos()], 1), y).solution
figure = Figure(figsize=(10, 3.8), layout="constrained")
panels = figure.subplots(1, 2, sharey=True)
for axis, (name, which, at) in zip(
    panels, (("MAML", problem, solution), ("All waves at once", start, start.problem)), strict=True
):
    axis.plot(line, wave, color="#bbbbbb", linewidth=4, label="the wave")
    axis.plot(x[:, 0], y[:, 0], "o", color="black", markersize=4, zorder=3, label="ten points")
    with torch.no_grad():
        axis.plot(line, which.readout(at)(line), color=plot.COLORS[0], linestyle=":", label="before")
        for steps, color in ((1, plot.COLORS[1]), (10, plot.COLORS[2])):
            learned = adapt(which, at, (x, y), steps=steps)
            axis.plot(line, learned(line), color=color, label=f"{steps} step{'s' * (steps > 1)}")
    show(axis, name, "x", "y")
figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=9)
figure.savefig(FIGURES / "06_sinusoids.png")
figure

# %% [markdown]
# ## The step sizes are controls too
#
# Meta-SGD (Li et al. 2017) gives each weight a step size of its own and learns it with the start. Trained for one inner
# step it makes far more of it than MAML does. Beyond that horizon it blows up: the learned steps are bold, some are
# negative, and nothing in J asks what a second one does. Its table says how many tasks have diverged.
#
# The remedy is to put what is wanted into J: five steps, with a weight on the loss after each (`step_losses`, a running
# cost). Five bold steps from random weights would blow up in training; so this one sets out from MAML's solution and
# moves the step sizes with care.

# %%
long = 20 if SMOKE else 1500
free = meta_sgd(net, F.mse_loss, waves, inner_steps=1, inner_lr=0.01)
plain = maml(net, F.mse_loss, waves, inner_steps=5, inner_lr=0.01)
begun = problem.readout(solution)
steady = meta_sgd(begun, F.mse_loss, waves, inner_steps=5, inner_lr=0.01, step_losses=[0.2] * 5)
decay, slow = (
    mfoc.Gradient(partial(torch.optim.Adam, lr=lr), lr_schedule=lambda k: min(1.0, 2 - 2 * k / long))
    for lr in (1e-3, 1e-4)
)
rates, fixed, calm = free.solve(adam, steps=iterations), plain.solve(decay, steps=long), steady.solve(slow, steps=long)
print("Meta-SGD, solved for one step:")
print(evaluate(free, rates, new_waves, steps=(0, 1, 2, 5, 10), progress=False))
print("Meta-SGD, solved for five:")
print(evaluate(steady, calm, new_waves, steps=(0, 1, 2, 5, 10), progress=False))

figure = Figure(figsize=(10, 4), layout="constrained")
left, right = figure.subplots(1, 2)
top = 20.0  # of the figure; a curve that leaves it is not followed
for color, (name, made, at) in zip(
    plot.COLORS,
    (
        ("MAML, 1 step", problem, solution),
        ("MAML, 5 steps", plain, fixed),
        ("Meta-SGD, 1 step", free, rates),
        ("Meta-SGD, 5 steps", steady, calm),
    ),
    strict=False,
):
    rows = [row.loss for row in evaluate(made, at, new_waves, steps=range(11), progress=False).rows]
    end = next((k for k, row in enumerate(rows) if not row.value < top), None)
    rows = rows[:end]
    left.plot([row.value for row in rows], color=color, linewidth=2, label=name)
    low, high = [row.low for row in rows], [row.high for row in rows]
    left.fill_between(range(len(rows)), low, high, color=color, alpha=0.15, linewidth=0)
    if end is not None:
        left.plot([end - 1, end], [rows[-1].value, top], color=color, linewidth=2, linestyle="--")
        left.text(end + 0.1, 0.8 * top, "diverges", color=color, fontsize=9, va="top")
left.set(yscale="log", ylim=(0.05, top), yticks=[0.1, 0.3, 1, 3, 10], yticklabels=["0.1", "0.3", "1", "3", "10"])
left.minorticks_off()
left.legend(frameon=False, fontsize=9, loc="upper right")
show(left, "Adaptation to new waves (shaded: 95 % intervals)", "inner step", "query loss (mean squared error)")
for color, name, at in ((plot.COLORS[2], "solved for 1 step", rates), (plot.COLORS[3], "solved for 5 steps", calm)):
    sizes = torch.cat([leaf.flatten() for leaf in at.controls["alpha"].values()]).clamp(-0.2, 0.2).numpy()
    right.hist(sizes, bins=60, range=(-0.2, 0.2), histtype="step", linewidth=1.5, color=color, label=name)
right.axvline(0.01, color="#999999", linestyle=":", label="where they began")
right.set(yscale="log")
right.legend(frameon=False, fontsize=9)
show(right, "Learned step sizes of Meta-SGD (outer bins: beyond)", "step size of a weight", "weights")
figure.savefig(FIGURES / "06_step_sizes.png")
figure

# %% [markdown]
# ## The costate along the inner steps
#
# A formulation is an `mfoc.Problem`, so that its trajectory, its costates and its certificate are those of any other.
# p_k is how much the query loss of a task gains from a change of its weights after step k. It grows backwards along
# directions in which the support loss curves downwards and shrinks along those in which it curves upwards. Stage 0 is
# the step in which the common start is handed to the tasks.

# %%
cloud = new_waves(0)
figure = Figure(figsize=(10, 3.6), layout="constrained")
panels = figure.subplots(1, 3, sharey=True)
for axis, color, (name, controls) in zip(
    panels,
    plot.COLORS,
    (
        ("random weights", plain.problem.controls),
        ("solved for one step", solution.controls),
        ("solved for five steps", fixed.controls),
    ),
    strict=False,
):
    trajectory = mfoc.rollout(plain.problem, controls, cloud)
    p = mfoc.costates(plain.problem, controls, trajectory, cloud)[1:]
    size = torch.stack([sum(leaf.flatten(1).square().sum(1) for leaf in at["fast"].values()).sqrt() for at in p])
    low, middle, high = torch.quantile(size, torch.tensor([0.1, 0.5, 0.9]), dim=1)
    axis.plot(middle, color=color, linewidth=2)
    axis.fill_between(range(len(middle)), low, high, color=color, alpha=0.2, linewidth=0)
    axis.set(yscale="log", yticks=[0.3, 1, 3, 10], yticklabels=["0.3", "1", "3", "10"])
    axis.minorticks_off()
    show(axis, name, "inner step k", "size of the costate $\\|p_k\\|$" if axis is panels[0] else "")
figure.suptitle("Costates along five inner steps: median of 200 tasks, shaded 10 % to 90 %", fontsize=11)
figure.savefig(FIGURES / "06_costates.png")
figure

# %% [markdown]
# ## Digits from one example each
#
# scikit-learn's 8 x 8 digits: the network learns to tell two digits apart from one example of each. It is trained on
# tasks made of the digits 0 to 6 and tested on 7, 8 and 9, of which it has seen none. Seven digits are few classes to
# learn to learn from: turned by 90, 180 and 270 degrees they are 28.

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
before = evaluate(digits, digits.problem, unseen, steps=(0, 1, 3, 10), progress=False)
learned = digits.solve(mfoc.Gradient(partial(torch.optim.Adam, lr=3e-3)), steps=5 if SMOKE else 300)
after = evaluate(digits, learned, unseen, steps=(0, 1, 3, 10), progress=False)
print("random start:", before, "meta-learned start:", after, sep="\n")
