# %% [markdown]
# # Define your own problem
#
# After this lesson you can write a control problem of your own, check it, and solve it: dynamics, costs, noise, and
# particles that see each other. It is for anyone who can read a PyTorch function; no network appears yet. It runs for
# about half a minute.
#
# ## The equation
#
# A problem is a population of particles, a control that all of them share, and a cost:
#
# $$ \min_u \; J(u) = E \Big[ \sum_{t=0}^{T-1} L_t(x_t, u_t, z) + \Phi(x_T, z) \Big] $$
#
# $$ x_{t+1} = f_t(x_t, u_t, z) $$
#
# The expectation is over the initial state $x_0$ and the data $z$ of a particle. You write $f$, $L$ and $\Phi$ as
# functions of the **whole cloud**: `x` has a leading axis N, and costs return one number per particle, `[N]`. The
# library takes the mean.

# %%
import os
from functools import partial
from pathlib import Path

import torch

import mfoc
from mfoc import lq, testing
from mfoc.figures import COLORS, INK, look, new_axes

SMOKE = bool(os.environ.get("MFOC_SMOKE"))  # tiny budgets, to see that everything runs
FIGURES = Path(os.environ.get("MFOC_FIGURES", "figures"))
FIGURES.mkdir(parents=True, exist_ok=True)
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)

# %% [markdown]
# ## A cart, and its exact answer
#
# A cart with position and velocity, $x = (q, v)$, is pushed by a force $u_t$. The force may depend on time only: it is
# the same for every cart of the cloud. Two functions and an initial guess are the whole problem.

# %%
stages, price = 20, 1.0
A, B = torch.tensor([[1.0, 0.1], [0.0, 1.0]]), torch.tensor([[0.0], [0.1]])
Q, R, QT = 0.1 * torch.eye(2), price * torch.eye(1), torch.eye(2)

cart = mfoc.Problem(
    lambda t, x, u, z: x @ A.mT + u @ B.mT,  # dynamics
    lambda x, z: ((x @ QT) * x).sum(1),  # terminal cost
    [torch.zeros(1) for _ in range(stages)],  # initial guess: one control per stage
    running_cost=lambda t, x, u, z: ((x @ Q) * x).sum(1) + u @ R @ u,
    kind=lambda t: "step",  # optional: all stages are one function, so solvers may treat them in one batch
)
carts = torch.tensor([1.0, 0.0]) + 0.3 * torch.randn(200, 2, generator=torch.Generator().manual_seed(0))

# %% [markdown]
# The problem is linear-quadratic, so Riccati's equation solves it exactly, and `mfoc.lq` has it.

# %%
exact = lq.LinearQuadratic.discrete(A, B, Q, R, QT, horizon=stages)
best = exact.open_loop(carts.mean(0))[:, 0]
best_value = float(exact.value(carts.mean(0), torch.cov(carts.mT, correction=0), shared=True))

# %% [markdown]
# ## Three solvers
#
# A solver is a way to use the Hamiltonian
#
# $$ H_t(x, p, u, z) = L_t(x, u, z) + \langle p, f_t(x, u, z) \rangle $$
#
# where $p$ is the gradient of the cost-to-go. `Gradient` hands the gradient of $H$ to any `torch.optim` optimiser, here
# L-BFGS. `MSA` freezes states and costates and minimises $H$ over $u$. `EMSA` does so with a penalty on leaving the
# frozen path. Only the second argument of `solve` changes.

# %%
lbfgs = mfoc.Gradient(
    partial(torch.optim.LBFGS, max_iter=5, tolerance_change=1e-15, line_search_fn="strong_wolfe"),
)
solvers = {"L-BFGS": lbfgs, "MSA": mfoc.MSA(), "E-MSA": mfoc.EMSA()}
solutions = {}
for name, solver in solvers.items():
    solution = solutions[name] = mfoc.solve(cart, solver, carts, steps=5 if SMOKE else 100, tol=1e-6)
    error = float((torch.cat(solution.controls) - best).abs().max())
    print(f"{name:6s} {solution.status.value:9s} step {solution.last.step:3d}   J {solution.value:.6f}", end="")
    print(f"   largest error of a control {error:.0e}")
print(f"exact                       J {best_value:.6f}")

# %%
figure, (left, right) = new_axes(10, 3.8, 2)
time = [0.1 * t for t in range(stages)]
left.plot(time, best, color=INK, linewidth=1.2, label="exact (Riccati)")
for (name, solution), size in zip(solutions.items(), (11, 7, 4), strict=True):  # nested, so that none is hidden
    left.plot(
        time, torch.cat(solution.controls), linestyle="", markersize=size, fillstyle="none", label=name, **look(name)
    )
    excess = [max(record["value"] - best_value, 1e-16) for record in solution.history]
    right.semilogy(excess, markersize=5, label=name, **look(name))
left.set(xlabel="time [s]", ylabel="force $u_t$", title="Three solvers, one answer")
right.set(xlabel="step of the solver", ylabel="$J - J^*$ (cut at rounding)", title="Distance from the optimum")
left.legend(frameon=False)
right.legend(frameon=False)
figure.savefig(FIGURES / "01_linear_quadratic.png")
figure

# %% [markdown]
# MSA is a fixed-point iteration. It converges here since a force is dear; nothing makes it do so in general: see the
# first exercise.
#
# ## Noise is data
#
# A particle in the double well $V(x) = (x^2 - 1)^2 / 4$ is pushed by a force $u(t)$ and shaken by noise:
#
# $$ dx = (-V'(x) + u(t)) \, dt + \sigma \, dW $$
#
# All start in the left well and are wanted at $x = 1$ at the end, for $5 (x_T - 1)^2$ and $u^2 / 2$ a unit of time.
# `mfoc.continuous` makes stages of a differential equation. Dynamics must be pure functions, so they draw no random
# numbers: the noise is part of a particle's data, and the scheme reads it from `z["noise"]`.

# %%
moments, end, sigma = 80, 4.0, 0.25


def start_left(number, seed):
    """A cloud in the left well, with the noise it will meet."""
    state = -1 + 0.1 * torch.randn(number, 1, generator=torch.Generator().manual_seed(seed))
    return mfoc.Particles(state, {"noise": mfoc.schemes.brownian(number, moments, 1, seed=seed + 1)})


well = mfoc.continuous(
    lambda t, x, u, z: x - x**3 + u,  # the drift: -V'(x) + u
    lambda x, z: 5 * (x[:, 0] - 1) ** 2,
    [torch.zeros(1) for _ in range(moments)],
    running_cost=lambda t, x, u, z: (u**2 / 2).expand(len(x)),  # a rate: the scheme integrates it over time
    T=end,
    scheme=mfoc.euler_maruyama(sigma),
)
number = 50 if SMOKE else 1000
crossing = mfoc.solve(well, lbfgs, start_left(number, seed=10), steps=2 if SMOKE else 20, tol=1e-5)
print(crossing.message)

# %% [markdown]
# The cloud it was solved on is a sample. What counts is the cost of particles that were never seen, with noise of their
# own.

# %%
fresh = start_left(number, seed=20)
views = {"No control": mfoc.rollout(well, well, fresh), "Optimal control": mfoc.rollout(well, crossing, fresh)}
figure, axes = new_axes(12, 3.8, 3)
time = torch.linspace(0, end, moments + 1)
for axis, (name, trajectory) in zip(axes, views.items(), strict=False):
    paths = torch.stack(trajectory.states)[:, :, 0]
    arrived = float((paths[-1] > 0).double().mean())
    print(f"{name:15s} J {float(trajectory.cost.mean()):6.3f}, {arrived:.1%} in the right well at the end")
    axis.plot(time, paths[:, :60], color=COLORS[0], linewidth=0.5, alpha=0.4)
    axis.plot([], [], color=COLORS[0], linewidth=0.8, label="60 particles")
    axis.plot(time, paths.mean(1), color=COLORS[1], linewidth=2.2, label="mean of all")
    axis.axhline(0, color=INK, linestyle=":", linewidth=1, label="top of the barrier")
    axis.set(ylim=(-1.9, 1.9), yticks=[-1, 0, 1], xlabel="time t", ylabel="position x", title=name)
axes[0].legend(frameon=False, loc="upper left")
axes[2].step(time[:-1], torch.cat(crossing.controls), where="post", color=COLORS[2], linewidth=2, label="force u(t)")
axes[2].axhline(2 / 27**0.5, color=INK, linestyle=":", linewidth=1, label="steepest slope, max V'")
axes[2].set(xlabel="time t", ylabel="force", title="The force, shared by all particles")
axes[2].legend(frameon=False)
figure.savefig(FIGURES / "01_double_well.png")
figure

# %% [markdown]
# The force rises above the steepest slope of the barrier until most particles are over. Then it lets go, and the well
# does the rest.
#
# ## Particles that see each other
#
# Dynamics receive the whole cloud, so they may use its law, by name: `mfoc.mean(x)` is the population's mean. A swarm
# in the plane sits in a flow that tears it apart along the diagonal. The control is a dictionary: a push common to all,
# and how strongly each is drawn to the mean $m$ of the swarm:
#
# $$ dx/dt = \mathrm{flow}(x) + \mathrm{push} + \mathrm{gather} \cdot (m - x) $$

# %%
steps, horizon, target, effort = 40, 2.0, torch.tensor([2.0, 1.0]), 1.0
swarm = mfoc.continuous(
    lambda t, x, u, z: 0.8 * x.flip(1) + u["push"] + u["gather"] * (mfoc.mean(x) - x),
    lambda x, z: 10 * (x - target).square().sum(1),
    [{"push": torch.zeros(2), "gather": torch.zeros(())} for _ in range(steps)],
    running_cost=lambda t, x, u, z: (u["push"].square().sum() / 2 + effort * u["gather"] ** 2 / 2).expand(len(x)),
    T=horizon,
    scheme=mfoc.rk4,
)
agents = torch.tensor([-1.5, 0.0]) + 0.4 * torch.randn(100, 2, generator=torch.Generator().manual_seed(1))
flown = mfoc.solve(swarm, lbfgs, agents, steps=1 if SMOKE else 30, tol=1e-4)
print(flown.message)

# %%
figure, axes = new_axes(12, 3.8, 3)
for axis, (name, controls) in zip(axes, {"No control": swarm, "Optimal control": flown}.items(), strict=False):
    paths = torch.stack(mfoc.rollout(swarm, controls, agents).states)
    spread = float((paths[-1] - paths[-1].mean(0)).square().sum(1).mean().sqrt())
    print(f"{name:15s} spread of the swarm at the end {spread:.2f}")
    axis.plot(paths[:, :, 0], paths[:, :, 1], color="#bbbbbb", linewidth=0.5)
    axis.plot(*paths[0].T, "o", color=COLORS[0], markersize=3, label="start")
    axis.plot(*paths[-1].T, "^", color=COLORS[1], markersize=3, label="end")
    axis.plot(*target, "*", color=INK, markersize=12, label="target")
    axis.set(xlim=(-8, 4), ylim=(-8, 2.5), aspect="equal", xlabel="first coordinate", ylabel="second coordinate")
    axis.set_title(f"{name}: spread at the end {spread:.2f}")
axes[0].legend(frameon=False, loc="lower right")
time = torch.arange(steps) * horizon / steps
push = torch.stack([u["push"] for u in flown.controls])
axes[2].step(time, push[:, 0], where="post", label="push, first coordinate", color=COLORS[2])
axes[2].step(time, push[:, 1], where="post", label="push, second coordinate", color=COLORS[4], linestyle="--")
axes[2].step(time, [u["gather"] for u in flown.controls], where="post", label="gather", color=COLORS[3], linewidth=2.5)
axes[2].set(xlabel="time t", ylabel="control", title="The control", box_aspect=10.5 / 12)
axes[2].legend(frameon=False)
figure.savefig(FIGURES / "01_swarm.png")
figure

# %% [markdown]
# ## Check the problem you wrote
#
# `testing.check_problem` runs the laws that solvers rely on: shapes, purity, that the order of particles does not
# matter, and the gradients against automatic differentiation. It is silent, or says which law is broken.

# %%
testing.check_problem(swarm, agents[:10], interacting=True)
testing.check_problem(well, start_left(10, seed=0), interacting=False)
forgetful = mfoc.Problem(
    lambda t, x, u, z: x + u + 0.1 * torch.randn_like(x),  # noise that is not in z
    swarm.terminal_cost,
    [torch.zeros(2)],
)
try:
    testing.check_problem(forgetful, agents[:10])
except mfoc.InvalidValue as error:
    print(f"refused: {error}")

# %% [markdown]
# ## What to change
#
# 1. **A cheap force.** Set `price = 0.1`. MSA now ends as "diverged"; L-BFGS and E-MSA still meet the exact J, 2.91.
#    Cheap controls make long steps, and MSA has nothing to hold them.
# 2. **More noise.** Set `sigma = 0.6`. Without control 14.9 % now cross the barrier by chance; with it 95.7 % arrive in
#    place of 98.6 %, at a J of 2.59. A force that depends on time alone cannot help those who lag behind.
# 3. **A dear gathering.** Set `effort = 10.0`. The swarm pulls itself together less: the spread at the end is 0.57 in
#    place of 0.23.
