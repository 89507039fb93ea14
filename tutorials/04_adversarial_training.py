# %% [markdown]
# # Adversarial training as a differential game
#
# Two players act on one network. The weights u want a small loss; an adversary adds a disturbance eta to every input
# and wants a large one:
#
#     min over u, max over |eta_i| <= eps, of   J(u, eta) = E Phi(x_T, z)
#     x_1 = f_0(x_0 + eta, u_0),   x_(t+1) = f_t(x_t, u_t),  t = 1..T-1
#
# eta belongs to a particle (an image), u is shared by the population. The maximum principle has one Hamiltonian for
# both, H_t(x, p, u) = <p, f_t(x, u)> (plus running costs, if any), on the trajectory and its costates p_T = dPhi/dx,
# p_t = dH_t/dx:
#
# - u_t minimises E H_t(x_t, p_(t+1), u),
# - eta_i maximises H_0(x_0 + eta, p_1, u_0) for its own particle.
#
# To first order the adversary moves along dH_0/dx = p_0, the last costate of the backward pass. Three ways to use it:
#
# - **PGD** (Madry, Makelov, Schmidt, Tsipras, Vladu, "Towards deep learning models resistant to adversarial attacks",
#   ICLR 2018): a full forward and backward pass for each step of eta, then one for u.
# - **YOPO-m-n** (Zhang, Zhang, Lu, Zhu, Dong, "You only propagate once", NeurIPS 2019, arXiv:1905.00877): eta enters
#   f_0 alone. So freeze p_1 and make n steps on H_0, which need the first layer only; refresh p_1 m times. The m
#   passes also give the gradient in u.
# - **Free** (Shafahi et al., "Adversarial training for free!", NeurIPS 2019): each pass moves both players, and a batch
#   is replayed.
#
# **TRADES** (Zhang, Yu, Jiao, Xing, El Ghaoui, Jordan, "Theoretically principled trade-off between robustness and
# accuracy", ICML 2019, arXiv:1901.08573) is another loss, not another maximiser: cross-entropy of the clean image plus
# beta KL(f(x) || f(x + eta)). It is a game on pairs (x, x + eta).

# %%
import math
import os
import time
from dataclasses import replace
from functools import partial
from itertools import combinations, islice
from pathlib import Path

import torch
import torch.nn.functional as F
import torchattacks
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

import mfoc
from mfoc import plot
from paradigms import adversarial as adv

SMOKE = bool(os.environ.get("MFOC_SMOKE"))  # tiny budgets, to see that everything runs
FIGURES = Path(os.environ.get("MFOC_FIGURES", "figures"))
FIGURES.mkdir(parents=True, exist_ok=True)
torch.set_num_threads(1)


def tidy(axis):
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(True, axis="y", color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)


# %% [markdown]
# ## The game on digits
#
# 1,797 images of 8 x 8 pixels, scaled to [0, 1]; a third is kept for testing. A pixel may be changed by at most
# eps = 0.1, and a disturbed pixel stays in [0, 1].

# %%
digits = load_digits()
parts = train_test_split(digits.images / 16, digits.target, test_size=1 / 3, stratify=digits.target, random_state=0)
x_train, x_test = (torch.as_tensor(part).float()[:, None] for part in parts[:2])
y_train, y_test = (torch.as_tensor(part) for part in parts[2:])
train, test = (x_train, y_train), (x_test[:60], y_test[:60]) if SMOKE else (x_test, y_test)
eps, batch_size = 0.1, 128
epochs = 1 if SMOKE else 30


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


def digits_game(loss, seed=0):
    return adv.game(network(seed), loss, train, epsilon=eps, batch_size=batch_size, seed=seed)


formulation = digits_game(F.cross_entropy)
game, batches = formulation.problem, formulation.population.batches_per_epoch
print(f"{len(x_train)} digits to train on, {len(test[1])} to test on; {game.stages} stages, {batches} batches an epoch")

# %% [markdown]
# A game is a problem; on plain particles it is the undisturbed one. So its costates come from `mfoc.costates`. Two
# statements from above, as numbers. First: one ascent step of length eps from eta = 0 is eps sign(p_0).

# %%
few = mfoc.Particles(x_train[:100], y_train[:100])
costates = mfoc.costates(game, game.controls, mfoc.rollout(game, game.controls, few), few)
eta = adv.FGSM().maximise(game, game.controls, few)
print(f"largest |eta - eps sign(p_0)| = {float((eta - eps * costates[0].sign()).abs().max()):.1e}")

# %% [markdown]
# Second: the first layer here is a convolution, which is affine in x. With p_1 frozen, H_0 is affine in eta, and its
# slope is the same everywhere in the ball. It is p_0, which the full pass has computed already. So the n inner steps of
# YOPO are n steps along one known direction and cost no evaluation of any layer.


# %%
def slope_of_first_hamiltonian(x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(mfoc.hamiltonian(game, 0, x, costates[1], game.controls[0], few.data).sum(), x)[0]


elsewhere = game.ball.enter(few.state, game.ball.sample(few.state, torch.Generator().manual_seed(0)))
for name, x in (("x", few.state), ("x + a random eta", elsewhere)):
    difference = (slope_of_first_hamiltonian(x) - costates[0]).abs().max() / costates[0].abs().max()
    print(f"dH_0/dx at {name}: relative difference from p_0 {float(difference):.1e}")

# %% [markdown]
# ## Five ways to train
#
# `Minimax(inner, outer)` pairs an adversary with a minimiser; only the adversary (or the loss) changes below. The
# minimiser is Adam with a one-cycle learning rate. Its schedule counts updates of the weights, of which Free-4 makes
# four on each batch. So Free-4 gets two rows: with as many updates as the others, which is a quarter of the epochs, and
# with as many epochs, which is four times the updates.


# %%
def one_cycle(total, warm=0.3):
    """Linearly up to the peak rate, then down along a cosine; a factor of the peak."""

    def factor(k):
        if k < warm * total:
            return (k + 1) / (warm * total + 1)
        return (1 + math.cos(math.pi * min(1.0, (k / total - warm) / (1 - warm)))) / 2

    return factor


def adam(updates):
    return mfoc.Gradient(partial(torch.optim.Adam, lr=1e-2), lr_schedule=one_cycle(updates))


budget = epochs * batches
methods = {  # the loss, the adversary, batches, updates of the weights per batch
    "clean": (F.cross_entropy, None, budget, 1),
    "PGD-10": (F.cross_entropy, adv.PGD(10), budget, 1),
    "YOPO-5-3": (F.cross_entropy, adv.YOPO(5, 3), budget, 1),
    "Free-4, same updates": (F.cross_entropy, adv.Free(4), -(-budget // 4), 4),
    "Free-4, same epochs": (F.cross_entropy, adv.Free(4), budget, 4),
    "TRADES, YOPO-5-3": (adv.TRADES(6.0), adv.YOPO(5, 3), budget, 1),
}
attacks = {
    "PGD-20": adv.PGD(20),
    "APGD-CE": lambda net: torchattacks.APGD(net, eps=eps, steps=20, seed=0),  # has its own, adaptive step size
}
judge = partial(adv.evaluate, data=test, progress=False)

formulations, solutions, networks, tables = {}, {}, {}, {}
print(f"{'':22s}{'updates':>8s}" + "".join(f"{name + ' accuracy [%]':>24s}" for name in ("clean", *attacks)), end="")
print(f"{'training [s]':>14s}")
for name, (loss, adversary, steps, each) in methods.items():
    made, minimiser = digits_game(loss), adam(steps * each)
    solver = partial(
        made.solve,
        minimiser if adversary is None else mfoc.Minimax(adversary, minimiser),
        nominal=adversary is None,  # on purpose: the game without its adversary
    )
    solver(steps=1)  # what PyTorch loads on first use is not to be timed
    began = time.process_time()
    solution = solver(steps=steps)
    seconds = time.process_time() - began
    formulations[name], solutions[name], networks[name] = made, solution, made.readout(solution)
    tables[name] = judge(networks[name], epsilon=eps, attacks=attacks)
    row = "".join(f"{f'{100 * r.value:.1f} [{100 * r.low:.1f}, {100 * r.high:.1f}]':>24s}" for r in tables[name].rows)
    print(f"{name:22s}{steps * each:8d}{row}{seconds:14.1f}")

apart = [
    f"{one} / {other}"
    for one, other in combinations([name for name in methods if name != "clean"], 2)
    if tables[one]["PGD-20"].high < tables[other]["PGD-20"].low
    or tables[other]["PGD-20"].high < tables[one]["PGD-20"].low
]
print(f"trained against an adversary, with disjoint intervals under PGD-20: {'; '.join(apart) or 'no pair'}")

# %% [markdown]
# In brackets: 95 % Wilson intervals, which account for the finite test set and not for the random start of training.
# Seconds are processor time: the wall's, on one thread of an idle machine.
#
# - All trained against an adversary are far more robust than the network trained on clean digits. At this eps, they do
#   not pay for it in clean accuracy.
# - Among themselves they are close. A few hundred test digits do not tell most of them apart, as the last line says. So
#   the table is no ranking, and the size of this problem is no evidence for a larger one.
# - What differs plainly is the time. PGD-10 makes eleven full passes for one update, YOPO-5-3 five, Free-4 one. TRADES
#   sends pairs through the network, which costs about twice the YOPO it is solved with.
# - APGD-CE finds little that PGD-20 does not. A large difference would have been a warning that gradients are masked.
#
# ## Accuracy against the radius
#
# The networks were trained for one radius (or none). How do they do at others?

# %%
radii = [0.05, 0.1, 0.2] if SMOKE else [0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3]
shown = {"clean": plot.COLORS[1], "PGD-10": plot.COLORS[0], "YOPO-5-3": plot.COLORS[2]}
figure = Figure(figsize=(7, 4.2), layout="constrained", dpi=120)
axis = figure.subplots()
for (name, color), style in zip(shown.items(), ("-o", "-s", "--^"), strict=True):
    rows = [tables[name]["clean"]]
    rows += [judge(networks[name], epsilon=r, attacks={"PGD-20": adv.PGD(20)})["PGD-20"] for r in radii]
    label = "trained on clean digits" if name == "clean" else f"trained against {name}"
    axis.plot([0, *radii], [100 * r.value for r in rows], style, color=color, markersize=4, linewidth=1.8, label=label)
    axis.fill_between(
        [0, *radii], [100 * r.low for r in rows], [100 * r.high for r in rows], color=color, alpha=0.15, linewidth=0
    )
axis.axvline(eps, color="#666666", linestyle=":", linewidth=1)
axis.annotate("radius of training", (eps + 0.003, 99), va="top", fontsize=9, color="#666666")
axis.set(xlabel="radius $\\epsilon$ of the attack (pixels range from 0 to 1)", ylabel="test accuracy under PGD-20 [%]")
axis.set(ylim=(0, 102), xlim=(0, None), title="Shaded: 95 % Wilson intervals")
axis.title.set_fontsize(10)
tidy(axis)
axis.legend(frameon=False)
figure.savefig(FIGURES / "04_radius.png")
figure

# %% [markdown]
# Robustness does not end at the radius of training, but it fades out soon after.
#
# ## What the adversary does
#
# The first test digit of each class, not chosen for effect. Each network faces its own adversary (PGD-20): the
# disturbance is aimed at its weights.

# %%
first = [int((y_test == label).nonzero()[0]) for label in range(10)]
shown_digits = mfoc.Particles(x_test[first], y_test[first])
figure = Figure(figsize=(10.5, 6), layout="constrained", dpi=120)
axes = figure.subplots(5, 10)
gray = {"cmap": "gray", "vmin": 0, "vmax": 1}


def draw(row, pictures, label, predicted=None, **colors):
    axes[row, 0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
    for k, (axis, picture) in enumerate(zip(axes[row], pictures[:, 0], strict=True)):
        drawn = axis.imshow(picture, **colors)
        axis.set(xticks=[], yticks=[])
        if predicted is not None:
            right = int(predicted[k]) == int(shown_digits.data[k])
            axis.set_title(
                f"{int(predicted[k])}" if right else f"{int(predicted[k])} ✗",
                fontsize=11,
                fontweight="normal" if right else "bold",
                color=plot.COLORS[0] if right else plot.COLORS[1],
            )
    return drawn


draw(0, shown_digits.state, "original", shown_digits.data, **gray)
for name, row in (("clean", 1), ("YOPO-5-3", 3)):
    made, controls = formulations[name].problem, solutions[name].controls
    eta = adv.PGD(20).maximise(made, controls, shown_digits, torch.Generator().manual_seed(0))
    disturbed = made.ball.enter(shown_digits.state, eta)
    with torch.no_grad():
        predicted = networks[name](disturbed).argmax(1)
    title = "trained on\nclean digits" if name == "clean" else f"trained against\n{name}"
    span = {"cmap": "RdBu_r", "vmin": -eps, "vmax": eps}
    scale = draw(row, disturbed - shown_digits.state, f"{title}:\ndisturbance", **span)
    draw(row + 1, disturbed, "disturbed\nimage", predicted, **gray)
    print(f"{name}: {int((predicted != shown_digits.data).sum())} of these 10 digits are misread")
bar = figure.colorbar(scale, ax=axes, shrink=0.5, aspect=30, label="disturbance (change of a pixel)")
bar.set_ticks([-eps, 0, eps])
figure.suptitle("Above an image: its class (first row) or what the network reads; ✗ marks an error", fontsize=11)
figure.savefig(FIGURES / "04_digits.png")
figure

# %% [markdown]
# ## Robustness against time
#
# `mfoc.iterate` is the loop of `solve`, open: stop the clock, judge the network, go on. Three runs of each method, with
# initial weights, batches and random starts of their own.


# %%
def race(adversary, seed):
    """Seconds of training and accuracy under PGD-20, every few epochs."""
    made = digits_game(F.cross_entropy, seed)
    solver = mfoc.Minimax(adversary, adam(budget), seed=seed)
    seconds, accuracy, began = [0.0], [], time.process_time()
    for at in islice(mfoc.iterate(made.problem, solver, made.population), budget):
        if at.step % (batches if SMOKE else 3 * batches) == 0:
            seconds.append(seconds[-1] + time.process_time() - began)
            robust = judge(made.readout(at), epsilon=eps, attacks={"PGD-20": adv.PGD(20)})["PGD-20"]
            accuracy.append(100 * robust.value)
            began = time.process_time()
    return seconds[1:], accuracy


figure = Figure(figsize=(7, 4.2), layout="constrained", dpi=120)
axis = figure.subplots()
marks, ends = {"PGD-10": "s", "YOPO-5-3": "^"}, {"PGD-10": [], "YOPO-5-3": []}
for seed in range(1, 2 if SMOKE else 4):
    for name, mark in marks.items():
        seconds, accuracy = race(methods[name][1], seed)
        style = {"color": shown[name], "marker": mark, "markersize": 4, "linewidth": 1.2, "alpha": 0.8}
        axis.plot(seconds, accuracy, label=name if seed == 1 else None, **style)
        ends[name].append(f"{accuracy[-1]:.1f} % in {seconds[-1]:.1f} s")
for name, runs in ends.items():
    print(f"{name:8s} after {epochs} epochs: {', '.join(runs)}")
axis.set(xlabel="processor time of training [s], one thread", ylabel="test accuracy under PGD-20 [%]", xlim=(0, None))
axis.set_title("Three runs each, a mark every three epochs", fontsize=10)
tidy(axis)
axis.legend(frameon=False, loc="lower right")
figure.savefig(FIGURES / "04_time.png")
figure

# %% [markdown]
# YOPO gets through its epochs faster (not 11 : 5, since it also needs the gradient of the first layer at each new eta).
# For the same epochs PGD ends a little higher; the difference is smaller than a Wilson interval, so one run could not
# show it. All runs follow one schedule over the same epochs: the middle of a curve is a network under a large learning
# rate, not the best to be had in that time. The clock is that of the processor.
#
# ## How near to a saddle point?
#
# `adv.certify` asks both players. The adversary: how much could the cost still rise to first order within the ball
# (**first-order gap**), and how much more does a stronger adversary, PGD-100 from two random starts, get out of the
# same weights (**duality gap**, a lower bound of the adversary's share of the true one)? The minimiser: its
# stationarity residual, the adversary's answer frozen. On a few hundred training digits, with 95 % intervals:

# %%
sample = (x_train[:50], y_train[:50]) if SMOKE else (x_train[:300], y_train[:300])
effort = {"best_response": adv.PGD(10), "restarts": 1, "groups": 4} if SMOKE else {}
candidates = {
    "initial weights": mfoc.Iterate(0, game.controls, None),
    "trained clean": solutions["clean"],
    "trained with YOPO-5-3": solutions["YOPO-5-3"],
}
for name, candidate in candidates.items():
    certificate = adv.certify(formulation, candidate, maximiser=adv.PGD(10), population=sample, lanczos=2, **effort)
    print(f"{name}: cost {certificate.clean:.3g} clean, {certificate.present:.3g} PGD-10, {certificate.best:.3g} best")
    print(f"    adversary: first-order gap {certificate.adversary}, duality gap {certificate.gap}")
    print(f"    minimiser: residual {', '.join(str(stage.residual).strip() for stage in certificate.minimiser.stages)}")

# %% [markdown]
# Read with care:
#
# - The gaps alone are no distance to a solution of the game. At the initial weights they are small, because no
#   disturbance matters much to a network that knows nothing. Compare them with the costs.
# - For the network trained with YOPO the gaps are small next to the cost that training has taken away: PGD-10 is nearly
#   a best response to it, as far as gradient ascent can tell.
# - The three residuals belong to the three layers with weights. With the adversary frozen, the network trained on clean
#   digits is much farther from stationary than the one trained with YOPO. The latter is not at zero either: Adam
#   was stopped after a fixed number of mini-batches, it played against YOPO's answers, not those of PGD-10, and this
#   is a subsample.
# - The full certificate, `print(certificate)`, shows an infinite Hamiltonian gap and curvature zero in every row. That
#   is right for this network: each of its layers with weights is linear in them and has no running cost, so <p, f_t>
#   is linear in u and has no minimum. Weight decay would make the gap finite.
#
# ## torchattacks, both ways
#
# A maximiser can be used wherever an attack of torchattacks can, for example in its `MultiAttack`, which hands the
# images that withstand one attack to the next. All its attacks need the same network.

# %%
robust = networks["YOPO-5-3"]
ours = adv.as_attack(formulations["YOPO-5-3"], adv.PGD(20), net=robust)
theirs = torchattacks.APGD(robust, eps=eps, steps=20, seed=0)
images, labels = test
for name, attack in (
    ("ours, PGD-20", ours),
    ("theirs, APGD-CE", theirs),
    ("both", torchattacks.MultiAttack([ours, theirs])),
):
    torch.manual_seed(0)
    with torch.no_grad():
        withstood = robust(attack(images, labels)).argmax(1) == labels
    print(f"{name:16s} accuracy {float(withstood.float().mean()):.1%}")

# %% [markdown]
# And an attack of torchattacks can be the adversary of a game. Here its PGD with five steps, for ten epochs:

# %%
foreign = adv.FromTorchattacks(lambda net: torchattacks.PGD(net, eps=eps, alpha=eps / 2, steps=5))
made, steps = digits_game(F.cross_entropy), batches * (1 if SMOKE else 10)
solution = made.solve(mfoc.Minimax(foreign, adam(steps)), steps=steps)
print(judge(made.readout(solution), epsilon=eps, attacks={"PGD-20": adv.PGD(20)}))

# %% [markdown]
# ## Two notes on practice
#
# **Large balls.** With a large eps a network may never leave the constant output: the adversary undoes whatever it has
# learnt, and its loss stays at log(number of classes). MNIST at eps = 0.3 is such a case. Let the ball grow over the
# first K steps:
#
#     mfoc.Minimax(adv.YOPO(5, 3), outer, ramp=lambda k: min(1.0, k / K))
#
# `ramp` counts batches, where the learning rate's `schedule` counts updates; they differ for `Free` only.
#
# **The scale of YOPO's gradient.** The gradients of the m passes are summed, as in the paper. Adam does not see the
# factor m. Plain SGD does: divide the learning rate that suits PGD by m.
#
# ## A game of your own
#
# `Game.of` puts an adversary into any control problem, at any stage. A swarm flies from the left to a target on the
# right, around a disc (x is a position in the plane; all share a push, and a pull towards the mean of the swarm):
#
#     dx/dt = push + gather (m - x),   m = mfoc.mean(x)
#
# Half way, just by the disc, a gust may displace every member by up to 0.4 in any direction. Two lines make and solve
# the game. The control is shared by the whole swarm and fixed in advance: it may reckon with a gust, but not see it.
# The game starts from the nominal control.

# %%
stages, end, radius, target = 20, 2.0, 0.5, torch.tensor([2.0, 0.0])
swarm = mfoc.continuous(
    lambda t, x, u, z: u["push"] + u["gather"] * (mfoc.mean(x) - x),
    lambda x, z: 10 * (x - target).square().sum(1),
    [{"push": torch.zeros(2), "gather": torch.zeros(())} for _ in range(stages)],
    running_cost=lambda t, x, u, z: (
        20 * F.softplus((radius - x.norm(dim=1)) / 0.05)  # steep inside the disc, nearly zero outside
        + u["push"].square().sum() / 2
        + u["gather"] ** 2 / 2
    ),
    T=end,
)
agents = torch.tensor([-2.0, 0.3]) + 0.15 * torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
first_order, steps, middle = partial(torch.optim.Adam, lr=0.05), 5 if SMOKE else 200, stages // 2

nominal = mfoc.solve(swarm, mfoc.Gradient(first_order), agents, steps=steps)
gusty = mfoc.Game.of(replace(swarm, controls=nominal.controls), mfoc.Ball(0.4, "l2"), stage=middle)
robust = mfoc.solve(gusty, mfoc.Minimax(mfoc.maximisers.PGD(5), first_order), agents, steps=steps)

# %% [markdown]
# Both controls are judged without a gust and by the worst gust that a longer ascent finds against each.

# %%
particles, longer = mfoc.Particles(agents), mfoc.maximisers.PGD(5 if SMOKE else 50)
figure = Figure(figsize=(13, 3.5), layout="constrained", dpi=120)
axes = figure.subplots(1, 3, width_ratios=[1, 1, 0.8])
plans = {"nominal control": (nominal, plot.COLORS[0]), "robust control": (robust, plot.COLORS[2])}
for axis, (name, (solution, color)) in zip(axes, plans.items(), strict=False):
    gust = longer.maximise(gusty, solution.controls, particles, torch.Generator().manual_seed(0))
    calm = mfoc.rollout(gusty, solution.controls, particles)
    blown = mfoc.rollout(gusty, solution.controls, gusty.disturb(particles, gust))
    landed = blown.states[middle] + gust
    before, after = torch.stack(blown.states[: middle + 1]), torch.stack([landed, *blown.states[middle + 1 :]])
    inside = (torch.cat([before, after]).norm(dim=2) < radius).any(0)
    print(
        f"{name}: J {float(calm.cost.mean()):.2f} in calm air, {float(blown.cost.mean()):.2f} with the worst gust "
        f"found, which blows {int(inside.sum())} of {len(agents)} into the disc"
    )
    axis.add_patch(Circle((0, 0), radius, facecolor="#dddddd", edgecolor="#999999", label="disc to avoid"))
    axis.plot(before[:, :, 0], before[:, :, 1], color=color, linewidth=0.5, alpha=0.4)
    axis.plot(after[:, :, 0], after[:, :, 1], color=color, linewidth=0.5, alpha=0.4)
    axis.plot([], [], color=color, linewidth=1, label="paths")
    gusts = torch.stack([before[-1], landed])
    axis.plot(gusts[:, :, 0], gusts[:, :, 1], color=plot.COLORS[1], linewidth=0.6, alpha=0.7)
    axis.plot([], [], color=plot.COLORS[1], linewidth=1, label="gust")
    axis.plot(*target.tolist(), "*", color="black", markersize=12, label="target")
    axis.set(xlim=(-2.6, 2.9), ylim=(-0.9, 2.1), xlabel="first coordinate", ylabel="second coordinate")
    axis.set_title(f"{name}, worst gust: {int(inside.sum())} of {len(agents)} hit the disc", fontsize=11)
    axis.set_aspect("equal")
    times = torch.arange(stages) * end / stages
    axes[2].step(times, [float(u["gather"]) for u in solution.controls], where="post", color=color, label=name)
    axis.spines[["top", "right"]].set_visible(False)
axes[0].legend(frameon=False, loc="upper right", fontsize=9, ncols=2)
axes[2].axvline(middle * end / stages, color=plot.COLORS[1], linestyle=":", linewidth=1.2, label="time of the gust")
axes[2].set(xlabel="time t", ylabel="gather", ylim=(0, None))
axes[2].set_box_aspect(0.72)
axes[2].set_title("How strongly the swarm is drawn together", fontsize=11)
tidy(axes[2])
axes[2].legend(frameon=False, loc="upper left", fontsize=9)
figure.savefig(FIGURES / "04_swarm.png")
figure

# %% [markdown]
# The nominal control passes close to the disc and leaves no room for a gust. The robust one keeps more distance, and
# pulls the swarm together after the gust, so that those who were displaced still arrive. It costs more in calm air and
# less in the worst gust. This is no guarantee: PGD finds local maxima, so the worst cost printed is a lower bound of
# the true one.
