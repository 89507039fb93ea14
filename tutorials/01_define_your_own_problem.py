# %% [markdown]
# # Define your own problem
#
# A problem here is a population of particles, a control that all of them share, and a cost:
#
#     minimise   J(u) = E [ sum_t L_t(x_t, u_t, z) + Phi(x_T, z) ]
#     subject to x_(t+1) = f_t(x_t, u_t, z),   t = 0..T-1
#
# The expectation is over the initial state x_0 and the data z of a particle. You write f, L and Phi as functions of the
# **whole cloud**: x has a leading axis N, and costs return one number per particle, `[N]`. Averaging is the
# library's business.
#
# Three problems follow: one with an exact answer, one with noise, and one whose particles see each other.

# %%
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure

import mfoc
from mfoc import lq, plot, testing

SMOKE = bool(os.environ.get("MFOC_SMOKE"))  # tiny budgets, to see that everything runs
FIGURES = Path(os.environ.get("MFOC_FIGURES", "figures"))
FIGURES.mkdir(parents=True, exist_ok=True)
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
generator = torch.Generator().manual_seed(0)


def panels(width, height, count):
    """A figure with a row of plain panels."""
    figure = Figure(figsize=(width, height), layout="constrained", dpi=120)
    axes = figure.subplots(1, count)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(True, axis="y", color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
    return figure, axes


# %% [markdown]
# ## 1. A linear-quadratic problem
#
# A cart with position and velocity, x = (q, v), pushed by a force u_t that may depend on time only: the same
# push for every particle of a cloud of initial states.

# %%
A, B = torch.tensor([[1.0, 0.1], [0.0, 1.0]]), torch.tensor([[0.0], [0.1]])
Q, R, QT = 0.1 * torch.eye(2), torch.eye(1), torch.eye(2)
stages = 20

problem = mfoc.Problem(
    lambda t, x, u, z: x @ A.mT + u @ B.mT,  # dynamics
    lambda x, z: ((x @ QT) * x).sum(1),  # terminal cost
    [torch.zeros(1) for _ in range(stages)],  # initial guess: one control per stage
    running_cost=lambda t, x, u, z: ((x @ Q) * x).sum(1) + u @ R @ u,
    kind=lambda t: "step",  # optional: every stage is the same function, so solvers may batch over stages
)
cloud = torch.tensor([1.0, 0.0]) + 0.3 * torch.randn(200, 2, generator=generator)

# %% [markdown]
# That is the whole problem. Its exact answer is a Riccati equation's, which `mfoc.lq` solves; since the control is
# shared, it is the optimal control of the cloud's mean, and the cloud's covariance only adds a constant to J.

# %%
exact = lq.LinearQuadratic.discrete(A, B, Q, R, QT, horizon=stages)
best_control = exact.open_loop(cloud.mean(0))[:, 0]
best_value = float(exact.value(cloud.mean(0), torch.cov(cloud.mT, correction=0), shared=True))

# %% [markdown]
# Solvers differ in how they use the Hamiltonian H_t(x, p, u, z) = L_t(x, u, z) + <p, f_t(x, u, z)>, where p is the
# gradient of the cost-to-go, p_T = dPhi/dx and p_t = dH_t/dx (x_t, p_(t+1), u_t).
#
# - `Gradient`: the gradient dJ/du_t = E dH_t/du, given to any `torch.optim` optimiser.
# - `MSA` (successive approximations): freeze states and costates, minimise E H_t over u_t at all stages, repeat.
# - `EMSA`: the same with a penalty on leaving the frozen states and costates.
#
# Only the second argument of `solve` changes.

# %%
lbfgs = partial(torch.optim.LBFGS, max_iter=5, tolerance_change=1e-15, line_search_fn="strong_wolfe")
solvers = {
    "Gradient(LBFGS)": mfoc.Gradient(lbfgs),
    "MSA": mfoc.MSA(),
    "EMSA": mfoc.EMSA(),
}
solutions = {
    name: mfoc.solve(problem, solver, cloud, steps=5 if SMOKE else 100, tol=1e-6) for name, solver in solvers.items()
}

print(f"exact: J* = {best_value:.10f}")
for name, solution in solutions.items():
    error = (torch.cat(solution.controls) - best_control).abs().max()
    print(
        f"{name:16s} {solution.status.value:10s} {solution.last.step:4d} steps   J - J* = "
        f"{solution.value - best_value:8.1e}   max |u - u*| = {float(error):.1e}"
    )

# %%
figure, (left, right) = panels(10, 3.8, 2)
time = [0.1 * t for t in range(stages)]
left.step(time, best_control, where="post", color="black", linewidth=1.5, label="exact (Riccati)")
for (name, solution), marker, color in zip(solutions.items(), "o+x", plot.COLORS, strict=False):
    shown = {"markersize": 7, "fillstyle": "none", "linestyle": ""}
    left.plot(time, torch.cat(solution.controls), marker, color=color, label=name, **shown)
    excess = [max(record["value"] - best_value, 1e-16) for record in solution.history]
    right.semilogy(range(len(excess)), excess, marker=marker, color=color, label=name, markersize=4)
left.set(xlabel="time", ylabel="control $u_t$ (force)", title="Three solvers, one answer")
right.set(xlabel="step of the solver", ylabel="$J - J^*$", title="Excess of the objective over the optimum")
left.legend(frameon=False)
right.legend(frameon=False)
figure.savefig(FIGURES / "01_linear_quadratic.png")
figure

# %% [markdown]
# MSA converges here because the control is dear (R = 1) and the horizon short. Its update is a fixed-point map, and
# nothing keeps it a contraction. With a control ten times cheaper the same call diverges; `EMSA` does not. (A problem
# is a frozen dataclass: `dataclasses.replace` makes a variant.)

# %%
cheap = replace(problem, running_cost=lambda t, x, u, z: ((x @ Q) * x).sum(1) + u @ R @ u / 10)
for name in ("MSA", "EMSA"):
    solution = mfoc.solve(cheap, solvers[name], cloud, steps=5 if SMOKE else 40)
    print(f"cheap control, {name:4s} after {solution.last.step} steps: J = {solution.value:.3g}")

# %% [markdown]
# ## 2. From one well to the other, with noise
#
# A particle in the double well V(x) = (x^2 - 1)^2 / 4 is pushed by a force u(t) and shaken by noise:
#
#     dx = (-V'(x) + u(t)) dt + sigma dW,      cost = integral of u^2 / 2 dt + 5 (x_T - 1)^2
#
# All particles start around the left well, x = -1, and are wanted in the right one, x = 1, at the end time T = 4.
# `mfoc.continuous` makes the discrete problem. Dynamics must be pure functions, so the noise is not drawn inside them:
# it is part of a particle's data, z["noise"], standard normals `[N, stages, 1]`, and `euler_maruyama` reads it there.

# %%
well_stages, end, sigma, number = 80, 4.0, 0.25, 50 if SMOKE else 1000


def start_left(number, seed):
    """A cloud in the left well, with the noise it will meet."""
    state = -1 + 0.1 * torch.randn(number, 1, generator=torch.Generator().manual_seed(seed))
    return mfoc.Particles(state, {"noise": mfoc.schemes.brownian(number, well_stages, 1, seed=seed + 1)})


well = mfoc.continuous(
    lambda t, x, u, z: x - x**3 + u,  # the drift: -V'(x) + u
    lambda x, z: 5 * (x[:, 0] - 1) ** 2,
    [torch.zeros(1) for _ in range(well_stages)],
    running_cost=lambda t, x, u, z: (u**2 / 2).expand(len(x)),  # a rate: the scheme integrates it over time
    T=end,
    scheme=mfoc.euler_maruyama(sigma),
)
train, fresh = start_left(number, 10), start_left(number, 20)
solution = mfoc.solve(well, solvers["Gradient(LBFGS)"], train, steps=2 if SMOKE else 20, tol=1e-5)
print(f"double well: {solution.message}; J {solution.history[0]['value']:.3f} -> {solution.value:.3f}")

# %% [markdown]
# The cloud it was solved on is a sample. What counts is J on particles that were never seen, with noise of their own.

# %%
before = mfoc.rollout(well, well.controls, fresh)
after = mfoc.rollout(well, solution.controls, fresh)


def arrived(trajectory):
    """The fraction of the particles on the right of the barrier at the end."""
    return float((trajectory.states[-1] > 0).double().mean())


print(f"fresh particles: J {float(before.cost.mean()):.3f} -> {float(after.cost.mean()):.3f}")
print(f"in the right well at T: {arrived(before):.1%} -> {arrived(after):.1%}")

# %%
figure, axes = panels(12, 3.8, 3)
time = torch.linspace(0, end, well_stages + 1)
for axis, trajectory, title in zip(axes, (before, after), ("No control", "Optimal control"), strict=False):
    paths = torch.stack(trajectory.states)[:, :, 0]
    axis.plot(time, paths[:, :60], color=plot.COLORS[0], linewidth=0.5, alpha=0.4)
    axis.plot([], [], color=plot.COLORS[0], linewidth=0.8, label="particles")
    axis.plot(time, paths.mean(1), color=plot.COLORS[1], linewidth=2.2, label="mean")
    axis.axhline(0, color="#666666", linestyle=":", linewidth=1)
    axis.annotate("barrier", (end, 0.03), ha="right", va="bottom", fontsize=8, color="#666666")
    axis.set(ylim=(-1.9, 1.9), yticks=[-1, 0, 1], xlabel="time t", ylabel="position x", title=title)
axes[0].legend(frameon=False, loc="upper left")
axes[2].step(time[:-1], torch.cat(solution.controls), where="post", color=plot.COLORS[2], linewidth=2, label="u(t)")
axes[2].axhline(2 / 27**0.5, color="#666666", linestyle=":", linewidth=1)
axes[2].annotate("steepest slope of the barrier, $\\max V'$", (0.45, 0.37), va="top", fontsize=8, color="#666666")
axes[2].set(xlabel="time t", ylabel="force u", title="The force, shared by all particles")
figure.savefig(FIGURES / "01_double_well.png")
figure

# %% [markdown]
# The force stays above the steepest slope of the barrier, max V' = 2 / sqrt(27), until most of the cloud is over, and
# then lets go: the well does the rest. A force that is a function of time alone cannot help the few that lag behind; a
# control may as well be the parameters of a feedback, such as {"push": ..., "gain": ...} with the force push - gain x.

# %% [markdown]
# ## 3. Particles that see each other
#
# Since f and L receive the whole cloud, they may use its law, by name: `mfoc.mean(x)` is the population's mean however
# many ranks share it. Here a swarm in the plane sits in a flow (y, x) that tears it apart along the diagonal. The
# control is a pytree: a push common to all, and how strongly each particle is drawn towards the mean m of the swarm:
#
#     dx/dt = flow(x) + push + gather (m - x),    m = mfoc.mean(x)
#
# It is to arrive at (2, 1), together: the terminal cost is 10 |x - target|^2, the running cost
# |push|^2 / 2 + gather^2 / 2.

# %%
stages, target = 40, torch.tensor([2.0, 1.0])


def flow_and_swarm(t, x, u, z):
    return 0.8 * x.flip(1) + u["push"] + u["gather"] * (mfoc.mean(x) - x)


swarm = mfoc.continuous(
    flow_and_swarm,
    lambda x, z: 10 * (x - target).square().sum(1),
    [{"push": torch.zeros(2), "gather": torch.zeros(())} for _ in range(stages)],
    running_cost=lambda t, x, u, z: (u["push"].square().sum() / 2 + u["gather"] ** 2 / 2).expand(len(x)),
    T=2.0,
    scheme=mfoc.rk4,
)
agents = torch.tensor([-1.5, 0.0]) + 0.4 * torch.randn(100, 2, generator=generator)
solution = mfoc.solve(swarm, solvers["Gradient(LBFGS)"], agents, steps=1 if SMOKE else 30, tol=1e-4)
print(f"swarm: {solution.message}; J {solution.history[0]['value']:.3f} -> {solution.value:.3f}")

# %%
figure, axes = panels(12, 3.8, 3)
views = {"No control": swarm.controls, "Optimal control": solution.controls}
for axis, (title, controls) in zip(axes, views.items(), strict=False):
    paths = torch.stack(mfoc.rollout(swarm, controls, mfoc.Particles(agents)).states)
    axis.plot(paths[:, :, 0], paths[:, :, 1], color="#bbbbbb", linewidth=0.5)
    for t, name, color in ((0, "start", plot.COLORS[0]), (-1, "end", plot.COLORS[1])):
        axis.scatter(paths[t, :, 0], paths[t, :, 1], s=10, color=color, label=name, zorder=3)
    axis.plot(*target.tolist(), "*", color="black", markersize=13, label="target", zorder=4)
    axis.set(xlabel="first coordinate", ylabel="second coordinate", title=title)
    spread = paths[-1].sub(paths[-1].mean(0)).square().sum(1).mean().sqrt()
    axis.text(0.03, 0.97, f"spread at the end {float(spread):.2f}", transform=axis.transAxes, va="top", fontsize=9)
axes[0].legend(frameon=False, loc="lower right")
time = torch.arange(stages) * 2.0 / stages
push = torch.stack([u["push"] for u in solution.controls])
axes[2].step(time, push[:, 0], where="post", label="push, first coordinate", color=plot.COLORS[2])
axes[2].step(time, push[:, 1], where="post", label="push, second coordinate", color=plot.COLORS[4])
axes[2].step(time, [u["gather"] for u in solution.controls], where="post", label="gather", color=plot.COLORS[3])
axes[2].set(xlabel="time t", ylabel="control", title="The control")
axes[2].legend(frameon=False)
figure.savefig(FIGURES / "01_swarm.png")
figure

# %% [markdown]
# ### What the costate is, when particles interact
#
# p_t(i) = N dJ/dx_t(i): how much the swarm's mean cost changes when particle i is moved at stage t and the stages after
# it are run again. Moving one particle moves the mean and so all the others; p counts that too. Check: move one
# particle by a small step in both directions, run the remaining stages, and take the difference quotient. For contrast,
# the costate of a selfish particle, which takes the path of the mean as given (detached from the graph).

# %%
trajectory = mfoc.rollout(swarm, solution.controls, mfoc.Particles(agents))
costates = mfoc.costates(swarm, solution.controls, trajectory, mfoc.Particles(agents))

selfish = mfoc.continuous(
    lambda t, x, u, z: 0.8 * x.flip(1) + u["push"] + u["gather"] * (mfoc.mean(x).detach() - x),
    swarm.terminal_cost,
    swarm.controls,
    T=2.0,
    scheme=mfoc.rk4,
)
alone = mfoc.costates(selfish, solution.controls, trajectory, mfoc.Particles(agents))


def cost_from(t, x):
    """The mean cost of the stages t..T-1 and the end, from the cloud x at stage t."""
    rest = mfoc.Problem(
        lambda s, x, u, z: swarm.dynamics(t + s, x, u, z),
        swarm.terminal_cost,
        solution.controls[t:],
        running_cost=lambda s, x, u, z: swarm.running_cost(t + s, x, u, z),
    )
    return float(mfoc.rollout(rest, rest.controls, mfoc.Particles(x)).cost.mean())


def show(vector):
    return f"({float(vector[0]):7.4f}, {float(vector[1]):7.4f})"


step, worst = 1e-5, 0.0
for t in (0, stages // 2, stages - 1):
    for i in (0, 1):
        slopes = torch.zeros(2)
        for k in range(2):
            nudge = torch.zeros_like(agents)
            nudge[i, k] = step
            x = trajectory.states[t]
            slopes[k] = len(agents) * (cost_from(t, x + nudge) - cost_from(t, x - nudge)) / (2 * step)
        worst = max(worst, float((slopes - costates[t][i]).abs().max()))
        print(
            f"stage {t:2d}, particle {i}: N dJ/dx = {show(slopes)}   p = {show(costates[t][i])}   "
            f"selfish p = {show(alone[t][i])}"
        )
print(f"largest difference between N dJ/dx and p: {worst:.1e}")

# %% [markdown]
# ## 4. Check the problem you wrote
#
# `testing.check_problem` runs the laws that solvers rely on: shapes at every stage, purity, invariance under a
# permutation of the particles, and in float64 the gradients of Pontryagin's principle against automatic
# differentiation. It returns nothing and raises when a law is broken, saying which.

# %%
testing.check_problem(swarm, mfoc.Particles(agents[:10]), interacting=True)
testing.check_problem(well, start_left(10, 0), interacting=False)
print("swarm and double well pass")

forgetful = mfoc.Problem(
    lambda t, x, u, z: x + u + 0.1 * torch.randn_like(x),  # noise that is not in z
    swarm.terminal_cost,
    [torch.zeros(2)],
)
try:
    testing.check_problem(forgetful, mfoc.Particles(agents[:10]))
except mfoc.InvalidValue as error:
    print(f"refused: {error}")
