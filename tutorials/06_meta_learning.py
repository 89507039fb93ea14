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
adam = mfoc.Gradient(partial(torch.optim.Adam, lr=1e-3), schedule=lambda k: min(1.0, 2 - 2 * k / iterations))

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
# One wave, and what ten points make of the two networks. `adapt` returns an ordinary module.

# %%
x, y = (part[3] for part in new_waves(0).data["support"])
a, b = (part[3] for part in new_waves(0).data["query"])
order = a[:, 0].argsort()
line = torch.linspace(-5, 5, 200)[:, None]
figure = Figure(figsize=(10, 3.8), layout="constrained")
panels = figure.subplots(1, 2, sharey=True)
for axis, (name, which, at) in zip(
    panels, (("MAML", problem, solution), ("All waves at once", start, start.problem)), strict=True
):
    axis.plot(a[order, 0], b[order, 0], color="#999999", linewidth=3, label="the wave")
    axis.plot(x[:, 0], y[:, 0], "o", color="black", markersize=4, label="ten points")
    with torch.no_grad():
        axis.plot(line, which.readout(at)(line), color=plot.COLORS[0], linestyle=":", label="before")
        for steps, color in ((1, plot.COLORS[1]), (10, plot.COLORS[2])):
            learned = adapt(which, at, (x, y), steps=steps)
            axis.plot(line, learned(line), color=color, label=f"{steps} step{'s' * (steps > 1)}")
    show(axis, name, "x", "y")
panels[1].legend(frameon=False, fontsize=9)
figure.savefig(FIGURES / "06_sinusoids.png")
figure

# %% [markdown]
# ## The step sizes are controls too
#
# Meta-SGD (Li et al. 2017) gives each weight a step size of its own and learns it with the start. It too is trained for
# one inner step, and makes more of it than MAML. Beyond its horizon it may blow up: the learned steps are bold, and
# nothing in J asks what a second one does. MAML trained for five steps is shown beside it.

# %%
long = 20 if SMOKE else 1500
free = meta_sgd(net, F.mse_loss, waves, inner_steps=1, inner_lr=0.01)
plain = maml(net, F.mse_loss, waves, inner_steps=5, inner_lr=0.01)
decay = mfoc.Gradient(partial(torch.optim.Adam, lr=1e-3), schedule=lambda k: min(1.0, 2 - 2 * k / long))
rates, fixed = free.solve(adam, steps=iterations), plain.solve(decay, steps=long)
depths = list(range(11))
tables = {
    "MAML, 1 step": evaluate(problem, solution, new_waves, steps=depths, progress=False),
    "MAML, 5 steps": evaluate(plain, fixed, new_waves, steps=depths, progress=False),
    "Meta-SGD, 1 step": evaluate(free, rates, new_waves, steps=depths, progress=False),
}

figure = Figure(figsize=(10, 3.8), layout="constrained")
left, right = figure.subplots(1, 2)
for color, (name, found) in zip(plot.COLORS, tables.items(), strict=False):
    rows = [row.loss for row in found.rows if row.loss.value < 20]  # beyond its horizon Meta-SGD may blow up
    left.plot([r.value for r in rows], color=color, linewidth=2, label=name)
    left.fill_between(range(len(rows)), [r.low for r in rows], [r.high for r in rows], color=color, alpha=0.2)
left.set(yscale="log")
left.legend(frameon=False, fontsize=9)
show(left, "Adaptation to new waves (shaded: 95 %)", "inner step", "query loss")
alpha = rates.controls["alpha"]
for color, name in zip(plot.COLORS, ("0.weight", "2.weight", "4.weight"), strict=False):
    right.hist(alpha[name].flatten().numpy(), bins=40, density=True, histtype="step", color=color, label=name)
right.axvline(0.01, color="#999999", linestyle=":")
right.legend(frameon=False, fontsize=9)
show(right, "Learned step sizes (dotted: where they began)", "alpha", "density")
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
figure = Figure(figsize=(6, 3.8), layout="constrained")
axis = figure.subplots()
for color, (name, made, controls) in zip(
    plot.COLORS,
    (
        ("solved for five steps", plain, fixed.controls),
        ("solved for one step", plain, solution.controls),
        ("random weights", plain, plain.problem.controls),
    ),
    strict=False,
):
    trajectory = mfoc.rollout(made.problem, controls, cloud)
    p = mfoc.costates(made.problem, controls, trajectory, cloud)[1:]
    size = torch.stack([sum(leaf.flatten(1).square().sum(1) for leaf in at["fast"].values()).sqrt() for at in p])
    low, middle, high = torch.quantile(size, torch.tensor([0.1, 0.5, 0.9]), dim=1)
    axis.plot(middle, color=color, linewidth=2, label=name)
    axis.fill_between(range(len(middle)), low, high, color=color, alpha=0.15, linewidth=0)
axis.set(yscale="log")
axis.legend(frameon=False, fontsize=9)
show(axis, "Median of 200 tasks, shaded 10 % to 90 %", "inner step k", "size of the costate $\\|p_k\\|$")
figure.savefig(FIGURES / "06_costates.png")
figure

# %% [markdown]
# ## Digits from one example each
#
# scikit-learn's 8 x 8 digits: the network learns to tell two digits apart from one example of each. It is trained on
# tasks made of the digits 0 to 6 and tested on 7, 8 and 9, of which it has seen none.

# %%
images, labels = load_digits(return_X_y=True)
images, labels = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(labels)
old = labels < 7
seen = few_shot(images[old], labels[old], ways=2, shots=1, queries=5, tasks=16, seed=0)
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
