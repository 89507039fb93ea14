# %% [markdown]
# # Which solver when
#
# A problem says what is minimised, and over which **class of control**: one control shared by the cloud (open loop),
# one for each particle, or a feedback u(t, x). Their minima differ, so solvers are compared within a class, and the
# first question is which class one needs:
#
# | what you have                                             | solver                                              |
# |-----------------------------------------------------------|-----------------------------------------------------|
# | one control for a cloud, smooth, some hundred numbers     | `Gradient` with L-BFGS                              |
# | the same for a large or stiff cloud, or under a `Box`     | `NewtonCG`                                          |
# | a path for each particle, few states, under a `Box` too   | `DDP`, all particles in one batch                   |
# | a feedback: gains, a network                              | `feedback`, then `NewtonCG` or `Gradient`           |
# | the best feedback of 1 to 3 states, with noise            | `hjb.solve` on a grid; `hjb.fit` in more dimensions |
# | H that can be minimised, bounds of any kind, descent      | `EMSA`                                              |
# | the weights of a network                                  | `Gradient` with SGD or Adam, on minibatches         |
# | weights of one or two bits                                | `DiscreteMSA`                                       |
# | constraints at the end or along the path                  | `AugmentedLagrangian` around any of them            |
# | players who each mind their own cost                      | the same on `Equilibrium(problem)`                  |
#
# This page tries these on small problems; `tests/benchmarks/bench_agreement.py` prints the table at full size, beside
# ipopt.

# %%
import math
import os
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

import mfoc
from mfoc.figures import COLORS, new_axes

SMOKE = bool(os.environ.get("MFOC_SMOKE"))  # tiny budgets, to see that everything runs
FIGURES = Path(os.environ.get("MFOC_FIGURES", "figures"))
FIGURES.mkdir(parents=True, exist_ok=True)
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
LBFGS = mfoc.Gradient(partial(torch.optim.LBFGS, max_iter=20, line_search_fn="strong_wolfe", tolerance_change=0))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# %% [markdown]
# ## 1. One control for the cloud
#
# A cart, pushed by one force for all starts. The answer is Riccati's. With a dear control everything works; with one
# ten times cheaper MSA, which minimises H with states and costates frozen, is thrown out, while EMSA goes down.

# %%
A, B = torch.tensor([[1.0, 0.1], [0.0, 1.0]]), torch.tensor([[0.0], [0.1]])
stages = 20
starts = torch.tensor([1.0, 0.0]) + 0.3 * torch.randn(60, 2, generator=generator())


def cart(weight):
    return mfoc.Problem(
        lambda t, x, u, z: x @ A.mT + u @ B.mT,
        lambda x, z: x.square().sum(1),
        [torch.zeros(1) for _ in range(stages)],
        running_cost=lambda t, x, u, z: 0.1 * x.square().sum(1) + weight * u.square().sum(),
        kind=lambda t: "step",
    )


solvers = {"L-BFGS": LBFGS, "NewtonCG": mfoc.NewtonCG(), "DDP": mfoc.DDP(), "EMSA": mfoc.EMSA(), "MSA": mfoc.MSA()}
print(f"{'cost of u':>10s} {'solver':10s} {'J - J*':>9s} {'residual':>9s} {'steps':>6s} {'CPU s':>6s}  ended")
for weight in (1.0, 0.1):
    lq = mfoc.lq.LinearQuadratic.discrete(A, B, 0.1 * torch.eye(2), weight * torch.eye(1), torch.eye(2), horizon=stages)
    best = float(lq.value(starts.mean(0), torch.cov(starts.mT, correction=0), shared=True))
    sides = solvers if weight == 1.0 else {name: solvers[name] for name in ("NewtonCG", "EMSA", "MSA")}
    for name, solver in sides.items():
        begin = time.thread_time()
        solution = mfoc.solve(cart(weight), solver, starts, steps=40, tol=1e-7)
        spent = time.thread_time() - begin
        worst = max([record["value"] for record in solution.history], default=solution.value)
        ended = solution.status.value + (f", J rose to {worst:.0e}" if worst > 100 else "")
        print(
            f"{weight:10g} {name:10s} {solution.value - best:9.1e} {solution.residual:9.1e} {solution.last.step:6d} "
            f"{spent:6.2f}  {ended}"
        )

# %% [markdown]
# ## 2. Classes of control
#
# Particles in the left well of (x^2 - 1)^2 / 4, shaken by noise, are wanted in the right one. Once more a force of time
# alone; then feedbacks: gains at each stage, one small network of time and state, and the best there is, from a value
# function on a grid (`hjb`). A control for each particle costs least of all and cannot be had: the noise is part of
# a particle's data, so that it is chosen knowing the noise to come. All are judged on particles not seen before, but
# the last, which has to be solved for them.

# %%
number, moves, end, sigma = (20, 20, 4.0, 0.4) if SMOKE else (200, 40, 4.0, 0.4)
fresh_number = 50 if SMOKE else 1000


def in_the_left_well(number, seed):
    x = -1 + 0.1 * torch.randn(number, 1, generator=generator(seed))
    return mfoc.Particles(x, {"noise": mfoc.schemes.brownian(number, moves, 1, seed=seed + 1, like=x)})


well = mfoc.continuous(
    lambda t, x, u, z: x - x**3 + u,
    lambda x, z: 5 * (x[:, 0] - 1) ** 2,
    [torch.zeros(1) for _ in range(moves)],
    running_cost=lambda t, x, u, z: (u**2 / 2).sum(-1).expand(len(x)),  # for u [1], and for a row a particle
    T=end,
    diffusion=sigma,
)
train, fresh = in_the_left_well(number, 10), in_the_left_well(fresh_number, 20)


class Timed(nn.Module):
    """A network of time and state."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, t, x):
        return self.net(torch.cat([x, torch.full_like(x, t)], 1))


gains = mfoc.linear_policy(lambda x: torch.cat([x, torch.ones_like(x)], 1), torch.zeros(1, 2))
steps = 4 if SMOKE else 40
shared = mfoc.solve(well, mfoc.NewtonCG(), train, steps=steps, tol=1e-6)
linear = mfoc.feedback(well, gains, per_stage=True)
by_gains = mfoc.solve(linear, mfoc.NewtonCG(), train, steps=steps, tol=1e-4)
deep = mfoc.feedback(well, Timed())
by_network = mfoc.solve(deep, LBFGS, train, steps=2 if SMOKE else 8, tol=1e-4)
value = mfoc.hjb.solve(well, [torch.linspace(-3, 3, 41 if SMOKE else 121)])


def following(value, particles):
    """The controls that the policy of a value function chooses, a row for each particle."""
    x, controls = particles.state, []
    for t in range(moves):
        controls.append(value.policy(t, x))
        x = well.dynamics(t, x, controls[-1], particles.data)
    return controls


own = replace(well, controls=following(value, fresh), per_particle=True)
clairvoyant = mfoc.solve(own, mfoc.NewtonCG(), fresh, steps=steps, tol=1e-4)  # begun at what the feedback did

rolled = {
    "one force for all": mfoc.rollout(well, shared, fresh),
    "gains": mfoc.rollout(linear, by_gains, fresh),
    "network": mfoc.rollout(deep, by_network, fresh),
    "value function": mfoc.rollout(own, own, fresh),
    "knowing the noise": mfoc.rollout(own, clairvoyant, fresh),
}
costs = {name: float(each.cost.mean()) for name, each in rolled.items()}
for name, cost in costs.items():
    print(f"{name:18s} J = {cost:.4f} on fresh particles")
print(f"V(0, x0), the expectation of the fourth: {float(value(0, fresh.state).mean()):.4f}")

# %%
figure, axes = new_axes(12, 3.8, 3, grid="y")
when = torch.linspace(0, end, moves + 1)
shown = {"One force for all": "one force for all", "The best feedback": "value function"}
for axis, (title, name) in zip(axes, shown.items(), strict=False):
    paths = torch.stack(rolled[name].states)[:, :, 0]
    axis.plot(when, paths[:, :60], color=COLORS[0], linewidth=0.5, alpha=0.5)
    axis.plot([], [], color=COLORS[0], linewidth=1, label="60 particles")
    axis.plot(when, paths.mean(1), color=COLORS[1], linewidth=2.2, label="mean of all")
    axis.axhline(1, color="#666666", linestyle=":", linewidth=1.2, label="where they are wanted")
    axis.set(ylim=(-2, 2.2), yticks=[-1, 0, 1], xlabel="time t", ylabel="position x", title=title)
axes[0].legend(frameon=False, loc="upper left", fontsize=8)
bars = axes[2].barh(list(costs), list(costs.values()), color=[COLORS[0], *[COLORS[2]] * 3, "#999999"])
axes[2].bar_label(bars, fmt="%.2f", padding=3, fontsize=9)
axes[2].invert_yaxis()
axes[2].grid(False)
axes[2].set(xlim=(0, 1.18 * max(costs.values())), xlabel="mean cost J, fresh particles", title="Classes of control")
figure.savefig(FIGURES / "11_classes_of_control.png")
figure

# %% [markdown]
# ## 3. A path for each particle, under bounds
#
# Pendulums hang, and are to stand upright at rest after 3 seconds, as nearly as they can. A torque of at most 4 cannot
# lift them against gravity (9.81): they have to swing, one way or the other, and each way is a local minimum. `bounds=`
# says so, and every solver that takes them keeps to them; DDP solves all the starts in one batch, each at its own pace.

# %%
swings, limit, seconds = (24 if SMOKE else 60), 4.0, 3.0


def pendulums(count):
    start = torch.tensor([math.pi, 0.0]) + 0.15 * torch.randn(count, 2, generator=generator(3))
    problem = mfoc.continuous(
        lambda t, x, u, z: torch.stack([x[:, 1], 9.81 * x[:, 0].sin() - 0.1 * x[:, 1] + u[:, 0]], 1),
        lambda x, z: 20 * (1 - x[:, 0].cos()) + 2 * x[:, 1] ** 2,
        [torch.full((count, 1), 0.1) for _ in range(swings)],
        running_cost=lambda t, x, u, z: 0.5 * (1 - x[:, 0].cos()) + 0.05 * x[:, 1] ** 2 + 0.02 * u[:, 0] ** 2,
        T=seconds,
        scheme=mfoc.heun,
        autonomous=True,
        per_particle=True,
        bounds=mfoc.Box(-limit, limit),
    )
    return problem, start


problem, start = pendulums(4 if SMOKE else 12)
swung = mfoc.solve(problem, mfoc.DDP(), start, steps=6 if SMOKE else 80, tol=1e-7)
paths = torch.stack(mfoc.rollout(problem, swung, start).states)
torque = torch.stack(swung.controls)[:, :, 0]
print(f"DDP, {len(start)} pendulums: {swung.message}; largest torque {float(torque.abs().max()):.3f}")

alone, one = pendulums(1)
curves = {}
mfoc.solve(alone, mfoc.NewtonCG(), one, steps=1)  # what is imported at the first second derivative takes seconds
budget = {"DDP": (mfoc.DDP(), 60), "NewtonCG": (mfoc.NewtonCG(), 60), "EMSA": (mfoc.EMSA(), 40)}
for name, (solver, most) in budget.items():
    begin, curve = time.thread_time(), []
    for at in mfoc.iterate(alone, solver, one):
        curve.append((time.thread_time() - begin, at.info.residual))
        if at.info.residual < 1e-8 or len(curve) >= (3 if SMOKE else most):
            break
    curves[name] = curve
    print(f"one pendulum, {name:9s}: residual {curve[-1][1]:.1e} after {len(curve)} steps, {curve[-1][0]:.1f} s CPU")

# %%
figure, axes = new_axes(12, 3.8, 3)
when = torch.linspace(0, seconds, swings + 1)
angles, turned = paths[:, :, 0] / math.pi * 180, paths[-1, :, 0] > math.pi
for over, name, color in ((False, "0°", COLORS[0]), (True, "360°", COLORS[1])):
    some = (turned == over).nonzero()[:, 0]
    if len(some):
        axes[0].plot(when, angles[:, some], color=color, linewidth=0.9)
        axes[1].step(when[:-1], torque[:, some[0]], where="post", color=color, label=f"one that ends at {name}")
axes[0].set(xlabel="time t (s)", ylabel="angle (degrees)", title=f"{len(start)} pendulums swing up", ylim=(-60, 420))
for turn in (0, 360):
    axes[0].axhline(turn, color="#666666", linestyle=":", linewidth=1.2)
    axes[0].annotate("upright", (0, turn), va="top" if turn else "bottom", fontsize=8, color="#666666")
axes[0].annotate("hanging", (seconds, 180), va="bottom", ha="right", fontsize=8, color="#666666")
axes[0].set_yticks([0, 90, 180, 270, 360])
for bound in (-limit, limit):
    axes[1].axhline(bound, color="#666666", linestyle=":", linewidth=1.2)
axes[1].annotate("bound", (seconds, limit), va="bottom", ha="right", fontsize=8, color="#666666")
axes[1].set(
    xlabel="time t (s)",
    ylabel="torque u",
    title="The torque, within its bounds",
    ylim=(-5, 7.5),
    yticks=[-4, -2, 0, 2, 4],
)
axes[1].legend(frameon=False, loc="upper center", fontsize=8)
for (name, curve), color in zip(curves.items(), COLORS, strict=False):
    axes[2].semilogy(*zip(*curve, strict=True), "o-", color=color, markersize=3, linewidth=1.2, label=name)
axes[2].set(xlabel="CPU time (s)", ylabel="residual $\\|\\partial J/\\partial u\\|$, projected", title="One pendulum")
axes[2].legend(frameon=False)
figure.savefig(FIGURES / "11_swing_up.png")
figure

# %% [markdown]
# ## 4. Constraints
#
# The cart's cloud has to have its mean at rest in the origin at the end: E x_T = 0, an equality in the mean that
# `AugmentedLagrangian` meets around any solver. For a linear problem that is exact.

# %%
ends = replace(cart(1.0), terminal=mfoc.Equality(lambda x, z: x, in_mean=True))
met = mfoc.solve(ends, mfoc.AugmentedLagrangian(mfoc.NewtonCG()), starts, steps=12, tol=1e-7)
arrived = mfoc.rollout(ends, met, starts).states[-1].mean(0)
free = mfoc.solve(cart(1.0), mfoc.NewtonCG(), starts, steps=5)
print(f"E x_T = ({float(arrived[0]):.1e}, {float(arrived[1]):.1e}); J = {met.value:.4f}, {free.value:.4f} without")

# %% [markdown]
# ## 5. Networks
#
# The weights of a network are thousands, the curvature that Newton's method follows is expensive, and a batch says
# nearly as much as all data: first-order methods win. After the same number of passes over the digits, or fewer:

# %%
images, targets = load_digits(return_X_y=True)
x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(targets)
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10)).float()
training = mfoc.from_module(net, nn.functional.cross_entropy, running_cost=mfoc.weight_decay(1e-4))
passes = 2 if SMOKE else 20
batches = mfoc.population((x, y), batch_size=128, seed=0)
momentum = mfoc.Gradient(partial(torch.optim.SGD, lr=0.3, momentum=0.9))
sides = {
    "SGD, momentum": (momentum, batches, 14 * passes),
    "L-BFGS": (mfoc.Gradient(partial(torch.optim.LBFGS, max_iter=passes, line_search_fn="strong_wolfe")), (x, y), 1),
    "NewtonCG": (mfoc.NewtonCG(), (x, y), max(1, 2 * passes // 5)),
    "EMSA": (mfoc.EMSA(), (x, y), max(1, passes // 2)),
}
for name, (solver, source, most) in sides.items():
    trained = mfoc.solve(training, solver, source, steps=most)
    print(f"{name:14s} J = {float(mfoc.evaluate(training, trained, (x, y)).value):.4f}")

# %% [markdown]
# Bounds are the same here. `L1` is a penalty that makes weights zero, `Box` keeps them small.

# %%
kinds = {"free": None, "sparse": {"weight": mfoc.L1(2e-3)}, "boxed": mfoc.Box(-0.2, 0.2)}
for name, bounds in kinds.items():
    bounded = mfoc.from_module(net, nn.functional.cross_entropy, bounds=bounds)
    trained = mfoc.to_module(net, mfoc.solve(bounded, momentum, batches, steps=14 * passes))
    weights = torch.cat([layer.weight.detach().flatten() for layer in (trained[0], trained[2])])
    correct = float((trained(x).argmax(1) == y).double().mean())
    print(
        f"{name:7s} {float((weights == 0).double().mean()):6.1%} of the weights are zero, the largest is "
        f"{float(weights.abs().max()):.2f}; {correct:.1%} of the digits right"
    )

# %% [markdown]
# ## 6. A game beside control
#
# `Equilibrium(problem)` is the mean-field game of the same problem: each player minds his own cost and takes the law
# for given, `mfoc.mean` and its kin. Where all drive towards where the mean will be, nobody pays for moving it, and
# selfishness costs something. The price of anarchy is J(equilibrium) / J(optimum); in the linear-quadratic case both
# are known.

# %%
numbers = {"A": 0.7, "B": 0.5, "Q": 0.1, "R": 1.0, "QT": 0.2, "Abar": 0.5, "Qbar": 1.0, "S": 0.2, "QbarT": 1.5}
numbers |= {"ST": -0.5}
crowd = mfoc.lq.LinearQuadratic.discrete(
    **{name: torch.tensor([[number]]) for name, number in numbers.items()}, horizon=4
)
people = 1 + torch.randn(200, 1, generator=generator(4))
sgd = mfoc.Gradient(partial(torch.optim.SGD, lr=0.1))
price = mfoc.price_of_anarchy(crowd.problem(), sgd, people, steps=30 if SMOKE else 300, tol=1e-12)
law = people.mean(0), torch.cov(people.mT, correction=0)[None, None]
closed = mfoc.lq.equilibrium(crowd, *law, shared=True).value / crowd.value(*law, shared=True)
print(f"price of anarchy {price.value:.10f}, in closed form {float(closed):.10f}")

# %% [markdown]
# Lending between banks (Carmona, Fouque & Sun 2015, "Mean field games and systemic risk") is a game whose price is 1: a
# bank lends in proportion to its distance from the mean, which such lending does not move.

# %%
a, q, eps, c = 1.0, 0.4, 1.5, 0.7
banks = mfoc.lq.LinearQuadratic.continuous(
    **{
        name: torch.tensor([[number]])
        for name, number in {
            "A": -a, "Abar": a, "B": 1.0, "R": 0.5, "cross": q / 2, "crossbar": -q / 2, "Q": 0.0, "Qbar": eps / 2,
            "QbarT": c / 2, "sigma": 0.3,
        }.items()
    },
    T=1.0,
    steps=10,
)  # fmt: skip
law = torch.tensor([0.3]), torch.tensor([[0.2]])
game, control = float(mfoc.lq.equilibrium(banks, *law).value), float(banks.value(*law))
print(f"banks: {game:.8f} in the game, {control:.8f} in control")
