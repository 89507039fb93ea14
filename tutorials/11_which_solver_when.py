# %% [markdown]
# # Which solver when
#
# After this page you can choose a solver for a problem of your own: you will have seen each do what it is best at, and
# fail where it fails. It supposes tutorial 01. It runs for about half a minute.
#
# ## The equation
#
# $$ \min_u \; \mathbb{E} \left[ \sum_t L_t(x_t, u_t) + \Phi(x_T) \right], \qquad x_{t+1} = f_t(x_t, u_t) $$
#
# leaves open what $u$ may depend on, its **class of control**: one for the whole cloud (open loop), one for each
# particle, or a feedback $u(t, x)$. Their minima differ, so choose the class first, and then:
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
# `tests/benchmarks/bench_agreement.py` prints the table at full size, beside ipopt.

# %%
import math
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

import mfoc
from mfoc import plot
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
# A cart is pushed by one force for all starts; the answer is Riccati's. With a dear control everything works. With one
# ten times cheaper MSA, which minimises H with states and costates frozen, is thrown out (`solve` says so before its
# line of the table, and keeps the best controls it saw), while E-MSA goes down.

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


solvers = {"L-BFGS": LBFGS, "NewtonCG": mfoc.NewtonCG(), "DDP": mfoc.DDP(), "E-MSA": mfoc.EMSA(), "MSA": mfoc.MSA()}
print(f"{'cost of u':>9s}  {'solver':8s} {'J - J*':>8s} {'steps':>6s}  ended")
for weight in (1.0, 0.1):
    lq = mfoc.lq.LinearQuadratic.discrete(A, B, 0.1 * torch.eye(2), weight * torch.eye(1), torch.eye(2), horizon=stages)
    best = float(lq.value(starts.mean(0), torch.cov(starts.mT, correction=0), shared=True))
    curves = {}
    for name, solver in solvers.items():
        solution = mfoc.solve(cart(weight), solver, starts, steps=40, tol=1e-7)
        print(f"{weight:9g}  {name:8s} {solution.value - best:8.1e} {solution.last.step:6d}  {solution.status.value}")
        above = [max(record["value"] - best, 1e-12) for record in solution.history]  # what rounding leaves
        curves[name] = range(1, len(above) + 1), above

figure = plot.curves(curves, x_label="step", y_label="$J - J^*$, over Riccati's", title="Cost of the control: 0.1")
axis = figure.axes[0]
axis.set(xscale="log", ylim=(1e-13, 1e6), xlim=(None, 12))
axis.set_xticks([1, 2, 5, 10], ["1", "2", "5", "10"])
axis.minorticks_off()
figure.savefig(FIGURES / "11_one_control.png")
figure

# %% [markdown]
# ## 2. Classes of control
#
# Particles in the left well of $(x^2 - 1)^2 / 4$, shaken by noise, are wanted in the right one. Three classes: a force
# of time alone; feedbacks, by gains at each stage, and the best there is, from a value function on a grid (`hjb`); and
# a control for each particle, which costs least and cannot be had, as it is chosen knowing the noise to come.

# %%
number, moves, end, sigma = (20, 10, 4.0, 0.4) if SMOKE else (200, 40, 4.0, 0.4)
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
gains = mfoc.linear_policy(lambda x: torch.cat([x, torch.ones_like(x)], 1), torch.zeros(1, 2))
steps = 4 if SMOKE else 40
shared = mfoc.solve(well, mfoc.NewtonCG(), train, steps=steps, tol=1e-6)
linear = mfoc.feedback(well, gains, per_stage=True)
by_gains = mfoc.solve(linear, mfoc.NewtonCG(), train, steps=steps, tol=1e-4)
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
    "value function": mfoc.rollout(own, own, fresh),
    "knowing the noise": mfoc.rollout(own, clairvoyant, fresh),
}
costs = {name: float(each.cost.mean()) for name, each in rolled.items()}
for name, cost in costs.items():
    print(f"{name:18s} J = {cost:.4f} on fresh particles")
print(f"V(0, x0), as the grid expects of the value function: {float(value(0, fresh.state).mean()):.4f}")

# %%
figure, axes = new_axes(9, 3.8, 2, grid="y")
when = torch.linspace(0, end, moves + 1)
for axis, name in zip(axes, ("one force for all", "value function"), strict=True):
    paths = torch.stack(rolled[name].states)[:, :, 0]
    axis.plot(when, paths[:, :60], color=COLORS[0], linewidth=0.5, alpha=0.5)
    axis.plot([], [], color=COLORS[0], linewidth=1, label="60 particles")
    axis.plot(when, paths.mean(1), color=COLORS[1], linewidth=2.2, label="mean of all")
    axis.axhline(1, color="#666666", linestyle=":", linewidth=1.2, label="where they are wanted")
    axis.set(ylim=(-2, 2.2), yticks=[-1, 0, 1], xlabel="time t", title=f"{name}: J = {costs[name]:.2f}")
axes[0].set_ylabel("position x")
axes[0].legend(frameon=False, loc="upper left", fontsize=8)
figure.savefig(FIGURES / "11_classes_of_control.png")
figure

# %% [markdown]
# ## 3. A path for each particle, under bounds
#
# Pendulums hang, and are to stand upright at rest after 3 seconds. A torque of at most 4 cannot lift them against
# gravity (9.81): they have to swing, one way or the other, and each way is a local minimum. `bounds=` says so, and
# every solver that takes them keeps to them; DDP solves all the starts in one batch, each at its own pace.

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

# %%
figure, (axis,) = new_axes(6, 3.8)
angles, turned = paths[:, :, 0] / math.pi * 180, paths[-1, :, 0] > math.pi
for over, color, dashes in ((False, COLORS[0], "-"), (True, COLORS[1], "--")):
    when = torch.linspace(0, seconds, swings + 1)
    axis.plot(when, angles[:, turned == over], color=color, linestyle=dashes, linewidth=1)
axis.set(xlabel="time t [s]", ylabel="angle [degrees]", title=f"{len(start)} pendulums swing up", ylim=(-60, 420))
axis.set_yticks([0, 90, 180, 270, 360], ["0, upright", "90", "180, hanging", "270", "360, upright"])
figure.savefig(FIGURES / "11_swing_up.png")
figure

# %% [markdown]
# ## 4. Constraints
#
# The cart's cloud has to have its mean at rest in the origin at the end: $\mathbb{E} x_T = 0$, which
# `AugmentedLagrangian` meets around any solver.

# %%
ends = replace(cart(1.0), terminal=mfoc.Equality(lambda x, z: x, in_mean=True))
met = mfoc.solve(ends, mfoc.AugmentedLagrangian(mfoc.NewtonCG()), starts, steps=12, tol=1e-7)
arrived = mfoc.rollout(ends, met, starts).states[-1].mean(0)
free = mfoc.solve(cart(1.0), mfoc.NewtonCG(), starts, steps=5)
print(f"E x_T = ({float(arrived[0]):.1e}, {float(arrived[1]):.1e}); J = {met.value:.4f}, {free.value:.4f} without")

# %% [markdown]
# ## 5. Networks
#
# The weights of a network are thousands, curvature is expensive, and a batch says nearly as much as all data:
# momentum on minibatches is hard to beat.

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
    "E-MSA": (mfoc.EMSA(), (x, y), max(1, passes // 2)),
}
for name, (solver, source, most) in sides.items():
    trained = mfoc.solve(training, solver, source, steps=most)
    print(f"{name:14s} {most:4d} steps, J = {float(mfoc.evaluate(training, trained, (x, y)).value):.4f}")

# %% [markdown]
# ## 6. A game beside control
#
# `Equilibrium(problem)` is the mean-field game of the same problem: each player minds his own cost and takes the law,
# `mfoc.mean` and its kin, for given. The price of anarchy is J(equilibrium) / J(optimum); in the linear-quadratic case
# both are known.

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
# ## What to change
#
# 1. Let the control of the cart cost 0.5 and 0.3. MSA is thrown out at 0.5, too, only later: the error names step 31
#    there, 14 at 0.3, and 9 at 0.1. E-MSA converges in 5 steps at both.
# 2. Lower the noise in the well, `sigma` 0.05. One force now costs 0.7599, gains 0.6415, the value function 0.6410 and
#    knowing the noise 0.6335: what feedback is worth is what noise there is. (The rest is the spread of the starts.)
# 3. Give the pendulums a `limit` of 12. They go straight up, one way or the other; the largest torque is 11.191, so
#    the bounds do nothing, and DDP takes 33 steps, not 10.
